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

// Of FORMAT.
const HALF = 1u;
const BYTES = 2u;
// Words of a head of bytes: its values, then a half for each block of 32.
const HEAD_WORDS = (HEAD_DIM + HEAD_DIM / 16u + 3u) / 4u;

fn query4(at: u32) -> vec4<f32> {
    return vec4<f32>(query[at], query[at + 1u], query[at + 2u], query[at + 3u]);
}

fn score(head: u32) -> f32 {
    var sum = 0.0;
    if FORMAT == BYTES {
        let start = head * HEAD_WORDS;
        for (var b = 0u; b < HEAD_DIM / 32u; b++) {
            let scale = f16_value(keys[start + HEAD_DIM / 4u + b / 2u] >> (16u * (b & 1u)));
            var part = 0.0;
            for (var w = b * 8u; w < b * 8u + 8u; w++) {
                part += dot(query4(4u * w), vec4<f32>(unpack4xI8(keys[start + w])));
            }
            sum += scale * part;
        }
    } else if FORMAT == HALF {
        let at = head * HEAD_DIM;
        for (var i = 0u; i < HEAD_DIM; i += 2u) {
            let pair = unpack2x16float(keys[(at + i) / 2u]);
            sum += query[i] * pair.x + query[i + 1u] * pair.y;
        }
    } else {
        for (var i = 0u; i < HEAD_DIM; i++) {
            sum += query[i] * bitcast<f32>(keys[head * HEAD_DIM + i]);
        }
    }
    return sum * p.scale;
}

// Value `d` of a head.
fn value_at(head: u32, d: u32) -> f32 {
    if FORMAT == BYTES {
        let start = head * HEAD_WORDS;
        let block = d / 32u;
        let scale = f16_value(values[start + HEAD_DIM / 4u + block / 2u] >> (16u * (block & 1u)));
        return scale * f32(unpack4xI8(values[start + d / 4u])[d & 3u]);
    }
    let at = head * HEAD_DIM + d;
    if FORMAT == HALF {
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
            own = score(kv_base + j);
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
                    sum += weights[b] * value_at(kv_base + block + b, d);
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
