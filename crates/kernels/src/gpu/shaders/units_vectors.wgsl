// Matrices of 16 x 16 are loaded from vectors of four.
var<workgroup> x_tile: array<vec4<f16>, ROWS * PITCH>;
var<workgroup> w_tile: array<vec4<f16>, OUTPUTS * PITCH>;
var<workgroup> sums: array<Sum, 4u * SQUARE>;

fn put_x(at: u32, v: vec4<f16>) {
    x_tile[at] = v;
}

fn put_w(at: u32, v: vec4<f16>) {
    w_tile[at] = v;
}

fn sum_at(at: u32) -> Sum {
    return sums[at];
}
