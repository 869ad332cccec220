// The body of `linears` and `linears_conv`, which say what becomes of the first product. Workgroups are numbered through
// all products; each works as in `linear`.

struct Params {
    // The bases of a weight's parts, and its outputs; no outputs, no product.
    w_0: vec4<u32>,
    w_1: vec4<u32>,
    w_2: vec4<u32>,
    w_3: vec4<u32>,
    cols: u32,
    rows: u32,
    // Steps of the weights' decoder in a row.
    chunks: u32,
    // Of a convolution: a row each.
    segments: vec4<u32>,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<XItem>;
@group(0) @binding(1) var<storage, read_write> out_0: array<f32>;
@group(0) @binding(2) var<storage, read_write> out_1: array<f32>;
@group(0) @binding(3) var<storage, read_write> out_2: array<f32>;
@group(0) @binding(4) var<storage, read_write> out_3: array<f32>;

const PER_GROUP = THREADS / LANES * 4u;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    var product = p.w_0;
    var which = 0u;
    var left = folded(group);
    let groups = (vec4<u32>(p.w_0.w, p.w_1.w, p.w_2.w, p.w_3.w) + vec4<u32>(PER_GROUP - 1u)) / vec4<u32>(PER_GROUP);
    if left >= groups.x {
        left -= groups.x;
        which = 1u;
        product = p.w_1;
        if left >= groups.y {
            left -= groups.y;
            which = 2u;
            product = p.w_2;
            if left >= groups.z {
                left -= groups.z;
                which = 3u;
                product = p.w_3;
            }
        }
    }
    let at = position(t);
    let lane = at % LANES;
    let n = (left * (THREADS / LANES) + at / LANES) * 4u;
    let four = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(max(product.w, 1u) - 1u));
    let first = group.y * TOKENS;
    var rows: array<u32, TOKENS>;
    var sums: array<vec4<f32>, TOKENS>;
    for (var i = 0u; i < TOKENS; i++) {
        rows[i] = min(first + i, p.rows - 1u);
    }
    if which == 0u && lane < 4u && n + lane < product.w {
        before_first(first, n + lane);
    }
    for (var tile = 0u; tile < p.chunks; tile += X_CHUNKS) {
        let count = min(X_CHUNKS, p.chunks - tile);
        x_take(rows[0], tile, count, p.cols, at);
        for (var chunk = tile + lane; chunk < tile + count; chunk += LANES) {
            w_step(&sums, product.xyz, four, &rows, p.cols, chunk);
        }
    }
    let sum = lanes_sums(&sums, at);
    let row = first + lane / SHARE;
    for (var c = lane % SHARE; c < 4u; c += SHARE) {
        if n + c < product.w && row < p.rows {
            let to = row * product.w + n + c;
            switch which {
                case 0u: { put_first(row, n + c, sum[c]); }
                case 1u: { out_1[to] = sum[c]; }
                case 2u: { out_2[to] = sum[c]; }
                default: { out_3[to] = sum[c]; }
            }
        }
    }
}
