// Four rows of a weight times TOKENS rows of x over the thirty-two columns of `chunk`: all loads of weights first, so that
// many are on their way at once.
fn $W_step(
    sums: ptr<function, array<vec4<f32>, TOKENS>>,
    base: vec3<u32>,
    n: vec4<u32>,
    rows: ptr<function, array<u32, TOKENS>>,
    cols: u32,
    chunk: u32,
) {
    let r0 = $W_raw(base, n.x, chunk, cols);
    let r1 = $W_raw(base, n.y, chunk, cols);
    let r2 = $W_raw(base, n.z, chunk, cols);
    let r3 = $W_raw(base, n.w, chunk, cols);
    for (var i = 0u; i < TOKENS; i++) {
        let c = columns((*rows)[i], chunk, $W_SPLIT, cols);
        (*sums)[i] += vec4<f32>(
            dot32($W_wide(r0), c), dot32($W_wide(r1), c), dot32($W_wide(r2), c), dot32($W_wide(r3), c),
        );
    }
}
