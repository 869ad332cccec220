fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let table = vec4<u32>(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
    let at = base.x + (n * cols + k) / 256u * 136u;
    let i = k & 255u;
    let j = i / 32u;
    let high = ($W_0_u16(at + 2u) >> (2u * j)) & 3u;
    let low = ($W_0_u8(at + 4u + j / 2u) >> (4u * (j & 1u))) & 15u;
    let scale = f16_value($W_0_u16(at)) * (f32(low | (high << 4u)) - 32.0);
    let qs = at + 8u + j * 16u + (i & 8u);
    let shift = (i & 16u) >> 2u;
    return Eight(
        scale * table_values(table, unpack4xU8(($W_0_u32(qs) >> shift) & 0x0f0f0f0fu)),
        scale * table_values(table, unpack4xU8(($W_0_u32(qs + 4u) >> shift) & 0x0f0f0f0fu)),
    );
}
