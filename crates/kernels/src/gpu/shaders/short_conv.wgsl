// Causal depthwise convolution and SiLU over the rows of segments; a thread takes SPAN rows of a channel.

struct Params {
    segments: vec4<u32>,
    channels: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> state: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read> table: array<u32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let c = group.x * THREADS + t;
    let own = segment_of(group.z);
    let start = group.y * SPAN;
    // Other segments have more spans.
    if c >= p.channels || start >= own.rows {
        return;
    }
    let state_at = own.slot * (KERNEL - 1u) * p.channels + c;
    // The inputs of the last KERNEL rows, oldest first. Before the first row they are the state's, which only the first
    // span touches.
    var seen: array<f32, KERNEL>;
    for (var i = 1u; i < KERNEL; i++) {
        if start == 0u {
            seen[i] = state[state_at + (i - 1u) * p.channels];
        } else {
            seen[i] = x[(own.first_row + start + i - KERNEL) * p.channels + c];
        }
    }
    let end = own.first_row + min(start + SPAN, own.rows);
    for (var row = own.first_row + start; row < end; row++) {
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
        if own.rows > SPAN {
            seen[i] = x[(own.first_row + own.rows + i - KERNEL) * p.channels + c];
        }
        state[state_at + (i - 1u) * p.channels] = seen[i];
    }
}
