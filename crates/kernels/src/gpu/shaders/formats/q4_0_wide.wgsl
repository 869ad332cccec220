struct $W_Raw {
    q: vec4<u32>,
    d: f32,
}

fn $W_wide(r: $W_Raw) -> Wide {
    return Wide(low_nibbles(r.q), high_nibbles(r.q), vec2<f32>(r.d), vec2<f32>(-8.0 * r.d));
}
