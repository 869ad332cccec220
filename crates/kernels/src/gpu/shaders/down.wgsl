// parts[part_e] = down_j . act[e] for the entries e of every expert j; the table is that of gate_up.
// With SHARED, a tile more for each row is an expert with weights in other buffers, and an output of its own.

struct Params {
    tiles: u32,
    entries: u32,
    hidden: u32,
    intermediate: u32,
    // Steps of the decoder in a row.
    chunks: u32,
    // The tile after the last, the first of the shared expert, and the bases of its weight.
    shared_tile: u32,
    shared_base: array<u32, 3>,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<XItem>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> parts: array<f32>;
@group(0) @binding(3) var<storage, read_write> shared_out: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let at = position(t);
    let lane = at % LANES;
    let n = (group.y * (THREADS / LANES) + at / LANES) * 4u;
    let four = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(p.hidden - 1u));
    let is_shared = SHARED == 1u && group.x >= p.shared_tile;
    let tile = p.tiles + select(group.x, 0u, is_shared) * 11u;
    let first = select(table[tile + 9u], group.x, is_shared);
    let count = select(table[tile + 10u], 1u, is_shared);
    if count == 0u {
        return;
    }
    var rows: array<u32, TOKENS>;
    var sums: array<vec4<f32>, TOKENS>;
    for (var i = 0u; i < TOKENS; i++) {
        rows[i] = first + min(i, count - 1u);
    }
    for (var first_chunk = 0u; first_chunk < p.chunks; first_chunk += X_CHUNKS) {
        let chunks = min(X_CHUNKS, p.chunks - first_chunk);
        x_take(rows[0], first_chunk, chunks, p.intermediate, at);
        for (var chunk = first_chunk + lane; chunk < first_chunk + chunks; chunk += LANES) {
            if is_shared {
                let base = vec3<u32>(p.shared_base[0], p.shared_base[1], p.shared_base[2]);
                shared_down_step(&sums, base, four, &rows, p.intermediate, chunk);
            } else {
                let base = vec3<u32>(table[tile + 6u], table[tile + 7u], table[tile + 8u]);
                down_step(&sums, base, four, &rows, p.intermediate, chunk);
            }
        }
    }
    let sum = lanes_sums(&sums, at);
    let entry = lane / SHARE;
    for (var c = lane % SHARE; c < 4u; c += SHARE) {
        if n + c < p.hidden && entry < count {
            if is_shared {
                shared_out[(group.x - p.shared_tile) * p.hidden + n + c] = sum[c];
            } else {
                let part = table[p.entries + (first + entry) * 2u + 1u];
                parts[part * p.hidden + n + c] = sum[c];
            }
        }
    }
}
