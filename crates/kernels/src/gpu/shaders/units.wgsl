// Products with matrix instructions: inputs are rounded to f16, sums are f32. A workgroup of four subgroups of 32 multiplies
// ROWS rows with 128 outputs, in steps of 32 columns; what the next step needs is on its way while this one is
// multiplied. `units.rs` writes out the squares of sixteen by sixteen that a subgroup sums, each one matrix or four of
// MATRIX by MATRIX, and the memory of the workgroup: `x_tile` and `w_tile`, and `sums` for a square of each subgroup on its
// way out, SQUARE items of which SIDE are a row. With ROWS 128 all three are 24 KiB: a few bytes more, and an H100 runs
// fewer workgroups at once, at two thirds of the rate.

const OUTPUTS = 128u;
// Vectors of four from one row of a tile to the next: not a multiple of all banks.
const PITCH = 10u;
// Vectors of a step of activations that a thread brings.
const EACH = ROWS / 16u;
$MEMORY

// Steps of a block, none if it has no rows.
fn steps_of(count: u32, cols: u32) -> u32 {
    return select((cols + 31u) / 32u, 0u, count == 0u);
}

// Half of the thirty-two values of a step: a thread brings one for each of two rows.
alias Half = array<vec4<f16>, 4>;

// What the weights are multiplied by, since the activations are divided by it.
const GROW = 32.0;

// Four signed bytes. In the low bits of 1024 as an f16, a byte is an integer of its own; 128 more makes it positive.
fn open_four(q: u32, scale: f32, bias: f32) -> vec4<f16> {
    let even = unpack2x16float((q & 0x00ff00ffu) ^ 0x64806480u);
    let odd = unpack2x16float(((q >> 8u) & 0x00ff00ffu) ^ 0x64806480u);
    return vec4<f16>(fma(vec4<f32>(even.x, odd.x, even.y, odd.y), vec4<f32>(scale), vec4<f32>(bias)));
}

fn open_half(q: vec4<u32>, scale: f32, bias: f32) -> Half {
    let s = scale * GROW;
    let b = (bias - 1152.0 * scale) * GROW;
    return Half(open_four(q.x, s, b), open_four(q.y, s, b), open_four(q.z, s, b), open_four(q.w, s, b));
}

// Zeros beyond the last column.
fn within(w: Eight, k: u32, cols: u32) -> Eight {
    if k + 8u <= cols {
        return w;
    }
    let i = vec4<u32>(k, k + 1u, k + 2u, k + 3u);
    let zero = vec4<f32>();
    return Eight(
        select(zero, w.a, i < vec4<u32>(cols)),
        select(zero, w.b, i + vec4<u32>(4u) < vec4<u32>(cols)),
    );
}

fn put_weights(at: u32, w: Half) {
    put_w(at, w[0]);
    put_w(at + 1u, w[1]);
    put_w(at + 2u, w[2]);
    put_w(at + 3u, w[3]);
}
