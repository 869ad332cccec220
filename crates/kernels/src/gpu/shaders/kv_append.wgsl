// Stores rows of k and v at their positions; a thread takes one word of each (two values when HALF).

struct Params {
    kv_heads: u32,
    capacity: u32,
    first_row: u32,
    position: u32,
    words: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> k: array<f32>;
@group(0) @binding(1) var<storage, read> v: array<f32>;
@group(0) @binding(2) var<storage, read_write> keys: array<u32>;
@group(0) @binding(3) var<storage, read_write> values: array<u32>;

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let item = folded(group) * TEAM + t;
    if item >= p.words {
        return;
    }
    let words = HEAD_DIM / (1u + HALF);
    let head = item / words;
    let row = head / p.kv_heads;
    let source = (p.first_row * p.kv_heads + head) * HEAD_DIM + item % words * (1u + HALF);
    let target_word = (head % p.kv_heads * p.capacity + p.position + row) * words + item % words;
    if HALF == 1u {
        keys[target_word] = pack2x16float(vec2<f32>(k[source], k[source + 1u]));
        values[target_word] = pack2x16float(vec2<f32>(v[source], v[source + 1u]));
    } else {
        keys[target_word] = bitcast<u32>(k[source]);
        values[target_word] = bitcast<u32>(v[source]);
    }
}
