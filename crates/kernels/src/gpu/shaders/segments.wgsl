// Where the segments of an op are: `segments.rs` writes it. A lone one is in `p.segments` itself; of several,
// `p.segments.w` is where their list begins in the table.

struct Segment {
    first_row: u32,
    rows: u32,
    // Which state is its own.
    slot: u32,
}

const LONE = 0xffffffffu;

fn segment_of(i: u32) -> Segment {
    if p.segments.w == LONE {
        return Segment(p.segments.x, p.segments.y, p.segments.z);
    }
    let at = p.segments.w + 3u * i;
    return Segment(table[at], table[at + 1u], table[at + 2u]);
}
