//! Makes the MLX twin of a Qwen3.5 checkpoint in Hugging Face layout: affine, group 64, at 4 or 8 bits.
//!
//! The layout is the one that mlx-lm's converter writes: names under `language_model.`, fused expert matrices
//! split and stacked under `switch_mlp`, norm weights as `1 + w`, the short convolution as `[channels, kernel, 1]`,
//! everything but `A_log` in bfloat16. The two gates stay at 8 bits, and rows that are no multiple of
//! the group are not quantised. On the checkpoints of `testdata/goldens` the result is mlx-lm's, bit for bit.

use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use files::quant::encode;
use files::write::{SafetensorsTensor, SafetensorsWriter};
use files::{Error, Format, Result, ScaleType, Tensor, TensorIndex};
use serde_json::{Map, Value, json};

const GROUP: u8 = 64;

/// Files that go along unchanged, where the checkpoint has them.
const SIDE_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// Norms that the checkpoint stores as `w` and the model multiplies as `1 + w`. `linear_attn.norm` is not one.
const CENTRED_NORMS: [&str; 5] = [
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    ".self_attn.q_norm.weight",
    ".self_attn.k_norm.weight",
    ".model.norm.weight",
];

/// One tensor of the twin, as safetensors holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The name in the file.
    pub name: String,
    /// `BF16`, `F32` or `U32`.
    pub dtype: &'static str,
    /// The stored shape: packed words for `U32`.
    pub shape: Vec<usize>,
    /// Little-endian values.
    pub data: Vec<u8>,
}

/// Makes the twin of the checkpoint in `from` at `bits`, with its tensors sorted by name.
///
/// # Errors
/// `InvalidRequest` for bits other than 4 and 8, and whatever reading the checkpoint may give.
pub fn convert(from: &Path, bits: u8) -> Result<Vec<Stored>> {
    if bits != 4 && bits != 8 {
        return Err(Error::invalid(format!("{bits} bits: the twin is made at 4 or 8")));
    }
    let (index, _) = TensorIndex::open(from)?;
    let mut twin = Vec::new();
    for tensor in index.iter() {
        if tensor.name.starts_with("mtp.") || tensor.name.starts_with("model.visual.") {
            continue;
        }
        let values = read(&index, tensor)?;
        let name = twin_name(&tensor.name);
        let context = |e: Error| e.context(&tensor.name);
        if let Some(layer) = name.strip_suffix(".mlp.experts.gate_up_proj") {
            let [gate, up] = split_fused(&tensor.shape, &values).map_err(context)?;
            for (part, values) in [("gate_proj", gate), ("up_proj", up)] {
                let shape = [tensor.shape[0], tensor.shape[1] / 2, tensor.shape[2]];
                let name = format!("{layer}.mlp.switch_mlp.{part}.weight");
                store(&mut twin, name, &shape, &values, bits).map_err(context)?;
            }
        } else if let Some(layer) = name.strip_suffix(".mlp.experts.down_proj") {
            let name = format!("{layer}.mlp.switch_mlp.down_proj.weight");
            store(&mut twin, name, &tensor.shape, &values, bits).map_err(context)?;
        } else {
            store(&mut twin, name, &tensor.shape, &values, bits).map_err(context)?;
        }
    }
    twin.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(twin)
}

/// Makes the twin and writes it to the folder `to` with its configuration, tokenizer and template.
///
/// # Errors
/// As [`convert`], and `Io` naming the file that could not be written.
pub fn write(from: &Path, to: &Path, bits: u8) -> Result<()> {
    let twin = convert(from, bits)?;
    fs::create_dir_all(to).map_err(|e| Error::io(to.display(), e))?;
    let put = |name: &str, content: &[u8]| {
        let path = to.join(name);
        fs::write(&path, content).map_err(|e| Error::io(path.display(), e))
    };
    write_safetensors(&to.join("model.safetensors"), &twin)?;
    let path = from.join("config.json");
    let bad = |e| Error::corrupt(format!("{}: {e}", path.display())).with_source(e);
    let text = fs::read(&path).map_err(|e| Error::io(path.display(), e))?;
    let config = twin_config(serde_json::from_slice(&text).map_err(bad)?, &twin, bits);
    put("config.json", format!("{config:#}\n").as_bytes())?;
    for name in SIDE_FILES {
        let source = from.join(name);
        if source.is_file() {
            put(name, &fs::read(&source).map_err(|e| Error::io(source.display(), e))?)?;
        }
    }
    Ok(())
}

fn read(index: &TensorIndex, tensor: &Tensor) -> Result<Vec<f32>> {
    let span = tensor.spans[0];
    let path = &index.files()[span.file.0 as usize];
    let file = fs::File::open(path).map_err(|e| Error::io(path.display(), e))?;
    let mut bytes = vec![0; span.bytes as usize];
    file.read_exact_at(&mut bytes, span.offset).map_err(|e| Error::io(path.display(), e))?;
    let mut values = vec![0.0; tensor.rows() * tensor.cols()];
    files::quant::decode(tensor.format, &[&bytes], &mut values).map_err(|e| e.context(&tensor.name))?;
    Ok(values)
}

fn twin_name(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("language_model.model.{rest}");
    }
    format!("language_model.{name}")
}

/// `[experts, 2 * intermediate, hidden]` into its gate half and its up half, each expert's first rows the gate.
fn split_fused(shape: &[usize], values: &[f32]) -> Result<[Vec<f32>; 2]> {
    let [_, fused_rows, cols] = shape else {
        return Err(Error::corrupt(format!("shape {shape:?}, expected [experts, 2 * intermediate, hidden]")));
    };
    let half = fused_rows / 2 * cols;
    let mut halves = [Vec::new(), Vec::new()];
    for expert in values.chunks_exact(2 * half) {
        halves[0].extend_from_slice(&expert[..half]);
        halves[1].extend_from_slice(&expert[half..]);
    }
    Ok(halves)
}

/// The bits that the twin holds a tensor at; `None` when it stays a float.
fn bits_of(name: &str, shape: &[usize], bits: u8) -> Option<u8> {
    let whole_groups = shape.last().is_some_and(|cols| cols.is_multiple_of(GROUP as usize));
    if shape.len() < 2 || !whole_groups || name.ends_with(".conv1d.weight") {
        return None;
    }
    Some(if is_gate(name) { 8 } else { bits })
}

fn is_gate(name: &str) -> bool {
    name.ends_with(".mlp.gate.weight") || name.ends_with(".shared_expert_gate.weight")
}

fn store(twin: &mut Vec<Stored>, name: String, shape: &[usize], values: &[f32], bits: u8) -> Result<()> {
    let Some(bits) = bits_of(&name, shape, bits) else {
        twin.push(float(name, shape, values)?);
        return Ok(());
    };
    let format = Format::Affine { bits, group: GROUP, scale: ScaleType::BF16 };
    let module = name.strip_suffix(".weight").unwrap_or(&name);
    let with_cols = |cols: usize| [&shape[..shape.len() - 1], &[cols]].concat();
    let cols = shape[shape.len() - 1];
    let parts = [
        ("weight", "U32", cols * bits as usize / 32),
        ("scales", "BF16", cols / GROUP as usize),
        ("biases", "BF16", cols / GROUP as usize),
    ];
    for ((part, dtype, cols), data) in parts.into_iter().zip(encode(format, values)?) {
        twin.push(Stored { name: format!("{module}.{part}"), dtype, shape: with_cols(cols), data });
    }
    Ok(())
}

fn float(name: String, shape: &[usize], values: &[f32]) -> Result<Stored> {
    if name.ends_with(".A_log") {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        return Ok(Stored { name, dtype: "F32", shape: shape.to_vec(), data });
    }
    // [channels, 1, kernel] and [channels, kernel, 1] lie in memory alike.
    let shape = match shape {
        [channels, 1, kernel] if name.ends_with(".conv1d.weight") => vec![*channels, *kernel, 1],
        other => other.to_vec(),
    };
    let centred = CENTRED_NORMS.iter().any(|norm| name.ends_with(norm));
    let values: Vec<f32> = values.iter().map(|value| if centred { 1.0 + value } else { *value }).collect();
    let data = encode(Format::BF16, &values)?.concat();
    Ok(Stored { name, dtype: "BF16", shape, data })
}

/// The configuration as mlx-lm writes it: the text model's under `text_config`, and the `quantization` table.
fn twin_config(config: Value, twin: &[Stored], bits: u8) -> Value {
    let mut outer = match config {
        Value::Object(outer) if outer.contains_key("text_config") => outer,
        inner => {
            let mut outer = Map::new();
            let model_type = inner["model_type"].as_str().unwrap_or_default().trim_end_matches("_text");
            outer.insert("model_type".into(), model_type.into());
            for key in ["tie_word_embeddings", "eos_token_id", "pad_token_id"] {
                outer.insert(key.into(), inner[key].clone());
            }
            outer.insert("text_config".into(), inner);
            outer
        }
    };
    let mut table = Map::new();
    table.insert("group_size".into(), GROUP.into());
    table.insert("bits".into(), bits.into());
    table.insert("mode".into(), "affine".into());
    for stored in twin.iter().filter(|stored| stored.dtype == "U32" && is_gate(&stored.name)) {
        let module = stored.name.trim_end_matches(".weight");
        table.insert(module.into(), json!({ "group_size": GROUP, "bits": 8 }));
    }
    outer.insert("quantization".into(), table.into());
    outer.into()
}

fn write_safetensors(path: &Path, tensors: &[Stored]) -> Result<()> {
    let file = fs::File::create(path).map_err(|e| Error::io(path.display(), e))?;
    let directory: Vec<SafetensorsTensor> = tensors
        .iter()
        .map(|tensor| SafetensorsTensor::new(&tensor.name, &tensor.shape, tensor.dtype))
        .collect();
    let mut writer = SafetensorsWriter::new(BufWriter::new(file), &[("format", "mlx")], &directory)?;
    for tensor in tensors {
        writer.write(&tensor.data)?;
    }
    writer.finish()?.flush().map_err(|e| Error::io(path.display(), e))
}
