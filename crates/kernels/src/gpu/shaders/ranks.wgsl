// The TOP_K largest of a softmax over EXPERTS logits, the lower id on a tie, by ascending id, found by a workgroup.
// A logit is held as an unsigned key that sorts as the float does. Each thread ranks experts of its own by counting
// those that come before, so nobody waits between two choices.

const KEYS = (EXPERTS + 3u) / 4u;
// Keys of four experts each; those beyond the last are 0, which sorts before every number.
var<workgroup> keys: array<vec4<u32>, KEYS>;
// Experts by falling key, and the same ascending.
var<workgroup> chosen: array<u32, TOP_K>;
var<workgroup> ascending: array<u32, TOP_K>;

fn logit(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// How many experts come before expert e with this key.
fn rank(key: u32, e: u32) -> u32 {
    var before = vec4<u32>(0u);
    for (var i = 0u; i < KEYS; i++) {
        let other = keys[i];
        let id = vec4<u32>(4u * i, 4u * i + 1u, 4u * i + 2u, 4u * i + 3u);
        let first = (other > vec4<u32>(key)) | ((other == vec4<u32>(key)) & (id < vec4<u32>(e)));
        before += select(vec4<u32>(0u), vec4<u32>(1u), first);
    }
    return before.x + before.y + before.z + before.w;
}

// Fills `chosen` and `ascending`; says whether all logits are numbers.
fn choose(row: u32, t: u32) -> bool {
    var bad = 0.0;
    for (var e = t; e < KEYS * 4u; e += THREADS) {
        var key = 0u;
        if e < EXPERTS {
            let bits = logits[row * EXPERTS + e];
            // NaN or +infinity: by its bits, since a compiler may assume that a float is neither.
            if bits == 0x7f800000u || (bits & 0x7fffffffu) > 0x7f800000u {
                bad = 1.0;
            }
            key = select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
        }
        keys[e / 4u][e % 4u] = key;
    }
    bad = workgroup_max(bad, t);
    workgroupBarrier();
    for (var e = t; e < EXPERTS; e += THREADS) {
        let key = keys[e / 4u][e % 4u];
        let place = rank(key, e);
        if place < TOP_K {
            chosen[place] = e;
        }
    }
    workgroupBarrier();
    for (var c = t; c < TOP_K; c += THREADS) {
        var place = 0u;
        for (var other = 0u; other < TOP_K; other++) {
            place += select(0u, 1u, chosen[other] < chosen[c]);
        }
        ascending[place] = chosen[c];
    }
    workgroupBarrier();
    return bad == 0.0;
}

fn chosen_expert(c: u32) -> u32 {
    return min(ascending[c], EXPERTS - 1u);
}

// The logit of an expert that was chosen.
fn logit_of(e: u32) -> f32 {
    let expert = min(e, EXPERTS - 1u);
    return logit(keys[expert / 4u][expert % 4u]);
}

// Stores ids and weights of what was chosen for a row.
fn store_routes(row: u32, good: bool, t: u32) {
    let most = logit_of(chosen[0]);
    var own = 0.0;
    if NORMALISE == 0u {
        for (var e = t; e < EXPERTS; e += THREADS) {
            own += exp(logit(keys[e / 4u][e % 4u]) - most);
        }
    }
    var sum = workgroup_sum(own, t);
    if NORMALISE == 1u {
        for (var c = 0u; c < TOP_K; c++) {
            sum += exp(logit_of(chosen[c]) - most);
        }
    }
    for (var c = t; c < TOP_K; c += THREADS) {
        let weight = bitcast<u32>(exp(logit_of(ascending[c]) - most) / sum);
        ids[row * TOP_K + c] = chosen_expert(c);
        weights[row * TOP_K + c] = select(0x7fc00000u, weight, good);
    }
}
