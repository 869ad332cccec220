enable f16;
enable wgpu_cooperative_matrix;

// As `matmul`, on matrix units: inputs are rounded to half precision, sums are single. A subgroup sums 32 by 32 outputs.
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
// Vectors of four from one row of a tile to the next: not a multiple of all banks.
const PITCH = 10u;
var<workgroup> x_tile: array<vec4<f16>, 64u * PITCH>;
var<workgroup> w_tile: array<vec4<f16>, 64u * PITCH>;
var<workgroup> sums: array<f32, 4096>;

@compute @workgroup_size(TEAM)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    var base = vec3<u32>(p.base_0, p.base_1, p.base_2);
    var first = group.y * 64u;
    var count = min(p.rows - first, 64u);
    if GATHER != 0u {
        let tile = p.tiles + group.y * 11u;
        base = vec3<u32>(table[tile + p.which], table[tile + p.which + 1u], table[tile + p.which + 2u]);
        first = table[tile + 9u];
        count = table[tile + 10u];
    }
    let n0 = folded(group) * 64u;
    let brought = t / 2u;
    var x_row = first + min(brought, count - 1u);
    if GATHER == 1u {
        x_row = table[p.entries + x_row * 2u];
    }
    let w_row = min(n0 + brought, p.outputs - 1u);
    for (var i = t; i < 4096u; i += TEAM) {
        sums[i] = 0.0;
    }
    workgroupBarrier();
    let r = subgroup / 2u * 32u;
    let n = subgroup % 2u * 32u;
    var c00 = coopLoadT<coop_mat16x16<f32, C>>(&sums[0], 64u);
    var c01 = c00;
    var c10 = c00;
    var c11 = c00;
    for (var k0 = 0u; k0 < p.cols; k0 += 32u) {
        for (var half = 0u; half < 2u; half++) {
            let column = t % 2u * 16u + half * 8u;
            let k = k0 + column;
            var w = Eight(vec4<f32>(), vec4<f32>());
            var v = Eight(vec4<f32>(), vec4<f32>());
            if k < p.cols {
                w = kept(w_eight(base, w_row, k, p.cols), k, p.cols);
                v = x_eight(x_row, k, p.cols);
            }
            let at = brought * PITCH + column / 4u;
            x_tile[at] = vec4<f16>(v.a / SHIFT);
            x_tile[at + 1u] = vec4<f16>(v.b / SHIFT);
            w_tile[at] = vec4<f16>(w.a * SHIFT);
            w_tile[at + 1u] = vec4<f16>(w.b * SHIFT);
        }
        workgroupBarrier();
        for (var k = 0u; k < 8u; k += 4u) {
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[r * PITCH + k], PITCH);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[(r + 16u) * PITCH + k], PITCH);
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[n * PITCH + k], PITCH);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[(n + 16u) * PITCH + k], PITCH);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
        }
        workgroupBarrier();
    }
    coopStoreT(c00, &sums[r * 64u + n], 64u);
    coopStoreT(c01, &sums[r * 64u + n + 16u], 64u);
    coopStoreT(c10, &sums[(r + 16u) * 64u + n], 64u);
    coopStoreT(c11, &sums[(r + 16u) * 64u + n + 16u], 64u);
    workgroupBarrier();
    for (var i = t; i < 4096u; i += TEAM) {
        let output = n0 + i % 64u;
        if i / 64u < count && output < p.outputs {
            var row = first + i / 64u;
            if GATHER == 2u {
                row = table[p.entries + row * 2u + 1u];
            }
            var value = sums[i];
            if p.biased == 1u {
                value += bias[output];
            }
            out[row * p.outputs + output] = value;
        }
    }
}
