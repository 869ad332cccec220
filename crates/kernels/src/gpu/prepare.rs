//! Pipelines that are compiled before they are needed: a driver takes 10 to 100 ms for each, and a model needs dozens.
//!
//! Which ones, the ops say: in a rehearsal they are called as for a step, and note what they would run instead of recording
//! it. What is noted is then compiled by several threads, while the drive reads weights.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use files::Result;

use super::device::AdapterKind;
use super::pipelines::Plan;
use super::source::{Kernel, Variant};
use super::{Gpu, State};

/// Most threads that compile: each takes a driver some memory, and the drive must be read meanwhile.
const THREADS_MAX: usize = 4;

/// What a rehearsal has noted, in the order of first use.
#[derive(Default)]
pub(super) struct Noted {
    /// The thread that rehearses.
    thread: Option<ThreadId>,
    variants: Vec<(&'static Kernel, Variant)>,
}

/// Ends a rehearsal, also when what is rehearsed panics.
struct Rehearsal<'a>(&'a Gpu);

impl Drop for Rehearsal<'_> {
    fn drop(&mut self) {
        self.0.lock().noted.thread = None;
    }
}

impl State {
    /// Whether the calling thread only rehearses.
    pub(super) fn rehearses(&self) -> bool {
        self.noted.thread.is_some_and(|thread| thread == thread::current().id())
    }

    /// Notes a variant, and those that steps with other numbers of rows would need instead: for each of `rows`.
    pub(super) fn note(&mut self, kernel: &'static Kernel, variant: Variant, rows: &[usize]) {
        let mut add = |variant: Variant| {
            if !self.pipelines.has(&variant) && !self.noted.variants.iter().any(|(_, v)| *v == variant) {
                self.noted.variants.push((kernel, variant));
            }
        };
        add(variant);
        let Some(at) = kernel.constants.iter().position(|name| *name == "ROWS") else { return };
        if rows.contains(&(variant.constants[at] as usize)) {
            for &rows in rows {
                let mut other = variant;
                other.constants[at] = rows as u32;
                add(other);
            }
        }
    }
}

impl Gpu {
    /// See [`crate::Backend::rehearse`].
    pub(super) fn note_all(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        {
            let noted = &mut self.lock().noted;
            if noted.thread.is_some() {
                return Ok(()); // another model's: it is compiled when it is needed
            }
            noted.thread = Some(thread::current().id());
        }
        let _rehearsal = Rehearsal(self);
        enqueue()
    }

    /// Whether pipelines are compiled ahead. A software driver has no processors but those that load, and its tests open
    /// hundreds of models.
    pub(super) fn prepares(&self) -> bool {
        self.compiles_ahead.unwrap_or(self.device.summary.kind != AdapterKind::Software)
    }

    /// See [`crate::Backend::prepare`].
    pub(super) fn compile_noted(&self) -> Result<()> {
        let plans: Vec<Plan> = {
            let state = &mut *self.lock();
            let noted = std::mem::take(&mut state.noted.variants);
            let plan = |(kernel, variant)| state.pipelines.plan(&self.device, kernel, variant);
            // The last first.
            noted.into_iter().rev().map(plan).collect()
        };
        let threads =
            thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(plans.len());
        let (plans, failed) = (Mutex::new(plans), Mutex::new(Ok(())));
        let next = || plans.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = || {
            while let Some(plan) = next() {
                match plan.compile(&self.device) {
                    Ok(pipeline) => drop(self.lock().pipelines.keep(plan.variant(), pipeline)),
                    Err(e) => {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(e);
                        return;
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                let thread = thread::Builder::new().name("pipelines".into()).spawn_scoped(scope, work);
                if thread.is_err() {
                    break; // the others do it
                }
            }
            work();
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        self.keep_compiled();
        Ok(())
    }

    /// Writes what the driver has compiled for the next run.
    pub(super) fn keep_compiled(&self) {
        let pipelines = &mut self.lock().pipelines;
        let count = pipelines.count();
        pipelines.stored.write(count);
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.keep_compiled();
    }
}
