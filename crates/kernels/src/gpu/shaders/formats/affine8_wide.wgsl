struct $W_Raw {
    q0: vec4<u32>,
    q1: vec4<u32>,
    scale: f32,
    bias: f32,
}

fn $W_raw(base: vec3<u32>, n: u32, chunk: u32, cols: u32) -> $W_Raw {
    let value = n * cols + chunk * 32u;
    let group = value / $GROUPu * $SCALE_BYTESu;
    let word = base.x / 4u + value / 4u;
    return $W_Raw(
        $W_0_quad(word),
        $W_0_quad(word + 4u),
        $W_1_scale(base.y + group),
        $W_2_scale(base.z + group),
    );
}

// Signed, so the bias moves.
fn $W_wide(r: $W_Raw) -> Wide {
    let flip = vec4<u32>(0x80808080u);
    return Wide(r.q0 ^ flip, r.q1 ^ flip, vec2<f32>(r.scale), vec2<f32>(r.bias + 128.0 * r.scale));
}
