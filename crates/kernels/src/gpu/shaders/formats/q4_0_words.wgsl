// A block is eighteen bytes at an even address: five words hold it, at one of two shifts.
fn $W_raw(base: vec3<u32>, n: u32, chunk: u32, cols: u32) -> $W_Raw {
    let at = base.x + (n * (cols / 32u) + chunk) * 18u;
    let i = at / 4u;
    let first = $W_0_word(i);
    let w = vec4<u32>($W_0_word(i + 1u), $W_0_word(i + 2u), $W_0_word(i + 3u), $W_0_word(i + 4u));
    if (at & 2u) == 2u {
        return $W_Raw(w, f16_value(first >> 16u));
    }
    let shifted = (vec4<u32>(first, w.xyz) >> vec4<u32>(16u)) | (w << vec4<u32>(16u));
    return $W_Raw(shifted, f16_value(first));
}
