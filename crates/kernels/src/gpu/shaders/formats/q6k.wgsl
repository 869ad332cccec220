fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) / 256u * 210u;
    let i = k & 255u;
    let sub = bitcast<i32>($W_0_u8(at + 192u + i / 16u) << 24u) >> 24u;
    let scale = f16_value($W_0_u16(at + 208u)) * f32(sub);
    let ql = at + i / 128u * 64u + (i & 63u);
    let low = (i & 64u) >> 4u;
    let qh = at + 128u + i / 128u * 32u + (i & 31u);
    let high = ((i >> 5u) & 3u) * 2u;
    return Eight(
        scale * (masked_bytes($W_0_u32(ql), low, 0x0f0f0f0fu)
            + 16.0 * masked_bytes($W_0_u32(qh), high, 0x03030303u) - 32.0),
        scale * (masked_bytes($W_0_u32(ql + 4u), low, 0x0f0f0f0fu)
            + 16.0 * masked_bytes($W_0_u32(qh + 4u), high, 0x03030303u) - 32.0),
    );
}
