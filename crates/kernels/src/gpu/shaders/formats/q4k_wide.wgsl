// Sixteen bytes of a block hold sixteen columns of one sub-block in their low halves, and of the next, thirty-two
// columns on, in their high halves.
struct $W_Raw {
    head: vec4<u32>,
    q: vec4<u32>,
    // First of the two sub-blocks.
    j: u32,
}

fn $W_raw(base: vec3<u32>, n: u32, chunk: u32, cols: u32) -> $W_Raw {
    let word = base.x / 4u + (n * (cols / 256u) + chunk / 8u) * 36u;
    let c = chunk & 7u;
    return $W_Raw($W_0_quad(word), $W_0_quad(word + 4u + c * 4u), c & 6u);
}

fn $W_wide(r: $W_Raw) -> Wide {
    let d = unpack2x16float(r.head.x);
    let both = (r.head.yzw >> vec3<u32>(8u * (r.j & 2u))) & vec3<u32>(0xffffu);
    var scales = both.x & 0x3f3fu;
    var mins = both.y & 0x3f3fu;
    if r.j >= 4u {
        scales = (both.z & 0x0f0fu) | ((both.x >> 2u) & 0x3030u);
        mins = ((both.z >> 4u) & 0x0f0fu) | ((both.y >> 2u) & 0x3030u);
    }
    return Wide(
        low_nibbles(r.q), high_nibbles(r.q),
        d.x * vec2<f32>(vec2<u32>(scales & 0xffu, scales >> 8u)),
        -d.y * vec2<f32>(vec2<u32>(mins & 0xffu, mins >> 8u)),
    );
}
