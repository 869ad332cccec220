//! Memory of a step's activations, from the values that a model makes for a row.

/// Values that are made for one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widths {
    /// Of the residual stream.
    pub(crate) hidden: usize,
    /// Of the widest mixer.
    pub(crate) mixer: usize,
    /// Experts that a row chooses; 0 for a dense model.
    pub(crate) top_k: usize,
    /// Of the logits.
    pub(crate) vocab: usize,
}

/// A tensor is rounded up to a page.
const PAGE_BYTES: usize = 4096;

/// Tensors that a layer and the head make, besides those of each block: fewer than this.
const TENSORS: usize = 32;

/// Tensors of each of several blocks that live at the same time: the residual stream, the sum, ids and weights.
const TENSORS_OF_BLOCK: usize = 4;

impl Widths {
    /// Bytes of a step of `rows` rows with logits for `logit_rows` of them: every tensor that a layer makes, counted as if none
    /// were freed before the layer's end. The memory of a mixer's tensors then stays while the experts work, and the next
    /// layer finds it. A step of more than `block_rows` rows goes through mixers block by block, and through experts window
    /// by window.
    pub(crate) fn bytes(&self, rows: usize, block_rows: usize, logit_rows: usize) -> u64 {
        let Self { hidden, mixer, top_k, vocab } = *self;
        // The shared expert's output and gate.
        let shared = if top_k > 0 { hidden + 1 } else { 0 };
        let block = 4 * hidden + mixer + shared;
        // Experts' outputs, their sum, the router's answer.
        let experts = if top_k > 0 { (top_k + 1) * hidden + 2 * top_k } else { hidden };
        let alone = rows.min(block_rows) * (block + experts);
        let blocks = rows.div_ceil(block_rows);
        let several = match blocks {
            0 | 1 => 0,
            // The streams, their sums, the router's answers; what a block's mixer makes, and its experts.
            blocks => {
                rows * (2 * hidden + 2 * top_k)
                    + block_rows * (block + experts)
                    + blocks * TENSORS_OF_BLOCK * PAGE_BYTES / 4
            }
        };
        let head = logit_rows * (2 * hidden + vocab);
        (4 * (alone.max(several) + head) + TENSORS * PAGE_BYTES) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_chunk_takes_the_streams_of_its_rows_and_no_more() {
        let widths = Widths { hidden: 4096, mixer: 30_000, top_k: 10, vocab: 248_320 };
        let [short, long] = [2048, 32_768].map(|rows| widths.bytes(rows, 512, 1));
        let row_bytes = (long - short) / (32_768 - 2048);
        assert!((32_800..33_000).contains(&row_bytes), "{row_bytes}");
        assert!(widths.bytes(2048, 512, 1) < widths.bytes(2048, 2048, 1) / 2);
        for rows in [1, 511, 512, 513, 5000] {
            assert!(widths.bytes(rows, 512, 1) <= widths.bytes(rows + 1, 512, 1), "{rows}");
        }
    }
}
