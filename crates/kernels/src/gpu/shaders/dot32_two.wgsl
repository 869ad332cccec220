
// Of a weight with two scales a step.
fn dot32(w: Wide, x: Columns) -> f32 {
    let a = f32(256 * dot16(w.a, x.high_a) + dot16(w.a, x.low_a));
    let b = f32(256 * dot16(w.b, x.high_b) + dot16(w.b, x.low_b));
    return x.scale * (w.scale.x * a + w.scale.y * b) + w.bias.x * x.sums.x + w.bias.y * x.sums.y;
}
