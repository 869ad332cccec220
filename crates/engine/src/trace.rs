//! From what a session's routers chose to a trace that replays.

use std::collections::BTreeSet;

use store::ExpertId;
use store::policy::{Trace, TraceStep, TraceWant};

use crate::model::Model;
use crate::sequence::RouteRecord;

/// The trace of what a session of `model` has recorded, in the order of its steps.
pub fn trace_of(model: &Model, records: &[RouteRecord]) -> Trace {
    let mut trace = model.new_trace();
    let mut before: Option<&RouteRecord> = None;
    for record in records {
        let rows = (record.routes.ids.len() / record.routes.top_k.max(1)) as u32;
        if before.is_none_or(|b| b.position != record.position || b.layer >= record.layer) {
            trace.steps.push(TraceStep { rows, wants: Vec::new() });
        }
        let experts: BTreeSet<_> = record.routes.ids.iter().map(|&id| ExpertId(id as u16)).collect();
        if let Some(step) = trace.steps.last_mut() {
            step.wants.push(TraceWant { layer: record.layer, experts: experts.into_iter().collect() });
        }
        before = Some(record);
    }
    trace
}
