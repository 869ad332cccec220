// Thirty-two values of a row at a time, as signed bytes and still scaled apart: w = q * scale + bias in two halves of
// sixteen, so that a dot is scale * sum(q x) + bias * sum(x), and sum(x) serves all rows.
struct Wide {
    a: vec4<u32>,
    b: vec4<u32>,
    scale: vec2<f32>,
    bias: vec2<f32>,
}

// Where the columns of a step are: half b is `split` columns after half a, or they take turns.
const ALTERNATE = 1u;

fn first_column(chunk: u32, split: u32) -> u32 {
    if split == ALTERNATE {
        return chunk * 32u;
    }
    let runs = split / 16u;
    return chunk / runs * (2u * split) + chunk % runs * 16u;
}

fn low_nibbles(q: vec4<u32>) -> vec4<u32> {
    return q & vec4<u32>(0x0f0f0f0fu);
}

fn high_nibbles(q: vec4<u32>) -> vec4<u32> {
    return (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
}
