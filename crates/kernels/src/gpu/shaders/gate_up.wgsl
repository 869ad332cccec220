// act[e, n] = silu(gate_j[n] . x[row_e]) * (up_j[n] . x[row_e]) for the entries e of every expert j: all experts in
// one dispatch. A tile of the table is up to TOKENS entries of one expert:
// gate at 0..3, up at 3..6, down at 6..9 (bytes, a part each), first entry, entries; an entry is (row, part).

@group(0) @binding(1) var<storage, read> table: array<u32>;

fn job_of(group: vec3<u32>, t: u32) -> Job {
    let tile = p.tiles + group.x * 11u;
    return Job(
        vec3<u32>(table[tile], table[tile + 1u], table[tile + 2u]),
        vec3<u32>(table[tile + 3u], table[tile + 4u], table[tile + 5u]),
        table[tile + 9u],
        table[tile + 10u],
    );
}

fn row_of(entry: u32) -> u32 {
    return table[p.entries + entry * 2u];
}
