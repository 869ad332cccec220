enable f16;
enable wgpu_cooperative_matrix;

// As `gate_up`, with matrix instructions, of activations that `halves` has prepared: blocks of up to ROWS entries of one expert.
// The squares of gate and up take turns in a tile. The results are prepared for the product with down, whose columns
// are DOWN_SPLIT apart, [chunks, entries, 32].

struct Params {
    tiles: u32,
    entries: u32,
    cols: u32,
    outputs: u32,
    // Of all activations, and of all entries.
    rows: u32,
    all_entries: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> act: array<vec2<u32>>;

// Where four outputs from `n` on, or every second of eight, lie in the results: `at` is the number of a vector of four.
fn act_at(entry: u32, chunk: u32, at: u32) -> u32 {
    return (chunk * p.all_entries + entry) * 8u + at;
}

fn halves(v: vec4<f32>) -> vec2<u32> {
    let small = v / 32.0;
    return vec2<u32>(pack2x16float(small.xy), pack2x16float(small.zw));
}

fn put_act(entry: u32, n: u32, a: vec4<f32>, b: vec4<f32>) {
    if DOWN_SPLIT == ALTERNATE {
        let at = n % 32u / 8u;
        act[act_at(entry, n / 32u, at)] = halves(vec4<f32>(a.xz, b.xz));
        act[act_at(entry, n / 32u, at + 4u)] = halves(vec4<f32>(a.yw, b.yw));
        return;
    }
    let runs = DOWN_SPLIT / 16u;
    let within = n % (2u * DOWN_SPLIT);
    let chunk = n / (2u * DOWN_SPLIT) * runs + within % DOWN_SPLIT / 16u;
    let at = act_at(entry, chunk, within / DOWN_SPLIT * 4u + n % 16u / 4u);
    act[at] = halves(a);
    act[at + 1u] = halves(b);
}

const SQUARE = 64u;
const SIDE = 4u;
alias Sum = vec4<f32>;

// Eight sums of this lane's row of a square.
fn held(subgroup: u32, lane: u32) -> Eight {
    let at = subgroup * SQUARE + lane * 2u;
    return Eight(sum_at(at), sum_at(at + 1u));
}

fn activated(gate: vec4<f32>, up: vec4<f32>, n: u32) -> vec4<f32> {
    let value = gate / (1.0 + exp(-gate)) * up;
    return select(vec4<f32>(), value, vec4<u32>(n, n + 1u, n + 2u, n + 3u) < vec4<u32>(p.outputs));
}

// A square of gate's sums in `gate`, of up's in the workgroup's memory.
fn emit(first: u32, row: u32, count: u32, output: u32, gate: Eight, subgroup: u32, lane: u32) {
    let brought = row + lane / 2u;
    let n = output + lane % 2u * 8u;
    // Columns up to the end of down's last step are zeros.
    if brought < count && n < (p.outputs + 31u) / 32u * 32u {
        let up = held(subgroup, lane);
        put_act(first + brought, n, activated(gate.a, up.a, n), activated(gate.b, up.b, n + 4u));
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let tile = p.tiles + group.y * 11u;
    let gate_base = vec3<u32>(table[tile], table[tile + 1u], table[tile + 2u]);
    let up_base = vec3<u32>(table[tile + 3u], table[tile + 4u], table[tile + 5u]);
    // All of a workgroup have the same, which has to be seen.
    let own = subgroupBroadcastFirst(vec2<u32>(table[tile + 9u], table[tile + 10u]));
    let first = own.x;
    let count = own.y;
    let n0 = folded(group) * (OUTPUTS / 2u);
    let half = t % 2u;
    let w_row = min(n0 + t / 2u, p.outputs - 1u);
    let w_to = (t / 32u * 32u + t / 2u % 16u) * PITCH + half * 4u;
    var x_at: array<u32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        let entry = first + min(t / 8u + i * 16u, max(count, 1u) - 1u);
        x_at[i] = table[p.entries + entry * 2u] * 8u + t % 8u;
    }
    let x_to = t / 8u * PITCH + t % 8u;
    let steps = steps_of(count, p.cols);
    var v: array<vec4<f16>, EACH>;
    for (var i = 0u; i < EACH; i++) {
        v[i] = x[x_at[i]];
    }
    var gate = gate_load(gate_base, w_row, 0u, half, p.cols);
    var up = up_load(up_base, w_row, 0u, half, p.cols);
    $SUMS
    for (var chunk = 0u; chunk < steps; chunk++) {
        for (var i = 0u; i < EACH; i++) {
            put_x(x_to + i * 16u * PITCH, v[i]);
        }
        put_weights(w_to, gate_open(gate, half));
        put_weights(w_to + 16u * PITCH, up_open(up, half));
        workgroupBarrier();
        let next = min(chunk + 1u, steps - 1u);
        for (var i = 0u; i < EACH; i++) {
            v[i] = x[x_at[i] + next * p.rows * 8u];
        }
        gate = gate_load(gate_base, w_row, next, half, p.cols);
        up = up_load(up_base, w_row, next, half, p.cols);
        $MULTIPLY
        workgroupBarrier();
    }
    $PAIRS(emit(first, $ROW, count, n0 + ($COLUMN) / 2u, gate_sums, subgroup, lane);)
}
