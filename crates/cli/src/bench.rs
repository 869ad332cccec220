//! `tidemill bench`: how fast a prompt is read and an answer is generated.

mod company;
mod prompt;
mod replay;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use company::Company;
use engine::{DeviceCounts, Error, ErrorKind, Guess, KernelTime, Model, ReadStats, trace_of};

use crate::args::{ComputeArgs, positive};
use crate::failure::{Failure, Result};
use crate::interrupt::Work;
use crate::load::{Loaded, count_bar, inputs};
use crate::output::Outputs;
use crate::{out, read};

const EXAMPLES: &str = "\
Examples:
  tidemill bench model.gguf --memory 12GiB
  tidemill bench --prompt-tokens 512 --gen-tokens 64 --json
  tidemill bench model.gguf --sequences 8                eight answers at once
  tidemill bench model.gguf --record-trace run.trace     keep what the routers chose
  tidemill bench --trace run.trace                       how each eviction policy would have done

Figures of reading are of the generated tokens; those of the prompt begin with `prompt_`. A layer of the prompt is bound by \
the drive if more than a tenth of its time is spent waiting for it, else by copies to a GPU or by arithmetic, whichever \
takes longer. `prompt_experts_used` counts each expert of the prompt once. The drive is measured before \
and after, with reads like those of a token; `drive_fraction` is the part of the better rate that decoding \
reached, without what was read in vain.";

/// Words that models have seen: routers choose differently on noise.
const TEXT: &str = "The mill stands where the river meets the sea. Twice a day the tide comes in and fills the pond \
    behind the dam; when it goes out again, the water runs through the wheel and turns the stones. The miller gets up \
    with the moon, not with the sun. He knows the tables by heart and writes down each sack of wheat and barley, the \
    day, the hour and the height of the water. In winter, storms push the sea over the wall, and everybody helps to \
    close the gates. How much flour can one tide grind? That depends on the season, the wind, and a little luck. ";

/// What means nothing to a replay.
#[rustfmt::skip]
const NOT_REPLAYED: [&str; 25] = [
    "model", "prompt_tokens", "gen_tokens", "warm_up_tokens", "warm_up_prompt", "text", "lookahead", "profile", "sequences",
    "device", "exact", "kv", "memory", "throttle", "threads", "ctx", "experts_per_token",
    "vram", "cache", "disk", "mirror", "policy", "max_slots", "fixed_slots", "chunk_tokens",
];

/// Of `--ctx`.
const CTX_HELP: &str = "Tokens of context to plan for; default: as many as are measured";

/// Arguments of `bench`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, mut_arg("ctx", |arg| arg.help(CTX_HELP)))]
pub(crate) struct Args {
    /// A .gguf file, a directory of safetensors files, or a pulled name; default: the built-in demo model
    model: Option<String>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to generate after it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    gen_tokens: u32,
    /// Sequences that read such a prompt and make such an answer, all in the same steps; rates are of all together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    sequences: u32,
    /// Tokens to generate before measuring, to fill the expert slots as they would be in mid-answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    warm_up_tokens: u32,
    /// Tokens of another prompt to read, and forget, before measuring: experts that fit are then in memory; default:
    /// the first 16 of the prompt
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    warm_up_prompt: Option<u32>,
    /// Take the prompt and the tokens after it from this text, instead of generating what the model likes
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Write what the routers choose to a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["trace", "sequences"])]
    record_trace: Option<PathBuf>,
    /// Run no model: replay a recorded file through every eviction policy and several pool sizes
    #[arg(long, value_name = "FILE", conflicts_with_all = NOT_REPLAYED)]
    trace: Option<PathBuf>,
    /// Pool sizes for --trace; default: from 2 to 100 percent of the experts
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = positive)]
    slots: Vec<usize>,
    /// How many of the next layer's experts are prefetched while the drive is idle, before their router has run
    #[arg(long, value_enum, default_value_t = Lookahead::Auto)]
    lookahead: Lookahead,
    /// Time each kind of dispatch on a GPU; the host then waits for each submission
    #[arg(long)]
    profile: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What `--lookahead` says.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Lookahead {
    /// What a trial shows to be fastest
    Auto,
    /// None
    None,
    /// Half as many as the router chooses
    Half,
    /// As many as the router chooses
    All,
}

impl Lookahead {
    fn fixed(self) -> Option<Guess> {
        match self {
            Self::Auto => None,
            Self::None => Some(Guess::None),
            Self::Half => Some(Guess::Half),
            Self::All => Some(Guess::All),
        }
    }
}

/// What was measured.
struct Measured {
    sequences: usize,
    /// Of all sequences, as all that follows.
    prompt_tokens: usize,
    prefill: Duration,
    prompt_reads: Option<ReadStats>,
    time_to_first_token: Duration,
    gen_tokens: usize,
    decode: Duration,
    reads: Option<ReadStats>,
    /// What the GPU was asked to do for the generated tokens; `None` on the CPU.
    gpu: Option<DeviceCounts>,
    /// Where the GPU's time went in the prompt and in the generated tokens, if that was asked for.
    prompt_kernels: Vec<KernelTime>,
    kernels: Vec<KernelTime>,
    /// Rates of the drive before and after, in bytes/s; none where nothing needs to be read.
    drive_bytes_per_s: Vec<f64>,
    /// Of copies to a GPU, where experts are copied.
    copy_bytes_per_s: Option<f64>,
}

/// A rate that was measured with a full queue speaks for this time, in seconds.
const JUDGED_S: f64 = 10.0;

/// The drive is measured this long, before and after.
const DRIVE_TIME: Duration = Duration::from_millis(700);
/// Copies to a GPU are measured this long.
const COPY_TIME: Duration = Duration::from_millis(200);

/// Measures, or replays.
pub(crate) fn main(args: &Args) -> Result<()> {
    if let Some(trace) = &args.trace {
        return replay::main(trace, &args.slots, args.json);
    }
    if !args.slots.is_empty() {
        // Not left to the parser, which lets it pass where --trace could not be given either.
        return Err(Error::invalid("--slots means something only with --trace").into());
    }
    let mut outputs = Outputs::beside(inputs(args.model.as_deref(), &args.compute).iter().chain(&args.text));
    let trace = args.record_trace.as_deref().map(|path| outputs.create(path)).transpose()?;
    let (prompt_tokens, gen_tokens) = (args.prompt_tokens as usize, args.gen_tokens as usize);
    let tokens = prompt_tokens + args.warm_up_tokens as usize + gen_tokens;
    let mut compute = args.compute.clone();
    let context = tokens.max(args.warm_up_prompt.unwrap_or(0) as usize);
    compute.machine.ctx = compute.machine.ctx.or(Some(context));
    compute.machine.sequences = Some(args.sequences as usize);
    let loaded = Loaded::open(args.model.as_deref(), &compute)?;
    if context > loaded.model.context() {
        let message = format!("{context} tokens do not fit --ctx {}", loaded.model.context());
        return Err(Error::invalid(message).into());
    }
    if trace.is_some() && loaded.model.top_k() == 0 {
        return Err(Error::invalid("--record-trace: this model has no routers").into());
    }
    if let Some(guess) = args.lookahead.fixed() {
        loaded.model.fix_guess(guess);
    }
    let text = match &args.text {
        Some(file) => given_text(&loaded, file, tokens)?,
        None => prompt(&loaded, prompt_tokens),
    };
    let (given, answer) = text.split_at(prompt_tokens);
    let warm_up = match args.warm_up_prompt {
        Some(tokens) => prompt(&loaded, tokens as usize),
        None => given.iter().copied().take(16).collect(),
    };
    let mut company = Company::new(&loaded.model, args.sequences as usize)?;
    if args.record_trace.is_some() {
        company.record_routes();
    }
    let measured = measure(&loaded, &mut company, [&warm_up, given, answer], args)?;
    if let Some(mut trace) = trace {
        trace.put(&trace_of(&loaded.model, &company.take_routes()).encode()?)?;
        trace.finish()?;
    }
    if let Some(bytes_per_s) = measured.drive() {
        loaded.judge_drive((JUDGED_S * bytes_per_s) as u64, JUDGED_S);
    }
    if measured.read_nothing() {
        out::note("nothing was read for the generated tokens: all of their experts were in memory");
    }
    if args.json {
        return out::json(&report::json(&loaded, &measured));
    }
    out::print(&report::table(&loaded, &measured), false)?;
    out::note(loaded.model.describe());
    Ok(())
}

/// The prompt: real text where the model has a tokenizer, as often as it takes.
fn prompt(loaded: &Loaded, tokens: usize) -> Vec<u32> {
    let vocab = loaded.meta().vocab_size as u32;
    let text = loaded.tokenizer().and_then(|t| Ok(t.encode_document(TEXT)?)).unwrap_or_default();
    // Without a tokenizer any ids will do; the same ones each time.
    let text = if text.is_empty() { (0..509).map(|i| i * 7919 % vocab).collect() } else { text };
    text.iter().copied().cycle().take(tokens).collect()
}

/// The first `tokens` tokens of a file.
fn given_text(loaded: &Loaded, file: &Path, tokens: usize) -> Result<Vec<u32>> {
    let text = read::file(file)?;
    let mut all = loaded.tokenizer()?.encode_document(&text)?;
    if all.len() < tokens {
        let have = all.len();
        return Err(Error::invalid(format!("{}: {have} tokens, {tokens} are wanted", file.display())).into());
    }
    all.truncate(tokens);
    Ok(all)
}

/// The words of a prompt from another one on, for sequence `i` of `all`.
fn rotated(prompt: &[u32], i: usize, all: usize) -> Vec<u32> {
    let from = prompt.len() * i / all;
    [&prompt[from..], &prompt[..from]].concat()
}

/// Warms up code, threads and the drive's first reads with a prompt, and forgets it.
fn warm(model: &Model, company: &mut Company, prompt: &[u32], work: &Work) -> Result<()> {
    company.feed(|_| prompt, &mut |_, _| work.flow())?;
    company.reset()?;
    // Where all experts fit, the measurement is of a model that has them.
    while model.warm_up() && !work.is_interrupted() {
        std::thread::sleep(Duration::from_millis(2));
    }
    company.take_routes();
    model.reset_read_stats();
    Ok(())
}

/// Feeds `warm_up` and forgets it, then feeds the prompt, then `answer` as far as it goes and what the model likes best
/// after that.
fn measure(
    loaded: &Loaded,
    company: &mut Company,
    [warm_up, prompt, answer]: [&[u32]; 3],
    args: &Args,
) -> Result<Measured> {
    let (warm_up_tokens, gen_tokens) = (args.warm_up_tokens as usize, args.gen_tokens as usize);
    let work = Work::begin();
    let model = loaded.model.clone();
    let mut drive_bytes_per_s = Vec::new();
    drive_bytes_per_s.extend(model.measure_drive(DRIVE_TIME)?);
    let copy_bytes_per_s = model.measure_copies(COPY_TIME)?;
    warm(&model, company, warm_up, &work)?;
    let profile = || {
        if args.profile && !model.profile_device(true) {
            let message = "--profile needs a GPU with timestamps; try --device gpu";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(())
    };
    profile()?;
    // Others read the same words from another one on.
    let prompts: Vec<Vec<u32>> = (0..company.len()).map(|i| rotated(prompt, i, company.len())).collect();
    let bar = count_bar("measuring", ((prompt.len() + warm_up_tokens + gen_tokens) * company.len()) as u64);
    let start = Instant::now();
    company.feed(|i| &prompts[i], &mut |done, _| {
        bar.set_position(done as u64);
        work.flow()
    })?;
    let prefill = start.elapsed();
    let mut answer = answer.iter().copied();
    let mut choose = |company: &Company| match answer.next() {
        Some(token) => vec![token; company.len()],
        None => company.best(),
    };
    let mut tokens = choose(company);
    let time_to_first_token = start.elapsed();
    let prompt_reads = model.read_stats();
    let prompt_kernels = model.device_profile();
    let mut generate = |count: usize| {
        let start = Instant::now();
        for _ in 0..count {
            if work.is_interrupted() {
                return Err(Failure::interrupted());
            }
            company.feed(|i| std::slice::from_ref(&tokens[i]), &mut |_, _| ControlFlow::Continue(()))?;
            tokens = choose(company);
            bar.inc(company.len() as u64);
        }
        Ok(start.elapsed())
    };
    generate(warm_up_tokens)?;
    model.reset_read_stats();
    let before = model.device_counts();
    profile()?;
    let decode = generate(gen_tokens)?;
    let reads = model.read_stats();
    let gpu = model.device_counts().zip(before).map(|(after, before)| after.since(&before));
    let kernels = model.device_profile();
    bar.finish_and_clear();
    drive_bytes_per_s.extend(model.measure_drive(DRIVE_TIME)?);
    Ok(Measured {
        sequences: company.len(),
        prompt_tokens: prompt.len() * company.len(),
        prefill,
        prompt_reads,
        time_to_first_token,
        gen_tokens: gen_tokens * company.len(),
        decode,
        reads,
        gpu,
        prompt_kernels,
        kernels,
        drive_bytes_per_s,
        copy_bytes_per_s,
    })
}
