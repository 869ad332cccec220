// x[r] += sigmoid(gate[r]) * shared[r] + sum_c weights[r, c] * parts[r * TOP_K + c], summed in this order, and the norm of
// its rows.

struct Params {
    cols: u32,
    rows: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> parts: array<Values>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> shared_output: array<Values>;
@group(0) @binding(3) var<storage, read> shared_gate: array<f32>;
@group(0) @binding(4) var<storage, read> weight: array<Values>;
@group(0) @binding(5) var<storage, read_write> x: array<Values>;
@group(0) @binding(6) var<storage, read_write> out: array<Values>;

var<private> factors: array<f32, TOP_K>;
var<private> gate: f32;

fn prepare(row: u32) {
    for (var c = 0u; c < TOP_K; c++) {
        factors[c] = weights[row * TOP_K + c];
    }
    if SHARED == 1u {
        gate = sigmoid(shared_gate[row]);
    }
}

fn summed(row: u32, i: u32, items: u32) -> Values {
    var sum = Values();
    if SHARED == 1u {
        sum = gate * shared_output[row * items + i];
    }
    for (var c = 0u; c < TOP_K; c++) {
        sum += factors[c] * parts[(row * TOP_K + c) * items + i];
    }
    return x[row * items + i] + sum;
}

fn keep(at: u32, v: Values) {
    x[at] = v;
}
