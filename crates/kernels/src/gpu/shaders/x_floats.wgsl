// Activations as they are.

struct Columns {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
    b0: vec4<f32>,
    b1: vec4<f32>,
    b2: vec4<f32>,
    b3: vec4<f32>,
    // Of each half.
    sums: vec2<f32>,
}

fn columns(row: u32, chunk: u32, split: u32, cols: u32) -> Columns {
    let a = (row * cols + first_column(chunk, split)) / 4u;
    let b = a + select(split / 4u, 4u, split == ALTERNATE);
    let p = array<vec4<f32>, 8>(x[a], x[a + 1u], x[a + 2u], x[a + 3u], x[b], x[b + 1u], x[b + 2u], x[b + 3u]);
    var c = Columns(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], vec2<f32>());
    if split == ALTERNATE {
        c = Columns(
            vec4<f32>(p[0].xz, p[1].xz), vec4<f32>(p[2].xz, p[3].xz),
            vec4<f32>(p[4].xz, p[5].xz), vec4<f32>(p[6].xz, p[7].xz),
            vec4<f32>(p[0].yw, p[1].yw), vec4<f32>(p[2].yw, p[3].yw),
            vec4<f32>(p[4].yw, p[5].yw), vec4<f32>(p[6].yw, p[7].yw),
            vec2<f32>(),
        );
    }
    let one = vec4<f32>(1.0);
    c.sums = vec2<f32>(dot(c.a0 + c.a1 + c.a2 + c.a3, one), dot(c.b0 + c.b1 + c.b2 + c.b3, one));
    return c;
}

fn floats(bytes: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(bytes));
}

fn dot32(w: Wide, x: Columns) -> f32 {
    let a = dot(floats(w.a.x), x.a0) + dot(floats(w.a.y), x.a1) + dot(floats(w.a.z), x.a2) + dot(floats(w.a.w), x.a3);
    let b = dot(floats(w.b.x), x.b0) + dot(floats(w.b.y), x.b1) + dot(floats(w.b.z), x.b2) + dot(floats(w.b.w), x.b3);
    return w.scale.x * a + w.scale.y * b + w.bias.x * x.sums.x + w.bias.y * x.sums.y;
}
