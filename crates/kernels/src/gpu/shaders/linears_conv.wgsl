// `linears` of one row, and `short_conv` of the first product: who has its sum for a channel has that channel's last input.

@group(0) @binding(5) var<storage, read> conv_weight: array<f32>;
@group(0) @binding(6) var<storage, read_write> conv_state: array<f32>;

// The inputs of the last KERNEL rows, oldest first, and their weights.
var<private> seen: array<f32, KERNEL>;
var<private> weights: array<f32, KERNEL>;

// Loads while the weights of the product are on their way.
fn before_first(c: u32) {
    for (var i = 0u; i < KERNEL; i++) {
        weights[i] = conv_weight[c * KERNEL + i];
    }
    for (var i = 1u; i < KERNEL; i++) {
        seen[i - 1u] = conv_state[(p.slot * (KERNEL - 1u) + i - 1u) * p.w_0.w + c];
    }
}

fn put_first(c: u32, value: f32) {
    seen[KERNEL - 1u] = value;
    var sum = 0.0;
    for (var i = 0u; i < KERNEL; i++) {
        sum += weights[i] * seen[i];
    }
    out_0[c] = silu(sum);
    for (var i = 1u; i < KERNEL; i++) {
        conv_state[(p.slot * (KERNEL - 1u) + i - 1u) * p.w_0.w + c] = seen[i];
    }
}
