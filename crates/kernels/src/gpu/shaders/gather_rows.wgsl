// out[i] = x[table[i]]

struct Params {
    table: u32,
    cols: u32,
    len: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let i = folded(group) * THREADS + t;
    if i < p.len {
        out[i] = x[table[p.table + i / p.cols] * p.cols + i % p.cols];
    }
}
