struct $W_Raw {
    q: vec4<u32>,
    scale: f32,
    bias: f32,
}

fn $W_raw(base: vec3<u32>, n: u32, chunk: u32, cols: u32) -> $W_Raw {
    let value = n * cols + chunk * 32u;
    let group = value / $GROUPu * $SCALE_BYTESu;
    return $W_Raw(
        $W_0_quad(base.x / 4u + value / 8u),
        $W_1_scale(base.y + group),
        $W_2_scale(base.z + group),
    );
}

fn $W_wide(r: $W_Raw) -> Wide {
    return Wide(low_nibbles(r.q), high_nibbles(r.q), vec2<f32>(r.scale), vec2<f32>(r.bias));
}
