// Where the rows of an op over segments are: `segments.rs` writes it. A lone row is in `p.rows` itself; of several,
// `p.rows.w` is where their list begins in the table.

struct Row {
    // Its number in the tensors.
    row: u32,
    position: u32,
    // Where the list of its sequence's pages begins in the table.
    pages: u32,
    // The first of what attention leaves of its spans.
    pieces: u32,
}

const LONE = 0xffffffffu;

fn row_of(i: u32) -> Row {
    if p.rows.w == LONE {
        return Row(p.rows.x, p.rows.y, p.rows.z, 0u);
    }
    let at = p.rows.w + 4u * i;
    return Row(table[at], table[at + 1u], p.rows.w + table[at + 2u], table[at + 3u]);
}

// The head of number `kv_head` of the first position of the page of `position`, among all keys or values.
fn page_of(row: Row, position: u32, kv_head: u32, kv_heads: u32) -> u32 {
    return (table[row.pages + position / $PAGE] * kv_heads + kv_head) * $PAGE;
}
