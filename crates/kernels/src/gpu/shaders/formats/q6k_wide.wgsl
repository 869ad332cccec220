// Sixteen bytes of a block's low bits hold sixteen columns in their low halves, and those sixty-four columns on in their
// high halves; two more bits of each are in sixteen bytes that serve two such steps.
struct $W_Raw {
    low: vec4<u32>,
    high: vec4<u32>,
    scales: vec2<f32>,
}

// Sixteen bytes from the third or the first byte of five words on.
fn $W_sixteen(i: u32, from_third: bool) -> vec4<u32> {
    let first = vec4<u32>($W_0_word(i), $W_0_word(i + 1u), $W_0_word(i + 2u), $W_0_word(i + 3u));
    let next = vec4<u32>(first.yzw, $W_0_word(i + 4u));
    let half = vec4<u32>(16u);
    return select(first, (first >> half) | (next << half), from_third);
}

// A block is two hundred and ten bytes at an even address.
fn $W_raw(base: vec3<u32>, n: u32, chunk: u32, cols: u32) -> $W_Raw {
    let at = base.x + (n * (cols / 256u) + chunk / 8u) * 210u;
    let half = (chunk >> 2u) & 1u;
    let run = chunk & 3u;
    let third = (at & 2u) == 2u;
    let low = $W_sixteen(at / 4u + half * 16u + run * 4u, third);
    let high = $W_sixteen(at / 4u + 32u + half * 8u + (run & 1u) * 4u, third);
    let d = f16_value($W_0_u16(at + 208u));
    let scale = at + 192u + half * 8u + run;
    let scales = vec2<i32>(unpack4xI8($W_0_u8(scale) | ($W_0_u8(scale + 4u) << 8u)).xy);
    return $W_Raw(low, high >> vec4<u32>((run >> 1u) * 2u), d * vec2<f32>(scales));
}

fn $W_wide(r: $W_Raw) -> Wide {
    let two = vec4<u32>(0x30303030u);
    return Wide(
        low_nibbles(r.low) | ((r.high << vec4<u32>(4u)) & two), high_nibbles(r.low) | (r.high & two),
        r.scales, -32.0 * r.scales,
    );
}
