// x += y, and the norm of its rows.

struct Params {
    cols: u32,
    rows: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> y: array<Values>;
@group(0) @binding(1) var<storage, read> weight: array<Values>;
@group(0) @binding(2) var<storage, read_write> x: array<Values>;
@group(0) @binding(3) var<storage, read_write> out: array<Values>;

fn prepare(row: u32) {
}

fn summed(row: u32, i: u32, items: u32) -> Values {
    return x[row * items + i] + y[row * items + i];
}

fn keep(at: u32, v: Values) {
    x[at] = v;
}
