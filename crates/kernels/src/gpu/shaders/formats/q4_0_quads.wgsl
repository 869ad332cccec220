// A block is eighteen bytes at an even address: two quads hold it. Loads of a thread cost more than moving words.
fn $W_raw(base: vec3<u32>, n: u32, chunk: u32, cols: u32) -> $W_Raw {
    let at = base.x + (n * (cols / 32u) + chunk) * 18u;
    let i = at / 16u * 4u;
    let a = $W_0_quad(i);
    let b = $W_0_quad(i + 4u);
    let by_two = (at & 8u) == 8u;
    let c = select(a, vec4<u32>(a.zw, b.xy), by_two);
    let d = select(b.xy, b.zw, by_two);
    let by_one = (at & 4u) == 4u;
    let first = select(c.x, c.y, by_one);
    let w = select(vec4<u32>(c.yzw, d.x), vec4<u32>(c.zw, d), by_one);
    if (at & 2u) == 2u {
        return $W_Raw(w, f16_value(first >> 16u));
    }
    let shifted = (vec4<u32>(first, w.xyz) >> vec4<u32>(16u)) | (w << vec4<u32>(16u));
    return $W_Raw(shifted, f16_value(first));
}
