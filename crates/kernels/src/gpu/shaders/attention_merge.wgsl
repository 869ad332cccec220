// The answer of one head of one row from what `attention` left of its spans, in their order; a workgroup a head and row.

struct Params {
    rows: vec4<u32>,
    heads: u32,
    span: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> pieces: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> table: array<u32>;

const LEAST = -3.4e38;
const STRIDE = HEAD_DIM + 2u;
var<workgroup> weights: array<f32, SPANS_MAX>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let row = row_of(group.y);
    let spans = row.position / p.span + 1u;
    // A span alone has answered.
    if spans == 1u {
        return;
    }
    let base = (row.pieces * p.heads + group.x * spans) * STRIDE;
    var own = LEAST;
    for (var s = t; s < spans; s += THREADS) {
        own = max(own, pieces[base + s * STRIDE + HEAD_DIM]);
    }
    let most = workgroup_max(own, t);
    for (var s = t; s < spans; s += THREADS) {
        weights[s] = exp(pieces[base + s * STRIDE + HEAD_DIM] - most);
    }
    workgroupBarrier();
    var total = 0.0;
    for (var s = 0u; s < spans; s++) {
        total += weights[s] * pieces[base + s * STRIDE + HEAD_DIM + 1u];
    }
    let head = row.row * p.heads + group.x;
    for (var d = t; d < HEAD_DIM; d += THREADS) {
        var sum = 0.0;
        for (var s = 0u; s < spans; s++) {
            sum += weights[s] * pieces[base + s * STRIDE + d];
        }
        var result = sum / total;
        if GATED == 1u {
            result *= sigmoid(q[head * HEAD_DIM * 2u + HEAD_DIM + d]);
        }
        out[head * HEAD_DIM + d] = result;
    }
}
