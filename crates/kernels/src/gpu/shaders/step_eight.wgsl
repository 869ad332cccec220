// Four rows of a weight times TOKENS rows of x over the eight columns of `chunk`.
fn $W_step(
    sums: ptr<function, array<vec4<f32>, TOKENS>>,
    base: vec3<u32>,
    n: vec4<u32>,
    rows: ptr<function, array<u32, TOKENS>>,
    cols: u32,
    chunk: u32,
) {
    let k = chunk * 8u;
    let w0 = kept($W_eight(base, n.x, k, cols), k, cols);
    let w1 = kept($W_eight(base, n.y, k, cols), k, cols);
    let w2 = kept($W_eight(base, n.z, k, cols), k, cols);
    let w3 = kept($W_eight(base, n.w, k, cols), k, cols);
    for (var i = 0u; i < TOKENS; i++) {
        let x = x_eight((*rows)[i], k, cols);
        (*sums)[i] += vec4<f32>(dot8(w0, x), dot8(w1, x), dot8(w2, x), dot8(w3, x));
    }
}
