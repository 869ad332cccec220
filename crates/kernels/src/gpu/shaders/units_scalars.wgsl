// Metal's matrices, of 8 x 8, are loaded from scalars.
var<workgroup> x_tile: array<f16, ROWS * PITCH * 4u>;
var<workgroup> w_tile: array<f16, OUTPUTS * PITCH * 4u>;
var<workgroup> sums: array<f32, 1024>;

fn put_x(at: u32, v: vec4<f16>) {
    x_tile[4u * at] = v.x;
    x_tile[4u * at + 1u] = v.y;
    x_tile[4u * at + 2u] = v.z;
    x_tile[4u * at + 3u] = v.w;
}

fn put_w(at: u32, v: vec4<f16>) {
    w_tile[4u * at] = v.x;
    w_tile[4u * at + 1u] = v.y;
    w_tile[4u * at + 2u] = v.z;
    w_tile[4u * at + 3u] = v.w;
}

fn sum_at(at: u32) -> Sum {
    return $SUM;
}
