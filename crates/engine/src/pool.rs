//! The experts of a model in memory: the store, and what decides how it is used while the model runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use files::{Error, Result};
use kernels::Backend;
use kernels::ops::ExpertTable;
use store::governor::{Governor, observe};
use store::policy::{Trace, TraceStep, TraceWant};
use store::{ExpertId, ExpertKey, ExpertMask, ExpertStore, LayerId};

use crate::bridge::{ExpertShape, ResidentLayer, Slabs};
use crate::heat::Heat;
use crate::lookahead::Lookahead;
use crate::model::Model;
use crate::vram::DeviceSlots;

/// How often the governor looks at the machine: reading its files takes a tenth of a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often an idle pool is looked after, and how often while it is being warmed.
const IDLE_EVERY: Duration = Duration::from_secs(1);
const WARMING_EVERY: Duration = Duration::from_millis(5);

/// Experts wanted at a time when the drive is measured: enough to keep any queue full.
const MEASURED_EXPERTS: u64 = 64;

/// The store of a model's experts with its governor.
pub(crate) struct ExpertPool {
    /// Reads experts into slots.
    pub(crate) store: ExpertStore,
    /// Whether guessing the next layer's experts pays.
    pub(crate) lookahead: Lookahead,
    /// Who was chosen how often, and who looks on.
    pub(crate) heat: Arc<Heat>,
    backend: Arc<dyn Backend>,
    /// Slots of a device that has memory of its own.
    device_slots: Option<usize>,
    /// Layers whose experts the device looks up itself.
    resident: HashMap<LayerId, ResidentLayer>,
    /// Layers with experts.
    layers: usize,
    governor: Option<Governor>,
    clock: Instant,
    next_look: Duration,
    /// Slots that somebody has chosen, or the governor; and those that pages of sequences leave.
    chosen: usize,
    allowed: usize,
    total_experts: usize,
}

impl ExpertPool {
    /// A pool over `store`, sized by `governor` if there is one; the model has `experts` in each layer. Where `backend`
    /// looks up experts itself and all fit, also into its `device_slots` if it has memory of its own, they are read when
    /// the drive has nothing else to do.
    pub(crate) fn new(
        store: ExpertStore,
        backend: Arc<dyn Backend>,
        device_slots: Option<usize>,
        governor: Option<Governor>,
        experts: &[u32],
        heat: Arc<Heat>,
    ) -> Self {
        let total_experts = experts.iter().map(|&n| n as usize).sum();
        let mut pool = Self {
            lookahead: Lookahead::new(store.slots() < total_experts),
            chosen: store.slots(),
            allowed: store.slots(),
            store,
            heat,
            backend,
            device_slots,
            resident: HashMap::new(),
            layers: experts.iter().filter(|&&n| n > 0).count(),
            governor,
            clock: Instant::now(),
            next_look: Duration::ZERO,
            total_experts,
        };
        if pool.looks_up() {
            let of_layer = |(layer, &n): (usize, &u32)| {
                (0..n).map(move |e| ExpertKey { layer: LayerId(layer as u16), expert: ExpertId(e as u16) })
            };
            pool.store.warm(experts.iter().enumerate().flat_map(of_layer));
        }
        pool
    }

    /// Whether layers become resident.
    fn looks_up(&self) -> bool {
        let all_fit = match self.device_slots {
            Some(slots) => slots >= self.total_experts,
            None => !self.streams(),
        };
        self.backend.info().looks_up_experts && all_fit
    }

    /// The `experts` of `layer` for [`Backend::routed_mlp`], if all are in memory and stay there.
    pub(crate) fn resident(
        &mut self,
        slabs: &Slabs,
        layer: LayerId,
        experts: usize,
        shape: &ExpertShape,
    ) -> Result<Option<&ExpertTable>> {
        if !self.looks_up() {
            return Ok(None);
        }
        let backend = self.backend.as_ref();
        if !self.resident.contains_key(&layer)
            && let Some(all) = slabs.layer(backend, shape, &mut self.store, layer, experts)?
            && let Some(made) = ResidentLayer::new(backend, all)?
        {
            self.resident.insert(layer, made);
        }
        Ok(self.resident.get(&layer).map(ResidentLayer::table))
    }

    /// Makes one more of `layers` resident, so that no step has to copy what could have been copied before; whether it did.
    pub(crate) fn settle<'a>(
        &mut self,
        slabs: &Slabs,
        layers: impl Iterator<Item = (LayerId, usize, &'a ExpertShape)>,
    ) -> Result<bool> {
        for (layer, experts, shape) in layers {
            if !self.resident.contains_key(&layer) && self.resident(slabs, layer, experts, shape)?.is_some() {
                self.backend.submit()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the device looks up the experts of every layer.
    pub(crate) fn all_resident(&self) -> bool {
        self.resident.len() == self.layers
    }

    /// Counts what a token that was recorded before uses, now that it runs.
    pub(crate) fn count_recorded(&mut self, top_k: usize, slabs: Option<&Slabs>) {
        for (&layer, resident) in &self.resident {
            let hits = top_k.min(resident.table().experts().len());
            self.store.count_device_hits(layer, hits as u64);
        }
        slabs.into_iter().for_each(|slabs| self.heat.show(self, slabs));
    }

    /// Reads on what is to be resident. Worth calling between layers: nobody else does while a step runs.
    pub(crate) fn poll(&mut self) {
        if self.store.is_warming() && self.looks_up() {
            self.store.poll();
        }
    }

    /// See [`Model::use_slots`].
    pub(crate) fn resize(&mut self, slots: usize) {
        self.chosen = slots;
        self.apply();
    }

    /// Lets only `slots` be used, whatever else is chosen; whether the memory of the others is the system's now.
    pub(crate) fn allow(&mut self, slots: usize) -> bool {
        self.allowed = slots;
        self.apply();
        self.store.finish_resize()
    }

    fn apply(&mut self) {
        let slots = self.chosen.min(self.allowed);
        if self.device_slots.is_none() && slots < self.total_experts && !self.resident.is_empty() {
            // Pinned slots would not move. What a running step has enqueued may still read them.
            self.backend.release(Box::new(std::mem::take(&mut self.resident)));
        }
        self.store.resize(slots);
    }

    /// Whether there are more experts than slots.
    pub(crate) fn streams(&self) -> bool {
        self.store.slots() < self.total_experts
    }

    /// Sizes the pool anew, if it is time to look.
    pub(crate) fn govern(&mut self) {
        let now = self.clock.elapsed();
        let Some(governor) = self.governor.as_mut().filter(|_| now >= self.next_look) else { return };
        self.next_look = now + LOOK_EVERY;
        // A system that does not tell keeps the pool of the plan.
        if let Ok(seen) = observe(&self.store, now)
            && let Some(slots) = governor.decide(&seen)
        {
            self.resize(slots);
        }
    }

    /// See [`Model::measure_drive`].
    pub(crate) fn measure_drive(&mut self, experts: &[u32], time: Duration) -> Result<Option<f64>> {
        let layers: Vec<_> = (0..experts.len()).filter(|l| experts[*l] > 0).collect();
        if layers.is_empty() || !self.streams() {
            return Ok(None);
        }
        let before = self.store.stats().clone();
        let start = Instant::now();
        let mut random = 0u64;
        let mut below = |bound: usize| {
            // splitmix64, Steele et al. 2014
            random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = random;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) % bound as u64) as usize
        };
        let mut random_experts = || {
            let layer = layers[below(layers.len())];
            let wanted: ExpertMask =
                (0..MEASURED_EXPERTS).map(|_| ExpertId(below(experts[layer] as usize) as u16)).collect();
            (LayerId(layer as u16), wanted)
        };
        let mut here = random_experts();
        self.store.forget_cached(here.0, &here.1);
        while start.elapsed() < time {
            self.store.want(here.0, &here.1)?;
            // The drive's queue stays full while the last of these arrive.
            let next = random_experts();
            self.store.forget_cached(next.0, &next.1);
            self.store.hint(next.0, next.1.iter());
            while self.store.next()?.is_some() {}
            here = next;
        }
        let after = self.store.stats();
        let bytes = after.total().read_bytes - before.total().read_bytes;
        let busy = after.busy.saturating_sub(before.busy).as_secs_f64();
        Ok((bytes > 0 && busy > 0.0).then(|| bytes as f64 / busy))
    }

    /// The experts in memory, as the steps of `trace`: first those that a device has in memory of its own, which are the
    /// ones that were wanted most.
    pub(crate) fn warm_set(&self, mut trace: Trace, slabs: &Slabs) -> Trace {
        let on_device = slabs.device.as_ref().map(DeviceSlots::held);
        trace.steps = on_device.into_iter().chain([self.store.held()]).map(step).collect();
        trace
    }

    /// Reads the experts of `trace` when the drive has nothing else to do.
    pub(crate) fn warm(&mut self, trace: &Trace) {
        if self.looks_up() && !self.streams() {
            return; // all are being read
        }
        let keys = trace
            .wants()
            .flat_map(|want| want.experts.iter().map(|&expert| ExpertKey { layer: want.layer, expert }));
        self.store.warm(keys.collect::<Vec<_>>());
    }
}

impl Model {
    /// The experts in memory, as a trace: a hint for [`Self::warm`] in the next run. `None` when there is
    /// nothing to remember: no experts, or room for all.
    pub fn warm_set(&self) -> Option<Trace> {
        let pool = self.lock_pool().filter(|pool| pool.streams())?;
        Some(pool.warm_set(self.new_trace(), self.slabs()?))
    }

    /// Reads what an earlier run had in memory whenever the drive has nothing else to do. A trace of another model is
    /// ignored.
    pub fn warm(&self, experts: &Trace) {
        if experts.experts == self.decoder.experts()
            && let Some(mut pool) = self.lock_pool()
        {
            pool.warm(experts);
        }
    }

    /// Looks after the pool if no step is using it; says whether there is more to do soon.
    pub(crate) fn govern_idle(&self) -> bool {
        let Some((mut pool, _)) = self.try_pool() else { return false };
        pool.govern();
        self.warm_pool(&mut pool)
    }
}

/// A step that wants `experts`.
fn step(experts: Vec<ExpertKey>) -> TraceStep {
    let mut layers = BTreeMap::<LayerId, Vec<ExpertId>>::new();
    for key in experts {
        layers.entry(key.layer).or_default().push(key.expert);
    }
    let wants = layers.into_iter().map(|(layer, mut experts)| {
        experts.sort_unstable();
        TraceWant { layer, experts }
    });
    TraceStep { rows: 0, wants: wants.collect() }
}

/// Looks after the pool of `model` between its steps, from a thread of its own that ends with the model: other programs
/// want memory also while nobody asks this one anything.
///
/// # Errors
/// `Io` when no thread can be started.
pub(crate) fn watch(model: &Arc<Model>) -> Result<()> {
    let model = Arc::downgrade(model);
    let run = move || {
        let mut pause = WARMING_EVERY;
        loop {
            thread::sleep(pause);
            let Some(model) = model.upgrade() else { return };
            pause = if model.govern_idle() { WARMING_EVERY } else { IDLE_EVERY };
        }
    };
    let builder = thread::Builder::new().name("governor".into()).stack_size(256 << 10);
    builder.spawn(run).map(drop).map_err(|e| Error::io("governor thread", e))
}
