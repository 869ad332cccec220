//! `tidemill synth`: random weights in a published shape, to measure with.

use std::path::PathBuf;
use std::time::Instant;

use engine::synth::{DEFAULT_SKEW, Layout, Shape, SynthOptions, sizes, synth};
use serde_json::json;

use crate::failure::Result;
use crate::interrupt::Work;
use crate::load::bytes_bar;
use crate::out;

const EXAMPLES: &str = "\
Examples:
  tidemill synth --list                                         the shapes, and how large they are
  tidemill synth qwen3.5-35b-a3b /data/35b                      an MLX directory, 4 bits
  tidemill synth qwen3.5-35b-a3b 35b.gguf --format gguf-q4_0    a GGUF file that llama.cpp reads too
  tidemill synth qwen3.5-397b-a17b /data/397b --layers 8        the first 8 layers of 60
  tidemill synth qwen3.5-397b-a17b /data/397b --expert-layers 8
                                                                all 60 to compute and to read, experts in 8

The model talks nonsense, but reads and computes as much as the real one. A run that was broken off is taken up by the \
same command.";

/// Arguments of `synth`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shape, such as qwen3.5-35b-a3b
    #[arg(required_unless_present = "list")]
    shape: Option<String>,
    /// The directory to make; for GGUF the file, or a directory to put it in
    #[arg(required_unless_present = "list")]
    out: Option<PathBuf>,
    /// How the weights are stored: mlx-4bit, gguf-q4_k or gguf-q4_0
    #[arg(long, value_name = "FORMAT", default_value_t = Layout::Mlx4Bit, value_parser = layout)]
    format: Layout,
    /// Only the first N layers; default: all
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Write the experts of the first N layers; the others are zeros that take no space where files can have holes, and
    /// come from memory when read: hold the drive's rate with --throttle
    #[arg(long, value_name = "N")]
    expert_layers: Option<usize>,
    /// How uneven the routers' choices are: 0 is even, the default is like a trained model
    #[arg(long, value_name = "S", default_value_t = DEFAULT_SKEW)]
    skew: f64,
    /// Which of the random models
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// List the shapes and stop
    #[arg(long, conflicts_with_all = ["shape", "out", "layers", "expert_layers", "skew", "seed"])]
    list: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn layout(name: &str) -> Result<Layout, String> {
    name.parse().map_err(|e: engine::Error| e.message().to_owned())
}

/// Writes the model, or lists the shapes.
pub(crate) fn main(args: &Args) -> Result<()> {
    let (Some(shape), Some(out)) = (&args.shape, &args.out) else { return list(args) };
    let mut shape = Shape::find(shape)?;
    if let Some(layers) = args.layers {
        shape = shape.with_layers(layers)?;
    }
    let expert_layers = args.expert_layers.unwrap_or(shape.layers);
    let options =
        SynthOptions { shape, layout: args.format, seed: args.seed, skew: args.skew, expert_layers };
    let work = Work::begin();
    let started = Instant::now();
    let bar = bytes_bar("writing");
    let made = synth(&options, out, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        work.flow()
    });
    bar.finish_and_clear();
    let made = made?;
    let rate = made.written_bytes as f64 / started.elapsed().as_secs_f64().max(1e-9);
    if args.json {
        return out::json(&json!({
            "path": made.path.display().to_string(),
            "shape": shape.name,
            "layers": shape.layers,
            "expert_layers": expert_layers.min(shape.layers),
            "format": args.format.to_string(),
            "seed": args.seed,
            "skew": args.skew,
            "bytes": made.bytes,
            "written_bytes": made.written_bytes,
            "write_bytes_per_s": rate,
        }));
    }
    let speed = match made.written_bytes {
        0 => "it was there already".to_owned(),
        written => format!("{} written at {}/s", out::bytes(written), out::bytes(rate as u64)),
    };
    out::print(&format!("{}: {}, {speed}\n", made.path.display(), out::bytes(made.bytes)), false)
}

fn list(args: &Args) -> Result<()> {
    let mut lines = String::new();
    let mut objects = Vec::new();
    for shape in Shape::all() {
        let sizes = sizes(&SynthOptions::new(*shape, args.format))?;
        let total = sizes.experts_bytes + sizes.resident_bytes;
        lines += &format!(
            "{:<20} {:>10}, {} a token; {} layers, {} of {} experts of {}\n{:20} {}\n",
            shape.name,
            out::bytes(total),
            out::bytes(sizes.token_expert_bytes),
            shape.layers,
            shape.top_k,
            shape.experts,
            out::bytes(sizes.expert_bytes),
            "",
            shape.source,
        );
        objects.push(json!({
            "shape": shape.name,
            "source": shape.source,
            "architecture": shape.arch(),
            "layers": shape.layers,
            "experts": shape.experts,
            "experts_per_token": shape.top_k,
            "parameters": sizes.parameters,
            "bytes": total,
            "resident_bytes": sizes.resident_bytes,
            "expert_bytes": sizes.expert_bytes,
            "token_expert_bytes": sizes.token_expert_bytes,
        }));
    }
    if args.json {
        return out::json(&json!({"format": args.format.to_string(), "shapes": objects}));
    }
    out::print(&lines, false)
}
