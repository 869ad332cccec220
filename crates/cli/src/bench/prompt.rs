//! Where the time of a prompt went: how often its experts were read, and what bound its layers.

use engine::{Bound, LayerTime};
use serde_json::{Map, Value, json};

use super::Measured;
use crate::load::Loaded;
use crate::out;

/// Figures of a prompt of a model with experts.
pub(super) struct PromptFigures {
    chunk_tokens: usize,
    chunks: u64,
    experts: [u64; 2],
    bytes: [u64; 2],
    /// Layers with experts, by number.
    layers: Vec<(usize, LayerTime)>,
}

impl PromptFigures {
    /// Of what was measured; `None` for a dense model.
    pub(super) fn new(loaded: &Loaded, m: &Measured) -> Option<Self> {
        let stats = m.prompt_reads.as_ref()?;
        let total = stats.total();
        let time = |(layer, stats)| (layer, LayerTime::new(stats, m.copy_bytes_per_s));
        Some(Self {
            chunk_tokens: loaded.model.chunk_tokens().min(m.prompt_tokens),
            chunks: total.steps,
            experts: [total.reads, total.union],
            bytes: [total.read_bytes, total.union_bytes],
            layers: stats.layers.iter().enumerate().filter(|(_, stats)| stats.steps > 0).map(time).collect(),
        })
    }

    /// Lines for people: the whole, a line for each bound, the slowest layer.
    pub(super) fn table(&self) -> String {
        let chunks = if self.chunks == 1 { "chunk" } else { "chunks" };
        let mut text = format!(
            "prompt     {:>10} {chunks} of {} tokens; {} experts read, {} used; {} read, {} used\n",
            self.chunks,
            self.chunk_tokens,
            self.experts[0],
            self.experts[1],
            out::bytes(self.bytes[0]),
            out::bytes(self.bytes[1]),
        );
        for bound in Bound::ALL {
            let bound_by = || self.layers.iter().filter(|(_, time)| time.bound() == bound);
            let mut sum = LayerTime::default();
            bound_by().for_each(|(_, time)| sum += *time);
            let name = match bound_by().count() {
                0 => continue,
                1 => "1 layer".to_owned(),
                layers => format!("{layers} layers"),
            };
            text += &line(&name, bound, &sum);
        }
        let slowest = self.layers.iter().max_by(|(_, a), (_, b)| a.time_s.total_cmp(&b.time_s));
        if let Some((layer, time)) = slowest {
            text += &line(&format!("layer {layer}, the slowest"), time.bound(), time);
        }
        text
    }

    /// Fields for programs.
    pub(super) fn json(&self, map: &mut Map<String, Value>) {
        let layer = |(layer, time): &(usize, LayerTime)| {
            json!({
                "layer": layer,
                "time_s": time.time_s,
                "drive_s": time.drive_s,
                "copies_s": time.copies_s,
                "arithmetic_s": time.arithmetic_s(),
                "bound": time.bound().name(),
            })
        };
        let fields = [
            ("prompt_chunk_tokens", json!(self.chunk_tokens)),
            ("prompt_chunks", json!(self.chunks)),
            ("prompt_experts_read", json!(self.experts[0])),
            ("prompt_experts_used", json!(self.experts[1])),
            ("prompt_read_bytes", json!(self.bytes[0])),
            ("prompt_used_bytes", json!(self.bytes[1])),
            ("prompt_layers", self.layers.iter().map(layer).collect()),
        ];
        map.extend(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
    }
}

fn line(name: &str, bound: Bound, time: &LayerTime) -> String {
    let [all, drive, copies, arithmetic] =
        [time.time_s, time.drive_s, time.copies_s, time.arithmetic_s()].map(|s| 1e3 * s);
    format!(
        "  {name:<22}{all:>10.1} ms, bound by {}: drive {drive:.1}, copies {copies:.1}, arithmetic {arithmetic:.1}\n",
        bound.name()
    )
}
