// x[r] += sum_c weights[r, c] * parts[r * TOP_K + c] + sigmoid(gate[r]) * shared[r], in the order of c, and then
// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; a team a row.

struct Params {
    cols: u32,
    rows: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> parts: array<f32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> shared_output: array<f32>;
@group(0) @binding(3) var<storage, read> shared_gate: array<f32>;
@group(0) @binding(4) var<storage, read> weight: array<f32>;
@group(0) @binding(5) var<storage, read_write> x: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let row = folded(group);
    if row >= p.rows {
        return;
    }
    var factors: array<f32, TOP_K>;
    for (var c = 0u; c < TOP_K; c++) {
        factors[c] = weights[row * TOP_K + c];
    }
    var gate = 0.0;
    if SHARED == 1u {
        gate = sigmoid(shared_gate[row]);
    }
    var squares = 0.0;
    for (var i = t; i < p.cols; i += TEAM) {
        let at = row * p.cols + i;
        var sum = 0.0;
        for (var c = 0u; c < TOP_K; c++) {
            sum += factors[c] * parts[(row * TOP_K + c) * p.cols + i];
        }
        if SHARED == 1u {
            sum += gate * shared_output[at];
        }
        let v = x[at] + sum;
        x[at] = v;
        squares += v * v;
    }
    let scale = 1.0 / sqrt(team_sum(squares, t) / f32(p.cols) + p.eps);
    for (var i = t; i < p.cols; i += TEAM) {
        let at = row * p.cols + i;
        out[at] = x[at] * scale * weight[i];
    }
}
