// What every shader may use.

// Eight consecutive values of a row.
struct Eight {
    a: vec4<f32>,
    b: vec4<f32>,
}

fn dot8(w: Eight, x: Eight) -> f32 {
    return dot(w.a, x.a) + dot(w.b, x.b);
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

fn silu(x: f32) -> f32 {
    return x / (1.0 + exp(-x));
}

// ln(1 + e^x). The built-in log is only good to 5e-7 near 1, so ln(1 + e) is the series of 2 atanh(e / (2 + e)).
fn softplus(x: f32) -> f32 {
    let e = exp(-abs(x));
    let s = e / (2.0 + e);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (0.2 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0
        + s2 * (1.0 / 11.0 + s2 / 13.0)))));
    return max(x, 0.0) + 2.0 * s * series;
}

// Under the root of a length by which the delta rule divides.
const L2_EPS = 1e-6;

fn f16_value(bits: u32) -> f32 {
    return unpack2x16float(bits & 0xffffu).x;
}

fn bf16_value(bits: u32) -> f32 {
    return bitcast<f32>(bits << 16u);
}

// The low four bits of `bits`, one each.
fn four_flags(bits: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(bits) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(1u));
}

// The four bytes of `word` after a shift and a mask that is the same for each.
fn masked_bytes(word: u32, shift: u32, mask: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8((word >> shift) & mask));
}

// Entry `q` of a table of sixteen signed bytes.
fn table_value(table: vec4<u32>, q: u32) -> f32 {
    return f32(bitcast<i32>(table[q >> 2u] << (24u - 8u * (q & 3u))) >> 24u);
}

fn table_values(table: vec4<u32>, q: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(
        table_value(table, q.x), table_value(table, q.y), table_value(table, q.z), table_value(table, q.w),
    );
}

// Workgroups beyond the limit of one dimension continue in z.
fn folded(group: vec3<u32>) -> u32 {
    return group.x + group.z * 65535u;
}
