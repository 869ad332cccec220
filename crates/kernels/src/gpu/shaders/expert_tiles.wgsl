// The table of `gate_up` and `down` from a router's ids: tile i is part i with the expert that ids[i] says. The lookup
// has ten words an expert: the nine bases, and 1 if its weights are in the buffers that this table is for; tiles of
// the others have no entries.

struct Params {
    parts: u32,
    top_k: u32,
    experts: u32,
    lookup: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> lookup: array<u32>;
@group(0) @binding(2) var<storage, read_write> table: array<u32>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let i = folded(group) * THREADS + t;
    if i >= p.parts {
        return;
    }
    let expert = p.lookup + min(ids[i], p.experts - 1u) * 10u;
    let tile = i * 11u;
    for (var word = 0u; word < 9u; word++) {
        table[tile + word] = lookup[expert + word];
    }
    table[tile + 9u] = i;
    table[tile + 10u] = lookup[expert + 9u];
    let entry = p.parts * 11u + i * 2u;
    table[entry] = i / p.top_k;
    table[entry + 1u] = i;
}
