// Makes the integers of `x_integers.wgsl`; eight neighbours a step of them, each a word of four.

// Added to a float below 2^22, it leaves the nearest integer in the low bits.
const X_ROUND = 0x4b400000u;
const X_ROUND_FOUR_TIMES = 0x2d000000u;

struct Word {
    high: u32,
    low: u32,
    // Of the whole step.
    scale: f32,
    // Of the activations of this half.
    sum: f32,
}

// The four columns that word `w` of a step's eight meets.
fn x_word(row: u32, chunk: u32, w: u32, cols: u32) -> vec4<f32> {
    let first = (row * cols + first_column(chunk, SPLIT)) / 4u;
    if SPLIT == ALTERNATE {
        let p = x[first + (w & 3u) * 2u];
        let q = x[first + (w & 3u) * 2u + 1u];
        return select(vec4<f32>(p.xz, q.xz), vec4<f32>(p.yw, q.yw), w >= 4u);
    }
    return x[first + (w & 3u) + (w >> 2u) * (SPLIT / 4u)];
}

fn integers(v: vec4<f32>, at: u32) -> Word {
    // By bits, since a compiler may assume that a float is a number: what is none makes the scale NaN.
    let m = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    let most = eights_max(max(max(m.x, m.y), max(m.z, m.w)), at);
    // A power of two, so that nothing but q is rounded, whatever a compiler makes of it. The largest has 14 bits after its
    // first, or 13 where rounding would not leave room for it. Next to nothing is nothing.
    let exponent = (most + (0x800000u - 0x7e0000u)) >> 23u;
    var scale = 0.0;
    var inverse = 0.0;
    if most >= 0x7f800000u {
        scale = bitcast<f32>(0x7fc00000u);
    } else if exponent > 14u {
        scale = bitcast<f32>((exponent - 14u) << 23u);
        inverse = bitcast<f32>((268u - exponent) << 23u);
    }
    let q = bitcast<vec4<u32>>(v * inverse + vec4<f32>(bitcast<f32>(X_ROUND)));
    let sum = fours_sum(bitcast<i32>(q.x + q.y + q.z + q.w - X_ROUND_FOUR_TIMES), at);
    return Word(pack4xU8((q + vec4<u32>(128u)) >> vec4<u32>(8u)), pack4xU8(q), scale, scale * f32(sum));
}
