// Rows end anywhere: threads take one value at a time.

alias Values = f32;
const VALUES = 1u;

fn squared(v: Values) -> f32 {
    return v * v;
}

fn silu_of(z: Values) -> Values {
    return silu(z);
}
