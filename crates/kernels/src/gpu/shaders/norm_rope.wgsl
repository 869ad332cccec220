// Norms and rotates heads in place; a team a head.

struct Params {
    heads: u32,
    head_stride: u32,
    rotary_dim: u32,
    first_row: u32,
    position: u32,
    amplitude: f32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> frequencies: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;

var<workgroup> head: array<f32, HEAD_DIM>;

// Bits at .. at + 32 of the binary fraction 1 / (2 pi).
fn turn_bits(at: i32) -> u32 {
    var words = array<u32, 6>(0u, 0x28be60dbu, 0x9391054au, 0x7f09d5f4u, 0x7d4d3770u, 0u);
    let bit = clamp(at + 32, 0, 128);
    let word = bit >> 5u;
    let shift = u32(bit & 31);
    if shift == 0u {
        return words[word];
    }
    return (words[word] << shift) | (words[word + 1] >> (32u - shift));
}

fn high_product(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let m1 = (a >> 16u) * (b & 0xffffu);
    let m2 = (a & 0xffffu) * (b >> 16u);
    let carry = (low >> 16u) + (m1 & 0xffffu) + (m2 & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (m1 >> 16u) + (m2 >> 16u) + (carry >> 16u);
}

// (cos, sin) of an angle in 0 .. 2^24, to a few units of 1e-8: the built-in ones may be 5e-4 off, and reducing a
// large angle in f32 loses more. The angle in turns is a product of integers: mantissa * 2^exponent / (2 pi) mod 1.
fn cos_sin(angle: f32) -> vec2<f32> {
    let bits = bitcast<u32>(angle);
    let exponent = i32(bits >> 23u) - 150;
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    if exponent < -54 {
        return vec2<f32>(1.0, angle);
    }
    let phase = mantissa * turn_bits(exponent) + high_product(mantissa, turn_bits(exponent + 32));
    let quadrant = (phase + 0x20000000u) >> 30u;
    let rest = f32(bitcast<i32>(phase - (quadrant << 30u))) * 1.4629180792671596e-9;
    let r2 = rest * rest;
    let s = rest + rest * r2 * (-1.0 / 6.0 + r2 * (1.0 / 120.0 + r2 * (-1.0 / 5040.0 + r2 / 362880.0)));
    let c = 1.0 + r2 * (-0.5 + r2 * (1.0 / 24.0 + r2 * (-1.0 / 720.0 + r2 * (1.0 / 40320.0 - r2 / 3628800.0))));
    switch quadrant {
        case 1u: { return vec2<f32>(-s, c); }
        case 2u: { return vec2<f32>(-c, -s); }
        case 3u: { return vec2<f32>(s, -c); }
        default: { return vec2<f32>(c, s); }
    }
}

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let base = ((p.first_row + group.y) * p.heads + group.x) * p.head_stride;
    var squares = 0.0;
    for (var i = t; i < HEAD_DIM; i += TEAM) {
        let v = x[base + i];
        head[i] = v;
        squares += v * v;
    }
    if NORM == 1u {
        let scale = 1.0 / sqrt(team_sum(squares, t) / f32(HEAD_DIM) + p.eps);
        for (var i = t; i < HEAD_DIM; i += TEAM) {
            head[i] = head[i] * scale * weight[i];
        }
    }
    workgroupBarrier();
    for (var i = t; i < p.rotary_dim / 2u; i += TEAM) {
        let turn = p.amplitude * cos_sin(f32(p.position + group.y) * frequencies[i]);
        var j = vec2<u32>(i, i + p.rotary_dim / 2u);
        if INTERLEAVED == 1u {
            j = vec2<u32>(2u * i, 2u * i + 1u);
        }
        let a = head[j.x];
        let b = head[j.y];
        x[base + j.x] = a * turn.x - b * turn.y;
        x[base + j.y] = b * turn.x + a * turn.y;
    }
    if NORM == 1u {
        for (var i = p.rotary_dim + t; i < HEAD_DIM; i += TEAM) {
            x[base + i] = head[i];
        }
    }
}
