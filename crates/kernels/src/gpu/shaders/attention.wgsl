// Causal attention with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022). A workgroup takes HEADS query heads
// that share keys and values, and `span` positions, in blocks of 32: four threads score a position, for all heads at
// once, and then each thread sums two dimensions of the values. What several spans of a row answer is merged in another pass
// (Dao et al. 2023, flash decoding); a span alone answers itself. Blocks begin at absolute positions, so each is in one page.

struct Params {
    rows: vec4<u32>,
    // The first row of the dispatch.
    first: u32,
    heads: u32,
    // Query heads to a head of keys and values, and the tiles of HEADS that they make.
    group: u32,
    tiles: u32,
    kv_heads: u32,
    scale: f32,
    span: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> keys: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> values: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
// For each row of several spans, head and span: HEAD_DIM sums, the largest score, and the sum of the weights.
@group(0) @binding(4) var<storage, read_write> pieces: array<f32>;
@group(0) @binding(5) var<storage, read> table: array<u32>;

const BLOCK = LANES;
// Loads that are on their way together.
const AT_ONCE = 8u;
const LEAST = -3.4e38;
const PAIRS = HEAD_DIM / 2u;
const PER_THREAD = (PAIRS + THREADS - 1u) / THREADS;
const SCORES = HEADS * BLOCK;
// Scores of a thread.
const PASSES = (SCORES + THREADS - 1u) / THREADS;
var<workgroup> query: array<vec4<f32>, HEADS * HEAD_DIM / 4u>;
// Four parts of a score side by side.
var<workgroup> parts: array<f32, 4u * SCORES>;
// Position by position.
var<workgroup> weights: array<f32, SCORES>;
var<workgroup> shrinks: array<f32, HEADS>;
var<workgroup> highest: array<f32, HEADS>;
var<workgroup> totals: array<f32, HEADS>;
// Largest score so far, and sum of the weights, of the heads whose scores this thread weighs.
var<private> own_highest: vec4<f32>;
var<private> own_totals: vec4<f32>;

// Of FORMAT.
const HALF = 1u;
const BYTES = 2u;
// Words of a head of bytes: its values, then a half for each block of 32.
const HEAD_WORDS = (HEAD_DIM + HEAD_DIM / 16u + 3u) / 4u;

fn key_word(i: u32) -> u32 {
    return keys[i >> 1u][i & 1u];
}

fn value_word(i: u32) -> u32 {
    return values[i >> 1u][i & 1u];
}

// Values 4 i .. 4 i + 4 of key number `slot`.
fn key4(slot: u32, i: u32) -> vec4<f32> {
    if FORMAT == BYTES {
        let start = slot * HEAD_WORDS;
        let block = i / 8u;
        let scale = f16_value(key_word(start + HEAD_DIM / 4u + block / 2u) >> (16u * (block & 1u)));
        return scale * vec4<f32>(unpack4xI8(key_word(start + i)));
    }
    if FORMAT == HALF {
        let two = keys[slot * (HEAD_DIM / 4u) + i];
        return vec4<f32>(unpack2x16float(two.x), unpack2x16float(two.y));
    }
    let at = slot * (HEAD_DIM / 2u) + 2u * i;
    return bitcast<vec4<f32>>(vec4<u32>(keys[at], keys[at + 1u]));
}

// Values 2 i and 2 i + 1 of value number `slot`.
fn value2(slot: u32, i: u32) -> vec2<f32> {
    if FORMAT == BYTES {
        let start = slot * HEAD_WORDS;
        let block = i / 16u;
        let scale = f16_value(value_word(start + HEAD_DIM / 4u + block / 2u) >> (16u * (block & 1u)));
        let four = unpack4xI8(value_word(start + i / 2u));
        return scale * vec2<f32>(select(four.xy, four.zw, (i & 1u) == 1u));
    }
    if FORMAT == HALF {
        return unpack2x16float(value_word(slot * PAIRS + i));
    }
    return bitcast<vec2<f32>>(values[slot * PAIRS + i]);
}

// The scores of the block's positions, before the scale: `slot` is this thread's position, `quarter` its part of it.
fn score_block(slot: u32, quarter: u32, t: u32) {
    var sums: array<f32, HEADS>;
    for (var first = quarter; first < HEAD_DIM / 4u; first += 4u * AT_ONCE) {
        var key: array<vec4<f32>, AT_ONCE>;
        for (var j = 0u; j < AT_ONCE; j++) {
            key[j] = key4(slot, min(first + 4u * j, HEAD_DIM / 4u - 1u));
        }
        for (var j = 0u; j < AT_ONCE; j++) {
            let i = first + 4u * j;
            if i < HEAD_DIM / 4u {
                for (var h = 0u; h < HEADS; h++) {
                    sums[h] += dot(query[h * (HEAD_DIM / 4u) + i], key[j]);
                }
            }
        }
    }
    for (var h = 0u; h < HEADS; h++) {
        parts[h * 4u * BLOCK + t] = sums[h];
    }
}

// Which head the scores of pass `i` are of. BLOCK neighbours have one, and each THREADS / BLOCK of them another.
fn head_of(at: u32, i: u32) -> u32 {
    return at / BLOCK + i * (THREADS / BLOCK);
}

// Weights of the block's first `count` positions from its scores, and what older sums shrink by.
fn weigh_block(count: u32, at: u32) {
    let counts = at % BLOCK < count;
    var own = vec4<f32>(LEAST);
    for (var i = 0u; i < PASSES; i++) {
        let score = at + i * THREADS;
        if score < SCORES && counts {
            let four = vec4<f32>(
                parts[4u * score], parts[4u * score + 1u], parts[4u * score + 2u], parts[4u * score + 3u],
            );
            own[i] = dot(four, vec4<f32>(p.scale));
        }
    }
    let most = max(lanes_max4(own, at), own_highest);
    let exps = select(vec4<f32>(), exp(own - most), vec4<bool>(counts));
    let shrink = exp(own_highest - most);
    own_totals = own_totals * shrink + lanes_sum4(exps, at);
    own_highest = most;
    for (var i = 0u; i < PASSES; i++) {
        let h = head_of(at, i);
        if h < HEADS {
            weights[at % BLOCK * HEADS + h] = exps[i];
            if at % BLOCK == 0u {
                shrinks[h] = shrink[i];
            }
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let place = position(t);
    let own = row_of(p.first + group.z);
    let start = group.y * p.span;
    let end = min(start + p.span, own.position + 1u);
    // Other rows have more spans.
    if start >= end {
        return;
    }
    let kv_head = group.x / p.tiles;
    let in_group = group.x % p.tiles * HEADS;
    let first_head = kv_head * p.group + in_group;
    let stride = HEAD_DIM * (1u + GATED);
    var page = page_of(own, start, kv_head, p.kv_heads);
    for (var i = t; i < HEADS * HEAD_DIM / 4u; i += THREADS) {
        // Heads beyond the last of the group are copies of it, and store nothing.
        let h = min(i / (HEAD_DIM / 4u), p.group - 1u - in_group);
        let at = (own.row * p.heads + first_head + h) * stride + i % (HEAD_DIM / 4u) * 4u;
        query[i] = vec4<f32>(q[at], q[at + 1u], q[at + 2u], q[at + 3u]);
    }
    own_highest = vec4<f32>(LEAST);
    own_totals = vec4<f32>();
    workgroupBarrier();
    var sums: array<vec2<f32>, HEADS * PER_THREAD>;
    for (var block = start; block < end; block += BLOCK) {
        let count = min(BLOCK, end - block);
        let slot = page + block % $PAGE;
        score_block(slot + min(place / 4u, count - 1u), place % 4u, place);
        workgroupBarrier();
        weigh_block(count, place);
        for (var i = 0u; i < PER_THREAD; i++) {
            let pair = min(t + i * THREADS, PAIRS - 1u);
            for (var h = 0u; h < HEADS; h++) {
                sums[i * HEADS + h] *= shrinks[h];
            }
            // Positions beyond the last have no weight.
            for (var first = 0u; first < count; first += AT_ONCE) {
                var value: array<vec2<f32>, AT_ONCE>;
                for (var j = 0u; j < AT_ONCE; j++) {
                    value[j] = value2(slot + min(first + j, count - 1u), pair);
                }
                for (var j = 0u; j < AT_ONCE; j++) {
                    for (var h = 0u; h < HEADS; h++) {
                        sums[i * HEADS + h] += weights[(first + j) * HEADS + h] * value[j];
                    }
                }
            }
        }
        let next = block + BLOCK;
        if next % $PAGE == 0u && next < end {
            page = page_of(own, next, kv_head, p.kv_heads);
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < PASSES; i++) {
        let h = head_of(place, i);
        if h < HEADS && place % BLOCK == 0u {
            highest[h] = own_highest[i];
            totals[h] = own_totals[i];
        }
    }
    workgroupBarrier();
    let spans = own.position / p.span + 1u;
    for (var h = 0u; h < min(HEADS, p.group - in_group); h++) {
        let head = own.row * p.heads + first_head + h;
        let to = (own.pieces * p.heads + (first_head + h) * spans + group.y) * (HEAD_DIM + 2u);
        for (var i = 0u; i < PER_THREAD; i++) {
            let pair = t + i * THREADS;
            if pair < PAIRS {
                var value = sums[i * HEADS + h];
                if spans > 1u {
                    pieces[to + 2u * pair] = value.x;
                    pieces[to + 2u * pair + 1u] = value.y;
                } else {
                    value /= totals[h];
                    if GATED == 1u {
                        let gate = head * stride + HEAD_DIM + 2u * pair;
                        value *= vec2<f32>(sigmoid(q[gate]), sigmoid(q[gate + 1u]));
                    }
                    out[head * HEAD_DIM + 2u * pair] = value.x;
                    out[head * HEAD_DIM + 2u * pair + 1u] = value.y;
                }
            }
        }
        if t == 0u && spans > 1u {
            pieces[to + HEAD_DIM] = highest[h];
            pieces[to + HEAD_DIM + 1u] = totals[h];
        }
    }
}
