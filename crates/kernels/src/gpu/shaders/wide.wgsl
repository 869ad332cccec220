// Thirty-two values of a row at a time, still scaled apart: w = q * scale + bias in two halves of sixteen, so that a
// dot is scale * sum(q x) + bias * sum(x), and sum(x) serves all rows.
struct Wide {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
    b0: vec4<f32>,
    b1: vec4<f32>,
    b2: vec4<f32>,
    b3: vec4<f32>,
    scale: vec2<f32>,
    bias: vec2<f32>,
}

// The activations that they meet, and the sum of each half.
struct Columns {
    a0: vec4<f32>,
    a1: vec4<f32>,
    a2: vec4<f32>,
    a3: vec4<f32>,
    b0: vec4<f32>,
    b1: vec4<f32>,
    b2: vec4<f32>,
    b3: vec4<f32>,
    sums: vec2<f32>,
}

// Half a starts at column k, half b `split` columns later.
fn columns(row: u32, k: u32, split: u32, cols: u32) -> Columns {
    let a = (row * cols + k) / 4u;
    let b = a + split / 4u;
    var c = Columns(x[a], x[a + 1u], x[a + 2u], x[a + 3u], x[b], x[b + 1u], x[b + 2u], x[b + 3u], vec2<f32>());
    let one = vec4<f32>(1.0);
    c.sums = vec2<f32>(dot(c.a0 + c.a1 + c.a2 + c.a3, one), dot(c.b0 + c.b1 + c.b2 + c.b3, one));
    return c;
}

fn dot32(w: Wide, x: Columns) -> f32 {
    let a = dot(w.a0, x.a0) + dot(w.a1, x.a1) + dot(w.a2, x.a2) + dot(w.a3, x.a3);
    let b = dot(w.b0, x.b0) + dot(w.b1, x.b1) + dot(w.b2, x.b2) + dot(w.b3, x.b3);
    return w.scale.x * a + w.scale.y * b + w.bias.x * x.sums.x + w.bias.y * x.sums.y;
}
