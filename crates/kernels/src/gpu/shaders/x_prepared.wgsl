// Activations that `integers.wgsl` has prepared.

alias XItem = vec4<u32>;

fn columns(row: u32, chunk: u32, split: u32, cols: u32) -> Columns {
    let chunks = cols / 32u;
    let at = row * 5u * chunks + chunk;
    let scales = bitcast<vec4<f32>>(x[at + 4u * chunks]);
    return Columns(x[at], x[at + chunks], x[at + 2u * chunks], x[at + 3u * chunks], scales.x, scales.yz);
}
