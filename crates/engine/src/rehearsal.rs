//! The steps that a model will run, rehearsed while its weights are still on the drive: a device that compiles its pipelines
//! hears which ones it needs, and has them when the first prompt comes.

use std::ops::ControlFlow;
use std::sync::Arc;

use files::{Error, Result};
use kernels::Backend;
use kernels::ops::{ExpertTable, MlpWeights, Segment};
use store::ExpertLayout;

use crate::bridge::{ExpertShape, Placeholder};
use crate::layers::FeedForward;
use crate::models::Decoder;
use crate::round::RowBlock;
use crate::scratch::Scratch;
use crate::state::{LayerShape, Room, RoomFor, StatePool};
use crate::step::Step;

/// Rows of the steps: a token, a few rows, and as many as make a prompt. Where a device multiplies more rows otherwise, it
/// knows by itself.
const ROWS: [usize; 5] = [1, 2, 4, 8, 33];
/// Of these, the most that are tokens of several sequences.
const ANSWERS_MAX: usize = 8;
/// Where they begin: far enough that attention is divided.
const POSITION: usize = 96;

/// What stands in for the experts of each layer.
pub(crate) struct Rehearsal {
    layers: Vec<Option<Experts>>,
}

/// Of a layer.
struct Experts {
    /// One for each way in which experts lie in memory.
    kinds: Vec<MlpWeights>,
    /// Of all of them, where the device will look them up.
    table: Option<ExpertTable>,
}

impl Experts {
    fn new(
        backend: &dyn Backend,
        place: &Placeholder,
        shape: &ExpertShape,
        layouts: &[ExpertLayout],
        looks_up: bool,
    ) -> Result<Self> {
        // How far a part is from where loads of 16 bytes may begin is all that kernels care about.
        let kind = |layout: &ExpertLayout| layout.parts.iter().map(|p| p.offset % 16).collect::<Vec<_>>();
        let mut seen: Vec<(Vec<u64>, MlpWeights)> = Vec::new();
        let mut all = Vec::with_capacity(layouts.len());
        for layout in layouts {
            let kind = kind(layout);
            let at = match seen.iter().position(|(known, _)| *known == kind) {
                Some(at) => at,
                None => {
                    seen.push((kind, place.weights(shape, layout)?));
                    seen.len() - 1
                }
            };
            all.push(at);
        }
        let kinds: Vec<MlpWeights> = seen.into_iter().map(|(_, weights)| weights).collect();
        let weights: Vec<&MlpWeights> = all.into_iter().map(|at| &kinds[at]).collect();
        let table = if looks_up { backend.expert_table(&weights)? } else { None };
        Ok(Self { kinds, table })
    }
}

impl Rehearsal {
    /// The experts of a layer: how they may lie, and the table of all.
    pub(crate) fn experts(&self, layer: usize) -> Result<(&[MlpWeights], Option<&ExpertTable>)> {
        let experts = self.layers.get(layer).and_then(Option::as_ref);
        let experts = experts.ok_or_else(|| Error::invalid(format!("layer {layer} has no experts")))?;
        Ok((&experts.kinds, experts.table.as_ref()))
    }
}

/// Rehearses the steps of a model on `backend`; `looks_up` says whether all experts fit where it looks them up.
pub(crate) fn rehearse(
    backend: &Arc<dyn Backend>,
    decoder: &Decoder,
    states: &[LayerShape],
    layouts: &[Vec<ExpertLayout>],
    looks_up: bool,
) -> Result<()> {
    backend.rehearse(&mut || {
        let looks_up = looks_up && backend.info().looks_up_experts;
        let most = layouts.iter().flatten();
        let place = Placeholder::new(backend.as_ref(), store::slot_bytes(most)?)?;
        let layer = |(layer, block): (usize, &crate::models::Block)| match &block.mlp {
            FeedForward::Dense(_) => Ok(None),
            FeedForward::Moe(moe) => {
                let layouts = layouts.get(layer).map_or(&[][..], Vec::as_slice);
                Experts::new(backend.as_ref(), &place, &moe.expert, layouts, looks_up).map(Some)
            }
        };
        let rehearsal =
            Rehearsal { layers: decoder.layers.iter().enumerate().map(layer).collect::<Result<_>>()? };
        let capacity = POSITION + ROWS.iter().max().unwrap_or(&0);
        let room = Room::new(states, RoomFor::one(capacity, None));
        let mut states = StatePool::new(backend.clone(), states, &room)?;
        let scratch = Scratch::new(backend.clone(), usize::MAX);
        for rows in ROWS {
            let tokens = vec![0; rows];
            let segments = [Segment { rows: 0..rows, position: POSITION, pages: vec![0], slot: 0 }];
            let mut step = Step {
                tokens: &tokens,
                blocks: &[RowBlock::whole(&segments)],
                snapshots: &mut [],
                states: &mut states,
                backend: backend.as_ref(),
                experts: None,
                scratch: &scratch,
                rehearsal: Some(&rehearsal),
                routes: None,
                between_layers: &mut |_| ControlFlow::Continue(()),
                partial: None,
            };
            let x = decoder.forward(&mut step)?;
            // As many answers, or one of a prompt.
            let asked = if rows > ANSWERS_MAX { 1 } else { rows as u32 };
            let logits = decoder.logits(&step, &x[0], &(0..asked).collect::<Vec<_>>())?;
            decoder.best(&step, &logits)?;
        }
        Ok(())
    })
}

/// Does `aside` in a thread of its own while `main` runs, after it where there is no thread to be had. What `main` answers; an
/// error of either.
pub(crate) fn meanwhile<T>(
    aside: impl Fn() -> Result<()> + Sync,
    main: impl FnOnce() -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let started = std::thread::Builder::new().name("pipelines".into()).spawn_scoped(scope, &aside);
        let made = main();
        let ended = match started {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => aside(),
        };
        made.and_then(|made| ended.map(|()| made))
    })
}
