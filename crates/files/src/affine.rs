//! MLX's affine matrices: `X.weight` (packed words), `X.scales` and `X.biases` become one tensor `X.weight`.
//!
//! Bits and group of each matrix come from `quantization` in `config.json` (a global pair, and entries by module
//! path) and are then checked against the shapes: one file may mix 4- and 8-bit matrices, and 4 bits in groups of
//! 64 have the same shapes as 8 bits in groups of 32 of a narrower matrix. With the group, the shapes say the bits.
//! Source: `mx.quantize` and the `quantization` section that mlx-lm writes.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::gguf::short_text;
use crate::meta::hf::Config;
use crate::safetensors::Entry;
use crate::{Error, FileId, Foreign, Format, Result, ScaleType, Span, Tensor, TensorIndex};

#[derive(Clone, Debug, Default)]
struct Setting {
    bits: Option<u64>,
    group: Option<u64>,
    mode: Option<String>,
}

/// The `quantization` section of `config.json`.
#[derive(Debug, Default)]
pub(crate) struct Quantization {
    file: String,
    global: Option<Setting>,
    /// `None`: this module is stated not to be quantised.
    modules: HashMap<String, Option<Setting>>,
    /// The same, by the module's name within the language model.
    stems: HashMap<String, Option<Setting>>,
}

/// Where a language model stands within a checkpoint. Converters name modules under one of these and tensors under
/// another.
const PREFIXES: [&str; 5] =
    ["model.language_model.", "language_model.model.", "language_model.", "model.", ""];

/// A module's name without the language model's place.
fn stem(module: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)).unwrap_or(module)
}

impl Quantization {
    pub(crate) fn from_config(config: &Config) -> Result<Self> {
        let mut own = Self { file: config.file.clone(), ..Self::default() };
        let sections = [config.top.get("quantization"), config.top.get("quantization_config")];
        let is_mlx = |v: &&Value| {
            v.get("group_size").is_some() && v.get("bits").is_some() && v.get("quant_method").is_none()
        };
        let Some(section) = sections.into_iter().flatten().find(is_mlx) else {
            return Ok(own);
        };
        let wrong = |what: &str| Error::corrupt(format!("{}: quantization: {what}", own.file));
        let section = section.as_object().ok_or_else(|| wrong("not an object"))?;
        let global = setting(section).ok_or_else(|| wrong("bits, group_size or mode has the wrong type"))?;
        for (module, value) in section {
            let entry = match value {
                Value::Object(entry) => {
                    let bad = || wrong(&format!("{}: wrong types", short_text(module)));
                    let entry = setting(entry).ok_or_else(bad)?;
                    Some(Setting {
                        bits: entry.bits.or(global.bits),
                        group: entry.group.or(global.group),
                        mode: entry.mode.or_else(|| global.mode.clone()),
                    })
                }
                Value::Bool(true) => Some(global.clone()),
                Value::Bool(false) => None,
                _ => continue,
            };
            own.stems.insert(stem(module).to_string(), entry.clone());
            own.modules.insert(module.clone(), entry);
        }
        own.global = Some(global);
        Ok(own)
    }

    /// Whether the section is one that MLX writes.
    pub(crate) fn is_mlx(&self) -> bool {
        self.global.is_some()
    }

    /// What the section says of a module, and whether it is the module's own entry.
    fn of(&self, module: &str) -> Result<(&Setting, bool)> {
        let wrong = |what: &str| {
            Err(Error::corrupt(format!("{}: {} has scales, but {what}", self.file, short_text(module))))
        };
        let own = self.modules.get(module).or_else(|| self.stems.get(stem(module)));
        match (own, &self.global) {
            (Some(Some(own)), _) => Ok((own, true)),
            (Some(None), _) => wrong("quantization says it is not quantised"),
            (None, Some(global)) => Ok((global, false)),
            (None, None) => wrong("there is no quantization section to say its bits and group_size"),
        }
    }
}

/// `None` when a value has the wrong type.
fn setting(object: &Map<String, Value>) -> Option<Setting> {
    let number = |key| match object.get(key) {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_u64().map(Some),
    };
    let mode = match object.get("mode") {
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_str()?.to_string()),
    };
    Some(Setting { bits: number("bits")?, group: number("group_size")?, mode })
}

/// Fills `index` with the tensors of all files' entries, affine matrices merged.
pub(crate) fn merge(
    index: &mut TensorIndex,
    entries: Vec<(FileId, Entry)>,
    names: &HashMap<String, usize>,
    quantization: &Quantization,
) -> Result<()> {
    let mut consumed = HashSet::new();
    let find = |name: String| names.get(&name).map(|&i| &entries[i]);
    let mut tensors = Vec::new();
    for (i, (file, weight)) in entries.iter().enumerate() {
        let module = weight.name.strip_suffix(".weight").filter(|_| weight.dtype == "U32");
        let Some((module, scales)) = module.and_then(|m| Some((m, find(format!("{m}.scales"))?))) else {
            continue;
        };
        let biases = find(format!("{module}.biases"));
        let parts = Parts { module, weight: (*file, weight), scales: (scales.0, &scales.1) };
        let label = index.label(*file);
        let biases = biases.map(|(file, entry)| (*file, entry));
        let merged = parts.merge(biases, quantization).map_err(|e| e.context(label))?;
        let suffixes = ["scales", "biases"];
        consumed.extend(suffixes.iter().filter_map(|s| names.get(&format!("{module}.{s}")).copied()));
        consumed.insert(i);
        tensors.push((i, merged));
    }
    let mut merged: HashMap<usize, Merged> = tensors.into_iter().collect();
    for (i, (file, entry)) in entries.into_iter().enumerate() {
        match merged.remove(&i) {
            Some(Merged::Tensor(tensor)) => index.push(tensor)?,
            Some(Merged::Foreign(foreign)) => index.push_foreign(foreign)?,
            None if consumed.contains(&i) => {}
            None => push_plain(index, file, entry)?,
        }
    }
    Ok(())
}

fn push_plain(index: &mut TensorIndex, file: FileId, entry: Entry) -> Result<()> {
    let span = Span { file, offset: entry.offset, bytes: entry.bytes };
    let Entry { name, dtype, shape, .. } = entry;
    let format = match dtype.as_str() {
        "F32" => Format::F32,
        "F16" => Format::F16,
        "BF16" => Format::BF16,
        _ => {
            let reason = format!("dtype {dtype} is not supported");
            return index.push_foreign(Foreign { name, shape, dtype, span, reason });
        }
    };
    index.push(Tensor { name, shape, format, spans: vec![span] })
}

enum Merged {
    Tensor(Tensor),
    Foreign(Foreign),
}

struct Parts<'a> {
    module: &'a str,
    weight: (FileId, &'a Entry),
    scales: (FileId, &'a Entry),
}

impl Parts<'_> {
    fn wrong(&self, what: impl std::fmt::Display) -> Error {
        Error::corrupt(format!("tensor {}: {what}", short_text(&self.weight.1.name)))
    }

    fn merge(&self, biases: Option<(FileId, &Entry)>, quantization: &Quantization) -> Result<Merged> {
        let (setting, is_own) = quantization.of(self.module)?;
        let (file, weight) = self.weight;
        let span = |(file, entry): (FileId, &Entry)| Span { file, offset: entry.offset, bytes: entry.bytes };
        let mode = setting.mode.as_deref().unwrap_or("affine");
        let foreign = |reason: String| {
            let (name, shape, dtype) = (weight.name.clone(), weight.shape.clone(), weight.dtype.clone());
            Ok(Merged::Foreign(Foreign { name, shape, dtype, span: span((file, weight)), reason }))
        };
        if mode != "affine" {
            return foreign(format!("MLX quantization mode {} is not supported", short_text(mode)));
        }
        let shown = |number: Option<u64>| number.map_or("unstated".to_string(), |n| n.to_string());
        let unknown = |bits, group| {
            let (bits, group) = (shown(bits), shown(group));
            foreign(format!("affine quantization of {bits} bits in groups of {group} is not supported"))
        };
        let Some(group @ (32 | 64 | 128)) = setting.group else {
            return unknown(setting.bits, setting.group);
        };
        // The group and the shapes leave one number of bits. It goes before the one for all modules, which need not
        // know of a module that has its own; an entry of the module itself must agree.
        let bits = if is_own { setting.bits } else { self.bits_of_shapes(group).or(setting.bits) };
        let Some(bits @ (2 | 3 | 4 | 5 | 6 | 8)) = bits else {
            return unknown(bits, setting.group);
        };
        let (bits, group) = (bits as u8, group as u8);
        let biases = biases.ok_or_else(|| self.wrong("has scales but no biases"))?;
        let scale = match self.scales.1.dtype.as_str() {
            "F32" => ScaleType::F32,
            "F16" => ScaleType::F16,
            "BF16" => ScaleType::BF16,
            other => return Err(self.wrong(format!("scales of dtype {other}"))),
        };
        let shape = self.logical_shape(bits, group, biases.1)?;
        let spans = vec![span(self.weight), span(self.scales), span(biases)];
        let format = Format::Affine { bits, group, scale };
        Ok(Merged::Tensor(Tensor { name: weight.name.clone(), shape, format, spans }))
    }

    /// The bits of a value, as the packed words and the groups of a row have it; `None` for none that there are.
    fn bits_of_shapes(&self, group: u64) -> Option<u64> {
        let last = |entry: &Entry| entry.shape.last().and_then(|&n| u64::try_from(n).ok());
        let (words, groups) = (last(self.weight.1)?, last(self.scales.1)?);
        let (bits, values) = (words.checked_mul(32)?, groups.checked_mul(group)?);
        let bits = bits.checked_div(values).filter(|_| bits.is_multiple_of(values))?;
        matches!(bits, 2 | 3 | 4 | 5 | 6 | 8).then_some(bits)
    }

    /// The shape in values, after checking that the three parts agree on it.
    fn logical_shape(&self, bits: u8, group: u8, biases: &Entry) -> Result<Vec<usize>> {
        let (weight, scales) = (self.weight.1, self.scales.1);
        if biases.shape != scales.shape || biases.dtype != scales.dtype {
            return Err(self.wrong(format!(
                "scales are {} {:?}, biases {} {:?}",
                scales.dtype, scales.shape, biases.dtype, biases.shape
            )));
        }
        let (packed, outer) =
            weight.shape.split_last().ok_or_else(|| self.wrong("packed values without rows"))?;
        let (groups, scale_outer) =
            scales.shape.split_last().ok_or_else(|| self.wrong("scales without rows"))?;
        if outer != scale_outer || outer.is_empty() {
            return Err(self.wrong(format!("packed shape {:?}, scales {:?}", weight.shape, scales.shape)));
        }
        let cols = groups.checked_mul(group.into());
        let row_bits = cols.and_then(|c| c.checked_mul(bits.into()));
        let (Some(cols), true) = (cols, row_bits.is_some() && row_bits == packed.checked_mul(32)) else {
            return Err(self.wrong(format!(
                "rows of {packed} words and {groups} scales contradict {bits} bits in groups of {group}"
            )));
        };
        let mut shape = outer.to_vec();
        shape.push(cols);
        Ok(shape)
    }
}
