fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) * 2u;
    return Eight(
        vec4<f32>(unpack2x16float($W_0_u32(at)), unpack2x16float($W_0_u32(at + 4u))),
        vec4<f32>(unpack2x16float($W_0_u32(at + 8u)), unpack2x16float($W_0_u32(at + 12u))),
    );
}
