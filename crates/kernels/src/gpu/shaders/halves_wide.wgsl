alias $W_Loaded = $W_Raw;

fn $W_load(base: vec3<u32>, n: u32, chunk: u32, half: u32, cols: u32) -> $W_Loaded {
    return $W_raw(base, n, chunk, cols);
}

fn $W_open(r: $W_Loaded, half: u32) -> Half {
    let w = $W_wide(r);
    let b = half == 1u;
    return open_half(select(w.a, w.b, b), select(w.scale.x, w.scale.y, b), select(w.bias.x, w.bias.y, b));
}
