//! `tidemill inspect`: what a model is and needs.

use engine::inspect::{Footprint, Inspection, check_weights};
use engine::text::{ChatPrompt, Message, Role, Template, Tokenizer};
use engine::{Error, ErrorKind, Meta};
use serde_json::{Map, Value, json};

use crate::answer::Conversation;
use crate::failure::{Result, one_line};
use crate::interrupt::Work;
use crate::load::{bytes_bar, resolve};
use crate::out;

const EXAMPLES: &str = "\
Examples:
  tidemill inspect model.gguf
  tidemill inspect mlx-directory --json
  tidemill inspect model.gguf --check     reads all weights and looks for values that are not finite";

/// Arguments of `inspect`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A .gguf file, a directory of safetensors files, or a pulled name; default: the built-in demo model
    model: Option<String>,
    /// Read all weights and look for scales and values that are not finite
    #[arg(long)]
    check: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Describes the model.
pub(crate) fn main(args: &Args) -> Result<()> {
    let work = Work::begin();
    let path = resolve(args.model.as_deref())?;
    let model = Inspection::of(&path)?;
    let bad = if args.check {
        let bar = bytes_bar("checking");
        let bad = check_weights(&path, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            work.flow()
        });
        bar.finish_and_clear();
        Some(bad?)
    } else {
        None
    };
    let shown = path.display().to_string();
    if args.json {
        out::json(&to_json(&shown, &model, bad.as_deref()))?;
    } else {
        out::print(&to_text(&shown, &model, bad.as_deref()), false)?;
    }
    match bad.as_deref() {
        Some([first, ..]) => Err(Error::new(ErrorKind::Corrupt, format!("{shown}: {first}")).into()),
        _ => Ok(()),
    }
}

/// The largest context that a session takes unless told otherwise.
fn planned_context(meta: &Meta) -> u64 {
    meta.context.min(8192) as u64
}

fn to_text(path: &str, model: &Inspection, bad: Option<&[String]>) -> String {
    let meta = &model.meta;
    let mut lines = Vec::new();
    let mut line = |key: &str, value: String| lines.push(format!("{key:<14}{}", out::visible_line(&value)));
    line("model", path.to_owned());
    if let Some(name) = &meta.name {
        line("name", name.clone());
    }
    line("architecture", meta.arch.clone());
    line("layout", format!("{}, {} files", model.layout(), model.files.len()));
    line("weights", format!("{} in {}", count(model.weights()), out::bytes(model.bytes())));
    line("layers", layers(meta));
    if let Some(moe) = &meta.moe {
        let shared = if moe.shared_intermediate_size.is_some() { " + 1 shared" } else { "" };
        line("experts", format!("{} a layer, {}{shared} per token", moe.experts, moe.top_k));
    }
    line("hidden", format!("{}, vocabulary {}, context {}", meta.hidden_size, meta.vocab_size, meta.context));
    for (name, share) in &model.formats {
        let size = out::bytes(share.bytes);
        line(
            "format",
            format!("{name:<18} {size:>11}   {} in {} tensors", count(share.weights), share.tensors),
        );
    }
    if let Ok(f) = &model.footprint {
        footprint_lines(f, meta, &mut line);
    }
    line("tokenizer", described(&model.tokenizer));
    let template = match (&meta.chat_template, &meta.tool_template, template_problem(meta)) {
        (None, ..) => "none".into(),
        (Some(_), _, Some(why)) => format!("not usable: {why}"),
        (Some(_), None, None) => "yes".into(),
        (Some(_), Some(_), None) => "yes, and one for tools".into(),
    };
    line("chat template", template);
    for (name, dtype) in &model.foreign {
        line("not usable", format!("{name}: {dtype}"));
    }
    for (role, tensors) in &model.left_out {
        line("left out", format!("{role}, {tensors} tensors"));
    }
    model.notes.iter().for_each(|note| line("note", note.clone()));
    let runs = model.footprint.as_ref().map_or_else(|(_, why)| format!("no: {why}"), |_| "yes".into());
    line("runs", runs);
    match bad {
        None => {}
        Some([]) => line("check", "all weights are finite".into()),
        Some(bad) => bad.iter().for_each(|message| line("check", message.clone())),
    }
    lines.join("\n") + "\n"
}

fn footprint_lines(f: &Footprint, meta: &Meta, line: &mut impl FnMut(&str, String)) {
    line("resident", format!("{} that every token needs", out::bytes(f.resident_bytes)));
    if f.moe_layers > 0 {
        line("an expert", format!("{}, {} in all", out::bytes(f.expert_bytes), out::bytes(f.experts_bytes)));
        line(
            "a token",
            format!("reads {} of experts if none is in memory", out::bytes(f.expert_bytes_per_token)),
        );
    }
    let context = planned_context(meta);
    let state = f.recurrent_bytes + context * f.kv_bytes_per_token;
    let (fixed, kv) = (out::bytes(f.recurrent_bytes), out::bytes(f.kv_bytes_per_token));
    line("state", format!("{} at {context} tokens: {kv} a token and {fixed} fixed", out::bytes(state)));
}

fn layers(meta: &Meta) -> String {
    let attention =
        format!("{} heads of {}, {} for keys and values", meta.heads, meta.head_dim, meta.kv_heads);
    match &meta.delta {
        None => format!("{}: attention with {attention}", meta.layers),
        Some(delta) => {
            let full = delta.full_attention.iter().filter(|full| **full).count();
            let other = meta.layers.saturating_sub(full);
            format!("{}: {full} of attention ({attention}), {other} gated delta", meta.layers)
        }
    }
}

/// What is wrong with the chat templates, if a short conversation shows it.
fn template_problem(meta: &Meta) -> Option<String> {
    let tokenizer = Tokenizer::of_model(meta).ok()?; // else its own line says why
    let messages = [Message::new(Role::User, "Hello")];
    let request = Conversation { messages: &messages, tools: &[], thinking: None }.request();
    let render = |source: &String| ChatPrompt::new(&Template::new(source)?, &tokenizer, &request);
    let sources = [&meta.chat_template, &meta.tool_template];
    sources.into_iter().flatten().find_map(|source| render(source).err()).map(|e| one_line(&e))
}

fn described(found: &std::result::Result<String, (ErrorKind, String)>) -> String {
    match found {
        Ok(text) => text.clone(),
        Err((_, why)) => format!("not usable: {why}"),
    }
}

/// A count for people: 52.7 M.
fn count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} B", n as f64 / 1e9),
    }
}

fn to_json(path: &str, model: &Inspection, bad: Option<&[String]>) -> Value {
    let meta = &model.meta;
    let formats: Map<String, Value> = model
        .formats
        .iter()
        .map(|(name, f)| {
            (name.clone(), json!({"tensors": f.tensors, "weights": f.weights, "bytes": f.bytes}))
        })
        .collect();
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    put("model", json!(path));
    put("name", json!(meta.name));
    put("architecture", json!(meta.arch));
    put("layout", json!(model.layout()));
    put("files", json!(model.files));
    put("weights", json!(model.weights()));
    put("weight_bytes", json!(model.bytes()));
    put("layers", json!(meta.layers));
    put("hidden_size", json!(meta.hidden_size));
    put("vocab_size", json!(meta.vocab_size));
    put("context_tokens", json!(meta.context));
    put("experts_per_layer", json!(meta.moe.as_ref().map(|moe| moe.experts)));
    put("experts_per_token", json!(meta.moe.as_ref().map(|moe| moe.top_k)));
    put("formats", Value::Object(formats));
    put("not_usable", json!(model.foreign.iter().map(|(name, _)| name).collect::<Vec<_>>()));
    let left_out: Map<String, Value> =
        model.left_out.iter().map(|(role, tensors)| ((*role).into(), json!(tensors))).collect();
    put("left_out", Value::Object(left_out));
    put("notes", json!(model.notes));
    let f = model.footprint.as_ref().ok();
    put("runs", json!(f.is_some()));
    put("problem", json!(model.footprint.as_ref().err().map(|(_, why)| why)));
    put("resident_bytes", json!(f.map(|f| f.resident_bytes)));
    put("experts_bytes", json!(f.map(|f| f.experts_bytes)));
    put("expert_bytes", json!(f.map(|f| f.expert_bytes)));
    put("expert_bytes_per_token", json!(f.map(|f| f.expert_bytes_per_token)));
    put("kv_bytes_per_token", json!(f.map(|f| f.kv_bytes_per_token)));
    put("recurrent_bytes", json!(f.map(|f| f.recurrent_bytes)));
    let state = |f: &Footprint| f.recurrent_bytes + planned_context(meta) * f.kv_bytes_per_token;
    put("state_bytes", json!(f.map(state)));
    put("tokenizer", json!(model.tokenizer.as_ref().ok()));
    put("chat_template", json!(meta.chat_template.is_some()));
    put("chat_template_problem", json!(template_problem(meta)));
    if let Some(bad) = bad {
        put("bad_tensors", json!(bad));
    }
    Value::Object(map)
}
