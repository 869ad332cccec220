// Up to four products with the same x and weights of one format in the same buffers: out_i[r, n] = x[r] . w_i[n].

fn before_first(row: u32, n: u32) {
}

fn put_first(row: u32, n: u32, value: f32) {
    out_0[row * p.w_0.w + n] = value;
}
