//! Products of many rows, block by block: with matrix instructions where they may be used, else with tiles in shared memory. And
//! experts that many rows are routed to, sorted by the host or by the device.

use std::sync::Arc;

use files::{Format, Result};

use super::memory::GpuMemory;
use super::moe::{Group, TILE_WORDS, TableAt};
use super::product::{INTEGERS_ROWS_MAX, MATMUL_ROWS_MIN, alignment, tail};
use super::source::{self, Wide};
use super::work::Work;
use super::{Binding, Call, Gpu, State, binding, folded, fours, items, weight_parts};
use crate::buffer::{Tensor, Weight};
use crate::ops::Precision;

/// Rows and outputs of a block of `matmul.wgsl`.
const BLOCK: usize = 64;
/// Outputs of a block for matrix instructions, and the rows that it may have: with Metal's matrices two of these, since a
/// subgroup of 128 rows has 128 sums a thread.
const UNITS_OUTPUTS: usize = 128;
const UNITS_ROWS: [usize; 3] = [128, 64, 32];
const METAL_ROWS: [usize; 2] = [64, 32];
/// Fewer blocks than these leave processors of a large device idle.
const BLOCKS_WANTED: usize = 128;
/// Outputs from which on few rows fill it too.
pub(super) const UNITS_FILLED: usize = BLOCKS_WANTED * UNITS_OUTPUTS;
/// Entries of a tile for `gate_up.wgsl` where rows are few.
const FEW: usize = 4;
/// The constant SPLIT of weights whose columns are met in their order.
const IN_ORDER: u32 = 16;

/// The activations of one op as f16, for each order in which weights meet their columns.
#[derive(Default)]
pub(super) struct Halved(Vec<(u32, Arc<GpuMemory>)>);

/// Which experts a table is for, by how many entries they have, and how many a tile has.
struct Class {
    usage: &'static str,
    rows: usize,
    least: usize,
    below: usize,
}

/// What the device sorts: a router's choice for many rows.
pub(super) struct Chosen<'a> {
    pub(super) ids: Binding<'a>,
    pub(super) rows: usize,
    pub(super) top_k: usize,
    pub(super) experts: usize,
    /// `[groups, experts, LOOKUP_WORDS]`
    pub(super) lookup: Binding<'a>,
    pub(super) groups: usize,
}

/// The tables that the device made of a choice.
pub(super) struct Sorted {
    table: Arc<GpuMemory>,
    class: Class,
    /// Of each group.
    tiles: usize,
    groups: usize,
    parts: usize,
}

impl Sorted {
    /// Rows of a tile.
    pub(super) fn rows(&self) -> usize {
        self.class.rows
    }

    /// Whether they are for blocks of rows.
    pub(super) fn blocks(&self) -> bool {
        self.class.rows > FEW
    }

    /// The table of a group.
    pub(super) fn at(&self, group: usize) -> TableAt<'_> {
        TableAt {
            buffer: self.table.binding(),
            tiles_at: (group * self.tiles * TILE_WORDS) as u32,
            entries_at: (self.groups * self.tiles * TILE_WORDS) as u32,
            tiles: self.tiles as u32,
            entries: self.parts,
        }
    }
}

impl Gpu {
    /// Whether products of many rows round their inputs to f16, for matrix instructions.
    pub(super) fn on_units(&self) -> bool {
        self.device.matrix != 0 && self.info.precision == Precision::Fast
    }

    /// The rows that a block for matrix instructions may have, most first.
    pub(super) fn units_rows(&self) -> &'static [usize] {
        if self.device.matrix == source::METAL_MATRIX { &METAL_ROWS } else { &UNITS_ROWS }
    }

    /// Whether an expert with `entries` of the `rows` of a step goes by blocks; `integers` says whether its products are of
    /// integers. That must not depend on which experts arrive together: blocks and rows are summed in different orders.
    pub(super) fn is_block(&self, rows: usize, entries: usize, integers: bool) -> bool {
        self.sorts(rows, integers) && (self.on_units() || entries >= MATMUL_ROWS_MIN)
    }

    /// Whether so many rows are worth sorting by experts. Fewer meet few experts twice: each row goes alone, and a cache has
    /// the weights of those that it shares.
    pub(super) fn sorts(&self, rows: usize, integers: bool) -> bool {
        rows >= MATMUL_ROWS_MIN && !(integers && rows <= INTEGERS_ROWS_MAX)
    }

    /// Rows of a tile of experts that have `mean` entries each, all in blocks. Sums do not depend on it.
    pub(super) fn block_rows(&self, mean: usize) -> usize {
        if !self.on_units() {
            return BLOCK;
        }
        let rows = self.units_rows();
        (mean + mean / 2).next_power_of_two().clamp(rows[rows.len() - 1], rows[0])
    }

    /// How weights are loaded for matrix instructions, and the order in which they meet their columns.
    fn steps(formats: &[Format], cols: usize, alignment: u32) -> (Wide, u32) {
        let split = source::split(formats[0]);
        let widths = || formats.iter().map(|&format| source::wide(format, alignment));
        let alike = formats.iter().all(|&format| source::split(format) == split);
        if alike && cols.is_multiple_of(32) && widths().all(|w| w != Wide::Not) {
            return (widths().max().unwrap_or(Wide::Not), split);
        }
        (Wide::Not, IN_ORDER)
    }

    /// Activations `[rows, cols]` for matrix instructions.
    fn halves(
        &self,
        state: &mut State,
        x: Binding<'_>,
        [rows, cols]: [usize; 2],
        split: u32,
        halved: &mut Halved,
    ) -> Result<Arc<GpuMemory>> {
        if let Some((_, made)) = halved.0.iter().find(|(s, _)| *s == split) {
            return Ok(made.clone());
        }
        let usage = match split {
            IN_ORDER => "halves",
            1 => "halves by turns",
            32 => "halves 32 apart",
            _ => "halves 64 apart",
        };
        let eights = rows * cols.div_ceil(32) * 4;
        let out = self.scratch(state, usage, eights * 16)?;
        let call = Call {
            kernel: &source::HALVES,
            formats: &[],
            constants: &[split, tail(cols)],
            bindings: &[x, out.binding()],
            params: &[rows as u32, cols as u32],
            groups: items(&source::HALVES, eights),
        };
        self.run(state, &call)?;
        halved.0.push((split, out.clone()));
        Ok(out)
    }

    /// `out = x . w^T + bias` for many rows; out is f32 `[x.rows, w.rows]`.
    pub(super) fn block_product(
        &self,
        state: &mut State,
        x: &Tensor,
        w: &Weight,
        bias: Option<&Tensor>,
        out: Binding<'_>,
        halved: &mut Halved,
    ) -> Result<()> {
        let (parts, base) = weight_parts(w)?;
        let (rows, cols, outputs) = (x.rows(), w.cols(), w.rows());
        let x = binding(x)?;
        let biased = u32::from(bias.is_some());
        let shape = [cols as u32, outputs as u32];
        // The first row stands where a table's tiles would.
        let params = |first: usize| {
            [base[0], base[1], base[2], shape[0], shape[1], rows as u32, biased, first as u32, 0, 0]
        };
        let formats = [w.format()];
        let work = |rows: usize| Work::product(rows, [outputs, cols], w.format(), BLOCK);
        // Rows of a dispatch: whole blocks of every size.
        let most = self.device.slow.items(work(UNITS_ROWS[0])) * UNITS_ROWS[0];
        // A binding must be something: without a bias it is never read, and neither is the table.
        let bias = bias.map(binding).transpose()?.unwrap_or(x);
        if !self.on_units() {
            let mut bindings = vec![x, bias, x, out];
            bindings.extend(parts);
            for first in (0..rows).step_by(most) {
                let some = most.min(rows - first);
                state.work = work(some);
                let call = Call {
                    kernel: &source::MATMUL,
                    formats: &formats,
                    constants: &[0, tail(cols)],
                    bindings: &bindings,
                    params: &params(first),
                    groups: folded(outputs.div_ceil(BLOCK), some.div_ceil(BLOCK) as u32),
                };
                self.run(state, &call)?;
            }
            return Ok(());
        }
        let (wide, split) = Self::steps(&formats, cols, alignment([base]));
        let halves = self.halves(state, x, [rows, cols], split, halved)?;
        let across = outputs.div_ceil(UNITS_OUTPUTS);
        let enough = |r: &&usize| rows.div_ceil(**r) * across >= BLOCKS_WANTED;
        let sizes = self.units_rows();
        let block = *sizes.iter().find(enough).unwrap_or(&sizes[sizes.len() - 1]);
        let mut bindings = vec![halves.binding(), bias, x, out];
        bindings.extend(parts);
        for first in (0..rows).step_by(most) {
            let some = most.min(rows - first);
            state.work = work(some);
            let call = Call {
                kernel: &source::MATMUL_UNITS,
                formats: &formats,
                constants: &[0, block as u32, wide as u32, fours(outputs), self.device.matrix],
                bindings: &bindings,
                params: &params(first),
                groups: folded(across, some.div_ceil(block) as u32),
            };
            self.run(state, &call)?;
        }
        Ok(())
    }

    /// Gate, up, their activation and down of a table of blocks.
    pub(super) fn expert_blocks(
        &self,
        state: &mut State,
        group: &Group<'_>,
        table: &TableAt<'_>,
        halved: &mut Halved,
    ) -> Result<()> {
        if self.on_units() {
            return self.expert_blocks_on_units(state, group, table, halved);
        }
        let act = self.scratch(state, "act", table.entries * group.intermediate * 4)?;
        let act = act.binding();
        let (hidden, intermediate) = (group.hidden, group.intermediate);
        let up = self.scratch(state, "up", table.entries * intermediate * 4)?;
        let parts = group.parts;
        let products = [
            (1, &parts.gate, hidden, intermediate, group.x, act),
            (1, &parts.up, hidden, intermediate, group.x, up.binding()),
            (2, &parts.down, intermediate, hidden, act, group.out),
        ];
        for (i, (gather, weight, cols, outputs, x, out)) in products.into_iter().enumerate() {
            state.work =
                Work::product(table.rows(group.tokens), [outputs, cols], parts.formats[i], group.tokens);
            if i == 2 {
                let len = table.entries * intermediate;
                let call = Call {
                    kernel: &source::ACTIVATE,
                    formats: &[],
                    constants: &[],
                    bindings: &[act, up.binding()],
                    params: &[len as u32],
                    groups: items(&source::ACTIVATE, len),
                };
                self.run(state, &call)?;
            }
            let mut bindings = vec![x, x, table.buffer, out];
            bindings.extend(weight);
            let which = 3 * i as u32;
            let shape = [cols as u32, outputs as u32, table.entries as u32];
            let at = [table.tiles_at, table.entries_at, which];
            let call = Call {
                kernel: &source::MATMUL,
                formats: &parts.formats[i..=i],
                constants: &[gather, tail(cols)],
                bindings: &bindings,
                params: &[0, 0, 0, shape[0], shape[1], shape[2], 0, at[0], at[1], at[2]],
                groups: [outputs.div_ceil(BLOCK) as u32, table.tiles, 1],
            };
            self.run(state, &call)?;
        }
        Ok(())
    }

    fn expert_blocks_on_units(
        &self,
        state: &mut State,
        group: &Group<'_>,
        table: &TableAt<'_>,
        halved: &mut Halved,
    ) -> Result<()> {
        let (hidden, intermediate, parts) = (group.hidden, group.intermediate, group.parts);
        let entries = table.entries as u32;
        let (wide, split) = Self::steps(&parts.formats[..2], hidden, group.alignment);
        let (down_wide, down_split) = Self::steps(&parts.formats[2..], intermediate, group.alignment);
        let halves = self.halves(state, group.x, [group.rows, hidden], split, halved)?;
        let act = self.scratch(state, "act", table.entries * intermediate.next_multiple_of(32) * 2)?;
        let block = group.tokens as u32;
        let mut bindings = vec![halves.binding(), table.buffer, act.binding()];
        bindings.extend(parts.gate.iter().chain(&parts.up));
        let shape = [hidden as u32, intermediate as u32, group.rows as u32, entries];
        let rows = table.rows(group.tokens);
        state.work = Work::product(rows, [2 * intermediate, hidden], parts.formats[0], group.tokens);
        let call = Call {
            kernel: &source::GATE_UP_UNITS,
            formats: &parts.formats[..2],
            constants: &[down_split, block, wide as u32, self.device.matrix],
            bindings: &bindings,
            params: &[table.tiles_at, table.entries_at, shape[0], shape[1], shape[2], shape[3]],
            groups: [intermediate.div_ceil(UNITS_OUTPUTS / 2) as u32, table.tiles, 1],
        };
        self.run(state, &call)?;
        let mut bindings = vec![act.binding(), act.binding(), table.buffer, group.out];
        bindings.extend(&parts.down);
        let at = [table.tiles_at, table.entries_at];
        state.work = Work::product(rows, [hidden, intermediate], parts.formats[2], group.tokens);
        let call = Call {
            kernel: &source::MATMUL_UNITS,
            formats: &parts.formats[2..],
            constants: &[1, block, down_wide as u32, fours(hidden), self.device.matrix],
            bindings: &bindings,
            params: &[0, 0, 0, intermediate as u32, hidden as u32, entries, 0, at[0], at[1], 6],
            groups: [hidden.div_ceil(UNITS_OUTPUTS) as u32, table.tiles, 1],
        };
        self.run(state, &call)
    }

    /// Sorts a choice for many rows by experts. Blocks go first, if there may be any.
    pub(super) fn sort(&self, state: &mut State, chosen: &Chosen<'_>) -> Result<Vec<Sorted>> {
        let parts = chosen.rows * chosen.top_k;
        let rows = self.block_rows(parts / chosen.experts);
        let all = usize::MAX;
        let blocks = |least| Class { usage: "blocks", rows, least, below: all };
        let few = |below| Class { usage: "tiles", rows: FEW, least: 1, below };
        let classes = match self.on_units() {
            true => vec![blocks(1)],
            false => vec![blocks(MATMUL_ROWS_MIN), few(MATMUL_ROWS_MIN)],
        };
        classes.into_iter().map(|class| self.sort_class(state, chosen, class)).collect()
    }

    fn sort_class(&self, state: &mut State, chosen: &Chosen<'_>, class: Class) -> Result<Sorted> {
        let (parts, groups, experts) = (chosen.rows * chosen.top_k, chosen.groups, chosen.experts);
        // Each expert may leave one tile partly empty.
        let tiles = parts / class.rows + experts.min(parts);
        let table = self.scratch(state, class.usage, (groups * tiles * TILE_WORDS + 2 * parts) * 4)?;
        let [least, below] = [class.least, class.below].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let call = Call {
            kernel: &source::EXPERT_BLOCKS,
            formats: &[],
            constants: &[experts as u32, chosen.top_k as u32, class.rows as u32],
            bindings: &[chosen.ids, chosen.lookup, table.binding()],
            params: &[parts as u32, groups as u32, tiles as u32, least, below],
            groups: [1, 1, 1],
        };
        self.run(state, &call)?;
        Ok(Sorted { table, class, tiles, groups, parts })
    }
}
