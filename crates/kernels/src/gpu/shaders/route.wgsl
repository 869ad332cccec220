// The TOP_K largest of a softmax over EXPERTS logits, by falling value, the lower id first on a tie; a team a row.
// A logit is held as an unsigned key that sorts as the float does. Each thread ranks experts of its own by counting
// those that come before, so nobody waits between two choices.
//
// With TILES also the table of `gate_up` and `down` for each group of experts that share buffers: tile i is part i with
// its expert. The lookup has ten words an expert and group: the nine bases, and 1 if its weights are in the group's
// buffers; tiles of the others have no entries. The entries follow the tiles of all groups.

struct Params {
    rows: u32,
    groups: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<u32>;
@group(0) @binding(1) var<storage, read> lookup: array<u32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> weights: array<u32>;
@group(0) @binding(4) var<storage, read_write> table: array<u32>;

const FOURS = (EXPERTS + 3u) / 4u;
// Keys of four experts each; those beyond the last are 0, which sorts before every number.
var<workgroup> keys: array<vec4<u32>, FOURS>;
var<workgroup> chosen: array<vec2<u32>, TOP_K>;

fn logit(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// How many experts come before expert e with this key.
fn rank(key: u32, e: u32) -> u32 {
    var before = vec4<u32>(0u);
    for (var i = 0u; i < FOURS; i++) {
        let other = keys[i];
        let id = vec4<u32>(4u * i, 4u * i + 1u, 4u * i + 2u, 4u * i + 3u);
        let first = (other > vec4<u32>(key)) | ((other == vec4<u32>(key)) & (id < vec4<u32>(e)));
        before += select(vec4<u32>(0u), vec4<u32>(1u), first);
    }
    return before.x + before.y + before.z + before.w;
}

fn tiles(row: u32, t: u32) {
    let parts = p.rows * TOP_K;
    for (var item = t; item < p.groups * TOP_K; item += TEAM) {
        let c = item % TOP_K;
        let part = row * TOP_K + c;
        let expert = (item / TOP_K * EXPERTS + min(chosen[c].y, EXPERTS - 1u)) * 10u;
        let tile = (item / TOP_K * parts + part) * 11u;
        for (var word = 0u; word < 9u; word++) {
            table[tile + word] = lookup[expert + word];
        }
        table[tile + 9u] = part;
        table[tile + 10u] = lookup[expert + 9u];
        let entry = p.groups * parts * 11u + part * 2u;
        table[entry] = row;
        table[entry + 1u] = part;
    }
}

@compute @workgroup_size(TEAM)
fn main(@builtin(workgroup_id) group: vec3<u32>, $TEAM_ARGUMENTS) {
    $TEAM_SETUP
    let row = folded(group);
    if row >= p.rows {
        return;
    }
    var bad = 0.0;
    for (var e = t; e < FOURS * 4u; e += TEAM) {
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
    bad = team_max(bad, t);
    workgroupBarrier();
    for (var e = t; e < EXPERTS; e += TEAM) {
        let key = keys[e / 4u][e % 4u];
        let place = rank(key, e);
        if place < TOP_K {
            chosen[place] = vec2<u32>(key, e);
        }
    }
    workgroupBarrier();
    let most = logit(chosen[0].x);
    var own = 0.0;
    if NORMALISE == 0u {
        for (var e = t; e < EXPERTS; e += TEAM) {
            own += exp(logit(keys[e / 4u][e % 4u]) - most);
        }
    }
    var sum = team_sum(own, t);
    if NORMALISE == 1u {
        for (var c = 0u; c < TOP_K; c++) {
            sum += exp(logit(chosen[c].x) - most);
        }
    }
    for (var c = t; c < TOP_K; c += TEAM) {
        let weight = bitcast<u32>(exp(logit(chosen[c].x) - most) / sum);
        ids[row * TOP_K + c] = min(chosen[c].y, EXPERTS - 1u);
        weights[row * TOP_K + c] = select(weight, 0x7fc00000u, bad > 0.0);
    }
    if TILES == 1u {
        tiles(row, t);
    }
}
