// The gated delta rule, token after token; a team takes COLUMNS columns of one value head's state and keeps them in
// registers, each thread one of SLICES parts of a column. GATED (a head's columns are then one team's): the answer is
// normed over the head, and gated.

struct Params {
    key_heads: u32,
    value_heads: u32,
    value_dim: u32,
    first_row: u32,
    rows: u32,
    eps: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> decay: array<f32>;
@group(0) @binding(4) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(5) var<storage, read> z: array<f32>;
@group(0) @binding(6) var<storage, read> weight: array<f32>;
@group(0) @binding(7) var<storage, read_write> state: array<f32>;
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

var<workgroup> query: array<f32, SLICES * SLICE>;
var<workgroup> key: array<f32, SLICES * SLICE>;
const SLICES = 4u;
const COLUMNS = TEAM / SLICES;
const SLICE = (KEY_DIM + SLICES - 1u) / SLICES;
var<workgroup> parts: array<f32, TEAM>;

// The sum over a column's parts, in their order.
fn column_sum(value: f32, t: u32) -> f32 {
    parts[t] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var slice = 0u; slice < SLICES; slice++) {
        sum += parts[slice * COLUMNS + t % COLUMNS];
    }
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let h = group.x;
    let d = group.y * COLUMNS + t % COLUMNS;
    let start = t / COLUMNS * SLICE;
    let count = min(SLICE, KEY_DIM - min(start, KEY_DIM));
    // Threads beyond the last column work on a copy of it and store nothing.
    let column = min(d, p.value_dim - 1u);
    var key_head = h / (p.value_heads / p.key_heads);
    if TILED == 1u {
        key_head = h % p.key_heads;
    }
    let key_channels = p.key_heads * KEY_DIM;
    let channels = 2u * key_channels + p.value_heads * p.value_dim;
    var s: array<f32, SLICE>;
    for (var i = 0u; i < SLICE; i++) {
        // Beyond the last row: zeros that stay zeros, as queries and keys are there.
        if i < count {
            s[i] = state[(h * KEY_DIM + start + i) * p.value_dim + column];
        }
    }
    for (var row = p.first_row; row < p.first_row + p.rows; row++) {
        var squares = vec2<f32>(0.0);
        for (var i = t; i < SLICES * SLICE; i += TEAM) {
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
        let v = qkv[row * channels + 2u * key_channels + h * p.value_dim + column];
        let beta = sigmoid(b[at]);
        let g = exp(decay[h] * softplus(a[at] + dt_bias[h]));
        let sums = team_sum4(vec4<f32>(squares, 0.0, 0.0), t);
        workgroupBarrier();
        let q_scale = 1.0 / sqrt((sums.x + L2_EPS) * f32(KEY_DIM));
        let k_scale = 1.0 / sqrt(sums.y + L2_EPS);
        var memory = 0.0;
        for (var i = 0u; i < SLICE; i++) {
            s[i] *= g;
            memory += key[start + i] * s[i];
        }
        let delta = (v - column_sum(memory, t) * k_scale) * beta * k_scale;
        var result = 0.0;
        for (var i = 0u; i < SLICE; i++) {
            s[i] += key[start + i] * delta;
            result += query[start + i] * s[i];
        }
        var answer = column_sum(result, t) * q_scale;
        let stores = d < p.value_dim && t < COLUMNS;
        if GATED == 1u {
            let mean = team_sum(select(0.0, answer * answer, stores), t) / f32(p.value_dim);
            answer *= 1.0 / sqrt(mean + p.eps);
            if stores {
                answer *= weight[d] * silu(z[at * p.value_dim + d]);
            }
        }
        if stores {
            out[at * p.value_dim + d] = answer;
        }
    }
    if d < p.value_dim {
        for (var i = 0u; i < count; i++) {
            state[(h * KEY_DIM + start + i) * p.value_dim + d] = s[i];
        }
    }
}
