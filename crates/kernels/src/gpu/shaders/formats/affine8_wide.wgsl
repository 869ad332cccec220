const $W_SPLIT = 16u;

struct $W_Raw {
    q0: vec4<u32>,
    q1: vec4<u32>,
    scale: f32,
    bias: f32,
}

fn $W_first(chunk: u32) -> u32 {
    return chunk * 32u;
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

fn $W_wide(r: $W_Raw) -> Wide {
    return Wide(
        vec4<f32>(unpack4xU8(r.q0.x)), vec4<f32>(unpack4xU8(r.q0.y)),
        vec4<f32>(unpack4xU8(r.q0.z)), vec4<f32>(unpack4xU8(r.q0.w)),
        vec4<f32>(unpack4xU8(r.q1.x)), vec4<f32>(unpack4xU8(r.q1.y)),
        vec4<f32>(unpack4xU8(r.q1.z)), vec4<f32>(unpack4xU8(r.q1.w)),
        vec2<f32>(r.scale), vec2<f32>(r.bias),
    );
}
