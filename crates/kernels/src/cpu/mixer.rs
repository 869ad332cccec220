//! Mixers over the rows of several sequences: one fork-join for all of them.

use std::ops::Range;

use files::Result;

use super::shared::Parts;
use super::{Cpu, portable};
use crate::ops::{DeltaInput, DeltaSpec, Segment};

/// The rows of all segments, numbered one after the other: of those in `range` the row, its position and its segment.
pub(super) fn rows_in(
    segments: &[Segment],
    range: Range<usize>,
) -> impl Iterator<Item = (usize, usize, &Segment)> {
    let rows = |s| Segment::positions(s).map(move |(row, position)| (row, position, s));
    segments.iter().flat_map(rows).skip(range.start).take(range.len())
}

/// A segment's work, and what comes before it: rows, and strips of all heads.
struct Job<'a> {
    delta: portable::Delta<'a>,
    rows: usize,
    strips: usize,
}

impl Cpu {
    /// [`crate::Backend::delta_rule`], which has checked the arguments.
    pub(super) fn delta_rules(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut [f32],
        out: &mut [f32],
    ) -> Result<()> {
        let (channels, heads, dv) = (spec.channels(), spec.value_heads, spec.value_head_dim);
        let each = heads * spec.key_head_dim * dv;
        let (qkv, a, b) = (input.qkv.host()?, input.a.host()?, input.b.host()?);
        let (decay, dt_bias) = (input.decay.host()?, input.dt_bias.host()?);
        let (state, out) = (Parts::new(state), Parts::new(out));
        let (mut rows, mut strips) = (0, 0);
        let mut jobs = Vec::with_capacity(input.segments.len());
        for Segment { rows: r, slot, .. } in input.segments.iter().filter(|s| !s.rows.is_empty()) {
            let delta = portable::Delta {
                isa: self.isa,
                spec,
                qkv: &qkv[r.start * channels..r.end * channels],
                a: &a[r.start * heads..r.end * heads],
                b: &b[r.start * heads..r.end * heads],
                decay,
                dt_bias,
                state: state.sub(*slot as usize * each, each),
                out: out.sub(r.start * heads * dv, r.len() * heads * dv),
            };
            jobs.push(Job { delta, rows, strips });
            rows += r.len();
            strips += heads * dv.div_ceil(delta.strip());
        }
        if rows == 0 { Ok(()) } else { self.delta_jobs(&jobs, spec, rows, strips) }
    }

    fn delta_jobs(&self, jobs: &[Job<'_>], spec: &DeltaSpec, rows: usize, strips: usize) -> Result<()> {
        let each = jobs[0].delta.factors();
        self.partials.with(|factors| {
            factors.resize(factors.len().max(rows * each), 0.0);
            let parts = Parts::new(factors);
            self.split(rows, 4 * spec.key_heads * spec.key_head_dim, |r| {
                for row in r {
                    let job = &jobs[jobs.partition_point(|job| job.rows <= row) - 1];
                    // SAFETY: each row is visited once.
                    let factors = unsafe { parts.part(row * each, each) };
                    portable::factors(self.isa, job.delta, row - job.rows, factors);
                }
            })?;
            let factors = &*factors;
            let values = spec.value_heads * spec.key_head_dim * spec.value_head_dim;
            self.split(strips, values * rows / strips, |items| {
                self.scratch.with(|copy| {
                    for item in items {
                        let job = &jobs[jobs.partition_point(|job| job.strips <= item) - 1];
                        let strip = job.delta.strip();
                        let of_head = spec.value_head_dim.div_ceil(strip);
                        let (head, column) =
                            ((item - job.strips) / of_head, (item - job.strips) % of_head * strip);
                        let factors = &factors[job.rows * each..];
                        // SAFETY: each strip of columns of each head of each segment is visited once.
                        unsafe { portable::delta_rule(job.delta, factors, head, column, copy) };
                    }
                });
            })
        })
    }
}
