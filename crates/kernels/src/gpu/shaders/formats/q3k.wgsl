fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) / 256u * 110u;
    let i = k & 255u;
    let j = i / 16u;
    let low = ($W_0_u8(at + 96u + (j & 7u)) >> (4u * (j >> 3u))) & 15u;
    let high = ($W_0_u8(at + 104u + (j & 3u)) >> (2u * (j >> 2u))) & 3u;
    let scale = f16_value($W_0_u16(at + 108u)) * (f32(low | (high << 4u)) - 32.0);
    let qs = at + 32u + i / 128u * 32u + (i & 31u);
    let shift = ((i >> 5u) & 3u) * 2u;
    let hmask = at + (i & 31u);
    let flag = i >> 5u;
    return Eight(
        scale * (masked_bytes($W_0_u32(qs), shift, 0x03030303u)
            + 4.0 * masked_bytes($W_0_u32(hmask), flag, 0x01010101u) - 4.0),
        scale * (masked_bytes($W_0_u32(qs + 4u), shift, 0x03030303u)
            + 4.0 * masked_bytes($W_0_u32(hmask + 4u), flag, 0x01010101u) - 4.0),
    );
}
