alias $W_Loaded = Half;

fn $W_load(base: vec3<u32>, n: u32, chunk: u32, half: u32, cols: u32) -> $W_Loaded {
    let k = chunk * 32u + half * 16u;
    if k >= cols {
        return Half();
    }
    let a = within($W_eight(base, n, k, cols), k, cols);
    var b = Eight(vec4<f32>(), vec4<f32>());
    if k + 8u < cols {
        b = within($W_eight(base, n, k + 8u, cols), k + 8u, cols);
    }
    return Half(vec4<f16>(a.a * GROW), vec4<f16>(a.b * GROW), vec4<f16>(b.a * GROW), vec4<f16>(b.b * GROW));
}

fn $W_open(r: $W_Loaded, half: u32) -> Half {
    return r;
}
