//! One step of the model: rows of tokens, of one or several sequences. The one path for prefill and decode.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use files::{Error, ErrorKind, Result};
use kernels::ops::{Convolution, Product, Residual, RouteSpec, Routes, SharedOutput};
use kernels::{Backend, Tensor, Weight};
use store::{ExpertMask, LayerId};

use crate::batch::{BetweenLayers, Pause};
use crate::bridge::Slabs;
use crate::lookahead::Guess;
use crate::pool::ExpertPool;
use crate::rehearsal::Rehearsal;
use crate::round::{Round, RowBlock};
use crate::scratch::{Activation, RouteActivation, Scratch};
use crate::state::{Snapshot, StatePool};

/// Where an expert's bytes become weights: the streaming store and the memory it fills.
pub(crate) struct Experts<'a> {
    /// Reads experts into slots.
    pub(crate) pool: &'a mut ExpertPool,
    /// The slots as the kernels see them.
    pub(crate) slabs: &'a Slabs,
    /// Whether another chunk of the same prompt follows, so that reading goes on into its first layer.
    pub(crate) more_follows: bool,
    /// How much to guess of what the next layer's router will choose.
    pub(crate) guess: Guess,
    /// Whether the step runs; else it is recorded, and may never run.
    pub(crate) runs: bool,
    /// Whether the store hears from this step what is coming; a step between the layers of another leaves that to the other.
    pub(crate) leads: bool,
    /// Of the layer that runs now.
    pub(crate) clock: Option<LayerClock>,
}

/// Since when a step is in a layer.
pub(crate) struct LayerClock {
    layer: usize,
    since: Instant,
    /// What had been copied to the device by then, in bytes.
    copied: u64,
}

/// Experts of a layer that are read while others compute.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sweep {
    /// The layer.
    pub(crate) layer: LayerId,
    /// Which.
    pub(crate) experts: ExpertMask,
}

impl<'a> Experts<'a> {
    /// For a step that runs, and is followed by others of which nothing is known.
    pub(crate) fn new(pool: &'a mut ExpertPool, slabs: &'a Slabs) -> Self {
        Self { pool, slabs, more_follows: false, guess: Guess::None, runs: true, leads: true, clock: None }
    }

    /// Sizes the pool anew, if it is time to look, and shows it to who looks on.
    pub(crate) fn govern(&mut self) {
        self.pool.govern();
        self.pool.heat.show(self.pool, self.slabs);
    }

    /// Says what will be wanted for certain after what this layer wants now: more experts of it, then those of the next.
    pub(crate) fn set_coming(&mut self, coming: impl IntoIterator<Item = Sweep>) {
        if !self.leads {
            return;
        }
        let missing = |sweep: Sweep| {
            let experts = self.slabs.missing(sweep.layer, sweep.experts.iter());
            (sweep.layer, experts.into_iter().collect())
        };
        self.pool.store.set_coming(coming.into_iter().map(missing).collect());
    }

    /// Starts as many reads of what is coming as have room; worth calling whenever slots may have come free.
    pub(crate) fn read_ahead(&mut self) {
        self.pool.poll();
        self.pool.store.read_ahead();
    }
}

/// What a layer adds to the residual stream.
pub(crate) enum Branch<'a> {
    /// `[rows, hidden]`
    Sum(Activation),
    /// Outputs of experts that nobody has summed.
    Parts(Parts<'a>),
}

/// Outputs of the experts that each row has chosen.
pub(crate) struct Parts<'a> {
    /// `[rows * top_k, hidden]`
    pub(crate) outputs: Activation,
    /// What the router chose.
    pub(crate) chosen: RouteActivation,
    /// How.
    pub(crate) spec: &'a RouteSpec,
    /// The shared expert's output `[rows, hidden]`, and its gate `[rows, 1]`.
    pub(crate) shared: Option<(Activation, Activation)>,
}

impl Parts<'_> {
    fn shared(&self) -> Option<SharedOutput<'_>> {
        self.shared.as_ref().map(|(output, gate)| SharedOutput { output, gate })
    }
}

/// What a step may use and must advance. The model's `forward` calls its helpers in a straight line.
pub(crate) struct Step<'a> {
    /// Token ids, one a row.
    pub(crate) tokens: &'a [u32],
    /// Whose they are, in the order of the rows.
    pub(crate) blocks: &'a [RowBlock],
    /// What is filled at the rounds' ends.
    pub(crate) snapshots: &'a mut [Snapshot],
    /// What sequences remember; the step appends to it.
    pub(crate) states: &'a mut StatePool,
    /// The device.
    pub(crate) backend: &'a dyn Backend,
    /// Experts on disk; `None` for dense models.
    pub(crate) experts: Option<Experts<'a>>,
    /// Memory of activations.
    pub(crate) scratch: &'a Arc<Scratch>,
    /// Stands in for experts while the step is only rehearsed.
    pub(crate) rehearsal: Option<&'a Rehearsal>,
    /// Takes what the routers chose, layer by layer, if somebody asked for it.
    pub(crate) routes: Option<&'a mut Vec<(LayerId, Routes)>>,
    /// Called between layers; may break off.
    pub(crate) between_layers: BetweenLayers<'a>,
    /// Where it goes on, or has broken off.
    pub(crate) partial: Option<PartialStep>,
}

/// A step between two layers.
pub(crate) struct PartialStep {
    /// Layers that are done.
    pub(crate) layers_done: usize,
    /// The residual streams of the blocks, `[rows, hidden]` each.
    pub(crate) x: Vec<Activation>,
}

impl Step<'_> {
    /// An activation `[rows, cols]`.
    pub(crate) fn tensor(&self, rows: usize, cols: usize) -> Result<Activation> {
        self.scratch.tensor(rows, cols)
    }

    /// Room for a router's answer about `rows` rows.
    pub(crate) fn route_buffers(&self, rows: usize, top_k: usize) -> Result<RouteActivation> {
        self.scratch.routes(rows, top_k)
    }

    /// The embedding of a block's tokens, `[rows, hidden]`.
    pub(crate) fn embed(&self, table: &Weight, block: &RowBlock) -> Result<Activation> {
        let mut out = self.tensor(block.rows.len(), table.cols())?;
        self.backend.embed(table, &self.tokens[block.rows.clone()], &mut out)?;
        Ok(out)
    }

    /// What a layer returned is added to the residual stream `x`, `[rows, cols]`, and the sum normed.
    pub(crate) fn norm(&self, x: &mut Tensor, branch: Option<Branch<'_>>, norm: &Norm) -> Result<Activation> {
        let Some(branch) = branch else { return self.rms_norm(x, norm) };
        let mut out = self.tensor(x.rows(), x.cols())?;
        let to = Residual { x, weight: &norm.weight, eps: norm.eps, out: &mut out };
        match &branch {
            Branch::Sum(y) => self.backend.add_norm(y, to)?,
            Branch::Parts(parts) => {
                let Parts { outputs, chosen, spec, .. } = parts;
                self.backend.combine_norm(outputs, chosen, spec, parts.shared(), to)?;
            }
        }
        Ok(out)
    }

    /// What the last layer returned is added to the residual stream.
    pub(crate) fn add(&self, x: &mut Tensor, branch: Option<Branch<'_>>) -> Result<()> {
        match branch {
            None => Ok(()),
            Some(Branch::Sum(y)) => self.backend.add(x, &y),
            Some(Branch::Parts(parts)) => {
                let Parts { outputs, chosen, spec, .. } = &parts;
                let mut sum = self.tensor(x.rows(), x.cols())?;
                self.backend.combine(outputs, chosen, spec, parts.shared(), &mut sum)?;
                self.backend.add(x, &sum)
            }
        }
    }

    /// `x` normed, `[rows, cols]`.
    pub(crate) fn rms_norm(&self, x: &Tensor, norm: &Norm) -> Result<Activation> {
        let mut out = self.tensor(x.rows(), x.cols())?;
        self.backend.rms_norm(x, &norm.weight, norm.eps, &mut out)?;
        Ok(out)
    }

    /// `x . w^T + bias`, `[rows, w.rows]`.
    pub(crate) fn linear(&self, x: &Tensor, w: &Linear) -> Result<Activation> {
        let mut out = self.tensor(x.rows(), w.weight.rows())?;
        self.backend.linear(x, &w.weight, w.bias.as_ref(), &mut out)?;
        Ok(out)
    }

    /// [`Self::linear`] with several matrices, which read x together.
    pub(crate) fn linears<const N: usize>(&self, x: &Tensor, ws: [&Linear; N]) -> Result<[Activation; N]> {
        let mut outs = self.outputs(x, ws)?;
        self.backend.linears(x, &mut products(ws, &mut outs))?;
        Ok(outs)
    }

    /// [`Self::linears`], and the short convolution with `weight` of the first, in the states of layer `layer`.
    pub(crate) fn linears_conv<const N: usize>(
        &mut self,
        layer: usize,
        block: &RowBlock,
        x: &Tensor,
        ws: [&Linear; N],
        weight: &Tensor,
    ) -> Result<(Activation, [Activation; N])> {
        let mut outs = self.outputs(x, ws)?;
        let mut convolved = self.tensor(x.rows(), outs[0].cols())?;
        let state = &mut self.states.recurrent(layer)?.conv;
        let segments = block.rounds.first().map_or(&[][..], |round| &round.segments);
        let conv = Convolution { weight, segments, state, out: &mut convolved };
        self.backend.linears_conv(x, &mut products(ws, &mut outs), conv)?;
        Ok((convolved, outs))
    }

    /// Copies the states of layer `layer` that are wanted where `round` ends.
    pub(crate) fn round_done(&mut self, layer: usize, round: &Round) -> Result<()> {
        for end in &round.ends {
            self.states.snapshot_layer(layer, end.slot, &mut self.snapshots[end.snapshot])?;
        }
        Ok(())
    }

    fn outputs<const N: usize>(&self, x: &Tensor, ws: [&Linear; N]) -> Result<[Activation; N]> {
        let outs: Vec<_> =
            ws.iter().map(|w| self.tensor(x.rows(), w.weight.rows())).collect::<Result<_>>()?;
        outs.try_into().map_err(|_| Error::invalid("as many results as matrices"))
    }

    /// Keeps the drive busy while resident weights are at work.
    pub(crate) fn read_ahead(&mut self) {
        if let Some(experts) = &mut self.experts {
            experts.read_ahead();
        }
    }

    /// The time from now on is that of `layer`.
    pub(crate) fn enter(&mut self, layer: usize) {
        let copied = self.copied_bytes();
        if let Some(experts) = self.experts.as_mut().filter(|experts| experts.runs) {
            experts.clock = Some(LayerClock { layer, since: Instant::now(), copied });
        }
    }

    /// Counts it; the layer is done if so many are.
    fn leave(&mut self, layers_done: usize) {
        let copied_bytes = self.copied_bytes();
        let Some(experts) = &mut self.experts else { return };
        let Some(LayerClock { layer, since, copied }) = experts.clock.take() else { return };
        let steps = u64::from(layers_done > layer);
        let id = LayerId(layer as u16);
        experts.pool.store.count_time(id, steps, since.elapsed(), copied_bytes.saturating_sub(copied));
    }

    fn copied_bytes(&self) -> u64 {
        self.backend.counts().map_or(0, |counts| counts.copied_bytes)
    }

    /// Reports that so many layers are done; a step of others may run now.
    pub(crate) fn layers_done(&mut self, layers_done: usize) -> Result<()> {
        self.pause(layers_done, false)
    }

    /// A step of others may run now, in the midst of layer `layer`.
    pub(crate) fn within_layer(&mut self, layer: usize) -> Result<()> {
        self.pause(layer, true)
    }

    fn pause(&mut self, layers_done: usize, within: bool) -> Result<()> {
        self.leave(layers_done);
        let pool = self.experts.as_mut().map(|experts| &mut *experts.pool);
        let pause = Pause::new(layers_done, self.states, pool);
        go_on((self.between_layers)(&mut Pause { within, ..pause }))?;
        self.enter(layers_done);
        Ok(())
    }
}

fn products<'a>(ws: impl IntoIterator<Item = &'a Linear>, outs: &'a mut [Activation]) -> Vec<Product<'a>> {
    let product = |(w, out): (&'a Linear, &'a mut Activation)| Product {
        weight: &w.weight,
        bias: w.bias.as_ref(),
        out,
    };
    ws.into_iter().zip(outs).map(product).collect()
}

/// An error if somebody broke off.
pub(crate) fn go_on(flow: ControlFlow<()>) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(ErrorKind::Cancelled, "the step was interrupted")),
    }
}

/// A norm's weight, `[1, cols]`, as it is multiplied (any `1 +` already added), and its epsilon.
#[derive(Debug)]
pub(crate) struct Norm {
    /// `[1, cols]`
    pub(crate) weight: Tensor,
    /// What keeps the division finite.
    pub(crate) eps: f32,
}

/// A matrix and its bias.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[outputs, inputs]`
    pub(crate) weight: Weight,
    /// `[1, outputs]`
    pub(crate) bias: Option<Tensor>,
}
