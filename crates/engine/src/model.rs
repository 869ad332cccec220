//! From a path to a model that can run: meta, names, plan, memory, weights.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use files::{Error, Meta, Result, TensorIndex};
use kernels::Backend;
use kernels::ops::{DeviceCounts, KernelTime, KvFormat};
use store::disk::{Disk, DriveRate};
use store::governor::{Governor, GovernorOptions};
use store::plan::Plan;
use store::policy::{PolicyKind, Trace};
use store::{ExpertLayout, ExpertStore, StoreOptions};

use crate::ahead::StepLock;
use crate::answers::{Answers, ConversationKey};
use crate::bridge::Slabs;
use crate::device::{Device, open_device};
use crate::doctor::backend_copy_rate;
use crate::drive::{self, DriveOptions, OpenedDrive};
use crate::heat::Heat;
use crate::keeper::Keeper;
use crate::limits;
use crate::lookahead::Guess;
use crate::models::{self, Bound, Decoder};
use crate::pool::{self, ExpertPool};
use crate::rehearsal::{meanwhile, rehearse};
use crate::scratch::Scratch;
use crate::sequence::SequenceId;
use crate::sizes::{ChunkRows, Plans, Sizes};
use crate::state::{KeptTally, Ledger, SequenceState, StateDirectory, StatePool};
use crate::text::Message;
use crate::trade::Trade;
use crate::vram::{Cut, DeviceSlots};

/// Who keeps experts in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheKind {
    /// Slots of our own, filled past the page cache.
    #[default]
    Slots,
    /// The operating system's page cache; slots only for the experts in use.
    Os,
}

/// How to open a model.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// Where to compute.
    pub device: Device,
    /// f32 activations throughout: the mode in which goldens are checked.
    pub exact: bool,
    /// The ceiling for everything; `None` takes what the machine can spare.
    pub memory_bytes: Option<u64>,
    /// The ceiling for what is kept in a GPU's memory; nothing on the CPU.
    pub vram_bytes: Option<u64>,
    /// Who keeps experts in memory.
    pub cache: CacheKind,
    /// How keys and values are stored; `None` is f16, or f32 where activations are. f32 and 8 bits change answers a
    /// little, one way and the other.
    pub kv_format: Option<KvFormat>,
    /// Threads that compute; `None` is one for each core.
    pub threads: Option<usize>,
    /// Positions of a sequence; `None` is the model's own context, at most 8192.
    pub context: Option<usize>,
    /// Fewer or more experts than the model's own top-k. Changes the answers.
    pub experts_per_token: Option<usize>,
    /// Tokens of a prompt chunk; `None` lets the plan decide.
    pub chunk_tokens: Option<usize>,
    /// Rows of a longer prompt chunk that go through a layer's norms and mixer together; experts are read once for all of them.
    /// `None` lets the plan decide.
    pub block_tokens: Option<usize>,
    /// Sequences that live at once, and may share a step. Each has a context of its own in the plan. `None` is one.
    pub sessions: Option<usize>,
    /// Memory for what ended sequences have computed, so that prompts which begin alike need not compute it again; `None` is a
    /// quarter of all, at most 1 GiB, 0 keeps nothing.
    pub kept_bytes: Option<u64>,
    /// Bytes of keys and values of living sequences together, as long as one has its whole context; `None` is a quarter of all
    /// memory. Where that is not enough, a [`Scheduler`](crate::scheduler::Scheduler) sets the youngest aside.
    pub pages_bytes: Option<u64>,
    /// Whether clients are served, which takes memory: answers are held to schemas and grammars (see
    /// [`prepare_grammars`](crate::text::Tokenizer::prepare_grammars)) and remembered ([`Model::remember`]).
    pub serves: bool,
    /// Vectors of the vocabulary's size, in float32, that whoever opens the model keeps for each session: a part of the plan.
    pub logits_per_session: usize,
    /// Memory that whoever opens the model needs besides, such as a server for requests that come: a part of the plan.
    pub beside_bytes: u64,
    /// Most expert slots; `None` as many as the budget holds.
    pub slots_max: Option<usize>,
    /// Where a GPU's driver keeps what it compiled between runs; `None` for nowhere.
    pub pipeline_cache: Option<PathBuf>,
    /// A backend to use instead of opening `device`.
    pub backend: Option<Arc<dyn Backend>>,
    /// A disk engine over the model's files, in their order, instead of opening them.
    pub disk: Option<Arc<dyn Disk>>,
    /// How to read the model's files.
    pub drive: DriveOptions,
    /// Which expert gives up its slot.
    pub policy: PolicyKind,
    /// Use the slots of the plan whatever other programs need: no governor.
    pub fixed_slots: bool,
}

/// Called while a model loads with bytes done and bytes in all; may break off.
pub type LoadProgress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// A model, ready to run. Sessions share it.
pub struct Model {
    pub(crate) meta: Meta,
    pub(crate) decoder: Decoder,
    pub(crate) backend: Arc<dyn Backend>,
    device_note: Option<String>,
    pub(crate) scratch: Arc<Scratch>,
    experts: Option<(Mutex<ExpertPool>, Slabs)>,
    pub(crate) heat: Arc<Heat>,
    step: Mutex<StepLock>,
    /// Who has which of the step's states.
    ledger: Ledger,
    /// What is kept of ended sequences.
    pub(crate) kept: KeptTally,
    /// Sequences that a step may have.
    sequences_max: usize,
    plans: Plans,
    /// How pages and expert slots share memory.
    pub(crate) trade: Trade,
    context: usize,
    rows: ChunkRows,
    step_rows_max: usize,
    fingerprint: u64,
    drive: OpenedDrive,
    path: PathBuf,
    /// Where states outlive the process.
    keeper: OnceLock<Keeper>,
    answers: Answers,
}

impl Model {
    /// Opens the model at `path` and loads its resident weights; experts stay on disk.
    ///
    /// # Errors
    /// Names what is wrong: the file, tensor or field (`Corrupt`, `NotFound`, `Unsupported`), the floor of the
    /// memory plan (`Memory`), the drive (`Io`), or that `progress` broke off (`Cancelled`).
    pub fn open(path: &Path, options: &OpenOptions, progress: LoadProgress<'_>) -> Result<Arc<Self>> {
        let (index, meta) = TensorIndex::open(path)?;
        models::check_arch(&meta)?;
        meta.check()?;
        let (experts, own) = meta.moe.as_ref().map_or((0, 0), |moe| (moe.experts, moe.top_k));
        limits::top_k(&meta.arch, experts, own, options.experts_per_token)?;
        if options.vram_bytes.is_some() && options.device == Device::Cpu {
            return Err(Error::invalid("a ceiling for a GPU's memory means nothing on the CPU"));
        }
        let open =
            |backend: &Arc<dyn Backend>| Self::open_on(backend, path, &index, &meta, options, progress);
        let (mut model, note) = open_device(options)?.run(options, open)?;
        model.device_note = note;
        let model = Arc::new(model);
        if model.experts.is_some() {
            pool::watch(&model)?;
        }
        Ok(model)
    }

    /// The same on a device.
    fn open_on(
        backend: &Arc<dyn Backend>,
        path: &Path,
        index: &TensorIndex,
        meta: &Meta,
        options: &OpenOptions,
        progress: LoadProgress<'_>,
    ) -> Result<Self> {
        let meta = meta.clone();
        let bound = models::bind(index, &meta, backend, options.experts_per_token)?;
        let sizes = Sizes::of(&bound, index, &meta, options, backend.info())?;
        let Bound { decoder, experts, arena, .. } = bound;
        let (context, sessions) = (sizes.context, sizes.sessions);
        if sessions == 0 {
            return Err(Error::invalid("a model for 0 sessions answers nobody"));
        }
        if options.slots_max == Some(0) && decoder.top_k() > 0 {
            return Err(Error::invalid("experts need at least one slot"));
        }
        let total_experts = sizes.overhead.experts;
        let (plans, rows) = sizes.plan(options, backend.info())?;
        let streamed = (plans.memory.slots < total_experts).then(|| part_bytes(&experts));
        let drive = drive::open(index.files(), options, streamed)?;
        let device_slots = plans.vram.as_ref().unwrap_or(&plans.memory).slots;
        rehearse(backend, &decoder, &sizes.states, &experts, device_slots >= total_experts)?;
        let sample = meanwhile(|| backend.prepare(), || arena.load(&drive.disk, progress))?;
        drive.disk.check_unchanged()?;
        let fingerprint = fingerprint(&meta, index, backend, decoder.top_k(), &sample);
        let heat = Arc::new(Heat::new(&decoder.experts()));
        let experts = open_pool(backend, &drive.disk, experts, &plans, decoder.top_k(), options, &heat)?;
        let scratch = Scratch::new(backend.clone(), plans.memory.scratch_bytes as usize);
        let states = StatePool::new(backend.clone(), &sizes.states, &plans.room)?;
        Ok(Self {
            meta,
            decoder,
            backend: backend.clone(),
            device_note: None,
            scratch,
            ledger: states.ledger().clone(),
            kept: states.prefixes.tally().clone(),
            experts,
            heat,
            step: Mutex::new(StepLock::new(states)),
            trade: Trade::new(
                &plans.memory,
                &plans.room,
                limits::step_rows(rows.chunk.min(rows.block), sessions),
            ),
            sequences_max: sessions,
            plans,
            context,
            step_rows_max: limits::step_rows(rows.chunk, sessions),
            rows,
            fingerprint,
            drive,
            path: path.to_path_buf(),
            keeper: OnceLock::new(),
            answers: Answers::default(),
        })
    }

    /// What is said when less of the machine's memory is planned than was given: a line for people.
    pub fn memory_note(&self) -> Option<&str> {
        self.plans.note.as_deref()
    }

    /// What the file says about the model.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// What a user should know about how the files were read: lines for people.
    pub fn notes(&self) -> &[String] {
        &self.meta.notes
    }

    /// Where the model was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How memory is divided.
    pub fn plan(&self) -> &Plan {
        &self.plans.memory
    }

    /// How a GPU's memory is divided, where a ceiling for it was given.
    pub fn vram_plan(&self) -> Option<&Plan> {
        self.plans.vram.as_ref()
    }

    /// Expert slots in memory of a GPU's own; `None` where there is none.
    pub fn vram_slots(&self) -> Option<usize> {
        self.slabs()?.device.as_ref().map(DeviceSlots::slots)
    }

    /// Positions that a sequence may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens of a prompt chunk.
    pub fn chunk_tokens(&self) -> usize {
        self.rows.chunk
    }

    /// Experts that one token uses; 0 for a dense model.
    pub fn top_k(&self) -> usize {
        self.decoder.top_k()
    }

    /// The device and the disk engine, for people.
    pub fn describe(&self) -> String {
        let why = self.device_note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
        format!("{}{why}; {}", self.backend.info().name, self.drive.disk.describe())
    }

    /// Why the device is not a GPU, where [`Device::Auto`] chose: a line for people.
    pub fn device_note(&self) -> Option<&str> {
        self.device_note.as_deref()
    }

    /// Counts of the expert store since the last reset; `None` for a dense model.
    pub fn read_stats(&self) -> Option<store::ReadStats> {
        self.lock_pool().map(|pool| pool.store.stats().clone())
    }

    /// Starts counting anew.
    pub fn reset_read_stats(&self) {
        if let Some(mut pool) = self.lock_pool() {
            pool.store.reset_stats();
        }
    }

    /// What the device was asked to do since the model's backend was opened; `None` for the CPU.
    pub fn device_counts(&self) -> Option<DeviceCounts> {
        self.backend.counts()
    }

    /// The rate at which experts are copied to a GPU that has not room for all in memory of its own, measured for about `time`;
    /// `None` where nothing is copied.
    ///
    /// # Errors
    /// What the device reports.
    pub fn measure_copies(&self, time: Duration) -> Result<Option<f64>> {
        let total = self.plan().total_experts as usize;
        let copies = self.vram_slots().is_some_and(|slots| slots < total);
        if copies { backend_copy_rate(&self.backend, time) } else { Ok(None) }
    }

    /// Reads on what nobody has asked for yet; false when there is nothing left of that. On a GPU that all experts fit
    /// into, these are the experts, which are also copied there.
    pub fn warm_up(&self) -> bool {
        self.lock_pool().is_some_and(|mut pool| self.warm_pool(&mut pool))
    }

    pub(crate) fn warm_pool(&self, pool: &mut ExpertPool) -> bool {
        pool.store.poll();
        // What fails here fails in a step again, which has somebody to tell.
        let settles = |slabs| pool.settle(slabs, self.decoder.expert_layers()).unwrap_or(false);
        self.slabs().is_some_and(settles) || pool.store.is_warming()
    }

    /// Begins to time the device's dispatches, or stops; false where it cannot be done. The host then waits for each
    /// submission.
    pub fn profile_device(&self, on: bool) -> bool {
        self.backend.profile(on)
    }

    /// What was timed since, the largest first.
    pub fn device_profile(&self) -> Vec<KernelTime> {
        self.backend.profiled()
    }

    /// Expert slots in use now: those of the plan, or fewer while other programs need the memory.
    pub fn slots(&self) -> usize {
        self.lock_pool().map_or(0, |pool| pool.store.slots())
    }

    /// Uses `slots` of the planned expert slots from the next step on, and gives the memory of the others back; the
    /// governor, where there is one, may decide otherwise later. Never changes a token. Waits for the running step.
    pub fn use_slots(&self, slots: usize) {
        if let Some(mut pool) = self.lock_pool() {
            pool.resize(slots);
        }
    }

    /// Guesses so much of what the next layer's router will choose, whatever it costs; without this call trials decide.
    /// Never changes a token. Waits for the running step.
    pub fn fix_guess(&self, guess: Guess) {
        if let Some(mut pool) = self.lock_pool() {
            pool.lookahead.fix(guess);
        }
    }

    /// What a probe of the drive chose while this model was opened, worth remembering for [`DriveOptions::known`], with the
    /// rate that it saw.
    pub fn probed_drive(&self) -> Option<DriveRate> {
        self.drive.probed
    }

    /// The rate in bytes/s at which the drive delivers experts that nobody could foresee, in reads as large as a
    /// token's, measured for about `time`; `None` when nothing could be read: no experts, or all are in memory.
    /// Experts in memory give way.
    ///
    /// # Errors
    /// As a step that reads.
    pub fn measure_drive(&self, time: Duration) -> Result<Option<f64>> {
        match self.lock_pool() {
            Some(mut pool) => pool.measure_drive(&self.decoder.experts(), time),
            None => Ok(None),
        }
    }

    /// An empty trace of this model's routing.
    pub(crate) fn new_trace(&self) -> Trace {
        Trace { slot_bytes: self.plan().slot_bytes, experts: self.decoder.experts(), steps: Vec::new() }
    }

    /// An empty state for one more sequence.
    pub(crate) fn new_state(&self) -> Result<SequenceState> {
        SequenceState::new(&self.ledger)
    }

    /// What was recorded for a sequence is for nobody now.
    pub(crate) fn sequence_ended(&self, id: &SequenceId) {
        // A step that runs leaves nothing for it that another would use.
        if let Ok(mut step) = self.step.try_lock() {
            step.forget(id);
        }
    }

    /// Pages of keys and values that no sequence has and none has kept, and sequences that there is room for besides those
    /// that live.
    pub fn free_states(&self) -> (usize, usize) {
        self.ledger.free()
    }

    /// From now on states outlive the process in `directory`, which may take `space_bytes` in all: what sequences keep is
    /// written there by a thread, and [`Sequence::reuse`](crate::Sequence::reuse) looks there too.
    ///
    /// # Errors
    /// `Io` when the directory cannot be made, read or written, or another process has it; nothing is stored then.
    /// `InvalidRequest` when states are stored somewhere already.
    pub fn store_states(self: &Arc<Self>, directory: &Path, space_bytes: u64) -> Result<()> {
        let stored =
            || Error::invalid(format!("{}: states are stored elsewhere already", directory.display()));
        if self.keeper.get().is_some() {
            return Err(stored());
        }
        // What a GPU has rounded, or other formats hold, is nobody else's.
        let device = if self.device_counts().is_some() { "gpu" } else { "cpu" };
        let format = self.lock_step().states.format_code();
        let folder = format!("{:016x}-{format}-{device}", self.fingerprint);
        let (fingerprint, vocab) = (self.fingerprint, self.meta.vocab_size);
        let (opened, answers) = StateDirectory::open(directory, &folder, space_bytes, fingerprint, vocab)?;
        self.kept.set_disk(opened.bytes());
        self.keeper.set(Keeper::start(opened, self)?).map_err(|_| stored())?;
        self.answers.restore(answers);
        Ok(())
    }

    /// Remembers the `tokens` of an answer to the conversation `before`, of which the client got `text` and calls with these
    /// ids: the latest 100,000, in 8 MiB at most.
    pub fn remember(&self, before: ConversationKey, text: &str, calls: &[String], tokens: &[u32]) {
        self.answers.remember(before, text, calls, tokens);
        self.states_kept();
    }

    /// Sets [`Message::written`] where the tokens of a turn are remembered. What stands for the whole conversation.
    pub fn recall(&self, messages: &mut [Message]) -> ConversationKey {
        self.answers.recall(messages)
    }

    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// The state directory, if there is one.
    pub(crate) fn state_directory(&self) -> Option<MutexGuard<'_, StateDirectory>> {
        self.keeper.get().map(Keeper::directory)
    }

    pub(crate) fn keeper(&self) -> Option<&Keeper> {
        self.keeper.get()
    }

    /// There is something new to store.
    pub(crate) fn states_kept(&self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.wake();
        }
    }

    /// A number that tells this model, its weights and its precision from others.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Held while a step runs: the plan has the working memory of one.
    pub(crate) fn lock_step(&self) -> MutexGuard<'_, StepLock> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees that sequences can have `pages` pages more, as far as expert slots can give them memory.
    pub(crate) fn make_room(&self, states: &mut StatePool, pages: usize) {
        let mut pool = self.lock_pool();
        while states.available_pages() < pages && self.trade.add_pages(states, pool.as_deref_mut()) {}
    }

    /// Sequences that may live at once.
    pub fn sequences_max(&self) -> usize {
        self.sequences_max
    }

    /// Rows of a step that the plan has memory for: a prompt chunk, and a token of each other planned sequence.
    pub(crate) fn step_rows_max(&self) -> usize {
        self.step_rows_max
    }

    /// Rows of a step between the layers of another: a token of each planned sequence, or a short prompt.
    pub(crate) fn between_rows_max(&self) -> usize {
        self.rows.between
    }

    /// Whether the plan has memory for a step of `rows` rows beside `bytes` of others'.
    pub(crate) fn has_scratch_beside(&self, rows: usize, bytes: usize) -> bool {
        let places = limits::logit_places(rows, self.sequences_max);
        let step_bytes = self.decoder.widths().bytes(rows, self.rows.block, places);
        let Plan { scratch_bytes, lent_bytes, .. } = self.plans.memory;
        step_bytes + bytes as u64 <= scratch_bytes + lent_bytes
    }

    /// Whether anything is kept of what sequences have computed.
    pub(crate) fn keeps_states(&self) -> bool {
        self.plans.room.keeps
    }

    /// Rows of a step that go through norms and mixers together, at most.
    pub(crate) fn block_rows(&self) -> usize {
        self.rows.block
    }

    /// The experts, for the one step that runs.
    pub(crate) fn lock_pool(&self) -> Option<MutexGuard<'_, ExpertPool>> {
        let (pool, _) = self.experts.as_ref()?;
        Some(pool.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The experts and their memory, if no step is using them.
    pub(crate) fn try_pool(&self) -> Option<(MutexGuard<'_, ExpertPool>, &Slabs)> {
        let (pool, slabs) = self.experts.as_ref()?;
        Some((pool.try_lock().ok()?, slabs))
    }

    /// The memory of the expert slots.
    pub(crate) fn slabs(&self) -> Option<&Slabs> {
        self.experts.as_ref().map(|(_, slabs)| slabs)
    }
}

fn open_pool(
    backend: &Arc<dyn Backend>,
    disk: &Arc<dyn Disk>,
    layouts: Vec<Vec<ExpertLayout>>,
    plans: &Plans,
    top_k: usize,
    options: &OpenOptions,
    heat: &Arc<Heat>,
) -> Result<Option<(Mutex<ExpertPool>, Slabs)>> {
    let plan = &plans.memory;
    if plan.slots == 0 {
        return Ok(None);
    }
    let in_layers: Vec<u32> = layouts.iter().map(|layer| layer.len() as u32).collect();
    let (slots, slot_bytes) = (plan.slots as usize, plan.slot_bytes as usize);
    let layer = in_layers.iter().max().map_or(0, |&n| n as usize);
    // Without a ceiling for it, a GPU's memory holds as many experts as the host's.
    let device_slots =
        (!backend.info().unified_memory).then(|| plans.vram.map_or(slots, |vram| vram.slots as usize));
    let device = device_slots.map(|slots| {
        let cut = Cut::new(backend.as_ref(), slots, slot_bytes, layer)?;
        DeviceSlots::new(backend.as_ref(), cut, &in_layers, options.policy.policy(slots))
    });
    let (slabs, memory) = Slabs::allocate(backend.as_ref(), slots, slot_bytes, layer, device.transpose()?)?;
    let policy = Some(options.policy.policy(slots));
    // Nobody gains from fewer slots whose memory stays.
    let pinned = backend.info().pins_memory;
    let give_back = (!pinned).then(|| slabs.give_back());
    let store_options = StoreOptions { slot_bytes, policy, give_back };
    let store = ExpertStore::new(disk.clone(), layouts, memory, store_options)?;
    let governed =
        GovernorOptions { slot_bytes: plan.slot_bytes, slots_min: top_k, slots_max: store.slots_max() };
    let governor = (!options.fixed_slots && !pinned).then(|| Governor::new(governed));
    let pool = ExpertPool::new(store, backend.clone(), device_slots, governor, &in_layers, heat.clone());
    Ok(Some((Mutex::new(pool), slabs)))
}

/// Bytes of the experts' largest part: its matrices are read each by itself.
fn part_bytes(experts: &[Vec<ExpertLayout>]) -> u64 {
    let firsts = experts.iter().filter_map(|layer| layer.first());
    firsts.flat_map(|expert| &expert.parts).map(|part| part.bytes).max().unwrap_or(0)
}

/// A number that differs for models whose states must not be mixed up: FNV-1a over what shapes them and a `sample`
/// of their weights, since another training has the same shapes.
fn fingerprint(
    meta: &Meta,
    index: &TensorIndex,
    backend: &Arc<dyn Backend>,
    top_k: usize,
    sample: &[u8],
) -> u64 {
    let precision = backend.info().precision;
    let mut text = format!("{} {precision:?} {top_k} {} {:?}", meta.arch, meta.layers, meta.rope);
    for tensor in index.iter() {
        text += &format!(" {} {:?} {}", tensor.name, tensor.shape, tensor.format);
    }
    let bytes = text.bytes().chain(sample.iter().copied());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
