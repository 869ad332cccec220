// out[r, n] = x[r] . w[n] + bias[n]. LANES threads take four rows of w and TOKENS rows of x.

struct Params {
    base_0: u32,
    base_1: u32,
    base_2: u32,
    cols: u32,
    outputs: u32,
    rows: u32,
    biased: u32,
    // Steps of the weight's decoder in a row.
    chunks: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<XItem>;
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let at = position(t);
    let lane = at % LANES;
    let n = (folded(group) * (THREADS / LANES) + at / LANES) * 4u;
    let four = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(p.outputs - 1u));
    let first = group.y * TOKENS;
    var rows: array<u32, TOKENS>;
    var sums: array<vec4<f32>, TOKENS>;
    for (var i = 0u; i < TOKENS; i++) {
        rows[i] = min(first + i, p.rows - 1u);
    }
    let base = vec3<u32>(p.base_0, p.base_1, p.base_2);
    for (var tile = 0u; tile < p.chunks; tile += X_CHUNKS) {
        let count = min(X_CHUNKS, p.chunks - tile);
        x_take(rows[0], tile, count, p.cols, at);
        for (var chunk = tile + lane; chunk < tile + count; chunk += LANES) {
            w_step(&sums, base, four, &rows, p.cols, chunk);
        }
    }
    let sum = lanes_sums(&sums, at);
    let row = first + lane / SHARE;
    for (var c = lane % SHARE; c < 4u; c += SHARE) {
        if n + c < p.outputs && row < p.rows {
            var value = sum[c];
            if p.biased == 1u {
                value += bias[n + c];
            }
            out[row * p.outputs + n + c] = value;
        }
    }
}
