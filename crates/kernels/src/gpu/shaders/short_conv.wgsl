// Causal depthwise convolution and SiLU over consecutive rows; a thread takes SPAN rows of a channel.

struct Params {
    channels: u32,
    first_row: u32,
    rows: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> state: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let c = group.x * THREADS + t;
    if c >= p.channels {
        return;
    }
    let start = group.y * SPAN;
    // The inputs of the last KERNEL rows, oldest first. Before the first row they are the state's, which only the first
    // span touches.
    var seen: array<f32, KERNEL>;
    for (var i = 1u; i < KERNEL; i++) {
        if start == 0u {
            seen[i] = state[(i - 1u) * p.channels + c];
        } else {
            seen[i] = x[(p.first_row + start + i - KERNEL) * p.channels + c];
        }
    }
    for (var row = p.first_row + start; row < p.first_row + min(start + SPAN, p.rows); row++) {
        for (var i = 1u; i < KERNEL; i++) {
            seen[i - 1u] = seen[i];
        }
        seen[KERNEL - 1u] = x[row * p.channels + c];
        var sum = 0.0;
        for (var i = 0u; i < KERNEL; i++) {
            sum += weight[c * KERNEL + i] * seen[i];
        }
        out[row * p.channels + c] = silu(sum);
    }
    if start > 0u {
        return;
    }
    for (var i = 1u; i < KERNEL; i++) {
        if p.rows > SPAN {
            seen[i] = x[(p.first_row + p.rows + i - KERNEL) * p.channels + c];
        }
        state[(i - 1u) * p.channels + c] = seen[i];
    }
}
