//! `tidemill doctor`: what this machine will do with a model, also before it is downloaded.

use std::path::PathBuf;
use std::time::Duration;

use engine::doctor::{
    Bound, Conditions, Demand, DeviceRates, DriveProbe, MachineMemory, Prediction, Prompt, PromptPrediction,
    Times, advice, choose, chosen_rate, copy_bytes_per_s, default_budget_bytes, device_rates, gpus,
    machine_memory, memory_bytes_per_s, predict, predict_prompt, probe, probe_directory, with_device,
};
use engine::inspect::Inspection;
use engine::synth::{Layout, Shape};
use engine::{Error, ErrorKind, OpenOptions};
use serde_json::{Map, Value, json};

use crate::args::{DeviceArg, MachineArgs, positive};
use crate::drivers::DriverTalk;
use crate::failure::{Failure, Result};
use crate::load::resolve;
use crate::report::{Report, way};
use crate::{bundled, out};

const EXAMPLES: &str = "\
Examples:
  tidemill doctor                                   this machine
  tidemill doctor model.gguf --memory 12GiB         a model that is here
  tidemill doctor qwen3.5-397b-a17b --dir /data     one that is not, on the drive it would be on

MODEL may be a published shape (`tidemill synth --list` names them). Nothing is downloaded; for about a second 256 MiB \
are written to the drive, where no model is there to read. The block at the end is for an issue.";

/// Arguments of `doctor`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A model, or the name of a published shape
    model: Option<String>,
    /// The directory whose drive is probed; default: the model's, else the cache directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Tokens of the prompts to predict, each in a context that it fits into; default: 2048,8192,32768, as far as the model
    /// takes them
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = positive)]
    prompt_tokens: Vec<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Time for the drive, and for the device.
const DRIVE_TIME: Duration = Duration::from_millis(1500);
const DEVICE_TIME: Duration = Duration::from_millis(1200);

/// Files below this cannot be probed with, in bytes.
const PROBE_BYTES_MIN: u64 = 64 << 20;

/// Copies to a GPU are measured this long.
const COPY_TIME: Duration = Duration::from_millis(200);

/// What was found.
struct Findings {
    memory: Option<MachineMemory>,
    memory_bytes_per_s: f64,
    device: DeviceRates,
    drive: DriveProbe,
    demand: Option<Demand>,
    conditions: Conditions,
    /// What to predict, the first with what follows it; and whether there is room for it.
    prompts: Vec<(usize, Option<Prompt>)>,
    gpus: Vec<String>,
}

impl Findings {
    /// What becomes of each prompt; `None` of one that does not fit.
    fn predicted<'a>(
        &'a self,
        demand: &'a Demand,
    ) -> impl Iterator<Item = (usize, Option<PromptPrediction>)> {
        let of = |prompt: &Prompt| predict_prompt(demand, &self.conditions, prompt);
        self.prompts.iter().map(move |(tokens, prompt)| (*tokens, prompt.as_ref().and_then(of)))
    }

    /// What would make it faster, by the shortest prompt.
    fn advice(&self, demand: &Demand) -> Vec<(&'static str, f64, f64)> {
        let prompt = self.prompts.iter().find_map(|(_, prompt)| prompt.as_ref());
        prompt.map_or_else(Vec::new, |prompt| advice(demand, &self.conditions, prompt))
    }
}

/// What was asked for and means nothing without a model to predict.
fn needs_model(args: &Args) -> Option<&'static str> {
    let machine = &args.machine;
    let given = [
        ("--prompt-tokens", !args.prompt_tokens.is_empty()),
        ("--ctx", machine.ctx.is_some()),
        ("--kv", machine.kv.is_some()),
        ("--experts-per-token", machine.experts_per_token.is_some()),
    ];
    given.into_iter().filter(|_| args.model.is_none()).find(|(_, given)| *given).map(|(name, _)| name)
}

/// Examines and predicts.
pub(crate) fn main(args: &Args) -> Result<()> {
    if let Some(option) = needs_model(args) {
        return Err(Error::invalid(format!("{option} means something only with a MODEL")).into());
    }
    let is_cpu = args.machine.device == DeviceArg::Cpu;
    let mut talk = (!is_cpu).then(DriverTalk::keep);
    let options = with_device(&args.machine.open_options())?;
    let gpus = if is_cpu { vec!["not asked for".to_owned()] } else { gpus() };
    talk.iter_mut().for_each(DriverTalk::drop_it);
    let (demand, file) = match &args.model {
        None => (None, None),
        Some(name) => target(name, &options)?,
    };
    let lengths = demand.as_ref().map(|demand| demand.prompts(&args.prompt_tokens)).transpose()?;
    let lengths = lengths.unwrap_or_default();
    if let Some(demand) = demand.as_ref().filter(|d| d.top_k != d.own_top_k) {
        let (k, own) = (demand.top_k, demand.own_top_k);
        out::note(format_args!("lossy: {k} experts per token, the model was made for {own}"));
    }
    let drive = match file.filter(|_| args.dir.is_none()) {
        Some(file) => probe(&file, DRIVE_TIME)?,
        None => probe_directory(&directory(args)?, DRIVE_TIME)?,
    };
    let device = device_rates(&options, DEVICE_TIME)?;
    let memory = match args.machine.memory {
        // Without a ceiling that is given, the machine must tell.
        None => Some(machine_memory()?),
        Some(_) => machine_memory().ok(),
    };
    let available_bytes = memory.map_or(0, |memory| memory.available_bytes);
    let budget_bytes = args.machine.memory.unwrap_or_else(|| default_budget_bytes(available_bytes));
    let (token, prompts) = match &demand {
        None => Default::default(),
        Some(demand) => times(demand, &options, budget_bytes, lengths)?,
    };
    let throttle = args.machine.throttle.map_or(f64::INFINITY, |rate| rate * 1e9);
    let conditions = Conditions {
        token,
        drive_bytes_per_s: drive.best_bytes_per_s().min(throttle),
        copy_bytes_per_s: copy_bytes_per_s(&options, COPY_TIME)?.unwrap_or(f64::INFINITY),
        budget_bytes,
    };
    let memory_bytes_per_s = memory_bytes_per_s(device.threads.max(1))?;
    let findings = Findings { memory, memory_bytes_per_s, device, drive, demand, conditions, prompts, gpus };
    let report = report(&findings);
    if args.json {
        let mut object = to_json(&findings);
        object["report"] = report.json();
        return out::json(&object);
    }
    out::print(&(to_text(&findings) + &report.text()), false)
}

/// What the device needs for a token after the first prompt, and for prompts of some lengths that fit the budget.
fn times(
    demand: &Demand,
    options: &OpenOptions,
    budget_bytes: u64,
    lengths: Vec<usize>,
) -> Result<(Times, Vec<(usize, Option<Prompt>)>)> {
    let token = demand.time_token(options, lengths.first().copied().unwrap_or(0))?;
    let time = |tokens| Ok((tokens, demand.time_prompt(options, budget_bytes, tokens)?));
    Ok((token, lengths.into_iter().map(time).collect::<Result<_>>()?))
}

/// The block for an issue.
fn report(f: &Findings) -> Report {
    let mut results = vec![("device", f.device.name.clone()), ("", rates(f))];
    if let Some(demand) = &f.demand {
        let seen = predict(demand, &f.conditions);
        let budget = out::bytes(f.conditions.budget_bytes);
        // A file's name may be anybody's; sizes tell enough.
        let sizes = format!(
            "{} resident, {} of experts, in {budget}",
            out::bytes(demand.resident_bytes),
            out::bytes(demand.experts_bytes)
        );
        results.push(("model", sizes));
        let prompts = f.predicted(demand).filter_map(|(tokens, seen)| {
            seen.map(|seen| format!(", prompts of {tokens} {:.1} tokens/s", seen.tokens_per_s))
        });
        results.push((
            "predicted",
            match seen.fits {
                false => format!("does not fit: it needs about {}", out::bytes(seen.floor_bytes)),
                true => {
                    format!("decode {:.2} tokens/s", seen.decode_tokens_per_s) + &prompts.collect::<String>()
                }
            },
        ));
    }
    Report::new(&f.gpus, Some(&chosen_rate(&f.drive)), results)
}

/// What the device and the memory reach.
fn rates(f: &Findings) -> String {
    format!(
        "{:.2} GB/s of 4-bit weights with one row, {:.0} G multiply-adds/s with many; memory {:.1} GB/s",
        f.device.decode_bytes_per_s / 1e9,
        f.device.prefill_macs_per_s / 1e9,
        f.memory_bytes_per_s / 1e9
    )
}

/// What the name asks of a machine, and a file of it that the drive can be probed with.
fn target(name: &str, options: &OpenOptions) -> Result<(Option<Demand>, Option<PathBuf>)> {
    let resolved = resolve(Some(name));
    let path = match (resolved, Shape::find(name)) {
        (Ok(path), _) => path,
        (Err(_), Ok(shape)) => return Ok((Some(Demand::of_shape(shape, Layout::Mlx4Bit, options)?), None)),
        (Err(Failure::Error(error)), Err(_)) if error.kind() == ErrorKind::NotFound => {
            return Err(unknown(name, &error).into());
        }
        (Err(error), Err(_)) => return Err(error),
    };
    let sizes = Inspection::of(&path)?.files.into_iter();
    let sizes = sizes.map(|file| (std::fs::metadata(&file).map_or(0, |meta| meta.len()), file));
    let largest = sizes.max().filter(|(bytes, _)| *bytes >= PROBE_BYTES_MIN).map(|(_, file)| file);
    Ok((Some(Demand::of_model(&path, options)?), largest))
}

/// That there is no such model, and which published shapes have names like it.
fn unknown(name: &str, error: &Error) -> Error {
    let name = name.to_ascii_lowercase();
    let common = |shape: &Shape| shape.name.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let mut shapes = Shape::all().to_vec();
    shapes.sort_by_key(|shape| std::cmp::Reverse(common(shape)));
    let names: Vec<&str> = shapes.iter().take(3).map(|shape| shape.name).collect();
    let message = error.message();
    let listed = "`tidemill synth --list` has them all";
    Error::not_found(format!("{message}, or a published shape, such as {}; {listed}", names.join(", ")))
}

fn directory(args: &Args) -> Result<PathBuf> {
    if let Some(dir) = &args.dir {
        return Ok(dir.clone());
    }
    let named = |e| Error::io("cache directory", e);
    let cache = bundled::cache_dir(|name| std::env::var_os(name)).map_err(named)?;
    std::fs::create_dir_all(&cache).map_err(named)?;
    Ok(cache)
}

fn to_text(f: &Findings) -> String {
    let size = |bytes: fn(&MachineMemory) -> u64| {
        f.memory.as_ref().map_or("unknown".to_owned(), |memory| out::bytes(bytes(memory)))
    };
    let mut text = format!(
        "memory     {:>12} available of {}, {:.1} GB/s\n",
        size(|memory| memory.available_bytes),
        size(|memory| memory.total_bytes),
        f.memory_bytes_per_s / 1e9
    );
    let features: Vec<_> = f.device.features.iter().map(|(name, value)| format!("{name} {value}")).collect();
    text += &format!(
        "device     {}\n              {}\n           {:>7.2} GB/s of 4-bit weights with one row, {:.0} G multiply-adds/s with many\n",
        f.device.name,
        features.join(", ").replace('_', " "),
        f.device.decode_bytes_per_s / 1e9,
        f.device.prefill_macs_per_s / 1e9
    );
    if f.conditions.copy_bytes_per_s.is_finite() {
        text += &format!("           {:>7.2} GB/s to its memory\n", f.conditions.copy_bytes_per_s / 1e9);
    }
    let chosen = choose(&f.drive);
    for rate in &f.drive.rates {
        let mark = if rate.choice == chosen { "  chosen" } else { "" };
        let line =
            format!("drive      {:>7.2} GB/s   {:<34}{mark}", rate.bytes_per_s / 1e9, way(&rate.choice));
        text += line.trim_end();
        text.push('\n');
    }
    if let Some(demand) = &f.demand {
        text += &prediction(demand, f);
    }
    text
}

fn prediction(demand: &Demand, f: &Findings) -> String {
    let on = &f.conditions;
    let seen = predict(demand, on);
    let mut text = format!(
        "\n{}: {} resident, {} of experts, {} a token\n",
        demand.name,
        out::bytes(demand.resident_bytes),
        out::bytes(demand.experts_bytes),
        out::bytes(demand.token_expert_bytes)
    );
    if !seen.fits {
        let (floor, budget) = (out::bytes(seen.floor_bytes), out::bytes(on.budget_bytes));
        return text + &format!("does not fit: it needs about {floor}, the budget is {budget}\n");
    }
    text += &format!(
        "in {} of memory {:.0} % of the experts have a slot, about {:.0} % of those wanted are in one\n",
        out::bytes(on.budget_bytes),
        100.0 * seen.slots_fraction,
        100.0 * seen.hit_rate
    );
    let bound = match seen.token_drive_s > seen.token_arithmetic_s {
        true => Bound::Drive,
        false => Bound::Arithmetic,
    };
    text +=
        &format!("decode     {:>10.2} tokens/s   limited by {}\n", seen.decode_tokens_per_s, limit(bound));
    for (tokens, seen) in f.predicted(demand) {
        let Some(seen) = seen else {
            text += &format!("prompt     {tokens:>10} tokens     does not fit\n");
            continue;
        };
        let chunks = match seen.chunks {
            1 => "1 chunk".to_owned(),
            chunks => format!("{chunks} chunks of {}", seen.chunk_tokens),
        };
        text += &format!(
            "prompt     {tokens:>10} tokens   {:>8.1} s {:>9.1} tokens/s   limited by {}, {chunks}\n",
            seen.seconds,
            seen.tokens_per_s,
            limit(seen.bound)
        );
    }
    for (what, decode, prompt) in f.advice(demand) {
        text += &format!("{what}: decode x {decode:.2}, prefill x {prompt:.2}\n");
    }
    text
}

/// The name of a limit, in a sentence.
fn limit(bound: Bound) -> &'static str {
    if bound == Bound::Drive { "the drive" } else { bound.name() }
}

fn to_json(f: &Findings) -> Value {
    let rates = f.drive.rates.iter().map(|rate| {
        json!({
            "way": way(&rate.choice),
            "piece_bytes": rate.choice.piece_bytes,
            "depth": rate.choice.depth,
            "direct": rate.choice.direct,
            "bytes_per_s": rate.bytes_per_s,
        })
    });
    let mut object = json!({
        "memory_available_bytes": f.memory.map(|memory| memory.available_bytes),
        "memory_total_bytes": f.memory.map(|memory| memory.total_bytes),
        "memory_bytes_per_s": f.memory_bytes_per_s,
        "device": f.device.name,
        "device_features": f.device.features.iter().map(|(k, v)| ((*k).into(), json!(v))).collect::<Map<_, _>>(),
        "device_decode_bytes_per_s": f.device.decode_bytes_per_s,
        "device_prefill_macs_per_s": f.device.prefill_macs_per_s,
        "drive_bytes_per_s": f.conditions.drive_bytes_per_s,
        "copy_bytes_per_s": Some(f.conditions.copy_bytes_per_s).filter(|rate| rate.is_finite()),
        "drive_chosen": way(&choose(&f.drive)),
        "drive_rates": rates.collect::<Vec<_>>(),
        "budget_bytes": f.conditions.budget_bytes,
    });
    if let Some(demand) = &f.demand {
        object["model"] = json!(demand.name);
        object["experts_per_token"] = json!(demand.top_k);
        object["lossy"] = json!(demand.top_k != demand.own_top_k);
        object["resident_bytes"] = json!(demand.resident_bytes);
        object["experts_bytes"] = json!(demand.experts_bytes);
        object["token_expert_bytes"] = json!(demand.token_expert_bytes);
        object["prediction"] = prediction_json(&predict(demand, &f.conditions));
        object["prompts"] = f.predicted(demand).map(|(tokens, seen)| prompt_json(tokens, seen)).collect();
        let advice = f.advice(demand).into_iter().map(
            |(what, decode, prompt)| json!({"what": what, "decode_factor": decode, "prefill_factor": prompt}),
        );
        object["advice"] = advice.collect();
    }
    object
}

fn prediction_json(seen: &Prediction) -> Value {
    json!({
        "fits": seen.fits,
        "floor_bytes": seen.floor_bytes,
        "slots_fraction": seen.slots_fraction,
        "expert_hit_rate": seen.hit_rate,
        "decode_tokens_per_s": seen.decode_tokens_per_s,
        "token_drive_s": seen.token_drive_s,
        "token_arithmetic_s": seen.token_arithmetic_s,
    })
}

fn prompt_json(tokens: usize, seen: Option<PromptPrediction>) -> Value {
    let Some(seen) = seen else { return json!({"prompt_tokens": tokens, "fits": false}) };
    json!({
        "prompt_tokens": tokens,
        "fits": true,
        "chunk_tokens": seen.chunk_tokens,
        "chunks": seen.chunks,
        "prefill_s": seen.seconds,
        "prefill_tokens_per_s": seen.tokens_per_s,
        "drive_s": seen.drive_s,
        "copies_s": seen.copies_s,
        "arithmetic_s": seen.arithmetic_s,
        "bound": seen.bound.name(),
    })
}
