// `route` and `gate_up` for one row: each workgroup ranks the router's logits itself, which takes less than a dispatch. The
// first of all stores ids and weights, the first of a tile what `down` reads of it.

@group(0) @binding(1) var<storage, read_write> table: array<u32>;
@group(0) @binding(3) var<storage, read> logits: array<u32>;
@group(0) @binding(4) var<storage, read> lookup: array<u32>;
@group(0) @binding(5) var<storage, read_write> ids: array<u32>;
@group(0) @binding(6) var<storage, read_write> weights: array<u32>;

fn job_of(group: vec3<u32>, t: u32) -> Job {
    let good = choose(0u, t);
    if group.x == 0u && group.y == 0u {
        store_routes(0u, good, t);
    }
    let c = min(group.y, TOP_K - 1u);
    let expert = p.lookup + chosen_expert(c) * 10u;
    if group.x == 0u && t == 0u {
        let tile = p.tiles + c * 11u;
        for (var word = 6u; word < 9u; word++) {
            table[tile + word] = lookup[expert + word];
        }
        table[tile + 9u] = c;
        table[tile + 10u] = lookup[expert + 9u];
        table[p.entries + c * 2u] = 0u;
        table[p.entries + c * 2u + 1u] = c;
    }
    return Job(
        vec3<u32>(lookup[expert], lookup[expert + 1u], lookup[expert + 2u]),
        vec3<u32>(lookup[expert + 3u], lookup[expert + 4u], lookup[expert + 5u]),
        c,
        lookup[expert + 9u],
    );
}

fn row_of(entry: u32) -> u32 {
    return 0u;
}
