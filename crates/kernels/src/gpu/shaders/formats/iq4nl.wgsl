fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let table = vec4<u32>(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
    let at = base.x + (n * cols + k) / 32u * 18u;
    let d = f16_value($W_0_u16(at));
    let qs = at + 2u + (k & 8u);
    let shift = (k & 16u) >> 2u;
    return Eight(
        d * table_values(table, unpack4xU8(($W_0_u32(qs) >> shift) & 0x0f0f0f0fu)),
        d * table_values(table, unpack4xU8(($W_0_u32(qs + 4u) >> shift) & 0x0f0f0f0fu)),
    );
}
