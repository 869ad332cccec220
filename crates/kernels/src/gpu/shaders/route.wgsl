// The TOP_K largest of a softmax over EXPERTS logits, by falling value, the lower id first on a tie; a team a row.
// A logit is held as an unsigned key that sorts as the float does.

struct Params {
    rows: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<u32>;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<u32>;

var<workgroup> key_of: array<u32, EXPERTS>;
// Best key and its id, of each thread.
var<workgroup> best: array<vec2<u32>, TEAM>;
var<workgroup> chosen: array<vec2<u32>, TOP_K>;

fn logit(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

fn better(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return select(b, a, a.x > b.x || (a.x == b.x && a.y < b.y));
}

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let row = folded(group);
    if row >= p.rows {
        return;
    }
    var bad = 0.0;
    for (var e = t; e < EXPERTS; e += TEAM) {
        let bits = logits[row * EXPERTS + e];
        // NaN or +infinity: by its bits, since a compiler may assume that a float is neither.
        if bits == 0x7f800000u || (bits & 0x7fffffffu) > 0x7f800000u {
            bad = 1.0;
        }
        key_of[e] = select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
    }
    bad = team_max(bad, t);
    workgroupBarrier();
    for (var c = 0u; c < TOP_K; c++) {
        var own = vec2<u32>(0u, EXPERTS);
        for (var e = t; e < EXPERTS; e += TEAM) {
            own = better(own, vec2<u32>(key_of[e], e));
        }
        best[t] = own;
        workgroupBarrier();
        for (var step = TEAM / 2u; step > 0u; step >>= 1u) {
            if t < step {
                best[t] = better(best[t], best[t + step]);
            }
            workgroupBarrier();
        }
        if t == 0u {
            chosen[c] = best[0];
            key_of[min(best[0].y, EXPERTS - 1u)] = 0u;
        }
        workgroupBarrier();
    }
    let most = logit(chosen[0].x);
    var own = 0.0;
    if NORMALISE == 0u {
        for (var e = t; e < EXPERTS; e += TEAM) {
            if key_of[e] != 0u {
                own += exp(logit(key_of[e]) - most);
            }
        }
    }
    var sum = team_sum(own, t);
    for (var c = 0u; c < TOP_K; c++) {
        sum += exp(logit(chosen[c].x) - most);
    }
    for (var c = t; c < TOP_K; c += TEAM) {
        let weight = bitcast<u32>(exp(logit(chosen[c].x) - most) / sum);
        ids[row * TOP_K + c] = min(chosen[c].y, EXPERTS - 1u);
        weights[row * TOP_K + c] = select(weight, 0x7fc00000u, bad > 0.0);
    }
}
