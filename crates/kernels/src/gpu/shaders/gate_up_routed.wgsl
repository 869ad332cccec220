// `route` and `gate_up` for very few rows: each workgroup ranks its row's logits itself, which takes less than a dispatch. The
// first of a row stores ids and weights, the first of a tile what `down` reads of it. A tile is a part: row, choice.

@group(0) @binding(1) var<storage, read_write> table: array<u32>;
@group(0) @binding(3) var<storage, read> logits: array<u32>;
@group(0) @binding(4) var<storage, read> lookup: array<u32>;
@group(0) @binding(5) var<storage, read_write> ids: array<u32>;
@group(0) @binding(6) var<storage, read_write> weights: array<u32>;

fn job_of(group: vec3<u32>, t: u32) -> Job {
    let part = group.x;
    let row = part / TOP_K;
    let c = part % TOP_K;
    let good = choose(row, t);
    if group.y == 0u && c == 0u {
        store_routes(row, good, t);
    }
    let expert = p.lookup + chosen_expert(c) * 10u;
    if group.y == 0u && t == 0u {
        let tile = p.tiles + part * 11u;
        for (var word = 6u; word < 9u; word++) {
            table[tile + word] = lookup[expert + word];
        }
        table[tile + 9u] = part;
        table[tile + 10u] = lookup[expert + 9u];
        table[p.entries + part * 2u] = row;
        table[p.entries + part * 2u + 1u] = part;
    }
    return Job(
        vec3<u32>(lookup[expert], lookup[expert + 1u], lookup[expert + 2u]),
        vec3<u32>(lookup[expert + 3u], lookup[expert + 4u], lookup[expert + 5u]),
        part,
        lookup[expert + 9u],
    );
}

fn row_of(entry: u32) -> u32 {
    return entry / TOP_K;
}
