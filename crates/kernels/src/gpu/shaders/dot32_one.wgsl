
// Of a weight with one scale for a step: one conversion to a float.
fn dot32(w: Wide, x: Columns) -> f32 {
    let high = dot16(w.a, x.high_a) + dot16(w.b, x.high_b);
    let low = dot16(w.a, x.low_a) + dot16(w.b, x.low_b);
    return x.scale * (w.scale.x * f32(256 * high + low)) + w.bias.x * (x.sums.x + x.sums.y);
}
