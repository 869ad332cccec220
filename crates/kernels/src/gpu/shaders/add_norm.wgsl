// x += y, out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; a team a row.

struct Params {
    cols: u32,
    rows: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> y: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let row = folded(group);
    if row >= p.rows {
        return;
    }
    var squares = 0.0;
    for (var i = row * p.cols + t; i < (row + 1u) * p.cols; i += TEAM) {
        let v = x[i] + y[i];
        x[i] = v;
        squares += v * v;
    }
    let scale = 1.0 / sqrt(team_sum(squares, t) / f32(p.cols) + p.eps);
    for (var i = t; i < p.cols; i += TEAM) {
        let at = row * p.cols + i;
        out[at] = x[at] * scale * weight[i];
    }
}
