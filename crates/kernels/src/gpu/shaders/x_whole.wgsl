// Activations whose rows are a multiple of eight.

alias XItem = vec4<f32>;

fn x_eight(row: u32, k: u32, cols: u32) -> Eight {
    let at = (row * cols + k) / 4u;
    return Eight(x[at], x[at + 1u]);
}

fn kept(w: Eight, k: u32, cols: u32) -> Eight {
    return w;
}
