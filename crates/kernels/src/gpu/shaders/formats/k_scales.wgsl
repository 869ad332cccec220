// Scale and min of sub-block j of 8, six bits each, from the twelve bytes at `at`.
fn $W_scale_min(at: u32, j: u32) -> vec2<f32> {
    if j < 4u {
        return vec2<f32>(vec2<u32>($W_0_u8(at + j) & 63u, $W_0_u8(at + j + 4u) & 63u));
    }
    let low = $W_0_u8(at + j + 4u);
    let scale = (low & 15u) | (($W_0_u8(at + j - 4u) >> 6u) << 4u);
    let least = (low >> 4u) | (($W_0_u8(at + j) >> 6u) << 4u);
    return vec2<f32>(vec2<u32>(scale, least));
}

