// Activations as integers: thirty-two share a scale, a power of two, the largest of them is 16256 to 32512, and each is
// 256 high + low with two signed bytes, so that an instruction multiplies and adds four.

struct Columns {
    high_a: vec4<u32>,
    high_b: vec4<u32>,
    low_a: vec4<u32>,
    low_b: vec4<u32>,
    scale: f32,
    // Of each half.
    sums: vec2<f32>,
}

fn dot16(w: vec4<u32>, x: vec4<u32>) -> i32 {
    return dot4I8Packed(w.x, x.x) + dot4I8Packed(w.y, x.y) + dot4I8Packed(w.z, x.z) + dot4I8Packed(w.w, x.w);
}
