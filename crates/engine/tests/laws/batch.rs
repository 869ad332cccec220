//! Steps of several sequences: whoever shares a step, each gets the bits that it gets alone.

use std::ops::ControlFlow;
use std::sync::Arc;

use store::Range;
use store::disk::{Fault, FaultKind, SimDisk};
use tidemill_engine::{Answer, Batch, ErrorKind, Logits, Model, OpenOptions, Part, Pause, Sequence, Session};

use super::tools::{Bits, Dice, attention_only, bits, golden, hybrid, last_bits, on_sim, tokens};
use crate::common::{go, golden_dirs, model_path, open};

/// Sequences that live at once.
const COMPANY: usize = 8;

/// What a history did.
#[derive(Debug, Default)]
struct Counts {
    compared: usize,
    mixed: usize,
    failed: usize,
    cancelled: usize,
    reused: usize,
}

/// Sequences that join, share beginnings, go on, go back and leave, in an order that the dice choose.
struct Company<'a> {
    model: &'a Arc<Model>,
    disk: Option<&'a SimDisk>,
    dice: Dice,
    batch: Batch,
    live: Vec<Sequence>,
    counts: Counts,
}

impl Company<'_> {
    fn fresh(&mut self, most: usize) -> Vec<u32> {
        let seed = self.dice.below(1 << 30) as u64;
        let count = 1 + self.dice.below(most);
        tokens(self.model, seed, count)
    }

    /// Changes who is there and what they want.
    fn change(&mut self) {
        let context = self.model.context();
        if self.live.is_empty() || (self.live.len() < COMPANY && self.dice.below(2) == 0) {
            let joins = match self.dice.below(4) {
                0 if !self.live.is_empty() => {
                    let from = self.dice.below(self.live.len());
                    let len = self.dice.below(self.live[from].tokens().len() + 1);
                    self.live[from].fork(len).expect("there is room")
                }
                1 if !self.live.is_empty() => {
                    // As a client that comes back.
                    let from = self.dice.below(self.live.len());
                    let len = self.dice.below(self.live[from].tokens().len() + 1);
                    let mut joins = Sequence::new(self.model).expect("there is room");
                    joins.extend(&self.live[from].tokens()[..len]).expect("fits");
                    self.counts.reused += usize::from(joins.reuse().expect("copies") > 0);
                    joins
                }
                _ => Sequence::new(self.model).expect("there is room"),
            };
            self.live.push(joins);
        }
        let who = self.dice.below(self.live.len());
        match self.dice.below(8) {
            0 => drop(self.live.swap_remove(who)),
            1 => {
                let len = self.dice.below(self.live[who].tokens().len() + 1);
                self.live[who].truncate(len).expect("goes back");
            }
            _ => {}
        }
        for i in 0..self.live.len() {
            if self.live[i].pending() > 0 || self.dice.below(3) == 0 {
                continue;
            }
            // Most decode, some have more to read.
            let most = if self.dice.below(3) == 0 { 20 } else { 1 };
            let add = self.fresh(most);
            let room = context - self.live[i].tokens().len();
            self.live[i].extend(&add[..add.len().min(room)]).expect("fits");
            let len = self.live[i].tokens().len();
            let borders: Vec<usize> = (0..self.dice.below(4)).map(|_| self.dice.below(len + 1)).collect();
            self.live[i].name_borders(borders);
            match self.dice.below(6) {
                0 => self.live[i].keep().expect("copies"),
                // What somebody kept, perhaps in a file.
                1 => self.counts.reused += usize::from(self.live[i].reuse().expect("copies") > 0),
                _ => {}
            }
        }
    }

    /// One step of those that have something to compute, with faults and interruptions now and then.
    fn step(&mut self) {
        let mut left = self.model.chunk_tokens();
        let mut parts = Vec::new();
        for sequence in self.live.iter_mut().filter(|s| s.pending() > 0) {
            let rows = sequence.pending().min(1 + self.dice.below(6)).min(left);
            if rows > 0 {
                left -= rows;
                parts.push(Part { sequence, rows, logits: Logits::Last });
            }
        }
        if parts.is_empty() {
            return;
        }
        self.counts.mixed += usize::from(parts.len() > 1);
        let breaks_after = if self.dice.below(6) == 0 { self.dice.below(4) } else { usize::MAX };
        if let Some(disk) = self.disk.filter(|_| self.dice.below(5) == 0) {
            let range = Range { file: 0, offset: self.dice.below(1 << 20) as u64, bytes: 1 << 16 };
            disk.inject(Fault { range, kind: FaultKind::Io, times: 1 });
        }
        let mut between = |pause: &mut Pause<'_>| {
            if pause.layers_done() >= breaks_after {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let mut got: Vec<Option<Bits>> = vec![None; parts.len()];
        let run = self.batch.run(self.model, &mut parts, &mut between, &mut |part, _, answer| {
            got[part] = Some(bits(answer.logits()));
            Ok(())
        });
        let seen: Vec<(Vec<u32>, Bits)> = parts
            .iter()
            .zip(got)
            .filter_map(|(part, got)| {
                Some((part.sequence.tokens()[..part.sequence.position()].to_vec(), got?))
            })
            .collect();
        self.disk.inspect(|disk| disk.clear_faults());
        match run {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Cancelled => return self.counts.cancelled += 1,
            Err(e) => {
                assert!(self.disk.is_some(), "{e}");
                return self.counts.failed += 1;
            }
        }
        for (tokens, got) in seen {
            assert_eq!(got, last_bits(self.model, &tokens), "{} tokens in company", tokens.len());
            self.counts.compared += 1;
        }
    }
}

fn histories(model: &Arc<Model>, disk: Option<&SimDisk>, seed: u64, rounds: usize) -> Counts {
    let (dice, batch) = (Dice(seed), Batch::default());
    let free = model.free_states();
    let mut company = Company { model, disk, dice, batch, live: Vec::new(), counts: Counts::default() };
    for _ in 0..rounds {
        company.change();
        company.step();
    }
    let counts = company.counts;
    drop(company.live);
    assert!(model.flush_states().is_none(), "what is kept is stored");
    model.forget_kept();
    assert_eq!(model.free_states(), free, "all pages and places came back");
    counts
}

/// The options of a model for a company, and one that is alone.
fn for_all(options: OpenOptions) -> OpenOptions {
    let (chunk_tokens, block_tokens) = (Some(24), Some(9));
    OpenOptions { sessions: Some(COMPANY + 1), chunk_tokens, block_tokens, context: Some(64), ..options }
}

#[test]
fn company_never_changes_a_bit_in_any_golden_set() {
    for dir in golden_dirs() {
        for exact in [true, false] {
            let options = for_all(OpenOptions { exact, ..OpenOptions::default() });
            let model = open(&model_path(&dir), &options);
            let states = tempfile::tempdir().expect("a directory");
            model.store_states(states.path(), 1 << 20).expect("it is nobody else's");
            let counts = histories(&model, None, 7, 12);
            assert!(counts.compared >= 5 && counts.mixed >= 3, "{}: {counts:?}", dir.display());
        }
    }
}

/// With few slots and a drive that fails now and then, long histories.
#[test]
fn company_never_changes_a_bit_from_a_drive_that_fails() {
    for set in ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q4_0"] {
        let path = golden(set);
        let (disk, options) = on_sim(&path, 3, true);
        let model = open(&path, &OpenOptions { slots_max: Some(24), ..for_all(options) });
        let states = tempfile::tempdir().expect("a directory");
        for stored in [false, true] {
            if stored {
                model.store_states(states.path(), 1 << 20).expect("it is nobody else's");
            }
            let counts = histories(&model, Some(&disk), 11, 150);
            assert!(counts.compared > 100 && counts.mixed > 60, "{set}: {counts:?}");
            assert!(counts.reused > 10, "{set}: {counts:?}");
            assert!(counts.failed > 3 && counts.cancelled > 3, "{set}: {counts:?}");
        }
    }
}

/// Beginnings of more than a page: shared, copied when one goes on, and whole after the other has left.
#[test]
fn pages_are_shared_until_somebody_writes() {
    for set in ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q4_0"] {
        let options = OpenOptions { sessions: Some(4), context: Some(700), ..OpenOptions::default() };
        let model = open(&golden(set), &options);
        let text = tokens(&model, 5, 640);
        let mut first = Sequence::new(&model).expect("there is room");
        first.extend(&text[..600]).expect("fits");
        run(&model, &mut [&mut first]);
        let mut forks = [550, 600, 512].map(|len| first.fork(len).expect("there is room"));
        for (i, fork) in forks.iter_mut().enumerate() {
            fork.extend(&text[10 * i..10 * i + 7]).expect("fits");
        }
        first.extend(&text[600..604]).expect("fits");
        let [a, b, c] = &mut forks;
        run(&model, &mut [a, b, c]);
        run(&model, &mut [&mut first]);
        drop(first);
        for fork in &mut forks {
            fork.extend(&[1]).expect("fits");
            let got = run(&model, &mut [fork]).remove(0);
            // The other sequences have left their pages by now.
            assert_eq!(got, last_bits(&model, fork.tokens()), "{set}");
        }
    }
}

/// Computes all that is pending, chunk by chunk; the last logits of each.
fn run(model: &Arc<Model>, sequences: &mut [&mut Sequence]) -> Vec<Bits> {
    let mut last = vec![None; sequences.len()];
    while sequences.iter().any(|s| s.pending() > 0) {
        let each = model.chunk_tokens() / sequences.len();
        let (which, mut parts): (Vec<usize>, Vec<Part<'_>>) = sequences
            .iter_mut()
            .enumerate()
            .filter(|(_, s)| s.pending() > 0)
            .map(|(i, s)| (i, Part { rows: s.pending().min(each), sequence: s, logits: Logits::Last }))
            .unzip();
        Batch::default()
            .run(model, &mut parts, &mut |_| ControlFlow::Continue(()), &mut |part, _, answer| {
                last[which[part]] = Some(bits(answer.logits()));
                Ok(())
            })
            .expect("runs");
    }
    last.into_iter().map(|bits| bits.expect("there were tokens")).collect()
}

#[test]
fn a_step_that_cannot_be_is_refused_and_changes_nothing() {
    let (_, model) = hybrid();
    let (_, other) = attention_only();
    let mut sequence = Sequence::new(&model).expect("there is room");
    sequence.extend(&tokens(&model, 1, 20)).expect("fits");
    let refuse = |model: &Arc<Model>, parts: &mut [Part<'_>], says: &str| {
        let ran =
            Batch::default().run(model, parts, &mut |_| ControlFlow::Continue(()), &mut |_, _, _| Ok(()));
        let error = ran.expect_err(says);
        assert!(error.kind() == ErrorKind::InvalidRequest && error.message().contains(says), "{error}");
    };
    refuse(&model, &mut [], "no sequences");
    let logits = Logits::None;
    refuse(&other, &mut [Part { sequence: &mut sequence, rows: 1, logits }], "another model");
    refuse(&model, &mut [Part { sequence: &mut sequence, rows: 0, logits }], "0 rows of 20");
    refuse(&model, &mut [Part { sequence: &mut sequence, rows: 21, logits }], "21 rows");
    let most = model.context() - 20;
    assert_eq!(sequence.extend(&vec![0; most + 1]).expect_err("too long").kind(), ErrorKind::ContextFull);
    assert_eq!((sequence.tokens().len(), sequence.pending()), (20, 20));
    assert!(sequence.fork(21).is_err() && sequence.truncate(21).is_err());
}

/// Who wants only the best token gets that of the greatest logit, in any company.
#[test]
fn the_best_token_is_that_of_the_greatest_logit() {
    for (_, model) in [hybrid(), attention_only()] {
        let mut sequences: Vec<Sequence> =
            (0..3).map(|_| Sequence::new(&model).expect("there is room")).collect();
        for (i, sequence) in sequences.iter_mut().enumerate() {
            sequence.extend(&tokens(&model, i as u64, 2)).expect("fits");
        }
        for asks in [[true; 3], [true, false, true]] {
            let mut parts: Vec<Part<'_>> = sequences
                .iter_mut()
                .zip(asks)
                .map(|(sequence, best)| {
                    let logits = if best { Logits::Best } else { Logits::Last };
                    Part { rows: sequence.pending(), sequence, logits }
                })
                .collect();
            let mut got = [None; 3];
            Batch::default()
                .run(&model, &mut parts, &mut |_| ControlFlow::Continue(()), &mut |part, _, answer| {
                    got[part] = Some(match answer {
                        Answer::Best(token) => token,
                        Answer::Logits(logits) => greatest(logits),
                    });
                    assert_eq!(asks[part], matches!(answer, Answer::Best(_)));
                    Ok(())
                })
                .expect("runs");
            for (sequence, got) in sequences.iter_mut().zip(got) {
                let mut alone = Session::new(&model).expect("there is room");
                alone.append(sequence.tokens(), &mut go).expect("runs");
                assert_eq!(got, Some(greatest(alone.logits())));
                sequence.extend(&[1]).expect("fits");
            }
        }
    }
}

fn greatest(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best }) as u32
}
