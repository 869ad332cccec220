fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) * 4u;
    return Eight(
        bitcast<vec4<f32>>(vec4<u32>($W_0_u32(at), $W_0_u32(at + 4u), $W_0_u32(at + 8u), $W_0_u32(at + 12u))),
        bitcast<vec4<f32>>(vec4<u32>($W_0_u32(at + 16u), $W_0_u32(at + 20u), $W_0_u32(at + 24u), $W_0_u32(at + 28u))),
    );
}
