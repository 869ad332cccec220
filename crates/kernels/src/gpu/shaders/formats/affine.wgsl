// MLX affine: w = q * scale + bias over groups of GROUP; BITS each, a little-endian bit stream.

fn $W_field(low: u32, high: u32, at: u32) -> f32 {
    var bits = 0u;
    if at >= 32u {
        bits = high >> (at - 32u);
    } else {
        bits = low >> at;
        if at + $BITSu > 32u {
            bits |= high << (32u - at);
        }
    }
    return f32(bits & ((1u << $BITSu) - 1u));
}

fn $W_eight(base: vec3<u32>, n: u32, k: u32, cols: u32) -> Eight {
    let value = n * cols + k;
    let at = base.x + value / 8u * $BITSu;
    let low = $W_0_u32(at);
    var high = 0u;
    if $BITSu > 4u {
        high = $W_0_u32(at + 4u);
    }
    let group = value / $GROUPu * $SCALE_BYTESu;
    let scale = $W_1_scale(base.y + group);
    let bias = $W_2_scale(base.z + group);
    let a = vec4<f32>(
        $W_field(low, high, 0u), $W_field(low, high, $BITSu),
        $W_field(low, high, 2u * $BITSu), $W_field(low, high, 3u * $BITSu),
    );
    let b = vec4<f32>(
        $W_field(low, high, 4u * $BITSu), $W_field(low, high, 5u * $BITSu),
        $W_field(low, high, 6u * $BITSu), $W_field(low, high, 7u * $BITSu),
    );
    return Eight(a * scale + bias, b * scale + bias);
}
