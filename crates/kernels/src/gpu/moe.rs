//! Router and experts.

use std::ops::Range;
use std::sync::Arc;

use files::{Error, Format, Result};

use super::blocks::Halved;
use super::encoder::Binding;
use super::memory::GpuMemory;
use super::product::{alignment, tokens_for};
use super::work::Work;
use super::{Call, GROUPS_MAX, Gpu, State, binding, folded, fours, items, memory_of, source, weight_parts};
use crate::Backend;
use crate::buffer::{Tensor, Weight};
use crate::ops::{
    ExpertBatch, MlpWeights, Residual, RouteBuffers, RouteSpec, RoutedRow, Routes, SharedOutput, WindowRow,
};
use crate::reference;

/// Most bytes of intermediate activations; more entries than that go in several passes.
pub(super) const ACT_BYTES_MAX: usize = 64 << 20;
/// A row of logits, as sort keys, lies in a workgroup's 16 KiB.
const EXPERTS_MAX: usize = 2048;
/// Experts that are active at once, as far as the threads of a row are chosen: the number must not change with how
/// many arrive together, since it changes the order of sums.
const EXPERTS_ASSUMED: usize = 8;
/// Words of a tile in the table; `gate_up.wgsl` says which.
pub(super) const TILE_WORDS: usize = 11;

/// The buffers and formats that make one pipeline and one bind group serve many experts.
pub(super) struct Parts<'a> {
    pub(super) formats: [Format; 3],
    pub(super) gate: Vec<Binding<'a>>,
    pub(super) up: Vec<Binding<'a>>,
    pub(super) down: Vec<Binding<'a>>,
    /// Bytes of the parts of gate, up, down.
    pub(super) bases: [u32; 9],
}

impl<'a> Parts<'a> {
    pub(super) fn of(weights: &'a MlpWeights) -> Result<Self> {
        let (gate, g) = weight_parts(&weights.gate)?;
        let (up, u) = weight_parts(&weights.up)?;
        let (down, d) = weight_parts(&weights.down)?;
        let mut bases = [0; 9];
        bases.iter_mut().zip(g.into_iter().chain(u).chain(d)).for_each(|(to, from)| *to = from);
        let formats = [weights.gate.format(), weights.up.format(), weights.down.format()];
        Ok(Self { formats, gate, up, down, bases })
    }

    /// Where each weight's parts start.
    pub(super) fn placed(&self) -> [[u32; 3]; 3] {
        let [a, b, c, d, e, f, g, h, i] = self.bases;
        [[a, b, c], [d, e, f], [g, h, i]]
    }

    pub(super) fn same_dispatch(&self, other: &Self) -> bool {
        let ids =
            |p: &Self| -> Vec<u64> { p.gate.iter().chain(&p.up).chain(&p.down).map(|(id, _)| *id).collect() };
        self.formats == other.formats && ids(self) == ids(other)
    }
}

/// The table of a dispatch: tiles, and the (row, part) entries that they point to.
#[derive(Default)]
struct Table {
    tiles: Vec<u32>,
    entries: Vec<u32>,
}

/// A table where shaders find it.
#[derive(Clone, Copy)]
pub(super) struct TableAt<'a> {
    pub(super) buffer: Binding<'a>,
    /// Words at which tiles and entries start.
    pub(super) tiles_at: u32,
    pub(super) entries_at: u32,
    pub(super) tiles: u32,
    pub(super) entries: usize,
}

impl TableAt<'_> {
    /// Most rows of its tiles, of `tokens` each.
    pub(super) fn rows(&self, tokens: usize) -> usize {
        self.entries.min(self.tiles as usize * tokens)
    }
}

/// What the passes over one group of experts have in common.
pub(super) struct Group<'a> {
    pub(super) parts: &'a Parts<'a>,
    pub(super) x: Binding<'a>,
    pub(super) out: Binding<'a>,
    /// Rows of x.
    pub(super) rows: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    /// Most entries of a tile.
    pub(super) tokens: usize,
    /// Whether its experts are multiplied block by block.
    pub(super) blocks: bool,
    /// What every base of packed values is a multiple of.
    pub(super) alignment: u32,
    /// An expert with weights elsewhere that goes with them, for each row, and its output.
    pub(super) shared: Option<(&'a Parts<'a>, Binding<'a>)>,
    /// For very few rows: what the pass makes its table from.
    pub(super) routed: Option<Routed<'a>>,
}

/// A router's logits, of which nobody has chosen experts.
#[derive(Clone, Copy)]
pub(super) struct Routed<'a> {
    /// Logits, lookup, ids, weights.
    pub(super) bindings: [Binding<'a>; 4],
    /// Word at which the group's lookup starts.
    pub(super) lookup_at: u32,
    pub(super) experts: u32,
    pub(super) spec: &'a RouteSpec,
}

impl Gpu {
    pub(super) fn dense_mlp(&self, x: &Tensor, weights: &MlpWeights, out: &mut Tensor) -> Result<()> {
        let rows: Vec<RoutedRow> = (0..x.rows() as u32).map(|row| RoutedRow { row, part: row }).collect();
        self.experts(x, &[ExpertBatch { weights, rows: &rows }], out)
    }

    pub(super) fn experts(&self, x: &Tensor, experts: &[ExpertBatch<'_>], out: &mut Tensor) -> Result<()> {
        let parts = experts.iter().map(|e| Parts::of(e.weights)).collect::<Result<Vec<_>>>()?;
        let mut state = self.lock();
        let mut done = vec![false; experts.len()];
        let mut halved = Halved::default();
        let is_block = |i: usize| {
            let integers = self.multiplies_integers(experts[i].weights, alignment(parts[i].placed()));
            self.is_block(x.rows(), experts[i].rows.len(), integers)
        };
        for first in 0..experts.len() {
            if done[first] {
                continue;
            }
            let blocks = is_block(first);
            let alike = |&i: &usize| is_block(i) == blocks && parts[i].same_dispatch(&parts[first]);
            let members: Vec<usize> = (first..experts.len()).filter(|&i| !done[i]).filter(alike).collect();
            members.iter().for_each(|&i| done[i] = true);
            let weights = experts[first].weights;
            let entries: usize = members.iter().map(|&i| experts[i].rows.len()).sum();
            let mean = entries / members.len();
            let tokens = if blocks { self.block_rows(mean) } else { tokens_for(mean) as usize };
            let group = Group {
                parts: &parts[first],
                x: binding(x)?,
                out: binding(out)?,
                rows: x.rows(),
                hidden: weights.gate.cols(),
                intermediate: weights.gate.rows(),
                tokens,
                blocks,
                alignment: alignment(members.iter().flat_map(|&i| parts[i].placed())),
                shared: None,
                routed: None,
            };
            let batches = members.iter().map(|&i| (&parts[i].bases, experts[i].rows));
            self.expert_group(&mut state, &group, batches, &mut halved)?;
        }
        Ok(())
    }

    /// Whether all products of an expert are of integers where rows are few.
    pub(super) fn multiplies_integers(&self, weights: &MlpWeights, alignment: u32) -> bool {
        let MlpWeights { gate, up, down } = weights;
        let integers = |formats: &[Format], [cols, outputs]: [usize; 2]| {
            self.stride(formats, [cols, outputs * EXPERTS_ASSUMED], 1, alignment).split != 0
        };
        integers(&[gate.format(), up.format()], [gate.cols(), gate.rows()])
            && integers(&[down.format()], [down.cols(), down.rows()])
    }

    /// All experts of a group, in as few passes as the scratch memory and the grid allow.
    fn expert_group<'a>(
        &self,
        state: &mut State,
        group: &Group<'_>,
        batches: impl Iterator<Item = (&'a [u32; 9], &'a [RoutedRow])>,
        halved: &mut Halved,
    ) -> Result<()> {
        let tokens = group.tokens;
        let entries_max = (ACT_BYTES_MAX / 4 / group.intermediate.max(1)).max(tokens);
        let mut table = Table::default();
        for (bases, rows) in batches {
            for tile in rows.chunks(tokens) {
                let entries = table.entries.len() / 2;
                if entries + tile.len() > entries_max || table.tiles.len() / TILE_WORDS == GROUPS_MAX as usize
                {
                    self.expert_pass(state, group, &std::mem::take(&mut table), halved)?;
                }
                let first = (table.entries.len() / 2) as u32;
                table.tiles.extend(bases);
                table.tiles.extend([first, tile.len() as u32]);
                table.entries.extend(tile.iter().flat_map(|r| [r.row, r.part]));
            }
        }
        self.expert_pass(state, group, &table, halved)
    }

    /// The experts of a table that the host made.
    fn expert_pass(
        &self,
        state: &mut State,
        group: &Group<'_>,
        table: &Table,
        halved: &mut Halved,
    ) -> Result<()> {
        if table.tiles.is_empty() {
            return Ok(());
        }
        let words: Vec<u32> = table.tiles.iter().chain(&table.entries).copied().collect();
        let ((id, uploads), first) = self.upload(state, &words)?;
        let at = TableAt {
            buffer: (id, &uploads),
            tiles_at: first,
            entries_at: first + table.tiles.len() as u32,
            tiles: (table.tiles.len() / TILE_WORDS) as u32,
            entries: table.entries.len() / 2,
        };
        self.expert_tiles(state, group, &at, halved)
    }

    /// The experts of a table, in the way of its group.
    pub(super) fn expert_tiles(
        &self,
        state: &mut State,
        group: &Group<'_>,
        table: &TableAt<'_>,
        halved: &mut Halved,
    ) -> Result<()> {
        // Gate and up of a tile; down is half of that.
        let shape = [2 * group.intermediate, group.hidden];
        let tile = Work::product(group.tokens, shape, group.parts.formats[0], group.tokens);
        let most = u32::try_from(self.device.slow.items(tile)).unwrap_or(u32::MAX);
        for first in (0..table.tiles).step_by(most as usize) {
            let tiles_at = table.tiles_at + first * TILE_WORDS as u32;
            let part = TableAt { tiles_at, tiles: most.min(table.tiles - first), ..*table };
            if group.blocks {
                self.expert_blocks(state, group, &part, halved)?;
            } else {
                self.expert_rows(state, group, &part)?;
            }
        }
        Ok(())
    }

    /// Few rows: gate, up and activation in one dispatch, down in a second.
    pub(super) fn expert_rows(
        &self,
        state: &mut State,
        group: &Group<'_>,
        table: &TableAt<'_>,
    ) -> Result<()> {
        let shared_rows = if group.shared.is_some() { group.rows } else { 0 };
        let tiles = table.tiles + shared_rows as u32;
        let entries = table.entries + shared_rows;
        let act = self.scratch(state, "act", entries * group.intermediate * 4)?;
        let act = act.binding();
        let unused = self.unused(state)?;
        let (hidden, intermediate) = (group.hidden, group.intermediate);
        let shared = group.shared.as_ref().map(|(parts, _)| *parts);
        let mut dispatch = |kernel,
                            own: Range<usize>,
                            [rows, cols, outputs]: [usize; 3],
                            bindings: &[Binding<'_>],
                            routed: Option<Routed<'_>>| {
            let mut formats = group.parts.formats[own.clone()].to_vec();
            let format = formats[0];
            let shape = [cols, outputs * EXPERTS_ASSUMED];
            let mut stride = self.stride(&formats, shape, group.tokens, group.alignment);
            let workgroups = stride.groups(outputs) * tiles as usize;
            let prepared = self.prepared(state, bindings[0], [rows, cols], &mut stride, workgroups)?;
            let mut bindings = bindings.to_vec();
            if let Some(x) = &prepared {
                bindings[0] = x.binding();
            }
            let mut params = vec![table.tiles_at, table.entries_at, hidden as u32, intermediate as u32];
            params.extend([stride.chunks, table.tiles]);
            params.extend(&shared.map_or([0; 9], |shared| shared.bases)[3 * own.start..3 * own.end]);
            let mut constants = stride.constants().to_vec();
            constants.push(u32::from(shared.is_some()));
            if let Some(shared) = shared {
                formats.extend(&shared.formats[own.clone()]);
            }
            if let Some(routed) = routed {
                params.push(routed.lookup_at);
                let spec = routed.spec;
                constants.extend([routed.experts, spec.top_k as u32, u32::from(spec.normalise)]);
            }
            let groups = [tiles, stride.groups(outputs) as u32, 1];
            let matrices = own.len();
            state.work =
                Work::product(table.rows(group.tokens), [outputs * matrices, cols], format, group.tokens);
            let (formats, constants, bindings, params) = (&formats, &constants, &bindings, &params);
            self.run(state, &Call { kernel, formats, constants, bindings, params, groups })
        };
        let mut bindings = vec![group.x, table.buffer, act];
        bindings.extend(group.routed.iter().flat_map(|routed| routed.bindings));
        for parts in [Some(group.parts), shared].into_iter().flatten() {
            bindings.extend(parts.gate.iter().chain(&parts.up));
        }
        let kernel = if group.routed.is_some() { &source::GATE_UP_ROUTED } else { &source::GATE_UP };
        dispatch(kernel, 0..2, [group.rows, hidden, intermediate], &bindings, group.routed)?;
        let shared_out = group.shared.as_ref().map_or(unused[0].binding(), |(_, out)| *out);
        let mut bindings = vec![act, table.buffer, group.out, shared_out];
        for parts in [Some(group.parts), shared].into_iter().flatten() {
            bindings.extend(&parts.down);
        }
        dispatch(&source::DOWN, 2..3, [entries, intermediate, hidden], &bindings, None)
    }

    pub(super) fn choose(
        &self,
        x: &Tensor,
        router: &Weight,
        spec: &RouteSpec,
        out: &mut RouteBuffers,
    ) -> Result<()> {
        let mut state = self.lock();
        let logits = self.logits(&mut state, x, router)?;
        self.product(&mut state, x, router, None, logits.binding(), &mut Halved::default())?;
        self.pick(&mut state, logits.binding(), [x.rows(), router.rows()], spec, out, None)
    }

    /// Memory for the logits of a router about x.
    pub(super) fn logits(&self, state: &mut State, x: &Tensor, router: &Weight) -> Result<Arc<GpuMemory>> {
        let experts = router.rows();
        if experts > EXPERTS_MAX {
            return Err(Error::unsupported(format!("{experts} experts on the GPU, more than {EXPERTS_MAX}")));
        }
        self.scratch(state, "logits", x.rows() * experts * 4)
    }

    /// Chooses experts by `[rows, experts]` logits; `tiles` are the lookup, its groups, and where the tables go.
    pub(super) fn pick(
        &self,
        state: &mut State,
        logits: Binding<'_>,
        [rows, experts]: [usize; 2],
        spec: &RouteSpec,
        out: &RouteBuffers,
        tiles: Option<(Binding<'_>, usize, Binding<'_>)>,
    ) -> Result<()> {
        let unused = self.unused(state)?;
        let makes_tiles = u32::from(tiles.is_some());
        let (lookup, groups, table) = tiles.unwrap_or((logits, 0, unused[0].binding()));
        let (ids, weights) = (memory_of(out.ids.buffer())?.binding(), binding(&out.weights)?);
        self.run(
            state,
            &Call {
                kernel: &source::ROUTE,
                formats: &[],
                constants: &[experts as u32, spec.top_k as u32, u32::from(spec.normalise), makes_tiles],
                bindings: &[logits, lookup, ids, weights, table],
                params: &[rows as u32, groups as u32],
                groups: folded(rows, 1),
            },
        )
    }

    pub(super) fn chosen(&self, routes: &RouteBuffers, rows: usize, spec: &RouteSpec) -> Result<Routes> {
        let count = rows * spec.top_k;
        let bytes = count * 4;
        if bytes > routes.ids.bytes() || bytes > routes.weights.block().bytes() {
            return Err(Error::invalid(format!("read_routes: no answer for {rows} rows of {}", spec.top_k)));
        }
        let (ids, weights) = (memory_of(routes.ids.buffer())?, memory_of(routes.weights.block().buffer())?);
        let (mut chosen_ids, mut chosen_weights) = (vec![0u32; count], vec![0f32; count]);
        self.lock().recorder.read_back(
            &self.device,
            &mut [
                (&ids.buffer, 0, bytemuck::cast_slice_mut(&mut chosen_ids)),
                (&weights.buffer, 0, bytemuck::cast_slice_mut(&mut chosen_weights)),
            ],
        )?;
        reference::finite_routes(spec.top_k, chosen_ids, chosen_weights)
    }

    pub(super) fn weigh(
        &self,
        parts: &Tensor,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        shared: Option<SharedOutput<'_>>,
        out: &mut Tensor,
    ) -> Result<()> {
        // Without a shared expert its bindings are never read.
        let (output, gate) = shared.map_or((parts, parts), |s| (s.output, s.gate));
        let bindings =
            [binding(parts)?, binding(&routes.weights)?, binding(output)?, binding(gate)?, binding(out)?];
        let params = [spec.top_k as u32, out.cols() as u32, out.len() as u32];
        let constants = [u32::from(shared.is_some())];
        self.simple(&source::COMBINE, &constants, &bindings, &params, items(&source::COMBINE, out.len()))
    }

    pub(super) fn start_sum(&self, shared: Option<SharedOutput<'_>>, sum: &mut Tensor) -> Result<()> {
        let Some(SharedOutput { output, gate }) = shared else {
            let bytes = sum.len() * 4;
            return Backend::clear(self, sum.block_mut(), 0..bytes);
        };
        // Of no experts; their bindings are never read.
        let bindings = [binding(output)?, binding(gate)?, binding(output)?, binding(gate)?, binding(sum)?];
        let params = [0, sum.cols() as u32, sum.len() as u32];
        self.simple(&source::COMBINE, &[1], &bindings, &params, items(&source::COMBINE, sum.len()))
    }

    pub(super) fn add_outputs(
        &self,
        parts: &Tensor,
        weights: &[f32],
        rows: &[WindowRow],
        sum: &mut Tensor,
    ) -> Result<()> {
        let words = rows.iter().flat_map(|row| [row.row, row.first, row.count]);
        // Other rows' weights are of no use here.
        let used = rows.iter().map(|row| row.first).min().unwrap_or(0);
        let end = rows.iter().map(|row| row.first + row.count).max().unwrap_or(used);
        let used_weights = weights[used as usize..end as usize].iter().map(|weight| weight.to_bits());
        let words: Vec<u32> = words.chain(used_weights).collect();
        let mut state = self.lock();
        let ((id, uploads), first) = self.upload(&mut state, &words)?;
        // Where the weight of output 0 would be.
        let weights_at = (first + 3 * rows.len() as u32).wrapping_sub(used);
        let len = rows.len() * sum.cols();
        let call = Call {
            kernel: &source::ADD_WINDOW,
            formats: &[],
            constants: &[],
            bindings: &[binding(parts)?, (id, &uploads), binding(sum)?],
            params: &[first, weights_at, sum.cols() as u32, len as u32],
            groups: items(&source::ADD_WINDOW, len),
        };
        self.run(&mut state, &call)
    }

    pub(super) fn weigh_and_norm(
        &self,
        parts: &Tensor,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        shared: Option<SharedOutput<'_>>,
        to: Residual<'_>,
    ) -> Result<()> {
        // Without a shared expert its bindings are never read.
        let (output, gate) = shared.map_or((parts, parts), |s| (s.output, s.gate));
        let bindings = [
            binding(parts)?,
            binding(&routes.weights)?,
            binding(output)?,
            binding(gate)?,
            binding(to.weight)?,
            binding(to.x)?,
            binding(to.out)?,
        ];
        let (rows, cols) = (to.x.rows(), to.x.cols());
        let params = [cols as u32, rows as u32, to.eps.to_bits()];
        let constants = [spec.top_k as u32, u32::from(shared.is_some()), fours(cols)];
        self.simple(&source::COMBINE_NORM, &constants, &bindings, &params, folded(rows, 1))
    }
}
