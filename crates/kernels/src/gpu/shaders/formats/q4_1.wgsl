fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) / 32u * 20u;
    let d = f16_value($W_0_u16(at));
    let m = f16_value($W_0_u16(at + 2u));
    let qs = at + 4u + (k & 8u);
    let shift = (k & 16u) >> 2u;
    return Eight(
        d * masked_bytes($W_0_u32(qs), shift, 0x0f0f0f0fu) + m,
        d * masked_bytes($W_0_u32(qs + 4u), shift, 0x0f0f0f0fu) + m,
    );
}
