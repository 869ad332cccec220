// sum[row] += weights[p] * parts[p] for the outputs p of each entry, one after the other. The table has three words an entry
// (its row, its first output, how many follow each other from there), then the weights.

struct Params {
    table: u32,
    weights: u32,
    cols: u32,
    len: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> parts: array<f32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> sum: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let i = folded(group) * THREADS + t;
    if i >= p.len {
        return;
    }
    let entry = p.table + 3u * (i / p.cols);
    let col = i % p.cols;
    let at = table[entry] * p.cols + col;
    let first = table[entry + 1u];
    var value = sum[at];
    for (var c = first; c < first + table[entry + 2u]; c++) {
        value += bitcast<f32>(table[p.weights + c]) * parts[c * p.cols + col];
    }
    sum[at] = value;
}
