fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    // The E2M1 values doubled, so the power of two is halved.
    let table = vec4<u32>(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
    let at = base.x + (n * cols + k) / 32u * 17u;
    let e = $W_0_u8(at);
    let d = bitcast<f32>(select((e - 1u) << 23u, 0x00200000u << e, e < 2u));
    let qs = at + 1u + (k & 8u);
    let shift = (k & 16u) >> 2u;
    return Eight(
        d * table_values(table, unpack4xU8(($W_0_u32(qs) >> shift) & 0x0f0f0f0fu)),
        d * table_values(table, unpack4xU8(($W_0_u32(qs + 4u) >> shift) & 0x0f0f0f0fu)),
    );
}
