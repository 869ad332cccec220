// Counts a pass that ran to its end, and what was copied before it: `tally.rs` says what the words are.

@group(0) @binding(0) var<storage, read_write> words: array<u32>;

@compute @workgroup_size(THREADS)
fn main() {
    var sum = words[0] * 747796405u + words[1];
    for (var i = 8u; i < 16u; i++) {
        sum = sum * 31u + words[i];
    }
    words[0] = sum + 1u;
}
