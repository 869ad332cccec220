// Norms and rotates heads of queries in place, and of keys on their way into the cache, with their values; a workgroup a
// head of a row. Queries come first; a caller may have none of them, or none of keys and values.

struct Params {
    rows: vec4<u32>,
    q_heads: u32,
    q_stride: u32,
    kv_heads: u32,
    rotary_dim: u32,
    amplitude: f32,
    q_eps: f32,
    k_eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> frequencies: array<f32>;
@group(0) @binding(4) var<storage, read> q_weight: array<f32>;
@group(0) @binding(5) var<storage, read> k_weight: array<f32>;
@group(0) @binding(6) var<storage, read_write> keys: array<u32>;
@group(0) @binding(7) var<storage, read_write> values: array<u32>;
@group(0) @binding(8) var<storage, read> table: array<u32>;

var<workgroup> head: array<f32, HEAD_DIM>;

// Of NORMS.
const Q_NORM = 1u;
const K_NORM = 2u;

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

// Of FORMAT.
const HALF = 1u;
const BYTES = 2u;

// x / 127 of the bits of a positive float, rounded as IEEE 754 has it: by integers, since a device's division of floats may be
// off by some units in the last place, and its scales would be others than elsewhere.
fn over_127(bits: u32) -> f32 {
    // Less than any f16.
    if bits < 0x20000000u {
        return 0.0;
    }
    let mantissa = ((bits & 0x7fffffu) | 0x800000u) << 8u;
    let quotient = mantissa / 127u;
    let dropped = select(1u, 2u, quotient >= 0x2000000u);
    var rounded = quotient >> dropped;
    // What is cut off, twice, and one more if 127 leaves a remainder; against half a unit of the last bit, twice.
    let rest = ((quotient & ((1u << dropped) - 1u)) << 1u) | select(0u, 1u, quotient * 127u != mantissa);
    let half = 1u << dropped;
    rounded += select(0u, 1u, rest > half || (rest == half && (rounded & 1u) == 1u));
    return bitcast<f32>(bitcast<u32>(f32(rounded)) + (((bits >> 23u) + dropped - 158u) << 23u));
}

// The magnitude of a block's largest value / 127, as the bits of an f16; NaN when a value is not finite.
fn scale_bits(most: u32) -> u32 {
    if most >= 0x7f800000u {
        return 0x7e00u;
    }
    return pack2x16float(vec2<f32>(over_127(most), 0.0)) & 0xffffu;
}

fn magnitude(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

// x / scale, rounded to the nearest integer, ties to even. What is halfway between two integers is exact in a float, as
// the scale has eleven bits: so an inexact quotient is mended, and ties are seen.
fn quantised_one(x: f32, scale: f32) -> i32 {
    let near = clamp(round(x / scale), -127.0, 127.0);
    let odd = (i32(near) & 1) == 1;
    let above = (near + 0.5) * scale;
    let below = (near - 0.5) * scale;
    let up = select(0, 1, x > above || (x == above && odd));
    let down = select(0, 1, x < below || (x == below && odd));
    return clamp(i32(near) + up - down, -127, 127);
}

fn quantised(x: vec4<f32>, bits: u32) -> u32 {
    // By bits, since a compiler may assume that a float is a number.
    if bits >= 0x7c00u || bits == 0u {
        return 0u;
    }
    let scale = f16_value(bits);
    return pack4xI8(vec4<i32>(
        quantised_one(x.x, scale),
        quantised_one(x.y, scale),
        quantised_one(x.z, scale),
        quantised_one(x.w, scale),
    ));
}

fn head4(at: u32) -> vec4<f32> {
    return vec4<f32>(head[at], head[at + 1u], head[at + 2u], head[at + 3u]);
}

fn v4(at: u32) -> vec4<f32> {
    return vec4<f32>(v[at], v[at + 1u], v[at + 2u], v[at + 3u]);
}

// Two blocks, or the last one, of the head and of the values from `source` on; their words begin at `to`.
fn blocks(source: u32, to: u32, pair: u32) {
    var k_scales = 0u;
    var v_scales = 0u;
    for (var b = 2u * pair; b < min(2u * pair + 2u, HEAD_DIM / 32u); b++) {
        var k_most = 0u;
        var v_most = 0u;
        for (var i = 0u; i < 32u; i++) {
            k_most = max(k_most, magnitude(head[b * 32u + i]));
            v_most = max(v_most, magnitude(v[source + b * 32u + i]));
        }
        let k_scale = scale_bits(k_most);
        let v_scale = scale_bits(v_most);
        for (var w = 0u; w < 8u; w++) {
            let at = b * 8u + w;
            keys[to + at] = quantised(head4(4u * at), k_scale);
            values[to + at] = quantised(v4(source + 4u * at), v_scale);
        }
        k_scales |= k_scale << (16u * (b & 1u));
        v_scales |= v_scale << (16u * (b & 1u));
    }
    keys[to + HEAD_DIM / 4u + pair] = k_scales;
    values[to + HEAD_DIM / 4u + pair] = v_scales;
}

// Stores the head as a key, and the value from `source` on, as number `slot` of the cache.
fn store(source: u32, slot: u32, t: u32) {
    if FORMAT == BYTES {
        for (var pair = t; pair < (HEAD_DIM + 63u) / 64u; pair += THREADS) {
            blocks(source, slot * ((HEAD_DIM + HEAD_DIM / 16u + 3u) / 4u), pair);
        }
        return;
    }
    let words = HEAD_DIM / (1u + FORMAT);
    for (var word = t; word < words; word += THREADS) {
        let at = word * (1u + FORMAT);
        if FORMAT == HALF {
            keys[slot * words + word] = pack2x16float(vec2<f32>(head[at], head[at + 1u]));
            values[slot * words + word] = pack2x16float(vec2<f32>(v[source + at], v[source + at + 1u]));
        } else {
            keys[slot * words + word] = bitcast<u32>(head[at]);
            values[slot * words + word] = bitcast<u32>(v[source + at]);
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let row = row_of(group.y);
    let is_query = group.x < p.q_heads;
    let kv_head = group.x - p.q_heads;
    let kv_base = (row.row * p.kv_heads + kv_head) * HEAD_DIM;
    let q_base = (row.row * p.q_heads + group.x) * p.q_stride;
    var slot = 0u;
    if !is_query {
        slot = page_of(row, row.position, kv_head, p.kv_heads) + row.position % $PAGE;
    }
    var squares = 0.0;
    for (var i = t; i < HEAD_DIM; i += THREADS) {
        var value = 0.0;
        if is_query {
            value = q[q_base + i];
        } else {
            value = k[kv_base + i];
        }
        head[i] = value;
        squares += value * value;
    }
    if (NORMS & select(K_NORM, Q_NORM, is_query)) != 0u {
        let scale = 1.0 / sqrt(workgroup_sum(squares, t) / f32(HEAD_DIM) + select(p.k_eps, p.q_eps, is_query));
        for (var i = t; i < HEAD_DIM; i += THREADS) {
            if is_query {
                head[i] = head[i] * scale * q_weight[i];
            } else {
                head[i] = head[i] * scale * k_weight[i];
            }
        }
    }
    workgroupBarrier();
    for (var i = t; i < p.rotary_dim / 2u; i += THREADS) {
        let turn = p.amplitude * cos_sin(f32(row.position) * frequencies[i]);
        var j = vec2<u32>(i, i + p.rotary_dim / 2u);
        if INTERLEAVED == 1u {
            j = vec2<u32>(2u * i, 2u * i + 1u);
        }
        let a = head[j.x];
        let b = head[j.y];
        head[j.x] = a * turn.x - b * turn.y;
        head[j.y] = b * turn.x + a * turn.y;
    }
    workgroupBarrier();
    if is_query {
        for (var i = t; i < HEAD_DIM; i += THREADS) {
            q[q_base + i] = head[i];
        }
    } else {
        store(kv_base, slot, t);
    }
}
