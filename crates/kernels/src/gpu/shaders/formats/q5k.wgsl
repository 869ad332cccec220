fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) / 256u * 176u;
    let i = k & 255u;
    let sub = $W_scale_min(at + 4u, i / 32u);
    let scale = f16_value($W_0_u16(at)) * sub.x;
    let least = f16_value($W_0_u16(at + 2u)) * sub.y;
    let qh = at + 16u + (i & 31u);
    let flag = i >> 5u;
    let qs = at + 48u + i / 64u * 32u + (i & 31u);
    let shift = (i & 32u) >> 3u;
    return Eight(
        scale * (masked_bytes($W_0_u32(qs), shift, 0x0f0f0f0fu)
            + 16.0 * masked_bytes($W_0_u32(qh), flag, 0x01010101u)) - least,
        scale * (masked_bytes($W_0_u32(qs + 4u), shift, 0x0f0f0f0fu)
            + 16.0 * masked_bytes($W_0_u32(qh + 4u), flag, 0x01010101u)) - least,
    );
}
