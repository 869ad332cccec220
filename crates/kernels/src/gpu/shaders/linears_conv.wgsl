// `linears` of a row of each sequence, and `short_conv` of the first product: who has its sum for a channel has that channel's
// last input.

@group(0) @binding(5) var<storage, read> conv_weight: array<f32>;
@group(0) @binding(6) var<storage, read_write> conv_state: array<f32>;
@group(0) @binding(7) var<storage, read> table: array<u32>;

// The inputs of the last KERNEL rows, oldest first, and their weights.
var<private> seen: array<f32, KERNEL>;
var<private> weights: array<f32, KERNEL>;

// Where the oldest input of a row's state is.
fn oldest(row: u32, c: u32) -> u32 {
    return segment_of(row).slot * (KERNEL - 1u) * p.w_0.w + c;
}

fn look_back(row: u32, c: u32) {
    for (var i = 0u; i < KERNEL; i++) {
        weights[i] = conv_weight[c * KERNEL + i];
    }
    let at = oldest(row, c);
    for (var i = 1u; i < KERNEL; i++) {
        seen[i - 1u] = conv_state[at + (i - 1u) * p.w_0.w];
    }
}

// Loads while the weights of the product are on their way. Of several rows a thread may have several channels.
fn before_first(row: u32, c: u32) {
    if TOKENS == 1u {
        look_back(row, c);
    }
}

fn put_first(row: u32, c: u32, value: f32) {
    if TOKENS > 1u {
        look_back(row, c);
    }
    seen[KERNEL - 1u] = value;
    var sum = 0.0;
    for (var i = 0u; i < KERNEL; i++) {
        sum += weights[i] * seen[i];
    }
    out_0[row * p.w_0.w + c] = silu(sum);
    let at = oldest(row, c);
    for (var i = 1u; i < KERNEL; i++) {
        conv_state[at + (i - 1u) * p.w_0.w] = seen[i];
    }
}
