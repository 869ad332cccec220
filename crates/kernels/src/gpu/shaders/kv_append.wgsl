// Stores rows of k and v at their positions; a thread takes one word of each, or, as bytes, two blocks, whose scales
// share a word.

struct Params {
    kv_heads: u32,
    capacity: u32,
    first_row: u32,
    position: u32,
    items: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> k: array<f32>;
@group(0) @binding(1) var<storage, read> v: array<f32>;
@group(0) @binding(2) var<storage, read_write> keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<u32>;

// Of FORMAT.
const HALF = 1u;
const BYTES = 2u;

// The magnitude of a block's largest value / 127, as half bits; NaN when a value is not finite.
fn scale_bits(most: u32) -> u32 {
    if most >= 0x7f800000u {
        return 0x7e00u;
    }
    return pack2x16float(vec2<f32>(bitcast<f32>(most) / 127.0, 0.0)) & 0xffffu;
}

fn magnitude(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

fn quantised(x: vec4<f32>, bits: u32) -> u32 {
    let scale = f16_value(bits);
    if bits >= 0x7c00u || !(scale > 0.0) {
        return 0u;
    }
    return pack4xI8(vec4<i32>(clamp(round(x / scale), vec4<f32>(-127.0), vec4<f32>(127.0))));
}

fn k4(at: u32) -> vec4<f32> {
    return vec4<f32>(k[at], k[at + 1u], k[at + 2u], k[at + 3u]);
}

fn v4(at: u32) -> vec4<f32> {
    return vec4<f32>(v[at], v[at + 1u], v[at + 2u], v[at + 3u]);
}

// Two blocks, or the last one, of a head whose values begin at `source` and whose words begin at `to`.
fn blocks(source: u32, to: u32, pair: u32) {
    var k_scales = 0u;
    var v_scales = 0u;
    for (var b = 2u * pair; b < min(2u * pair + 2u, HEAD_DIM / 32u); b++) {
        var k_most = 0u;
        var v_most = 0u;
        for (var i = 0u; i < 32u; i++) {
            k_most = max(k_most, magnitude(k[source + b * 32u + i]));
            v_most = max(v_most, magnitude(v[source + b * 32u + i]));
        }
        let k_scale = scale_bits(k_most);
        let v_scale = scale_bits(v_most);
        for (var w = 0u; w < 8u; w++) {
            let at = b * 8u + w;
            keys[to + at] = quantised(k4(source + 4u * at), k_scale);
            values[to + at] = quantised(v4(source + 4u * at), v_scale);
        }
        k_scales |= k_scale << (16u * (b & 1u));
        v_scales |= v_scale << (16u * (b & 1u));
    }
    keys[to + HEAD_DIM / 4u + pair] = k_scales;
    values[to + HEAD_DIM / 4u + pair] = v_scales;
}

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let item = folded(group) * TEAM + t;
    if item >= p.items {
        return;
    }
    if FORMAT == BYTES {
        let pairs = (HEAD_DIM + 63u) / 64u;
        let head = item / pairs;
        let row = head / p.kv_heads;
        let source = (p.first_row * p.kv_heads + head) * HEAD_DIM;
        let to = head % p.kv_heads * p.capacity + p.position + row;
        blocks(source, to * ((HEAD_DIM + HEAD_DIM / 16u + 3u) / 4u), item % pairs);
        return;
    }
    let words = HEAD_DIM / (1u + FORMAT);
    let head = item / words;
    let row = head / p.kv_heads;
    let source = (p.first_row * p.kv_heads + head) * HEAD_DIM + item % words * (1u + FORMAT);
    let target_word = (head % p.kv_heads * p.capacity + p.position + row) * words + item % words;
    if FORMAT == HALF {
        keys[target_word] = pack2x16float(vec2<f32>(k[source], k[source + 1u]));
        values[target_word] = pack2x16float(vec2<f32>(v[source], v[source + 1u]));
    } else {
        keys[target_word] = bitcast<u32>(k[source]);
        values[target_word] = bitcast<u32>(v[source]);
    }
}
