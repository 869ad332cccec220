// act[e, n] = silu(gate_j[n] . x[row_e]) * (up_j[n] . x[row_e]) for the entries e of every expert j: all experts in
// one dispatch. A tile of the table is up to TOKENS entries of one expert:
// gate at 0..3, up at 3..6, down at 6..9 (bytes, a part each), first entry, entries; an entry is (row, part).

struct Params {
    tiles: u32,
    entries: u32,
    hidden: u32,
    intermediate: u32,
    // Steps of the decoders in a row.
    chunks: u32,
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
    let tile = p.tiles + group.y * 11u;
    let first = table[tile + 9u];
    let count = table[tile + 10u];
    var rows: array<u32, TOKENS>;
    var gates: array<vec4<f32>, TOKENS>;
    var ups: array<vec4<f32>, TOKENS>;
    for (var i = 0u; i < TOKENS; i++) {
        rows[i] = table[p.entries + (first + min(i, count - 1u)) * 2u];
    }
    let gate_base = vec3<u32>(table[tile], table[tile + 1u], table[tile + 2u]);
    let up_base = vec3<u32>(table[tile + 3u], table[tile + 4u], table[tile + 5u]);
    for (var chunk = lane; chunk < p.chunks; chunk += LANES) {
        gate_step(&gates, gate_base, four, &rows, p.hidden, chunk);
        up_step(&ups, up_base, four, &rows, p.hidden, chunk);
    }
    for (var i = 0u; i < TOKENS; i++) {
        let g = lanes_sum4(gates[i], at);
        let u = lanes_sum4(ups[i], at);
        if lane < 4u && n + lane < p.intermediate && i < count {
            act[(first + i) * p.intermediate + n + lane] = silu(g[lane]) * u[lane];
        }
    }
}
