enable f16;
enable wgpu_cooperative_matrix;

// As `matmul`, with matrix instructions, of activations that `halves` has prepared. SCATTER says where rows go: 0, they lie in
// order; 1, a tile of gate_up's table is a block, whose rows lie in the order of the entries, and the entries name the
// rows of out.

struct Params {
    base_0: u32,
    base_1: u32,
    base_2: u32,
    cols: u32,
    outputs: u32,
    // Of all activations.
    rows: u32,
    biased: u32,
    // Of the table; without one the first row.
    tiles: u32,
    entries: u32,
    // Word of a tile at which the bases of this weight start.
    which: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> bias: array<Values>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<Values>;

const SQUARE = 256u / VALUES;
const SIDE = 16u / VALUES;
alias Sum = Values;

// A square of sums: sixteen rows from `row` of the block on, sixteen outputs.
fn emit(first: u32, row: u32, count: u32, output: u32, subgroup: u32, lane: u32) {
    for (var j = lane; j < SQUARE; j += 32u) {
        let brought = row + j / SIDE;
        let n = output + j % SIDE * VALUES;
        if brought < count && n < p.outputs {
            var to = first + brought;
            if SCATTER == 1u {
                to = table[p.entries + to * 2u + 1u];
            }
            var value = sum_at(subgroup * SQUARE + j);
            if p.biased == 1u {
                value += bias[n / VALUES];
            }
            out[(to * p.outputs + n) / VALUES] = value;
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    var base = vec3<u32>(p.base_0, p.base_1, p.base_2);
    var first = p.tiles + group.y * ROWS;
    var count = min(p.rows - first, ROWS);
    if SCATTER == 1u {
        let tile = p.tiles + group.y * 11u;
        base = vec3<u32>(table[tile + p.which], table[tile + p.which + 1u], table[tile + p.which + 2u]);
        // All of a workgroup have the same, which has to be seen.
        let own = subgroupBroadcastFirst(vec2<u32>(table[tile + 9u], table[tile + 10u]));
        first = own.x;
        count = own.y;
    }
    let n0 = folded(group) * OUTPUTS;
    let half = t % 2u;
    let w_row = min(n0 + t / 2u, p.outputs - 1u);
    let w_second = min(n0 + t / 2u + OUTPUTS / 2u, p.outputs - 1u);
    let w_to = t / 2u * PITCH + half * 4u;
    var x_at: array<u32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        x_at[i] = (first + min(t / 8u + i * 16u, max(count, 1u) - 1u)) * 8u + t % 8u;
    }
    let x_to = t / 8u * PITCH + t % 8u;
    let steps = steps_of(count, p.cols);
    var v: array<vec4<f16>, EACH>;
    for (var i = 0u; i < EACH; i++) {
        v[i] = x[x_at[i]];
    }
    var w0 = w_load(base, w_row, 0u, half, p.cols);
    var w1 = w_load(base, w_second, 0u, half, p.cols);
    $SUMS
    for (var chunk = 0u; chunk < steps; chunk++) {
        for (var i = 0u; i < EACH; i++) {
            put_x(x_to + i * 16u * PITCH, v[i]);
        }
        put_weights(w_to, w_open(w0, half));
        put_weights(w_to + OUTPUTS / 2u * PITCH, w_open(w1, half));
        workgroupBarrier();
        let next = min(chunk + 1u, steps - 1u);
        for (var i = 0u; i < EACH; i++) {
            v[i] = x[x_at[i] + next * p.rows * 8u];
        }
        w0 = w_load(base, w_row, next, half, p.cols);
        w1 = w_load(base, w_second, next, half, p.cols);
        $MULTIPLY
        workgroupBarrier();
    }
    $SQUARES(emit(first, $ROW, count, n0 + $COLUMN, subgroup, lane);)
}
