// What a router chooses for each row: ids, weights, and with TILES also the table of `gate_up` and `down` for each group
// of experts that share buffers: tile i is part i with its expert. The lookup has ten words an expert and group: the nine
// bases, and 1 if its weights are in the group's buffers; tiles of the others have no entries. The entries follow the
// tiles of all groups. A workgroup a row.

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

fn tiles(row: u32, t: u32) {
    let parts = p.rows * TOP_K;
    for (var item = t; item < p.groups * TOP_K; item += THREADS) {
        let c = item % TOP_K;
        let part = row * TOP_K + c;
        let expert = (item / TOP_K * EXPERTS + chosen_expert(c)) * 10u;
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

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, $WORKGROUP_ARGUMENTS) {
    $WORKGROUP_SETUP
    let row = folded(group);
    if row >= p.rows {
        return;
    }
    let good = choose(row, t);
    store_routes(row, good, t);
    if TILES == 1u {
        tiles(row, t);
    }
}
