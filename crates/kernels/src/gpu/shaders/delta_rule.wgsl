// The gated delta rule, token after token; a team takes TEAM columns of one value head's state and keeps them in
// registers, each thread one column.

struct Params {
    key_heads: u32,
    value_heads: u32,
    value_dim: u32,
    first_row: u32,
    rows: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> decay: array<f32>;
@group(0) @binding(4) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

var<workgroup> query: array<f32, KEY_DIM>;
var<workgroup> key: array<f32, KEY_DIM>;
const L2_EPS = 1e-6;

// ln(1 + e^x). The built-in log is only good to 5e-7 near 1, so ln(1 + e) is the series of 2 atanh(e / (2 + e)).
fn softplus(x: f32) -> f32 {
    let e = exp(-abs(x));
    let s = e / (2.0 + e);
    let s2 = s * s;
    let series = 1.0 + s2 * (1.0 / 3.0 + s2 * (0.2 + s2 * (1.0 / 7.0 + s2 * (1.0 / 9.0
        + s2 * (1.0 / 11.0 + s2 / 13.0)))));
    return max(x, 0.0) + 2.0 * s * series;
}

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let h = group.x;
    let d = group.y * TEAM + t;
    // Threads beyond the last column work on a copy of it and store nothing.
    let column = min(d, p.value_dim - 1u);
    var key_head = h / (p.value_heads / p.key_heads);
    if TILED == 1u {
        key_head = h % p.key_heads;
    }
    let key_channels = p.key_heads * KEY_DIM;
    let channels = 2u * key_channels + p.value_heads * p.value_dim;
    var s: array<f32, KEY_DIM>;
    for (var i = 0u; i < KEY_DIM; i++) {
        s[i] = state[(h * KEY_DIM + i) * p.value_dim + column];
    }
    for (var row = p.first_row; row < p.first_row + p.rows; row++) {
        var squares = vec2<f32>(0.0);
        for (var i = t; i < KEY_DIM; i += TEAM) {
            let qk = vec2<f32>(
                qkv[row * channels + key_head * KEY_DIM + i],
                qkv[row * channels + key_channels + key_head * KEY_DIM + i],
            );
            query[i] = qk.x;
            key[i] = qk.y;
            squares += qk * qk;
        }
        let sums = team_sum4(vec4<f32>(squares, 0.0, 0.0), t);
        workgroupBarrier();
        let q_scale = 1.0 / sqrt((sums.x + L2_EPS) * f32(KEY_DIM));
        let k_scale = 1.0 / sqrt(sums.y + L2_EPS);
        let at = row * p.value_heads + h;
        let beta = sigmoid(b[at]);
        let g = exp(decay[h] * softplus(a[at] + dt_bias[h]));
        var memory = 0.0;
        for (var i = 0u; i < KEY_DIM; i++) {
            s[i] *= g;
            memory += key[i] * s[i];
        }
        let v = qkv[row * channels + 2u * key_channels + h * p.value_dim + column];
        let delta = (v - memory * k_scale) * beta * k_scale;
        var result = 0.0;
        for (var i = 0u; i < KEY_DIM; i++) {
            s[i] += key[i] * delta;
            result += query[i] * s[i];
        }
        if d < p.value_dim {
            out[at * p.value_dim + d] = result * q_scale;
        }
        workgroupBarrier();
    }
    if d < p.value_dim {
        for (var i = 0u; i < KEY_DIM; i++) {
            state[(h * KEY_DIM + i) * p.value_dim + d] = s[i];
        }
    }
}
