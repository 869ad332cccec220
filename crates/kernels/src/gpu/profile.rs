//! Where the device's time goes, by timestamps between dispatches. Each submission is waited for, so the host's time is
//! not what it is without.

use std::collections::BTreeMap;

use files::Result;

use super::device::{Device, device_error};
use super::submit::wait;
use crate::ops::KernelTime;

/// What an adapter must have.
pub(super) const FEATURES: wgpu::Features =
    wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);

/// Timestamps of a submission; dispatches beyond are not timed. The most that every driver takes.
const QUERIES: u32 = 4096;

/// Timestamps of the open submission, and the sums of those before it.
pub(super) struct Profile {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    mapped: wgpu::Buffer,
    /// The kernels that were timed, in their order.
    names: Vec<&'static str>,
    /// Calls and nanoseconds.
    totals: BTreeMap<&'static str, (u64, f64)>,
    tick_ns: f64,
}

impl Profile {
    /// `None` where the device has no timestamps.
    pub(super) fn new(device: &Device) -> Option<Self> {
        if !device.device.features().contains(FEATURES) {
            return None;
        }
        let buffer = |label, usage| {
            device.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: u64::from(QUERIES) * 8,
                usage,
                mapped_at_creation: false,
            })
        };
        Some(Self {
            set: device.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("times"),
                ty: wgpu::QueryType::Timestamp,
                count: QUERIES,
            }),
            resolved: buffer("times", wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            mapped: buffer("times read back", wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            names: Vec::new(),
            totals: BTreeMap::new(),
            tick_ns: f64::from(device.queue.get_timestamp_period()),
        })
    }

    /// Before a dispatch.
    pub(super) fn before(&self, pass: &mut wgpu::ComputePass<'_>) {
        if self.names.is_empty() {
            pass.write_timestamp(&self.set, 0);
        }
    }

    /// After a dispatch of kernel `name`.
    pub(super) fn after(&mut self, pass: &mut wgpu::ComputePass<'_>, name: &'static str) {
        let at = self.names.len() as u32 + 1;
        if at < QUERIES {
            pass.write_timestamp(&self.set, at);
            self.names.push(name);
        }
    }

    /// At the end of a submission.
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        if !self.names.is_empty() {
            let count = self.names.len() as u32 + 1;
            encoder.resolve_query_set(&self.set, 0..count, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.mapped, 0, u64::from(count) * 8);
        }
    }

    /// Waits for the submission and adds up its times.
    pub(super) fn collect(&mut self, device: &Device, index: wgpu::SubmissionIndex) -> Result<()> {
        if self.names.is_empty() {
            return Ok(());
        }
        let slice = self.mapped.slice(..(self.names.len() as u64 + 1) * 8);
        slice.map_async(wgpu::MapMode::Read, |_| ());
        wait(device, index)?;
        let mapped =
            slice.get_mapped_range().map_err(|e| device_error("cannot read timestamps").with_source(e))?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&mapped);
        for (name, pair) in self.names.drain(..).zip(ticks.windows(2)) {
            let (calls, ns) = self.totals.entry(name).or_default();
            *calls += 1;
            *ns += pair[1].saturating_sub(pair[0]) as f64 * self.tick_ns;
        }
        drop(mapped);
        self.mapped.unmap();
        Ok(())
    }

    /// The sums so far, the largest first.
    pub(super) fn times(&self) -> Vec<KernelTime> {
        let time = |(&name, &(calls, ns)): (&&'static str, &(u64, f64))| KernelTime {
            name,
            calls,
            seconds: ns * 1e-9,
        };
        let mut all: Vec<_> = self.totals.iter().map(time).collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        all
    }
}
