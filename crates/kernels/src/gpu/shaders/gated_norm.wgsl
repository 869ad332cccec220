// x[h] = x[h] / sqrt(mean(x[h]^2) + eps) * weight * silu(z[h]) for every head; a workgroup a head.

struct Params {
    cols: u32,
    heads: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> z: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let head = folded(group);
    if head >= p.heads {
        return;
    }
    var squares = 0.0;
    for (var i = t; i < p.cols; i += THREADS) {
        let v = x[head * p.cols + i];
        squares += v * v;
    }
    let scale = 1.0 / sqrt(workgroup_sum(squares, t) / f32(p.cols) + p.eps);
    for (var i = t; i < p.cols; i += THREADS) {
        let at = head * p.cols + i;
        x[at] = x[at] * scale * weight[i] * silu(z[at]);
    }
}
