// out[r] = w[table[r]], decoded; a thread takes eight values.

struct Params {
    base_0: u32,
    base_1: u32,
    base_2: u32,
    table: u32,
    cols: u32,
    eights: u32,
    rows: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> table: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let item = folded(group) * THREADS + t;
    let row = item / p.eights;
    if row >= p.rows {
        return;
    }
    let k = item % p.eights * 8u;
    let id = table[p.table + row];
    let values = w_eight(vec3<u32>(p.base_0, p.base_1, p.base_2), id, k, p.cols);
    for (var i = 0u; i < min(8u, p.cols - k); i++) {
        if i < 4u {
            out[row * p.cols + k + i] = values.a[i];
        } else {
            out[row * p.cols + k + i] = values.b[i - 4u];
        }
    }
}
