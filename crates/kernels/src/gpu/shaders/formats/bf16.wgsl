fn $W_pair(at: u32) -> vec2<f32> {
    let word = $W_0_u32(at);
    return bitcast<vec2<f32>>(vec2<u32>(word << 16u, word & 0xffff0000u));
}

fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let at = base.x + (n * cols + k) * 2u;
    return Eight(
        vec4<f32>($W_pair(at), $W_pair(at + 4u)),
        vec4<f32>($W_pair(at + 8u), $W_pair(at + 12u)),
    );
}
