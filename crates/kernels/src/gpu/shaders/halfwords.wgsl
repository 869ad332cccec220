// Loads of scales at even byte offsets.

fn $W_PART_u32(at: u32) -> u32 {
    let word = at >> 2u;
    if (at & 2u) == 0u {
        return $W_PART_word(word);
    }
    return ($W_PART_word(word) >> 16u) | ($W_PART_word(word + 1u) << 16u);
}

fn $W_PART_u16(at: u32) -> u32 {
    return ($W_PART_word(at >> 2u) >> ((at & 2u) * 8u)) & 0xffffu;
}
