// The gated delta rule over many rows, token after token: LANES neighbours take a column of one value head's state of a
// segment and keep it in registers, a slice of the keys each, so that a token costs two short sums and no barrier.

struct Params {
    segments: vec4<u32>,
    key_heads: u32,
    value_heads: u32,
    value_dim: u32,
}
var<immediate> p: Params;
// The same values twice: four at a time, and one by one.
@group(0) @binding(0) var<storage, read> qk: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> qkv: array<f32>;
@group(0) @binding(2) var<storage, read> a: array<f32>;
@group(0) @binding(3) var<storage, read> b: array<f32>;
@group(0) @binding(4) var<storage, read> decay: array<f32>;
@group(0) @binding(5) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> state: array<f32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;
@group(0) @binding(8) var<storage, read> table: array<u32>;

const FOURS = KEY_DIM / LANES / 4u;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let at = position(t);
    let own = segment_of(group.z);
    let h = group.x;
    let d = group.y * (THREADS / LANES) + at / LANES;
    // Threads beyond the last column work on a copy of its values, with no state, and store nothing.
    let column = min(d, p.value_dim - 1u);
    var key_head = h / (p.value_heads / p.key_heads);
    if TILED == 1u {
        key_head = h % p.key_heads;
    }
    let key_channels = p.key_heads * KEY_DIM;
    let channels = 2u * key_channels + p.value_heads * p.value_dim;
    // This thread's keys: FOURS vectors of four, a vector of each neighbour between them.
    let lane = at % LANES;
    let first_state = ((own.slot * p.value_heads + h) * KEY_DIM + lane * 4u) * p.value_dim + column;
    var s: array<vec4<f32>, FOURS>;
    for (var i = 0u; i < FOURS && d < p.value_dim; i++) {
        let begin = first_state + i * LANES * 4u * p.value_dim;
        s[i] = vec4<f32>(
            state[begin], state[begin + p.value_dim], state[begin + 2u * p.value_dim], state[begin + 3u * p.value_dim],
        );
    }
    // A row is loaded while the one before it is worked on.
    var next_query: array<vec4<f32>, FOURS>;
    var next_key: array<vec4<f32>, FOURS>;
    var next_v = 0.0;
    var next_gates = vec2<f32>();
    let end = own.first_row + own.rows;
    for (var row = own.first_row; row <= end; row++) {
        var query = next_query;
        var key = next_key;
        let v = next_v;
        let beta = sigmoid(next_gates.y);
        let g = exp(decay[h] * softplus(next_gates.x + dt_bias[h]));
        if row < end {
            let first = (row * channels + key_head * KEY_DIM) / 4u + lane;
            for (var i = 0u; i < FOURS; i++) {
                next_query[i] = qk[first + i * LANES];
                next_key[i] = qk[first + key_channels / 4u + i * LANES];
            }
            next_v = qkv[row * channels + 2u * key_channels + h * p.value_dim + column];
            next_gates = vec2<f32>(a[row * p.value_heads + h], b[row * p.value_heads + h]);
        }
        if row == own.first_row {
            continue;
        }
        var sums = vec4<f32>();
        for (var i = 0u; i < FOURS; i++) {
            s[i] *= g;
            sums += vec4<f32>(dot(query[i], query[i]), dot(key[i], key[i]), dot(key[i], s[i]), 0.0);
        }
        sums = lanes_sum4(sums, at);
        let q_scale = 1.0 / sqrt((sums.x + L2_EPS) * f32(KEY_DIM));
        let k_scale = 1.0 / sqrt(sums.y + L2_EPS);
        let delta = (v - sums.z * k_scale) * beta * k_scale;
        var result = 0.0;
        for (var i = 0u; i < FOURS; i++) {
            s[i] += key[i] * delta;
            result += dot(query[i], s[i]);
        }
        let answer = lanes_sum(result, at) * q_scale;
        if lane == 0u && d < p.value_dim {
            out[((row - 1u) * p.value_heads + h) * p.value_dim + d] = answer;
        }
    }
    if d < p.value_dim {
        for (var i = 0u; i < FOURS; i++) {
            let to = first_state + i * LANES * 4u * p.value_dim;
            for (var j = 0u; j < 4u; j++) {
                state[to + j * p.value_dim] = s[i][j];
            }
        }
    }
}
