// act[e, n] = silu(gate_j[n] . x[row_e]) * (up_j[n] . x[row_e]) for the entries e of every expert j: all experts in
// one dispatch. A tile of the table is up to TOKENS entries of one expert:
// gate at 0..3, up at 3..6, down at 6..9 (bytes, a part each), first entry, entries; an entry is (row, part).
// With SHARED, one more tile is an expert with weights in other buffers, for row 0.

struct Params {
    tiles: u32,
    entries: u32,
    hidden: u32,
    intermediate: u32,
    // Steps of the decoders in a row.
    chunks: u32,
    // The tile after the last, and the bases of its gate and up.
    shared_tile: u32,
    shared_base: array<u32, 6>,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<XItem>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> act: array<f32>;

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let at = position(t);
    let lane = at % LANES;
    let n = (group.x * (TEAM / LANES) + at / LANES) * 4u;
    let four = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(p.intermediate - 1u));
    let is_shared = SHARED == 1u && group.y == p.shared_tile;
    let tile = p.tiles + select(group.y, 0u, is_shared) * 11u;
    let first = select(table[tile + 9u], group.y, is_shared);
    let count = select(table[tile + 10u], 1u, is_shared);
    if count == 0u {
        return;
    }
    var rows: array<u32, TOKENS>;
    var gates: array<vec4<f32>, TOKENS>;
    var ups: array<vec4<f32>, TOKENS>;
    for (var i = 0u; i < TOKENS; i++) {
        rows[i] = 0u;
        if !is_shared {
            rows[i] = table[p.entries + (first + min(i, count - 1u)) * 2u];
        }
    }
    for (var first_chunk = 0u; first_chunk < p.chunks; first_chunk += X_CHUNKS) {
        let chunks = min(X_CHUNKS, p.chunks - first_chunk);
        x_take(rows[0], first_chunk, chunks, p.hidden, at);
        for (var chunk = first_chunk + lane; chunk < first_chunk + chunks; chunk += LANES) {
            if is_shared {
                let gate_base = vec3<u32>(p.shared_base[0], p.shared_base[1], p.shared_base[2]);
                let up_base = vec3<u32>(p.shared_base[3], p.shared_base[4], p.shared_base[5]);
                shared_gate_step(&gates, gate_base, four, &rows, p.hidden, chunk);
                shared_up_step(&ups, up_base, four, &rows, p.hidden, chunk);
            } else {
                let gate_base = vec3<u32>(table[tile], table[tile + 1u], table[tile + 2u]);
                let up_base = vec3<u32>(table[tile + 3u], table[tile + 4u], table[tile + 5u]);
                gate_step(&gates, gate_base, four, &rows, p.hidden, chunk);
                up_step(&ups, up_base, four, &rows, p.hidden, chunk);
            }
        }
    }
    for (var i = 0u; i < TOKENS; i++) {
        let g = lanes_sum4(gates[i], at);
        let u = lanes_sum4(ups[i], at);
        if lane < 4u && n + lane < p.intermediate && i < count {
            act[(first + i) * p.intermediate + n + lane] = silu(g[lane]) * u[lane];
        }
    }
}
