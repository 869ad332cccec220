// The tables of `gate_up` and `down` from what a router chose for many rows, the entries sorted by experts: a tile is up
// to ROWS entries of one expert. Only experts with at least `least` and fewer than `below` entries have tiles. The lookup
// has ten words an expert and group of experts that share buffers: the nine bases, and 1 if its weights are in the group's
// buffers. Each group has `tiles` tiles; those of other groups' experts, and those left over, have no entries. The entries
// follow the tiles of all groups. One workgroup.

struct Params {
    parts: u32,
    groups: u32,
    tiles: u32,
    least: u32,
    below: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> lookup: array<u32>;
@group(0) @binding(2) var<storage, read_write> table: array<u32>;

// Experts of a thread, one after the other.
const EACH = (EXPERTS + THREADS - 1u) / THREADS;
// Entries of an expert, later the place of its next entry, or NOWHERE and beyond.
var<workgroup> places: array<atomic<u32>, EXPERTS>;
const NOWHERE = 0x80000000u;
// Entries and tiles of the experts of all threads up to one.
var<workgroup> before: array<vec2<u32>, THREADS>;

fn entries(e: u32) -> u32 {
    let count = atomicLoad(&places[e]);
    return select(0u, count, count >= p.least && count < p.below);
}

fn tiles_of(count: u32) -> u32 {
    return (count + ROWS - 1u) / ROWS;
}

// The tiles of expert e, whose first entry and first tile are `at`.
fn put_tiles(e: u32, count: u32, at: vec2<u32>) {
    for (var g = 0u; g < p.groups; g++) {
        let expert = (g * EXPERTS + e) * 10u;
        let here = lookup[expert + 9u];
        for (var i = 0u; i < tiles_of(count); i++) {
            let tile = (g * p.tiles + at.y + i) * 11u;
            for (var word = 0u; word < 9u; word++) {
                table[tile + word] = lookup[expert + word];
            }
            table[tile + 9u] = at.x + i * ROWS;
            table[tile + 10u] = here * min(count - i * ROWS, ROWS);
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) t: u32) {
    for (var e = t; e < EXPERTS; e += THREADS) {
        atomicStore(&places[e], 0u);
    }
    workgroupBarrier();
    for (var part = t; part < p.parts; part += THREADS) {
        atomicAdd(&places[min(ids[part], EXPERTS - 1u)], 1u);
    }
    workgroupBarrier();
    var own = vec2<u32>();
    for (var i = 0u; i < EACH; i++) {
        let e = t * EACH + i;
        if e < EXPERTS {
            let count = entries(e);
            own += vec2<u32>(count, tiles_of(count));
        }
    }
    before[t] = own;
    workgroupBarrier();
    for (var step = 1u; step < THREADS; step *= 2u) {
        var sum = before[t];
        if t >= step {
            sum += before[t - step];
        }
        workgroupBarrier();
        before[t] = sum;
        workgroupBarrier();
    }
    var at = before[t] - own;
    for (var i = 0u; i < EACH; i++) {
        let e = t * EACH + i;
        if e < EXPERTS {
            let count = entries(e);
            put_tiles(e, count, at);
            atomicStore(&places[e], select(NOWHERE, at.x, count > 0u));
            at += vec2<u32>(count, tiles_of(count));
        }
    }
    for (var i = before[THREADS - 1u].y + t; i < p.tiles; i += THREADS) {
        for (var g = 0u; g < p.groups; g++) {
            table[(g * p.tiles + i) * 11u + 10u] = 0u;
        }
    }
    workgroupBarrier();
    let first = p.groups * p.tiles * 11u;
    for (var part = t; part < p.parts; part += THREADS) {
        let e = min(ids[part], EXPERTS - 1u);
        if atomicLoad(&places[e]) < NOWHERE {
            let entry = first + atomicAdd(&places[e], 1u) * 2u;
            table[entry] = part / TOP_K;
            table[entry + 1u] = part;
        }
    }
}
