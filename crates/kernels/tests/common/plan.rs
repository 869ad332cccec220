//! Steps of several sequences: which rows, pages and states are whose, and what belongs to nobody.

use std::ops::Range;

use tidemill_kernels::ops::{KvCache, KvFormat, PAGE, Segment};

use super::*;

/// What rows of nobody hold in inputs, and states of nobody.
pub const STRANGE: f32 = 9.0;
/// What every byte of a cache is until somebody writes it: no number in any format, so that whoever reads it shows.
const UNWRITTEN: u8 = 0xff;

/// Where a sequence begins.
#[derive(Clone, Copy, Default)]
pub struct Start {
    /// Position of the first row of its values.
    pub position: usize,
    /// So many pages it has in common with the first sequence, which fills them: its own rows come after them.
    pub shared: usize,
}

/// Sequences and how many rows of each go into each step, wherever these rows, their pages and states are.
#[derive(Clone)]
pub struct Work {
    pub starts: Vec<Start>,
    /// For each step, rows of each sequence.
    pub steps: Vec<Vec<usize>>,
    /// Whether there may be rows of nobody between the segments.
    pub gaps: bool,
    /// Whether a sequence without rows in a step may have an empty segment there.
    pub empty: bool,
}

/// Rows of several sequences that a device may treat apart: ones, a few, and, as 0, many.
const MIXES: [&[usize]; 8] =
    [&[1], &[0], &[1, 1], &[1, 1, 1, 1], &[3, 1], &[0, 1, 1], &[1, 0, 3], &[0, 2, 0, 1]];

/// Rows of one to four sequences; a different mix each round.
pub fn mix(rng: &mut Rng, round: usize, most: usize) -> Vec<usize> {
    let many = |n: &usize| if *n == 0 { rng.within(5..=most) } else { *n };
    MIXES[round % MIXES.len()].iter().map(many).collect()
}

impl Work {
    /// One step of sequences that begin anywhere before `position_max`.
    pub fn step(rng: &mut Rng, counts: &[usize], position_max: usize) -> Self {
        let start = |_: &usize| Start { position: rng.within(0..=position_max), shared: 0 };
        let starts = counts.iter().map(start).collect();
        Self { starts, steps: vec![counts.to_vec()], gaps: true, empty: true }
    }

    /// Only what sequence `s` does; it fills its first pages itself.
    fn alone(&self, s: usize) -> Self {
        let mut alone = Self { empty: false, ..self.clone() };
        let others =
            |counts: &mut Vec<usize>| (0..counts.len()).filter(|i| *i != s).for_each(|i| counts[i] = 0);
        alone.steps.iter_mut().for_each(others);
        alone.steps[0][s] += self.starts[s].shared * PAGE;
        alone.starts.iter_mut().for_each(|start| start.shared = 0);
        alone
    }

    /// The last step in several, each with what `take` says of the rows that are left.
    fn cut(&self, mut take: impl FnMut(usize) -> usize) -> Self {
        let mut cut = self.clone();
        let mut left = cut.steps.pop().expect("there is a step");
        while left.iter().any(|rows| *rows > 0) {
            let taken: Vec<usize> = left.iter().map(|rows| take(*rows)).collect();
            if taken.iter().all(|rows| *rows == 0) {
                continue;
            }
            left.iter_mut().zip(&taken).for_each(|(left, taken)| *left -= taken);
            cut.steps.push(taken);
        }
        cut
    }

    /// Page numbers of each sequence, out of order, some for positions that do not come, and how many the pool has: some
    /// belong to nobody.
    fn tables(&self, rng: &mut Rng) -> (usize, Vec<Vec<u32>>) {
        let own: Vec<usize> = (self.starts.iter().enumerate())
            .map(|(s, start)| {
                let end = start.position + self.steps.iter().map(|counts| counts[s]).sum::<usize>();
                end.div_ceil(PAGE) + usize::from(rng.flag())
            })
            .collect();
        let pages = own.iter().sum::<usize>() + rng.within(1..=2);
        let mut numbers: Vec<u32> = (0..pages as u32).collect();
        rng.shuffle(&mut numbers);
        let mut tables: Vec<Vec<u32>> = Vec::new();
        for (own, start) in own.into_iter().zip(&self.starts) {
            let mut table = tables.first().map_or(Vec::new(), |first| first[..start.shared].to_vec());
            table.extend(numbers.drain(..own));
            tables.push(table);
        }
        (pages, tables)
    }

    /// Places for all of it, drawn anew: the answers do not depend on them.
    pub fn plan(&self, rng: &mut Rng) -> Plan {
        let (pages, tables) = self.tables(rng);
        let mut slots: Vec<u32> = (0..(tables.len() + rng.within(0..=2)) as u32).collect();
        let states = slots.len();
        rng.shuffle(&mut slots);
        let mut next: Vec<usize> = self.starts.iter().map(|start| start.shared * PAGE).collect();
        let mut steps = Vec::new();
        for counts in &self.steps {
            let mut order: Vec<usize> = (0..counts.len()).collect();
            rng.shuffle(&mut order);
            let gap = |rng: &mut Rng| if self.gaps { rng.within(0..=2) } else { 0 };
            let (mut row, mut parts) = (gap(rng), Vec::new());
            for owner in order {
                let count = counts[owner];
                if count == 0 && !(self.empty && rng.flag()) {
                    continue;
                }
                let at = next[owner]..next[owner] + count;
                let segment = Segment {
                    rows: row..row + count,
                    position: self.starts[owner].position + at.start,
                    pages: tables[owner].clone(),
                    slot: slots[owner],
                };
                next[owner] = at.end;
                parts.push(Part { owner, at, segment });
                row += count + gap(rng);
            }
            steps.push(Step { rows: row.max(1), parts });
        }
        slots.truncate(tables.len());
        Plan { pages, states, slots, steps }
    }
}

/// What a sequence does in a step.
pub struct Part {
    /// Which sequence.
    pub owner: usize,
    /// Rows of its values.
    pub at: Range<usize>,
    pub segment: Segment,
}

/// Tensors of `rows` rows, and whose they are.
pub struct Step {
    pub rows: usize,
    pub parts: Vec<Part>,
}

impl Step {
    pub fn segments(&self) -> Vec<Segment> {
        self.parts.iter().map(|part| part.segment.clone()).collect()
    }

    /// The step's rows of the sequences' values.
    pub fn tensor<'a>(&self, b: &dyn Backend, cols: usize, of: impl Fn(usize) -> &'a [f32]) -> Tensor {
        let mut all = vec![STRANGE; self.rows * cols];
        for part in &self.parts {
            let from = &of(part.owner)[part.at.start * cols..part.at.end * cols];
            all[part.segment.rows.start * cols..][..from.len()].copy_from_slice(from);
        }
        tensor(b, self.rows, cols, &all)
    }

    /// Appends the rows of each sequence to its answer; those of nobody must hold what they held before.
    #[track_caller]
    pub fn take(&self, rig: &Rig, t: &Tensor, before: f32, answers: &mut [Vec<f32>]) {
        let (mut all, cols) = (values(&*rig.backend, t), t.cols());
        for part in &self.parts {
            let rows = &part.segment.rows;
            let own = &mut all[rows.start * cols..rows.end * cols];
            answers[part.owner].extend_from_slice(own);
            own.fill(before);
        }
        let strange = all.iter().position(|v| v.to_bits() != before.to_bits());
        assert_eq!(strange, None, "{}: a value of nobody changed", rig.name);
    }
}

/// Where everything is.
pub struct Plan {
    /// Pages of the pool.
    pub pages: usize,
    /// Recurrent states, and which of them the sequences have.
    pub states: usize,
    pub slots: Vec<u32>,
    pub steps: Vec<Step>,
}

impl Plan {
    /// Room for an answer of each sequence.
    pub fn answers(&self) -> Vec<Vec<f32>> {
        vec![Vec::new(); self.slots.len()]
    }

    /// A cache in which nothing is written.
    pub fn cache(&self, b: &dyn Backend, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvCache {
        let bytes = self.pages * KvCache::page_bytes(kv_heads, head_dim, format) / 2;
        let block = || {
            let mut block = b.alloc(bytes).unwrap();
            b.write(&mut block, 0, &vec![UNWRITTEN; bytes]).unwrap();
            block
        };
        KvCache { keys: block(), values: block(), kv_heads, head_dim, pages: self.pages, format }
    }

    /// Fails if more of the cache was written than the positions of the plan's rows.
    #[track_caller]
    pub fn only_own_positions_are_written(&self, rig: &Rig, cache: &KvCache) {
        let mut written = vec![false; self.pages * PAGE];
        for segment in self.steps.iter().flat_map(|step| &step.parts).map(|part| &part.segment) {
            for position in segment.position..segment.end() {
                written[segment.pages[position / PAGE] as usize * PAGE + position % PAGE] = true;
            }
        }
        let bytes = cache.format.head_bytes(cache.head_dim);
        let unwritten = vec![UNWRITTEN; bytes];
        for (name, all) in ["keys", "values"].into_iter().zip(stored(&*rig.backend, cache)) {
            for (i, head) in all.chunks_exact(bytes).enumerate() {
                let (page, position) = (i / (cache.kv_heads * PAGE), i % PAGE);
                let may = written[page * PAGE + position];
                assert!(may || head == unwritten, "{}: {name} {position} of page {page} changed", rig.name);
            }
        }
    }

    /// The states of the sequences, each where its slot says.
    pub fn states(&self, b: &dyn Backend, each: &[Vec<f32>]) -> Tensor {
        let cols = each[0].len();
        let mut all = vec![STRANGE; self.states * cols];
        for (slot, state) in self.slots.iter().zip(each) {
            all[*slot as usize * cols..][..cols].copy_from_slice(state);
        }
        tensor(b, self.states, cols, &all)
    }

    /// Appends the states to the sequences' answers; those of nobody must hold what they held before.
    #[track_caller]
    pub fn take_states(&self, rig: &Rig, t: &Tensor, answers: &mut [Vec<f32>]) {
        let (mut all, cols) = (values(&*rig.backend, t), t.cols());
        for (slot, answer) in self.slots.iter().zip(answers) {
            let own = &mut all[*slot as usize * cols..][..cols];
            answer.extend_from_slice(own);
            own.fill(STRANGE);
        }
        assert!(all.iter().all(|v| *v == STRANGE), "{}: a state of nobody changed", rig.name);
    }
}

/// All bytes of keys and of values.
pub fn stored(b: &dyn Backend, cache: &KvCache) -> [Vec<u8>; 2] {
    [&cache.keys, &cache.values].map(|block| {
        let mut bytes = vec![0; block.bytes()];
        b.read(block, 0, &mut bytes).unwrap();
        bytes
    })
}

/// On a rig where it does not matter what is computed together: every sequence has the same bits alone, and all of them
/// in several steps, one row a step too. Rows, pages and states are elsewhere each time.
#[track_caller]
pub fn same_apart(
    rig: &Rig,
    what: &str,
    (rng, work): (&mut Rng, &Work),
    got: &[Vec<f32>],
    run: impl Fn(&Plan) -> Vec<Vec<f32>>,
) {
    if !rig.batch_invariant {
        return;
    }
    if got.len() > 1 {
        for (s, got) in got.iter().enumerate() {
            same(rig, &format!("{what}: sequence {s} alone"), &run(&work.alone(s).plan(rng))[s], got);
        }
    }
    let mut others = vec![("elsewhere", work.clone())];
    if work.steps.last().is_some_and(|counts| counts.iter().any(|rows| *rows > 1)) {
        let parts = work.cut(|left| rng.within(0..=left));
        others = vec![("in parts", parts), ("row by row", work.cut(|left| left.min(1)))];
    }
    for (how, work) in others {
        for (s, (apart, got)) in run(&work.plan(rng)).iter().zip(got).enumerate() {
            same(rig, &format!("{what}: sequence {s} {how}"), apart, got);
        }
    }
}
