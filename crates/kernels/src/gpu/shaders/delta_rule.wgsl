// The gated delta rule, token after token; a workgroup takes COLUMNS columns of one value head's state of a segment and keeps
// them in registers, each thread one of SLICES parts of as many columns as it takes values at a time. GATED (a head's columns
// are then one workgroup's): the answer is normed over the head, and gated.

struct Params {
    segments: vec4<u32>,
    key_heads: u32,
    value_heads: u32,
    value_dim: u32,
    eps: f32,
}
var<immediate> p: Params;
// The same values twice, one by one and as they are taken.
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> v_of_rows: array<Values>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;
@group(0) @binding(4) var<storage, read> decay: array<f32>;
@group(0) @binding(5) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(6) var<storage, read> z: array<Values>;
@group(0) @binding(7) var<storage, read> weight: array<Values>;
@group(0) @binding(8) var<storage, read_write> state: array<Values>;
@group(0) @binding(9) var<storage, read_write> out: array<Values>;
@group(0) @binding(10) var<storage, read> table: array<u32>;

const SLICES = 8u;
// Of VALUES columns each.
const COLUMNS = THREADS / SLICES;
const SLICE = (KEY_DIM + SLICES - 1u) / SLICES;
var<workgroup> query: array<f32, SLICES * SLICE>;
var<workgroup> key: array<f32, SLICES * SLICE>;
var<workgroup> parts: array<Values, THREADS>;

// The sum over a column's parts, in their order.
fn column_sum(value: Values, t: u32) -> Values {
    parts[t] = value;
    workgroupBarrier();
    var sum = Values();
    for (var slice = 0u; slice < SLICES; slice++) {
        sum += parts[slice * COLUMNS + t % COLUMNS];
    }
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let own = segment_of(group.z);
    let h = group.x;
    let width = p.value_dim / VALUES;
    let d = group.y * COLUMNS + t % COLUMNS;
    let start = t / COLUMNS * SLICE;
    // Threads beyond the last column work on a copy of its values, with no state, and store nothing.
    let column = min(d, width - 1u);
    let state_at = ((own.slot * p.value_heads + h) * KEY_DIM + start) * width + column;
    var key_head = h / (p.value_heads / p.key_heads);
    if TILED == 1u {
        key_head = h % p.key_heads;
    }
    let key_channels = p.key_heads * KEY_DIM;
    let channels = 2u * key_channels + p.value_heads * p.value_dim;
    var s: array<Values, SLICE>;
    for (var i = 0u; i < SLICE && d < width; i++) {
        // Beyond the last row: zeros that stay zeros, as queries and keys are there.
        if KEY_DIM % SLICES == 0u || start + i < KEY_DIM {
            s[i] = state[state_at + i * width];
        }
    }
    for (var row = own.first_row; row < own.first_row + own.rows; row++) {
        var squares = vec2<f32>(0.0);
        for (var i = t; i < SLICES * SLICE; i += THREADS) {
            var qk = vec2<f32>(0.0);
            if i < KEY_DIM {
                qk = vec2<f32>(
                    qkv[row * channels + key_head * KEY_DIM + i],
                    qkv[row * channels + key_channels + key_head * KEY_DIM + i],
                );
            }
            query[i] = qk.x;
            key[i] = qk.y;
            squares += qk * qk;
        }
        let at = row * p.value_heads + h;
        let v = v_of_rows[(row * channels + 2u * key_channels + h * p.value_dim) / VALUES + column];
        let beta = sigmoid(b[at]);
        let g = exp(decay[h] * softplus(a[at] + dt_bias[h]));
        let sums = workgroup_sum4(vec4<f32>(squares, 0.0, 0.0), t);
        workgroupBarrier();
        let q_scale = 1.0 / sqrt((sums.x + L2_EPS) * f32(KEY_DIM));
        let k_scale = 1.0 / sqrt(sums.y + L2_EPS);
        var memory = Values();
        for (var i = 0u; i < SLICE; i++) {
            s[i] *= g;
            memory += key[start + i] * s[i];
        }
        let delta = (v - column_sum(memory, t) * k_scale) * beta * k_scale;
        var result = Values();
        for (var i = 0u; i < SLICE; i++) {
            s[i] += key[start + i] * delta;
            result += query[start + i] * s[i];
        }
        var answer = column_sum(result, t) * q_scale;
        let stores = d < width && t < COLUMNS;
        if GATED == 1u {
            let mean = workgroup_sum(select(0.0, squared(answer), stores), t) / f32(p.value_dim);
            answer *= 1.0 / sqrt(mean + p.eps);
            if stores {
                answer *= weight[d] * silu_of(z[at * width + d]);
            }
        }
        if stores {
            out[at * width + d] = answer;
        }
    }
    if d < width {
        for (var i = 0u; i < SLICE; i++) {
            if KEY_DIM % SLICES == 0u || start + i < KEY_DIM {
                state[state_at + i * width] = s[i];
            }
        }
    }
}
