// Rows are a multiple of four values: threads take four at a time.

alias Values = vec4<f32>;
const VALUES = 4u;

fn squared(v: Values) -> f32 {
    return dot(v, v);
}

fn silu_of(z: Values) -> Values {
    return z / (Values(1.0) + exp(-z));
}
