//! Finds tensors by name, checks their shapes, and keeps count of what nobody asked for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use files::meta::{Dialect, RopeScaling};
use files::{Error, Meta, Result, TensorIndex};
use kernels::ops::MlpWeights;
use kernels::{Backend, Tensor, Weight};
use store::ExpertLayout;

use crate::bridge::{Arena, ExpertShape, MatrixShape};
use crate::layers::{Mlp, Rope};
use crate::step::{Linear, Norm};

use super::roles::Roles;

/// What was found besides the model: roles that text does not need, and their tensors.
pub(crate) type LeftOut = BTreeMap<&'static str, usize>;

/// A name in the Hugging Face and MLX dialects, and the same in GGUF's.
pub(crate) type Name<'a> = (&'a str, &'a str);

/// Binds one model.
pub(crate) struct Binder<'a> {
    index: &'a TensorIndex,
    dialect: Dialect,
    prefix: &'static str,
    roles: Roles,
    backend: Arc<dyn Backend>,
    arena: Arena,
    used: HashSet<String>,
    weights: HashMap<String, Weight>,
    experts: Vec<Vec<ExpertLayout>>,
    eps: f32,
}

impl<'a> Binder<'a> {
    /// A binder that has bound nothing yet.
    pub(crate) fn new(index: &'a TensorIndex, meta: &Meta, backend: Arc<dyn Backend>) -> Result<Self> {
        let prefix = if meta.dialect == Dialect::Gguf { "" } else { prefix(index)? };
        let roles = Roles {
            dialect: meta.dialect,
            prefix,
            layers: meta.layers,
            predicted_layers: meta.predicted_layers,
            tied: meta.tie_embeddings,
        };
        Ok(Self {
            index,
            dialect: meta.dialect,
            prefix,
            roles,
            arena: Arena::new(backend.clone()),
            backend,
            used: HashSet::new(),
            weights: HashMap::new(),
            experts: vec![Vec::new(); meta.layers],
            eps: meta.rms_norm_eps,
        })
    }

    /// Where the names and layouts come from.
    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The full name of a layer's tensor, `.weight` not added.
    fn layer_name(&self, layer: usize, (hf, gguf): Name<'_>) -> String {
        match self.dialect {
            Dialect::Gguf => format!("blk.{layer}.{gguf}"),
            Dialect::Hf | Dialect::Mlx => format!("{}layers.{layer}.{hf}", self.prefix),
        }
    }

    /// Whether a layer has this tensor.
    pub(crate) fn has(&self, layer: usize, name: Name<'_>) -> bool {
        self.index.contains(&self.layer_name(layer, name))
    }

    /// The shape of a layer's tensor, if it is there.
    pub(crate) fn shape(&self, layer: usize, name: Name<'_>) -> Option<&[usize]> {
        self.index.get(&self.layer_name(layer, name)).map(|tensor| tensor.shape.as_slice())
    }

    /// A resident matrix of a layer; `name` without `.weight`.
    pub(crate) fn weight(
        &mut self,
        layer: usize,
        name: Name<'_>,
        rows: usize,
        cols: usize,
    ) -> Result<Weight> {
        let name = format!("{}.weight", self.layer_name(layer, name));
        self.named_weight(&name, rows, cols)
    }

    /// A resident matrix by its full name.
    fn named_weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        if let Some(weight) = self.weights.get(name) {
            return Ok(weight.clone());
        }
        let tensor = self.index.require(name)?;
        expect_matrix(tensor, rows, cols)?;
        let shape = MatrixShape { format: tensor.format, rows, cols };
        let weight = self.arena.weight(shape, &tensor.spans).map_err(|e| e.context(name))?;
        self.used.insert(name.to_string());
        self.weights.insert(name.to_string(), weight.clone());
        Ok(weight)
    }

    /// A matrix without bias.
    pub(crate) fn linear(
        &mut self,
        layer: usize,
        name: Name<'_>,
        rows: usize,
        cols: usize,
    ) -> Result<Linear> {
        Ok(Linear { weight: self.weight(layer, name, rows, cols)?, bias: None })
    }

    /// A matrix with the bias beside it, if there is one; there must be one if `must`.
    pub(crate) fn biased(
        &mut self,
        layer: usize,
        name: Name<'_>,
        rows: usize,
        cols: usize,
        must: bool,
    ) -> Result<Linear> {
        let weight = self.weight(layer, name, rows, cols)?;
        let (hf, gguf) = (format!("{}.bias", name.0), format!("{}.bias", name.1));
        let bias = (&*hf, &*gguf);
        let has_bias = must || self.has(layer, bias);
        let bias = has_bias.then(|| self.vector(layer, bias, 1, rows, |v| v)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// Small values of a layer as f32 `[rows, cols]`, each passed through `map`; `name` is complete.
    pub(crate) fn vector(
        &mut self,
        layer: usize,
        name: Name<'_>,
        rows: usize,
        cols: usize,
        map: impl Fn(f32) -> f32,
    ) -> Result<Tensor> {
        let name = self.layer_name(layer, name);
        let values = self.values(&name, rows * cols)?;
        self.upload(values.into_iter().map(map).collect(), rows, cols)
    }

    /// A norm of a layer; `plus_one` when the file stores `w - 1`.
    pub(crate) fn norm(&mut self, layer: usize, name: Name<'_>, len: usize, plus_one: bool) -> Result<Norm> {
        let (hf, gguf) = (format!("{}.weight", name.0), format!("{}.weight", name.1));
        let add = if plus_one { 1.0 } else { 0.0 };
        Ok(Norm { weight: self.vector(layer, (&hf, &gguf), 1, len, |w| w + add)?, eps: self.eps })
    }

    /// The token embedding `[vocab, hidden]`.
    pub(crate) fn embedding(&mut self, vocab: usize, hidden: usize) -> Result<Weight> {
        let name = self.top_name(("embed_tokens.weight", "token_embd.weight"));
        self.named_weight(&name, vocab, hidden)
    }

    /// The norm before the output head.
    pub(crate) fn final_norm(&mut self, len: usize, plus_one: bool) -> Result<Norm> {
        let name = self.top_name(("norm.weight", "output_norm.weight"));
        let add = if plus_one { 1.0 } else { 0.0 };
        let values = self.values(&name, len)?.into_iter().map(|w| w + add).collect();
        Ok(Norm { weight: self.upload(values, 1, len)?, eps: self.eps })
    }

    /// The output head `[vocab, hidden]`: its own tensor, or the embedding where they are tied.
    pub(crate) fn head(&mut self, meta: &Meta) -> Result<Linear> {
        let own = match self.dialect {
            Dialect::Gguf => ["output.weight", "output.weight"],
            Dialect::Hf | Dialect::Mlx => ["lm_head.weight", "language_model.lm_head.weight"],
        };
        let name = own.into_iter().find(|name| self.index.get(name).is_some());
        let weight = match name {
            Some(name) => self.named_weight(name, meta.vocab_size, meta.hidden_size)?,
            None if meta.tie_embeddings => self.embedding(meta.vocab_size, meta.hidden_size)?,
            // Names what is missing, or cannot be used.
            None => {
                let name = own.into_iter().find(|name| self.index.contains(name)).unwrap_or(own[0]);
                self.named_weight(name, meta.vocab_size, meta.hidden_size)?
            }
        };
        Ok(Linear { weight, bias: None })
    }

    /// The rotary frequencies.
    pub(crate) fn rope(&mut self, meta: &Meta) -> Result<Arc<Rope>> {
        let factors = match &meta.rope.scaling {
            RopeScaling::Factors { tensor } => Some(self.values(tensor, meta.rope.rotary_dim / 2)?),
            _ => None,
        };
        let (frequencies, amplitude) = crate::layers::frequencies(&meta.rope, factors.as_deref())?;
        let cols = frequencies.len();
        Ok(Arc::new(Rope {
            frequencies: self.upload(frequencies, 1, cols)?,
            rotary_dim: meta.rope.rotary_dim,
            interleaved: meta.rope.interleaved,
            amplitude,
        }))
    }

    /// A resident MLP under `mlp.` or the given names.
    pub(crate) fn mlp(&mut self, layer: usize, names: [Name<'_>; 3], i: usize, hidden: usize) -> Result<Mlp> {
        let gate = self.weight(layer, names[0], i, hidden)?;
        let up = self.weight(layer, names[1], i, hidden)?;
        let down = self.weight(layer, names[2], hidden, i)?;
        Ok(Mlp { weights: MlpWeights::new(gate, up, down)? })
    }

    /// The routed experts of a layer, in whichever layout the file has; records where they are.
    pub(crate) fn experts(
        &mut self,
        layer: usize,
        count: usize,
        i: usize,
        hidden: usize,
    ) -> Result<ExpertShape> {
        let found = self.find_experts(layer, count, i, hidden)?;
        let shape = |m: &files::Tensor| MatrixShape { format: m.format, rows: m.rows(), cols: m.cols() };
        let [gate, up, down] = &found[0];
        let expected = ExpertShape { gate: shape(gate), up: shape(up), down: shape(down) };
        let mut layouts = Vec::with_capacity(count);
        for [gate, up, down] in &found {
            for (matrix, rows, cols) in [(gate, i, hidden), (up, i, hidden), (down, hidden, i)] {
                expect_matrix(matrix, rows, cols)?;
            }
            if (ExpertShape { gate: shape(gate), up: shape(up), down: shape(down) }) != expected {
                return Err(Error::unsupported(format!(
                    "{}: experts of a layer differ in format",
                    gate.name
                )));
            }
            let spans = gate.spans.iter().chain(&up.spans).chain(&down.spans);
            let range = |s: &files::Span| store::Range { file: s.file.0, offset: s.offset, bytes: s.bytes };
            layouts.push(ExpertLayout { parts: spans.map(range).collect() });
        }
        self.experts[layer] = layouts;
        Ok(expected)
    }

    fn find_experts(
        &mut self,
        layer: usize,
        count: usize,
        i: usize,
        hidden: usize,
    ) -> Result<Vec<[files::Tensor; 3]>> {
        if self.has(layer, FUSED) {
            return self.fused_experts(layer, count, i, hidden);
        }
        if self.has(layer, ("mlp.experts.0.gate_proj.weight", "ffn_gate.0.weight")) {
            return self.separate_experts(layer, count);
        }
        let mut stacks = Vec::new();
        for (hf, gguf) in [("gate", "ffn_gate_exps"), ("up", "ffn_up_exps"), ("down", "ffn_down_exps")] {
            let hf = format!("mlp.switch_mlp.{hf}_proj.weight");
            let name = self.layer_name(layer, (&hf, &format!("{gguf}.weight")));
            stacks.push(self.stack(&name, count)?);
        }
        (0..count)
            .map(|e| Ok([stacks[0].slice_outer(e)?, stacks[1].slice_outer(e)?, stacks[2].slice_outer(e)?]))
            .collect()
    }

    /// `gate_up [experts, 2 i, hidden]`, an expert's gate before its up, and `down [experts, hidden, i]`.
    fn fused_experts(
        &mut self,
        layer: usize,
        count: usize,
        i: usize,
        hidden: usize,
    ) -> Result<Vec<[files::Tensor; 3]>> {
        let both = self.stack(&self.layer_name(layer, FUSED), count)?;
        let down = ("mlp.experts.down_proj", "ffn_down_exps.weight");
        let down = self.stack(&self.layer_name(layer, down), count)?;
        let expert = |e: usize| {
            let both = both.slice_outer(e)?;
            expect_matrix(&both, 2 * i, hidden)?;
            Ok([both.slice_rows(0..i)?, both.slice_rows(i..2 * i)?, down.slice_outer(e)?])
        };
        (0..count).map(expert).collect()
    }

    fn separate_experts(&mut self, layer: usize, count: usize) -> Result<Vec<[files::Tensor; 3]>> {
        let mut found = Vec::with_capacity(count);
        for e in 0..count {
            let mut matrix = |which: &str| {
                let hf = format!("mlp.experts.{e}.{which}_proj.weight");
                let name = self.layer_name(layer, (&hf, &format!("ffn_{which}.{e}.weight")));
                self.used.insert(name.clone());
                self.index.require(&name).cloned()
            };
            found.push([matrix("gate")?, matrix("up")?, matrix("down")?]);
        }
        Ok(found)
    }

    fn stack(&mut self, name: &str, count: usize) -> Result<files::Tensor> {
        let tensor = self.index.require(name)?;
        if tensor.shape.len() != 3 || tensor.shape[0] != count {
            return Err(Error::corrupt(format!(
                "tensor {name} is {:?}, expected {count} experts",
                tensor.shape
            )));
        }
        self.used.insert(name.to_string());
        Ok(tensor.clone())
    }

    fn top_name(&self, (hf, gguf): Name<'_>) -> String {
        if self.dialect == Dialect::Gguf { gguf.into() } else { format!("{}{hf}", self.prefix) }
    }

    /// Reads a small tensor now, as f32.
    fn values(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.index.require(name)?;
        let count = tensor.rows() * tensor.cols();
        if count != len {
            return Err(Error::corrupt(format!(
                "tensor {name} is {:?}, expected {len} values",
                tensor.shape
            )));
        }
        let mut parts = Vec::new();
        for span in &tensor.spans {
            let path = &self.index.files()[span.file.0 as usize];
            let mut bytes = vec![0; span.bytes as usize];
            let read = File::open(path).and_then(|mut f| {
                f.seek(SeekFrom::Start(span.offset))?;
                f.read_exact(&mut bytes)
            });
            read.map_err(|e| Error::io(format!("{}: tensor {name}", path.display()), e))?;
            parts.push(bytes);
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut values = vec![0.0; len];
        files::quant::decode(tensor.format, &parts, &mut values).map_err(|e| e.context(name))?;
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::corrupt(format!("tensor {name}: value {i} is {}", values[i])));
        }
        self.used.insert(name.to_string());
        Ok(values)
    }

    fn upload(&self, values: Vec<f32>, rows: usize, cols: usize) -> Result<Tensor> {
        let mut block = self.backend.alloc(values.len() * 4)?;
        self.backend.write(&mut block, 0, bytemuck::cast_slice(&values))?;
        Tensor::new(block, rows, cols)
    }

    /// Ends binding: what is left over and has no role that text can do without is an error, since a model that drops
    /// weights answers wrongly.
    pub(crate) fn finish(self) -> Result<(Vec<Vec<ExpertLayout>>, Arena, LeftOut)> {
        let mut left_out = LeftOut::new();
        let mut unknown = Vec::new();
        for name in self.index.leftovers(&self.used) {
            match self.roles.spare(name) {
                Some(role) => *left_out.entry(role).or_default() += 1,
                None => unknown.push(name),
            }
        }
        let Some(first) = unknown.first() else { return Ok((self.experts, self.arena, left_out)) };
        // What cannot be used, or is promised and not there, says so itself.
        self.index.require(first)?;
        let count = unknown.len();
        Err(Error::unsupported(format!("{count} tensors have no place in this model, as {first}")))
    }
}

/// Gate and up of all experts in one tensor.
const FUSED: Name<'static> = ("mlp.experts.gate_up_proj", "ffn_gate_up_exps.weight");

fn prefix(index: &TensorIndex) -> Result<&'static str> {
    let prefixes = ["model.language_model.", "language_model.model.", "model.", ""];
    let has = |p: &&str| index.contains(&format!("{p}embed_tokens.weight"));
    prefixes
        .into_iter()
        .find(has)
        .ok_or_else(|| Error::not_found("tensor embed_tokens.weight is missing under every known prefix"))
}

fn expect_matrix(tensor: &files::Tensor, rows: usize, cols: usize) -> Result<()> {
    if (tensor.rows(), tensor.cols()) == (rows, cols) {
        return Ok(());
    }
    let (name, shape) = (&tensor.name, &tensor.shape);
    Err(Error::corrupt(format!(
        "tensor {name} is {shape:?}, the model's configuration says [{rows}, {cols}]"
    )))
}
