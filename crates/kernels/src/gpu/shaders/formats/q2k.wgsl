fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) / 256u * 84u;
    let i = k & 255u;
    let both = $W_0_u8(at + i / 16u);
    let scale = f16_value($W_0_u16(at + 80u)) * f32(both & 15u);
    let least = f16_value($W_0_u16(at + 82u)) * f32(both >> 4u);
    let qs = at + 16u + i / 128u * 32u + (i & 31u);
    let shift = ((i >> 5u) & 3u) * 2u;
    return Eight(
        scale * masked_bytes($W_0_u32(qs), shift, 0x03030303u) - least,
        scale * masked_bytes($W_0_u32(qs + 4u), shift, 0x03030303u) - least,
    );
}
