// Activations for matrix instructions, as f16 and step by step: what the columns of a step of the weights meet
// lies together, row after row, [chunks, rows, 32]. Divided by 32, and the weights are multiplied by it, so that
// activations beyond two million overflow and no smaller ones.

struct Params {
    rows: u32,
    cols: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<XItem>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<u32>>;

// The activations that eight values of a step meet: `e` counts the eights of it.
fn met(row: u32, chunk: u32, e: u32) -> Eight {
    if SPLIT == ALTERNATE {
        let k = chunk * 32u + (e & 1u) * 16u;
        let a = x_eight(row, k, p.cols);
        let b = x_eight(row, k + 8u, p.cols);
        if e < 2u {
            return Eight(vec4<f32>(a.a.xz, a.b.xz), vec4<f32>(b.a.xz, b.b.xz));
        }
        return Eight(vec4<f32>(a.a.yw, a.b.yw), vec4<f32>(b.a.yw, b.b.yw));
    }
    let k = first_column(chunk, SPLIT) + (e & 1u) * 8u + (e >> 1u) * SPLIT;
    if k >= p.cols {
        return Eight(vec4<f32>(), vec4<f32>());
    }
    return x_eight(row, k, p.cols);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let i = folded(group) * THREADS + t;
    let step = i / 4u;
    let chunk = step / p.rows;
    if chunk * 32u >= p.cols {
        return;
    }
    let v = met(step % p.rows, chunk, i % 4u);
    let a = v.a / 32.0;
    let b = v.b / 32.0;
    out[i] = vec4<u32>(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
}
