fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) / 32u * 34u;
    let d = f16_value($W_0_u16(at));
    let qs = at + 2u + (k & 31u);
    return Eight(
        d * vec4<f32>(unpack4xI8($W_0_u32(qs))),
        d * vec4<f32>(unpack4xI8($W_0_u32(qs + 4u))),
    );
}
