//! Copies and clears of blocks.

use tidemill_kernels::buffer::Block;

use super::*;

/// In the order of the ops around them.
pub fn copies(rig: &Rig) {
    let mut rng = Rng::new(2);
    let b = &*rig.backend;
    let (first, second) = (rng.values(999, 1.0), rng.values(999, 1.0));
    let (mut x, y) = (tensor(b, 3, 333, &first), tensor(b, 3, 333, &second));
    let (all, row) = (4 * 999, 4 * 333);
    let mut before = output(b, 3, 333);
    b.copy(x.block(), 0..all, before.block_mut(), 0).unwrap();
    b.add(&mut x, &y).unwrap();
    let mut after = output(b, 3, 333);
    b.copy(x.block(), 0..all, after.block_mut(), 0).unwrap();
    // The last row is the first one again, and then the others are nothing.
    b.copy_within(x.block_mut(), 0..row, 2 * row).unwrap();
    b.clear(x.block_mut(), 0..2 * row).unwrap();
    b.add(&mut x, &y).unwrap();
    same(rig, "a copy before", &values(b, &before), &first);
    let sums: Vec<f32> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
    same(rig, "a copy after", &values(b, &after), &sums);
    let last = sums[..333].iter().zip(&second[666..]).map(|(a, b)| a + b);
    let want: Vec<f32> = second[..666].iter().copied().chain(last).collect();
    same(rig, "cleared", &values(b, &x), &want);
}

/// Words of the blocks below.
const WORDS: [usize; 3] = [16, 1031, 70_000];

/// Blocks of a backend, and what they hold.
struct Blocks<'a> {
    rig: &'a Rig,
    blocks: Vec<Block>,
    want: Vec<Vec<u8>>,
}

impl Blocks<'_> {
    /// Some whole words of a block, often few, sometimes none.
    fn words(&self, rng: &mut Rng, block: usize, words_max: usize) -> std::ops::Range<usize> {
        let most = words_max.min(WORDS[block]);
        let words = if rng.flag() { rng.within(0..=most.min(9)) } else { rng.within(0..=most) };
        let start = rng.within(0..=WORDS[block] - words);
        4 * start..4 * (start + words)
    }

    fn copy(&mut self, rng: &mut Rng) {
        let mut two = [0, 1, 2];
        rng.shuffle(&mut two);
        let [from, to, _] = two;
        let range = self.words(rng, from, WORDS[to]);
        let at = 4 * rng.within(0..=WORDS[to] - range.len() / 4);
        let [source, target] = self.blocks.get_disjoint_mut([from, to]).unwrap();
        self.rig.backend.copy(source, range.clone(), target, at).unwrap();
        let bytes = self.want[from][range].to_vec();
        self.want[to][at..at + bytes.len()].copy_from_slice(&bytes);
    }

    /// From either half to the other.
    fn copy_within(&mut self, rng: &mut Rng) {
        let block = rng.within(0..=2);
        let half = WORDS[block] / 2;
        let words = rng.within(0..=half);
        let (low, high) = (rng.within(0..=half - words), half + rng.within(0..=half - words));
        let (from, to) = if rng.flag() { (4 * low, 4 * high) } else { (4 * high, 4 * low) };
        let range = from..from + 4 * words;
        self.rig.backend.copy_within(&mut self.blocks[block], range.clone(), to).unwrap();
        self.want[block].copy_within(range, to);
    }

    fn clear(&mut self, rng: &mut Rng) {
        let block = rng.within(0..=2);
        let range = self.words(rng, block, WORDS[block]);
        self.rig.backend.clear(&mut self.blocks[block], range.clone()).unwrap();
        self.want[block][range].fill(0);
    }

    fn write(&mut self, rng: &mut Rng) {
        let block = rng.within(0..=2);
        let range = self.words(rng, block, 1000);
        let bytes: Vec<u8> = range.clone().map(|_| rng.next() as u8).collect();
        self.rig.backend.write(&mut self.blocks[block], range.start, &bytes).unwrap();
        self.want[block][range].copy_from_slice(&bytes);
    }

    #[track_caller]
    fn check(&self, block: usize, what: &str) {
        let mut got = vec![1; 4 * WORDS[block]];
        self.rig.backend.read(&self.blocks[block], 0, &mut got).unwrap();
        let wrong = got.iter().zip(&self.want[block]).position(|(got, want)| got != want);
        assert_eq!(wrong, None, "{}: {what}: a byte of block {block} is wrong", self.rig.name);
    }
}

/// Any history of copies between blocks and within them, clears and writes, with reads now and then.
pub fn copies_of_ranges(rig: &Rig) {
    let mut rng = Rng::new(17);
    for round in 0..6 {
        let blocks = WORDS.map(|words| rig.backend.alloc(4 * words).unwrap()).into();
        let want = WORDS.map(|words| vec![0; 4 * words]).into();
        let mut all = Blocks { rig, blocks, want };
        for i in 0..80 {
            match rng.within(0..=12) {
                0..=2 => all.write(&mut rng),
                3..=6 => all.copy(&mut rng),
                7..=9 => all.copy_within(&mut rng),
                10..=11 => all.clear(&mut rng),
                _ => all.check(rng.within(0..=2), &format!("round {round}, after {i}")),
            }
        }
        for block in 0..3 {
            all.check(block, &format!("round {round}"));
        }
    }
}
