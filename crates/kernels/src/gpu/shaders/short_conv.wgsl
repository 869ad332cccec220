// Causal depthwise convolution and SiLU over consecutive rows; a thread a channel.

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

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let c = folded(group) * TEAM + t;
    if c >= p.channels {
        return;
    }
    // The inputs of the last KERNEL rows, oldest first.
    var seen: array<f32, KERNEL>;
    for (var i = 1u; i < KERNEL; i++) {
        seen[i] = state[(i - 1u) * p.channels + c];
    }
    for (var row = p.first_row; row < p.first_row + p.rows; row++) {
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
    for (var i = 1u; i < KERNEL; i++) {
        state[(i - 1u) * p.channels + c] = seen[i];
    }
}
