// out[r] = sigmoid(gate[r]) * shared[r] + sum_c weights[r, c] * parts[r * top_k + c], in this order.

struct Params {
    top_k: u32,
    cols: u32,
    len: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> parts: array<f32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> shared_output: array<f32>;
@group(0) @binding(3) var<storage, read> shared_gate: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let i = folded(group) * THREADS + t;
    if i >= p.len {
        return;
    }
    let row = i / p.cols;
    let col = i % p.cols;
    var sum = 0.0;
    if SHARED == 1u {
        sum = sigmoid(shared_gate[row]) * shared_output[i];
    }
    for (var c = row * p.top_k; c < (row + 1u) * p.top_k; c++) {
        sum += weights[c] * parts[c * p.cols + col];
    }
    out[i] = sum;
}
