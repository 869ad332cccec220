struct $W_Raw {
    q0: vec4<u32>,
    q1: vec4<u32>,
    d: f32,
}

// A block is thirty-four bytes at an even address: nine words hold it, at one of two shifts.
fn $W_raw(base: vec3<u32>, n: u32, chunk: u32, cols: u32) -> $W_Raw {
    let at = base.x + (n * (cols / 32u) + chunk) * 34u;
    let i = at / 4u;
    let first = $W_0_word(i);
    let w0 = vec4<u32>($W_0_word(i + 1u), $W_0_word(i + 2u), $W_0_word(i + 3u), $W_0_word(i + 4u));
    let w1 = vec4<u32>($W_0_word(i + 5u), $W_0_word(i + 6u), $W_0_word(i + 7u), $W_0_word(i + 8u));
    if (at & 2u) == 2u {
        return $W_Raw(w0, w1, f16_value(first >> 16u));
    }
    let half = vec4<u32>(16u);
    let q0 = (vec4<u32>(first, w0.xyz) >> half) | (w0 << half);
    let q1 = (vec4<u32>(w0.w, w1.xyz) >> half) | (w1 << half);
    return $W_Raw(q0, q1, f16_value(first));
}

fn $W_wide(r: $W_Raw) -> Wide {
    return Wide(r.q0, r.q1, vec2<f32>(r.d), vec2<f32>(0.0));
}
