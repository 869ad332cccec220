// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; a team a row.

struct Params {
    cols: u32,
    rows: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let row = folded(group);
    if row >= p.rows {
        return;
    }
    var squares = 0.0;
    for (var i = t; i < p.cols; i += TEAM) {
        let v = x[row * p.cols + i];
        squares += v * v;
    }
    let scale = 1.0 / sqrt(team_sum(squares, t) / f32(p.cols) + p.eps);
    for (var i = t; i < p.cols; i += TEAM) {
        out[row * p.cols + i] = x[row * p.cols + i] * scale * weight[i];
    }
}
