//! What the operations on experts take.

use std::any::Any;

use files::{Error, Result};

use crate::buffer::{Block, Tensor, Weight};

/// How a router turns logits into experts and weights.
#[derive(Clone, Debug)]
pub struct RouteSpec {
    /// Experts per token.
    pub top_k: usize,
    /// Divide the chosen experts' softmax weights by their sum.
    pub normalise: bool,
}

/// The router's answer on the device: `[rows, top_k]` expert ids (u32) and weights.
#[derive(Debug)]
pub struct RouteBuffers {
    /// Expert ids, u32, ascending.
    pub ids: Block,
    /// What multiplies each expert's output, `[rows, top_k]`.
    pub weights: Tensor,
}

/// The router's answer on the host, `[rows, top_k]` each, by ascending id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// Experts per token.
    pub top_k: usize,
    /// Expert ids.
    pub ids: Vec<u32>,
    /// What multiplies each expert's output.
    pub weights: Vec<f32>,
}

/// The three matrices of a gated MLP: `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub struct MlpWeights {
    /// `[intermediate, hidden]`
    pub gate: Weight,
    /// `[intermediate, hidden]`
    pub up: Weight,
    /// `[hidden, intermediate]`
    pub down: Weight,
}

impl MlpWeights {
    /// Three matrices that fit each other.
    ///
    /// # Errors
    /// [`files::ErrorKind::Corrupt`] when they do not.
    pub fn new(gate: Weight, up: Weight, down: Weight) -> Result<Self> {
        let (i, h) = (gate.rows(), gate.cols());
        if (up.rows(), up.cols()) != (i, h) || (down.rows(), down.cols()) != (h, i) {
            return Err(Error::corrupt(format!(
                "gate [{i}, {h}], up [{}, {}] and down [{}, {}] do not make an MLP",
                up.rows(),
                up.cols(),
                down.rows(),
                down.cols()
            )));
        }
        Ok(Self { gate, up, down })
    }
}

/// One row that an expert works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutedRow {
    /// Row of the input.
    pub row: u32,
    /// Row of `parts` that takes the result: `row * top_k + choice`.
    pub part: u32,
}

/// One expert and the rows routed to it.
#[derive(Clone, Copy, Debug)]
pub struct ExpertBatch<'a> {
    /// The expert.
    pub weights: &'a MlpWeights,
    /// Its rows.
    pub rows: &'a [RoutedRow],
}

/// All experts of a layer in memory, for [`super::Backend::routed_mlp`].
pub struct ExpertTable {
    experts: Vec<MlpWeights>,
    parts_max: usize,
    device: Box<dyn Any + Send + Sync>,
}

impl ExpertTable {
    /// A table over `experts` for up to `parts_max` parts at once, with what the backend needs to look them up.
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] when there is none, or their shapes differ.
    pub fn new(
        experts: Vec<MlpWeights>,
        parts_max: usize,
        device: Box<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        let shape = |w: &MlpWeights| (w.gate.rows(), w.gate.cols());
        if experts.is_empty() || experts.iter().any(|w| shape(w) != shape(&experts[0])) {
            return Err(Error::invalid("a table needs experts, all of one shape"));
        }
        Ok(Self { experts, parts_max, device })
    }

    /// The most parts, rows times top-k, that [`super::Backend::routed_mlp`] takes.
    pub fn parts_max(&self) -> usize {
        self.parts_max
    }

    /// The experts, in the order of their ids; at least one.
    pub fn experts(&self) -> &[MlpWeights] {
        &self.experts
    }

    /// What the backend put there.
    pub fn device<T: 'static>(&self) -> Option<&T> {
        self.device.downcast_ref()
    }
}

/// Outputs of experts that are added to one row's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowRow {
    /// The row of the sum.
    pub row: u32,
    /// The first of its outputs, which follow each other by ascending id of their experts.
    pub first: u32,
    /// How many they are.
    pub count: u32,
}

/// The shared expert's contribution to [`super::Backend::combine`].
#[derive(Clone, Copy, Debug)]
pub struct SharedOutput<'a> {
    /// `[rows, hidden]`
    pub output: &'a Tensor,
    /// `[rows, 1]`, before the sigmoid.
    pub gate: &'a Tensor,
}

/// A layer of experts that the device looks up itself, for [`super::Backend::routed_layer`].
#[derive(Clone, Copy)]
pub struct RoutedLayer<'a> {
    /// `[experts, hidden]`
    pub router: &'a Weight,
    /// How its logits are used.
    pub spec: &'a RouteSpec,
    /// The experts.
    pub table: &'a ExpertTable,
    /// The expert that every row uses, and the weight `[1, hidden]` of the gate on it.
    pub shared: Option<(&'a MlpWeights, &'a Weight)>,
}

/// What [`super::Backend::routed_layer`] writes.
#[derive(Debug)]
pub struct RoutedOutput<'a> {
    /// What the router chose.
    pub routes: &'a mut RouteBuffers,
    /// `[rows * top_k, hidden]`
    pub parts: &'a mut Tensor,
    /// The shared expert's output `[rows, hidden]` and gate `[rows, 1]`.
    pub shared: Option<(&'a mut Tensor, &'a mut Tensor)>,
}
