// The answer of one head of one row from what `attention` left of its spans, in their order; a workgroup a head and row.

struct Params {
    heads: u32,
    first_row: u32,
    spans: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> pieces: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

const LEAST = -3.4e38;
const STRIDE = HEAD_DIM + 2u;
var<workgroup> weights: array<f32, SPANS_MAX>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let base = (group.y * p.heads + group.x) * p.spans * STRIDE;
    var own = LEAST;
    for (var s = t; s < p.spans; s += THREADS) {
        own = max(own, pieces[base + s * STRIDE + HEAD_DIM]);
    }
    let most = workgroup_max(own, t);
    for (var s = t; s < p.spans; s += THREADS) {
        weights[s] = exp(pieces[base + s * STRIDE + HEAD_DIM] - most);
    }
    workgroupBarrier();
    var total = 0.0;
    for (var s = 0u; s < p.spans; s++) {
        total += weights[s] * pieces[base + s * STRIDE + HEAD_DIM + 1u];
    }
    let head = (p.first_row + group.y) * p.heads + group.x;
    for (var d = t; d < HEAD_DIM; d += THREADS) {
        var sum = 0.0;
        for (var s = 0u; s < p.spans; s++) {
            sum += weights[s] * pieces[base + s * STRIDE + d];
        }
        var result = sum / total;
        if GATED == 1u {
            result *= sigmoid(q[head * HEAD_DIM * 2u + HEAD_DIM + d]);
        }
        out[head * HEAD_DIM + d] = result;
    }
}
