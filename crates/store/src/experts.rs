//! The expert store: what is wanted now is pinned or read, and handed out as it arrives.

mod ahead;
mod size;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use files::{Error, Result};

use crate::disk::{Completion, Disk, Fill, Inbox, Priority, ReadRequest, Ticket};
use crate::key::{ExpertId, ExpertKey, ExpertLayout, LayerId};
use crate::mask::ExpertMask;
use crate::policy::{Lfu, Policy};
use crate::slab::{GiveBack, SlabMemory};
use crate::slots::{Filled, Held, Lease, SlotPool};
use crate::stats::{LayerStats, ReadStats};
use ahead::is_coming;

/// Choices of an [`ExpertStore`].
pub struct StoreOptions {
    /// Bytes of one slot, from [`crate::slot_bytes`] over all layouts.
    pub slot_bytes: usize,
    /// Which expert is evicted first; `None` is [`Lfu`] for the number of slots.
    pub policy: Option<Box<dyn Policy>>,
    /// Takes the memory of slots that [`ExpertStore::resize`] retires; `None` keeps it.
    pub give_back: Option<GiveBack>,
}

/// Experts in a pool of slots, one pool over all layers, filled from disk.
///
/// [`want`](Self::want) names the experts of one layer that are needed; [`next`](Self::next) hands each of them out
/// exactly once, those in memory first, then in order of arrival. Reads go on while the caller computes. When a want
/// has more misses than the pool has free slots, the rest start as leases are dropped, so any number of slots from
/// one up works, as long as the caller drops leases before it asks for more.
///
/// One session uses it at a time; leases may be dropped on any thread. It changes when bytes arrive, never which.
pub struct ExpertStore {
    disk: Arc<dyn Disk>,
    layouts: Vec<Vec<ExpertLayout>>,
    /// Where everything fits: the slot of each layer's first expert. Then a layer's slots are neighbours, so that a
    /// device finds it in few buffers.
    homes: Option<Vec<u32>>,
    pool: SlotPool,
    policy: Box<dyn Policy>,
    inbox: Inbox,
    want: Want,
    /// Reads that a hint started and no want has asked for, and whether they are still on their way.
    hinted: HashMap<ExpertKey, Option<Ticket>>,
    /// What will be wanted for certain, in this order.
    coming: Vec<(LayerId, ExpertMask)>,
    /// What an earlier run had in memory, still to be read when nothing else is.
    warm: VecDeque<ExpertKey>,
    /// Those that are on their way.
    warming: HashSet<ExpertKey>,
    stats: ReadStats,
    /// What each layer's union has.
    seen: Vec<ExpertMask>,
    busy_until: Option<Instant>,
    /// Whether something was read since [`Self::check_unchanged`].
    unchecked: bool,
}

/// The current want.
#[derive(Default)]
struct Want {
    layer: LayerId,
    /// Here, not handed out, pinned.
    ready: VecDeque<(ExpertKey, Arc<Filled>)>,
    /// Misses without a slot, in file order.
    queued: VecDeque<ExpertKey>,
    /// On their way.
    reading: HashMap<ExpertKey, Ticket>,
    /// Those among them that a hint had started.
    guessed: HashSet<ExpertKey>,
    failed: Option<Error>,
}

impl ExpertStore {
    /// A store over `layouts[layer][expert]` (a layer without experts is empty) with the slots that fit `slabs`.
    ///
    /// # Errors
    /// `Corrupt` for a layout that is not inside its file; `InvalidRequest` for one that does not fit a slot, more
    /// than 65,536 layers or experts, or a slot size that is not a multiple of the page size; `Memory` when the
    /// slabs hold no slot.
    pub fn new(
        disk: Arc<dyn Disk>,
        layouts: Vec<Vec<ExpertLayout>>,
        slabs: Vec<SlabMemory>,
        options: StoreOptions,
    ) -> Result<Self> {
        check(disk.as_ref(), &layouts, options.slot_bytes)?;
        let mut windows = Vec::new();
        for (i, slab) in slabs.into_iter().enumerate() {
            windows.extend(slab.cut(i, options.slot_bytes)?);
        }
        if windows.is_empty() {
            return Err(Error::memory(format!(
                "no expert slot of {} bytes fits its slabs",
                options.slot_bytes
            )));
        }
        let homes = homes(&layouts, windows.len());
        let policy = options.policy.unwrap_or_else(|| Box::new(Lfu::new(windows.len())));
        let stats = ReadStats { layers: vec![LayerStats::default(); layouts.len()], ..ReadStats::default() };
        Ok(Self {
            disk,
            layouts,
            homes,
            pool: SlotPool::new(windows, options.give_back),
            policy,
            seen: vec![ExpertMask::default(); stats.layers.len()],
            inbox: Inbox::default(),
            want: Want::default(),
            hinted: HashMap::new(),
            coming: Vec::new(),
            warm: VecDeque::new(),
            warming: HashSet::new(),
            stats,
            busy_until: None,
            unchecked: false,
        })
    }

    /// What was counted so far.
    pub fn stats(&self) -> &ReadStats {
        &self.stats
    }

    /// Starts counting anew; what is cached stays.
    pub fn reset_stats(&mut self) {
        let layers = vec![LayerStats::default(); self.layouts.len()];
        self.stats = ReadStats { layers, ..ReadStats::default() };
        self.seen.fill(ExpertMask::default());
    }

    /// Asks for experts of one layer: pins those in memory and starts reading the others, in file order and before
    /// all hints. Replaces the want before it, exhausted or not.
    ///
    /// # Errors
    /// `InvalidRequest` for a layer or expert that does not exist; the earlier want is then gone too.
    pub fn want(&mut self, layer: LayerId, experts: &ExpertMask) -> Result<()> {
        let before = std::mem::take(&mut self.want);
        if let Some(bad) = experts.iter().find(|&expert| self.layout(ExpertKey { layer, expert }).is_none()) {
            self.release(before, |_| false);
            let key = ExpertKey { layer, expert: bad };
            return Err(Error::invalid(format!("{key} does not exist")));
        }
        self.release(before, |key| key.layer == layer && experts.contains(key.expert));
        self.want.layer = layer;
        self.count_wanted(layer, experts.iter());
        self.collect();
        if self.pool.is_unsettled() {
            self.settle();
        }
        let (mut misses, mut promoted) = (Vec::new(), Vec::new());
        for expert in experts.iter() {
            let key = ExpertKey { layer, expert };
            self.policy.touch(key);
            let hinted = self.hinted.remove(&key);
            let held = self.pool.find(key);
            let stats = &mut self.stats.layers[layer.0 as usize];
            stats.hints_used += u64::from(hinted.is_some());
            if hinted.is_some() || !matches!(held, Some(Held::Ready(_))) {
                // As a drive reads it.
                let place = self.layouts[layer.0 as usize][expert.0 as usize].place();
                stats.wanted_bytes += place.map_or(0, |(_, bytes)| bytes as u64);
            }
            match held {
                Some(Held::Ready(filled)) => {
                    stats.hits += 1;
                    self.want.ready.push_back((key, filled));
                }
                Some(Held::Reading(ticket)) => {
                    stats.misses += 1;
                    promoted.push(ticket);
                    self.want.reading.insert(key, ticket);
                    self.want.guessed.insert(key);
                }
                None => {
                    stats.misses += 1;
                    misses.push(key);
                }
            }
        }
        self.disk.promote(&promoted);
        // Guesses for this layer that turned out wrong: what has not started need not be read.
        let coming = &self.coming;
        let wrong = |key: &ExpertKey, ticket: &mut Option<Ticket>| {
            let named = experts.contains(key.expert) || is_coming(coming, *key);
            ticket.is_some() && key.layer == layer && !named
        };
        let wrong: Vec<_> = self.hinted.extract_if(wrong).collect();
        self.give_up_reads(wrong);
        misses.sort_by_key(|&key| self.layout(key).and_then(|l| l.parts.first()).copied());
        self.want.queued = misses.into();
        self.start_queued();
        Ok(())
    }

    /// The next wanted expert, waiting for the drive if none is here; `None` when all have been handed out.
    ///
    /// # Errors
    /// The error of a read, naming file, layer and expert: the want is then over, and wanting the expert again
    /// reads it again. `Memory` when every slot is held by leases and more experts are wanted: the want stands,
    /// drop leases and call again.
    #[allow(clippy::should_implement_trait)] // an iterator could not say that the want is over and go on
    pub fn next(&mut self) -> Result<Option<Lease>> {
        self.collect();
        loop {
            if let Some(error) = self.want.failed.take() {
                self.cancel();
                return Err(error);
            }
            self.start_queued();
            if let Some((key, filled)) = self.want.ready.pop_front() {
                return Ok(Some(self.lease(key, filled)));
            }
            if self.want.queued.is_empty() && self.want.reading.is_empty() {
                return Ok(None);
            }
            let before = Instant::now();
            let short_of_slots = !self.want.queued.is_empty();
            let guessed = self.want.guessed.len();
            let Some(completion) = self.inbox.wait(self.disk.as_ref()) else {
                return Err(self.starved());
            };
            let waited = before.elapsed();
            self.finish(completion);
            let stats = &mut self.stats.layers[self.want.layer.0 as usize];
            stats.wait += waited;
            if short_of_slots {
                stats.wait_slots += waited;
            } else if self.want.guessed.len() < guessed {
                stats.wait_guesses += waited;
            }
            self.collect();
        }
    }

    /// Up to `max` wanted experts that are here now, at least one if any is left, which may mean waiting. Empty
    /// when all have been handed out, or `max` is 0.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn next_batch(&mut self, max: usize) -> Result<Vec<Lease>> {
        let mut batch = Vec::new();
        while batch.len() < max && (batch.is_empty() || !self.want.ready.is_empty()) {
            match self.next() {
                Ok(Some(lease)) => batch.push(lease),
                Ok(None) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(batch)
    }

    /// Takes in what has arrived and starts what now has room, without waiting. Worth calling after dropping
    /// leases when the next call of [`next`](Self::next) is far away.
    pub fn poll(&mut self) {
        self.collect();
        self.start_queued();
        self.read_warm();
    }

    /// The experts in memory.
    pub fn held(&self) -> Vec<ExpertKey> {
        self.pool.ready()
    }

    /// Says what an earlier run had in memory. It is read by [`poll`](Self::poll), as long as nothing is wanted and a
    /// slot is empty; it pushes nothing out, and is the first to go.
    pub fn warm(&mut self, experts: impl IntoIterator<Item = ExpertKey>) {
        self.warm = experts.into_iter().collect();
    }

    /// Whether [`poll`](Self::poll) reads or would read more of what [`warm`](Self::warm) named, now or later.
    pub fn is_warming(&self) -> bool {
        !self.warm.is_empty() || !self.warming.is_empty()
    }

    fn read_warm(&mut self) {
        while self.want.queued.is_empty() && self.want.reading.is_empty() {
            if self.hints_on_their_way() > self.pool.limit() / 4 {
                return;
            }
            let Some(key) = self.warm.pop_front() else { return };
            if !self.pool.has_empty() {
                self.warm.clear();
            } else if self.layout(key).is_some() && self.pool.find(key).is_none() && self.speculate(key) {
                self.warming.insert(key);
            }
        }
    }

    /// Whether a wanted expert is here and was not handed out: [`next`](Self::next) would not wait.
    pub fn has_ready(&self) -> bool {
        !self.want.ready.is_empty()
    }

    /// Whether wanted experts cannot be read before leases are dropped.
    pub fn is_short_of_slots(&self) -> bool {
        !self.want.queued.is_empty()
    }

    /// Leases on all experts of a layer, if each is in memory.
    pub fn lease_layer(&mut self, layer: LayerId) -> Option<Vec<Lease>> {
        self.collect();
        let experts = self.layouts.get(layer.0 as usize)?.len();
        let held = (0..experts).map(|expert| {
            let key = ExpertKey { layer, expert: ExpertId(expert as u16) };
            match self.pool.find(key)? {
                Held::Ready(filled) => Some((key, filled)),
                Held::Reading(_) => None,
            }
        });
        let held: Vec<_> = held.collect::<Option<_>>()?;
        Some(held.into_iter().map(|(key, filled)| self.lease(key, filled)).collect())
    }

    /// Whether what was read is of files that are still as they were when they were opened.
    ///
    /// # Errors
    /// `Corrupt` naming the file that was written to, from then on.
    pub fn check_unchanged(&mut self) -> Result<()> {
        if self.unchecked {
            self.disk.check_unchanged()?;
            self.unchecked = false;
        }
        Ok(())
    }

    /// Drops these experts' bytes from the page cache where they are read through it, so that a rate is the drive's.
    pub fn forget_cached(&self, layer: LayerId, experts: &ExpertMask) {
        let layouts = experts.iter().filter_map(|expert| self.layout(ExpertKey { layer, expert }));
        self.disk.forget_cached(&layouts.flat_map(|layout| layout.parts.iter().copied()).collect::<Vec<_>>());
    }

    /// Counts `hits` wanted experts of a layer that a device had in memory of its own, so that nobody asked for them here.
    pub fn count_device_hits(&mut self, layer: LayerId, hits: u64) {
        if let Some(stats) = self.stats.layers.get_mut(layer.0 as usize) {
            stats.hits += hits;
            stats.device_hits += hits;
        }
    }

    /// Counts experts of a layer that are wanted, in case they were not before. [`want`](Self::want) does so itself.
    pub fn count_wanted(&mut self, layer: LayerId, experts: impl IntoIterator<Item = ExpertId>) {
        let at = layer.0 as usize;
        let (Some(seen), Some(layouts)) = (self.seen.get_mut(at), self.layouts.get(at)) else { return };
        for expert in experts {
            let place = layouts.get(expert.0 as usize).map(ExpertLayout::place);
            if let Some(place) = place.filter(|_| seen.insert(expert)) {
                self.stats.layers[at].union += 1;
                self.stats.layers[at].union_bytes += place.map_or(0, |(_, bytes)| bytes as u64);
            }
        }
    }

    /// Counts what a step spent in a layer; `steps` is 1 where it is through.
    pub fn count_time(&mut self, layer: LayerId, steps: u64, time: Duration, copied_bytes: u64) {
        if let Some(stats) = self.stats.layers.get_mut(layer.0 as usize) {
            stats.steps += steps;
            stats.time += time;
            stats.copied_bytes += copied_bytes;
        }
    }

    /// Ends the current want: what was not handed out is unpinned, and its reads are given up.
    pub fn cancel(&mut self) {
        let want = std::mem::take(&mut self.want);
        self.release(want, |_| false);
    }

    fn layout(&self, key: ExpertKey) -> Option<&ExpertLayout> {
        self.layouts.get(key.layer.0 as usize)?.get(key.expert.0 as usize)
    }

    /// Drops a want's pins, and gives up its reads but those to `keep`.
    fn release(&mut self, want: Want, keep: impl Fn(ExpertKey) -> bool) {
        let given_up = want.reading.into_iter().filter(|(key, _)| !keep(*key));
        self.give_up_reads(given_up.map(|(key, ticket)| (key, Some(ticket))).collect());
    }

    fn abandon(&mut self, tickets: &[Ticket]) {
        tickets.iter().for_each(|t| self.pool.abandon(*t));
        self.disk.cancel(tickets);
    }

    /// Takes in all completions that are here.
    fn collect(&mut self) {
        while let Some(completion) = self.inbox.poll(self.disk.as_ref()) {
            self.finish(completion);
        }
    }

    fn finish(&mut self, completion: Completion) {
        let Completion { ticket, window, result, started, finished } = completion;
        let from = self.busy_until.map_or(started, |until| until.max(started));
        self.stats.busy += finished.saturating_duration_since(from);
        self.busy_until = Some(self.busy_until.map_or(finished, |until| until.max(finished)));
        let Some((key, given_up)) = self.pool.finish(ticket, window, result.is_ok()) else { return };
        if !given_up {
            self.warming.remove(&key);
        }
        if let Ok(bytes) = result {
            self.unchecked = true;
            let stats = &mut self.stats.layers[key.layer.0 as usize];
            stats.reads += 1;
            stats.read_bytes += bytes;
        }
        if given_up {
            return;
        }
        if let Some(Held::Ready(filled)) = self.pool.find(key) {
            self.policy.insert(key);
            self.want.guessed.remove(&key);
            if self.want.reading.remove(&key).is_some() {
                self.want.ready.push_back((key, filled));
            } else if let Some(on_its_way) = self.hinted.get_mut(&key) {
                *on_its_way = None;
            }
        } else {
            self.hinted.remove(&key);
            if self.want.reading.remove(&key).is_some()
                && let Err(error) = result
            {
                self.want.failed.get_or_insert(error.context(key));
            }
        }
    }

    /// Starts as many misses as get a slot. If hints that are still on their way hold the missing slots, they
    /// are given up; their slots come free when their completions arrive.
    fn start_queued(&mut self) {
        let mut requests = Vec::new();
        while let Some(&key) = self.want.queued.front() {
            // What is coming is read again where nothing else can go.
            if !self.make_room(|coming, key| !is_coming(coming, key)) && !self.make_room(|_, _| true) {
                break;
            }
            let Some((ticket, request)) = self.request(key, Priority::Demand) else { break };
            self.want.queued.pop_front();
            self.want.reading.insert(key, ticket);
            requests.push(request);
        }
        if !requests.is_empty() {
            self.disk.submit(requests);
        }
        if !self.want.queued.is_empty() {
            let on_their_way: Vec<_> = self.hinted.extract_if(|_, t| t.is_some()).collect();
            self.give_up_reads(on_their_way);
        }
    }

    /// Gives up reads that nobody wants now. What [`Self::warm`] named is read later.
    fn give_up_reads(&mut self, reads: Vec<(ExpertKey, Option<Ticket>)>) {
        let again = reads.iter().map(|(key, _)| *key).filter(|key| self.warming.remove(key));
        self.warm.extend(again);
        self.abandon(&reads.into_iter().filter_map(|read| read.1).collect::<Vec<_>>());
    }

    /// Makes sure that a slot is empty, at the cost of one cached expert that is `spare` and unpinned; that is told what is
    /// coming.
    fn make_room(&mut self, spare: impl Fn(&[(LayerId, ExpertMask)], ExpertKey) -> bool) -> bool {
        // More than one round where the slot of the victim is above a lowered limit.
        while !self.pool.has_empty() {
            if !self.give_up(&spare) {
                return false;
            }
        }
        true
    }

    /// Empties the slot of the cached expert that the policy picks among those that are `spare` and unpinned.
    fn give_up(&mut self, spare: &dyn Fn(&[(LayerId, ExpertMask)], ExpertKey) -> bool) -> bool {
        let (pool, coming) = (&self.pool, &self.coming);
        let Some(victim) = self.policy.evict(&|key| pool.evictable(key) && spare(coming, key)) else {
            return false;
        };
        self.hinted.remove(&victim);
        self.stats.evictions += 1;
        self.pool.evict(victim)
    }

    /// A read of `key` into an empty slot.
    fn request(&mut self, key: ExpertKey, priority: Priority) -> Option<(Ticket, ReadRequest)> {
        let layout = self.layouts.get(key.layer.0 as usize)?.get(key.expert.0 as usize)?;
        let (offsets, _) = layout.place().ok()?;
        let fills = layout.parts.iter().zip(offsets).map(|(&range, at)| Fill { range, at }).collect();
        let ticket = self.disk.ticket();
        let home = self.homes.as_ref().and_then(|homes| homes.get(key.layer.0 as usize));
        let window = self.pool.start(key, ticket, home.map(|first| first + u32::from(key.expert.0)))?;
        Some((ticket, ReadRequest { ticket, priority, window, fills, reply: self.inbox.expect() }))
    }

    fn lease(&self, key: ExpertKey, filled: Arc<Filled>) -> Lease {
        let layout = self.layout(key);
        let parts = layout.map_or(&[][..], |l| &l.parts);
        let offsets = layout.and_then(|l| l.place().ok()).unwrap_or_default().0;
        Lease::new(key, filled, offsets.into_iter().zip(parts.iter().map(|p| p.bytes as usize)))
    }

    fn starved(&self) -> Error {
        Error::memory(format!(
            "layer {}: {} more experts are wanted, but all {} expert slots are held by leases; drop some first",
            self.want.layer.0,
            self.want.queued.len(),
            self.pool.limit()
        ))
    }
}

impl Drop for ExpertStore {
    /// Gives up what has not started. Reads under way own their memory and end by themselves.
    fn drop(&mut self) {
        self.cancel();
        let hinted: Vec<_> = self.hinted.drain().filter_map(|h| h.1).collect();
        self.abandon(&hinted);
    }
}

/// The slot of each layer's first expert, if there is one for every expert.
fn homes(layouts: &[Vec<ExpertLayout>], slots: usize) -> Option<Vec<u32>> {
    let mut next = 0;
    let homes = layouts.iter().map(|layer| {
        let first = next;
        next += layer.len() as u32;
        first
    });
    let homes = homes.collect();
    (next as usize <= slots).then_some(homes)
}

fn check(disk: &dyn Disk, layouts: &[Vec<ExpertLayout>], slot_bytes: usize) -> Result<()> {
    let most = layouts.iter().map(Vec::len).fold(layouts.len(), usize::max);
    if most > 1 << 16 {
        return Err(Error::invalid(format!("{most} layers or experts exceed 65536")));
    }
    for (layer, experts) in layouts.iter().enumerate() {
        for (expert, layout) in experts.iter().enumerate() {
            let key = ExpertKey { layer: LayerId(layer as u16), expert: ExpertId(expert as u16) };
            let (_, bytes) = layout.place().map_err(|e| e.context(key))?;
            if bytes > slot_bytes {
                return Err(Error::invalid(format!("{key} needs {bytes} bytes, a slot has {slot_bytes}")));
            }
            for part in &layout.parts {
                let file_bytes = disk
                    .file_bytes(part.file)
                    .ok_or_else(|| Error::invalid(format!("{key}: there is no file {}", part.file)))?;
                if part.end().is_none_or(|end| end > file_bytes) {
                    return Err(Error::corrupt(format!(
                        "{}: {key} needs {} bytes at offset {}, the file has {file_bytes}",
                        disk.file_name(part.file),
                        part.bytes,
                        part.offset
                    )));
                }
            }
        }
    }
    Ok(())
}
