// Causal attention with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022); a team takes one head of
// one row, TEAM keys at a time.

struct Params {
    heads: u32,
    group: u32,
    capacity: u32,
    first_row: u32,
    position: u32,
    scale: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> keys: array<u32>;
@group(0) @binding(2) var<storage, read> values: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const PER_THREAD = (HEAD_DIM + TEAM - 1u) / TEAM;
const LEAST = -3.4e38;
var<workgroup> query: array<f32, HEAD_DIM>;
var<workgroup> weights: array<f32, TEAM>;

fn score(at: u32) -> f32 {
    var sum = 0.0;
    if HALF == 1u {
        for (var i = 0u; i < HEAD_DIM; i += 2u) {
            let pair = unpack2x16float(keys[(at + i) / 2u]);
            sum += query[i] * pair.x + query[i + 1u] * pair.y;
        }
    } else {
        for (var i = 0u; i < HEAD_DIM; i++) {
            sum += query[i] * bitcast<f32>(keys[at + i]);
        }
    }
    return sum * p.scale;
}

fn value_at(at: u32) -> f32 {
    if HALF == 1u {
        return unpack2x16float(values[at / 2u])[at & 1u];
    }
    return bitcast<f32>(values[at]);
}

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let row_head = (p.first_row + group.y) * p.heads + group.x;
    let q_base = row_head * HEAD_DIM * (1u + GATED);
    let kv_base = group.x / p.group * p.capacity;
    let count = p.position + group.y + 1u;
    for (var i = t; i < HEAD_DIM; i += TEAM) {
        query[i] = q[q_base + i];
    }
    workgroupBarrier();
    var sums: array<f32, PER_THREAD>;
    var total = 0.0;
    var most = LEAST;
    for (var block = 0u; block < count; block += TEAM) {
        let j = block + t;
        var own = LEAST;
        if j < count {
            own = score((kv_base + j) * HEAD_DIM);
        }
        let higher = max(most, team_max(own, t));
        var e = 0.0;
        if j < count {
            e = exp(own - higher);
        }
        weights[t] = e;
        let shrink = exp(most - higher);
        most = higher;
        workgroupBarrier();
        total = total * shrink + team_sum(e, t);
        let block_count = min(TEAM, count - block);
        for (var i = 0u; i < PER_THREAD; i++) {
            let d = t + i * TEAM;
            if d < HEAD_DIM {
                var sum = sums[i] * shrink;
                for (var b = 0u; b < block_count; b++) {
                    sum += weights[b] * value_at((kv_base + block + b) * HEAD_DIM + d);
                }
                sums[i] = sum;
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < PER_THREAD; i++) {
        let d = t + i * TEAM;
        if d < HEAD_DIM {
            var result = sums[i] / total;
            if GATED == 1u {
                result *= sigmoid(q[q_base + HEAD_DIM + d]);
            }
            out[row_head * HEAD_DIM + d] = result;
        }
    }
}
