enable f16;
enable wgpu_cooperative_matrix;

// As `matmul`, on matrix units: inputs are rounded to half precision, sums are single. A team makes ROWS x 128 outputs,
// a subgroup ROWS / 2 x 32 of them. What the next step multiplies is on its way while this step multiplies.
// The activations are divided by 32 and the weights multiplied, so that activations beyond two million overflow and no
// smaller ones.

struct Params {
    base_0: u32,
    base_1: u32,
    base_2: u32,
    cols: u32,
    outputs: u32,
    rows: u32,
    biased: u32,
    tiles: u32,
    entries: u32,
    // Word of a tile at which the bases of this weight start.
    which: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<XItem>;
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const SHIFT = 32.0;
const OUTPUTS = 128u;
// Columns of a step; vectors of four from one row of a tile to the next: not a multiple of all banks.
const STEP = 32u;
const PITCH = 10u;
// Two of each: one is multiplied while the other is filled.
var<workgroup> x_tile: array<vec4<f16>, 2u * ROWS * PITCH>;
var<workgroup> w_tile: array<vec4<f16>, 2u * OUTPUTS * PITCH>;
// Sixteen by sixteen outputs of each subgroup.
var<workgroup> sums: array<f32, TEAM / 32u * 256u>;

// Eight values of a row of weights, of activations; zeros beyond the last column.
fn weights(base: vec3<u32>, row: u32, k: u32) -> Eight {
    if k >= p.cols {
        return Eight(vec4<f32>(), vec4<f32>());
    }
    return kept(w_eight(base, row, k, p.cols), k, p.cols);
}

fn activations(row: u32, k: u32) -> Eight {
    if k >= p.cols {
        return Eight(vec4<f32>(), vec4<f32>());
    }
    return x_eight(row, k, p.cols);
}

fn put_weights(at: u32, w: Eight) {
    w_tile[at] = vec4<f16>(w.a * SHIFT);
    w_tile[at + 1u] = vec4<f16>(w.b * SHIFT);
}

fn put_activations(at: u32, v: Eight) {
    x_tile[at] = vec4<f16>(v.a / SHIFT);
    x_tile[at + 1u] = vec4<f16>(v.b / SHIFT);
}

@compute @workgroup_size(TEAM)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    var base = vec3<u32>(p.base_0, p.base_1, p.base_2);
    var first = group.y * ROWS;
    var count = min(p.rows - first, ROWS);
    if GATHER != 0u {
        let tile = p.tiles + group.y * 11u;
        base = vec3<u32>(table[tile + p.which], table[tile + p.which + 1u], table[tile + p.which + 2u]);
        first = table[tile + 9u];
        count = table[tile + 10u];
    }
    let n0 = folded(group) * OUTPUTS;
    // A thread brings sixteen weights of a row, and as many activations, or eight of them if the rows are half as many.
    let w_row = min(n0 + t / 2u, p.outputs - 1u);
    let w_column = t % 2u * 16u;
    let w_to = t / 2u * PITCH + w_column / 4u;
    let x_part = TEAM / ROWS;
    var x_row = first + min(t / x_part, count - 1u);
    if GATHER == 1u {
        x_row = table[p.entries + x_row * 2u];
    }
    let x_column = t % x_part * (STEP / x_part);
    let x_to = t / x_part * PITCH + x_column / 4u;
    for (var i = t; i < TEAM / 32u * 256u; i += TEAM) {
        sums[i] = 0.0;
    }
    var w0 = weights(base, w_row, w_column);
    var w1 = weights(base, w_row, w_column + 8u);
    var v0 = activations(x_row, x_column);
    var v1 = Eight(vec4<f32>(), vec4<f32>());
    put_weights(w_to, w0);
    put_weights(w_to + 2u, w1);
    put_activations(x_to, v0);
    if ROWS == 128u {
        v1 = activations(x_row, x_column + 8u);
        put_activations(x_to + 2u, v1);
    }
    workgroupBarrier();
    let r = subgroup / 4u * (ROWS / 2u);
    let n = subgroup % 4u * 32u;
    let mine = subgroup * 256u;
    var c00 = coopLoadT<coop_mat16x16<f32, C>>(&sums[mine], 16u);
    var c01 = c00;
    var c10 = c00;
    var c11 = c00;
    var c20 = c00;
    var c21 = c00;
    var c30 = c00;
    var c31 = c00;
    for (var k0 = 0u; k0 < p.cols; k0 += STEP) {
        let next = k0 + STEP;
        w0 = weights(base, w_row, next + w_column);
        w1 = weights(base, w_row, next + w_column + 8u);
        v0 = activations(x_row, next + x_column);
        if ROWS == 128u {
            v1 = activations(x_row, next + x_column + 8u);
        }
        let odd = k0 / STEP % 2u;
        let x_now = odd * ROWS * PITCH + r * PITCH;
        let w_now = odd * OUTPUTS * PITCH + n * PITCH;
        for (var k = 0u; k < STEP / 4u; k += 4u) {
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_now + k], PITCH);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_now + 16u * PITCH + k], PITCH);
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_now + k], PITCH);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_now + 16u * PITCH + k], PITCH);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            if ROWS == 128u {
                let a2 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_now + 32u * PITCH + k], PITCH);
                let a3 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_now + 48u * PITCH + k], PITCH);
                c20 = coopMultiplyAdd(a2, b0, c20);
                c21 = coopMultiplyAdd(a2, b1, c21);
                c30 = coopMultiplyAdd(a3, b0, c30);
                c31 = coopMultiplyAdd(a3, b1, c31);
            }
        }
        let x_next = (1u - odd) * ROWS * PITCH + x_to;
        let w_next = (1u - odd) * OUTPUTS * PITCH + w_to;
        put_weights(w_next, w0);
        put_weights(w_next + 2u, w1);
        put_activations(x_next, v0);
        if ROWS == 128u {
            put_activations(x_next + 2u, v1);
        }
        workgroupBarrier();
    }
    // A subgroup's outputs go out sixteen by sixteen, through the workgroup's memory.
    for (var i = 0u; i < ROWS / 16u; i++) {
        switch i {
            case 0u: { coopStoreT(c00, &sums[mine], 16u); }
            case 1u: { coopStoreT(c01, &sums[mine], 16u); }
            case 2u: { coopStoreT(c10, &sums[mine], 16u); }
            case 3u: { coopStoreT(c11, &sums[mine], 16u); }
            case 4u: { coopStoreT(c20, &sums[mine], 16u); }
            case 5u: { coopStoreT(c21, &sums[mine], 16u); }
            case 6u: { coopStoreT(c30, &sums[mine], 16u); }
            default: { coopStoreT(c31, &sums[mine], 16u); }
        }
        workgroupBarrier();
        for (var j = lane; j < 256u; j += 32u) {
            let brought = r + i / 2u * 16u + j / 16u;
            let output = n0 + n + i % 2u * 16u + j % 16u;
            if brought < count && output < p.outputs {
                var row = first + brought;
                if GATHER == 2u {
                    row = table[p.entries + row * 2u + 1u];
                }
                var value = sums[mine + j];
                if p.biased == 1u {
                    value += bias[output];
                }
                out[row * p.outputs + output] = value;
            }
        }
        workgroupBarrier();
    }
}
