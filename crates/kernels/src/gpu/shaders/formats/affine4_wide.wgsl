const $W_SPLIT = 16u;

struct $W_Raw {
    q: vec4<u32>,
    scale: f32,
    bias: f32,
}

fn $W_first(chunk: u32) -> u32 {
    return chunk * 32u;
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
    let even = r.q & vec4<u32>(0x0f0f0f0fu);
    let odd = (r.q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    let e0 = vec4<f32>(unpack4xU8(even.x));
    let o0 = vec4<f32>(unpack4xU8(odd.x));
    let e1 = vec4<f32>(unpack4xU8(even.y));
    let o1 = vec4<f32>(unpack4xU8(odd.y));
    let e2 = vec4<f32>(unpack4xU8(even.z));
    let o2 = vec4<f32>(unpack4xU8(odd.z));
    let e3 = vec4<f32>(unpack4xU8(even.w));
    let o3 = vec4<f32>(unpack4xU8(odd.w));
    return Wide(
        vec4<f32>(e0.x, o0.x, e0.y, o0.y), vec4<f32>(e0.z, o0.z, e0.w, o0.w),
        vec4<f32>(e1.x, o1.x, e1.y, o1.y), vec4<f32>(e1.z, o1.z, e1.w, o1.w),
        vec4<f32>(e2.x, o2.x, e2.y, o2.y), vec4<f32>(e2.z, o2.z, e2.w, o2.w),
        vec4<f32>(e3.x, o3.x, e3.y, o3.y), vec4<f32>(e3.z, o3.z, e3.w, o3.w),
        vec2<f32>(r.scale), vec2<f32>(r.bias),
    );
}
