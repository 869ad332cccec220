// A weight that this pipeline goes without.
fn $W_step(
    sums: ptr<function, array<vec4<f32>, TOKENS>>,
    base: vec3<u32>,
    n: vec4<u32>,
    rows: ptr<function, array<u32, TOKENS>>,
    cols: u32,
    chunk: u32,
) {
}
