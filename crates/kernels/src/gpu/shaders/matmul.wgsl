// A block of 64 rows of x times 64 rows of w, through tiles of 32 columns in shared memory; a thread sums four by
// four outputs. GATHER says where rows come from and go to: 0, they lie in order; 1, entries of gate_up's table name
// the rows of x; 2, the entries name the rows of out. A tile of the table is then up to 64 entries of one expert.

struct Params {
    base_0: u32,
    base_1: u32,
    base_2: u32,
    cols: u32,
    outputs: u32,
    rows: u32,
    biased: u32,
    // Of the table; without one the first row.
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

// Column by column of the tile, four rows to a vector.
var<workgroup> x_tile: array<vec4<f32>, 512>;
var<workgroup> w_tile: array<vec4<f32>, 512>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    var base = vec3<u32>(p.base_0, p.base_1, p.base_2);
    var first = p.tiles + group.y * 64u;
    var count = min(p.rows - first, 64u);
    if GATHER != 0u {
        let tile = p.tiles + group.y * 11u;
        base = vec3<u32>(table[tile + p.which], table[tile + p.which + 1u], table[tile + p.which + 2u]);
        first = table[tile + 9u];
        count = table[tile + 10u];
    }
    if count == 0u {
        return;
    }
    let n0 = folded(group) * 64u;
    // What this thread brings into the tiles: eight columns of a row of each.
    let brought = t / 4u;
    let column = t % 4u * 8u;
    var x_row = first + min(brought, count - 1u);
    if GATHER == 1u {
        x_row = table[p.entries + x_row * 2u];
    }
    let w_row = min(n0 + brought, p.outputs - 1u);
    let rows4 = t / 16u;
    let outputs4 = t % 16u;
    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    for (var k0 = 0u; k0 < p.cols; k0 += 32u) {
        let k = k0 + column;
        var w = Eight(vec4<f32>(), vec4<f32>());
        var v = Eight(vec4<f32>(), vec4<f32>());
        if k < p.cols {
            w = kept(w_eight(base, w_row, k, p.cols), k, p.cols);
            v = x_eight(x_row, k, p.cols);
        }
        for (var i = 0u; i < 4u; i++) {
            x_tile[(column + i) * 16u + brought / 4u][brought % 4u] = v.a[i];
            x_tile[(column + i + 4u) * 16u + brought / 4u][brought % 4u] = v.b[i];
            w_tile[(column + i) * 16u + brought / 4u][brought % 4u] = w.a[i];
            w_tile[(column + i + 4u) * 16u + brought / 4u][brought % 4u] = w.b[i];
        }
        workgroupBarrier();
        for (var i = 0u; i < 32u; i++) {
            let a = x_tile[i * 16u + rows4];
            let b = w_tile[i * 16u + outputs4];
            s0 += a.x * b;
            s1 += a.y * b;
            s2 += a.z * b;
            s3 += a.w * b;
        }
        workgroupBarrier();
    }
    var sums = array<vec4<f32>, 4>(s0, s1, s2, s3);
    for (var i = 0u; i < 4u; i++) {
        if rows4 * 4u + i < count {
            var row = first + rows4 * 4u + i;
            if GATHER == 2u {
                row = table[p.entries + row * 2u + 1u];
            }
            for (var j = 0u; j < 4u; j++) {
                let n = n0 + outputs4 * 4u + j;
                if n < p.outputs {
                    var value = sums[i][j];
                    if p.biased == 1u {
                        value += bias[n];
                    }
                    out[row * p.outputs + n] = value;
                }
            }
        }
    }
}
