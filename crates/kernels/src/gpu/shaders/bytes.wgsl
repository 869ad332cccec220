// Loads at any byte offset of a part of a weight. A load may look one word past its last byte: buffers end in
// padding for that.

fn $W_PART_u32(at: u32) -> u32 {
    let word = at >> 2u;
    let shift = (at & 3u) * 8u;
    let low = $W_PART_word(word);
    if shift == 0u {
        return low;
    }
    return (low >> shift) | ($W_PART_word(word + 1u) << (32u - shift));
}

fn $W_PART_u16(at: u32) -> u32 {
    let word = at >> 2u;
    let shift = (at & 3u) * 8u;
    var bits = $W_PART_word(word) >> shift;
    if shift == 24u {
        bits |= $W_PART_word(word + 1u) << 8u;
    }
    return bits & 0xffffu;
}

fn $W_PART_u8(at: u32) -> u32 {
    return ($W_PART_word(at >> 2u) >> ((at & 3u) * 8u)) & 0xffu;
}
