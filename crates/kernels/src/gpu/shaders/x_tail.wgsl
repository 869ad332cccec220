// Activations whose rows end anywhere. Weights beyond the end are another row's, or no numbers at all.

alias XItem = f32;

fn x_at(row: u32, k: u32, cols: u32) -> f32 {
    if k < cols {
        return x[row * cols + k];
    }
    return 0.0;
}

fn x_eight(row: u32, k: u32, cols: u32) -> Eight {
    return Eight(
        vec4<f32>(x_at(row, k, cols), x_at(row, k + 1u, cols), x_at(row, k + 2u, cols), x_at(row, k + 3u, cols)),
        vec4<f32>(x_at(row, k + 4u, cols), x_at(row, k + 5u, cols), x_at(row, k + 6u, cols), x_at(row, k + 7u, cols)),
    );
}

fn kept(w: Eight, k: u32, cols: u32) -> Eight {
    let i = vec4<u32>(k, k + 1u, k + 2u, k + 3u);
    let zero = vec4<f32>(0.0);
    return Eight(
        select(zero, w.a, i < vec4<u32>(cols)),
        select(zero, w.b, i + vec4<u32>(4u) < vec4<u32>(cols)),
    );
}
