//! `tidemill bench`: how fast a prompt is read and an answer is generated.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use engine::{Error, Session};
use serde_json::{Value, json};

use crate::answer::Reads;
use crate::args::ComputeArgs;
use crate::failure::{Failure, Result};
use crate::interrupt::Work;
use crate::load::{Loaded, count_bar};
use crate::out;

const EXAMPLES: &str = "\
Examples:
  tidemill bench model.gguf --memory 12GiB
  tidemill bench --prompt-tokens 512 --gen-tokens 64 --json

Figures of reading are of the generated tokens; those of the prompt begin with `prompt_`.";

/// Words that models have seen: routers choose differently on noise.
const TEXT: &str = "The mill stands where the river meets the sea. Twice a day the tide comes in and fills the pond \
    behind the dam; when it goes out again, the water runs through the wheel and turns the stones. The miller gets up \
    with the moon, not with the sun. He knows the tables by heart and writes down each sack of wheat and barley, the \
    day, the hour and the height of the water. In winter, storms push the sea over the wall, and everybody helps to \
    close the gates. How much flour can one tide grind? That depends on the season, the wind, and a little luck. ";

/// Arguments of `bench`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A .gguf file, a directory of safetensors files, or a pulled name; default: the built-in demo model
    model: Option<String>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to generate after it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    gen_tokens: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What was measured.
struct Measured {
    prefill: Duration,
    prompt_reads: Reads,
    time_to_first_token: Duration,
    decode: Duration,
    decoded: usize,
    reads: Reads,
}

/// Measures.
pub(crate) fn main(args: &Args) -> Result<()> {
    let (prompt_tokens, gen_tokens) = (args.prompt_tokens as usize, args.gen_tokens as usize);
    let mut compute = args.compute.clone();
    compute.ctx = compute.ctx.or(Some(prompt_tokens + gen_tokens));
    let loaded = Loaded::open(args.model.as_deref(), &compute)?;
    if prompt_tokens + gen_tokens > loaded.model.context() {
        let message =
            format!("{prompt_tokens} + {gen_tokens} tokens do not fit --ctx {}", loaded.model.context());
        return Err(Error::invalid(message).into());
    }
    let prompt = prompt(&loaded, prompt_tokens);
    let mut session = Session::new(&loaded.model)?;
    let measured = measure(&mut session, &prompt, gen_tokens)?;
    if args.json {
        return out::json(&to_json(&loaded, &measured, prompt_tokens, gen_tokens));
    }
    let per_token = measured.reads.bytes / measured.decoded.max(1) as u64;
    let mut table = format!(
        "prefill    {:>10.1} tokens/s   {prompt_tokens} tokens\ndecode     {:>10.1} tokens/s   {gen_tokens} tokens\n\
         first token{:>10.3} s\n",
        rate(prompt_tokens, measured.prefill),
        rate(measured.decoded, measured.decode),
        measured.time_to_first_token.as_secs_f64(),
    );
    if let Some(hit_rate) = measured.reads.hit_rate {
        table += &format!(
            "reads      {:>10} per token, {} per second while reading\nexperts    {:>10.1} % in memory when wanted\n",
            out::bytes(per_token),
            out::bytes(measured.reads.bytes_per_s() as u64),
            100.0 * hit_rate,
        );
    }
    let plan = loaded.model.plan();
    let peak = engine::rss_peak_bytes().map_or("unknown".into(), out::bytes);
    table += &format!("memory     {peak:>10} at most, {} planned\n", out::bytes(plan.total_bytes));
    out::print(&table, false)?;
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

fn measure(session: &mut Session, prompt: &[u32], gen_tokens: usize) -> Result<Measured> {
    let work = Work::begin();
    let mut go = |_: f64, _: usize| work.flow();
    // Warm-up: code, threads, the drive's first reads.
    session.set_prompt(&prompt[..prompt.len().min(16)], &mut go)?;
    session.reset()?;
    let model = session.model().clone();
    model.reset_read_stats();

    let bar = count_bar("measuring", (prompt.len() + gen_tokens) as u64);
    let start = Instant::now();
    session.set_prompt(prompt, &mut |done, _| {
        bar.set_position(done as u64);
        work.flow()
    })?;
    let prefill = start.elapsed();
    let mut token = best(session.logits());
    let time_to_first_token = start.elapsed();
    let prompt_reads = Reads::of(session);
    model.reset_read_stats();
    let start = Instant::now();
    for _ in 0..gen_tokens {
        if work.is_interrupted() {
            return Err(Failure::interrupted());
        }
        session.append(&[token], &mut |_, _| ControlFlow::Continue(()))?;
        token = best(session.logits());
        bar.inc(1);
    }
    let decode = start.elapsed();
    bar.finish_and_clear();
    let reads = Reads::of(session);
    Ok(Measured { prefill, prompt_reads, time_to_first_token, decode, decoded: gen_tokens, reads })
}

fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(id, _)| id as u32)
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

fn to_json(loaded: &Loaded, m: &Measured, prompt_tokens: usize, gen_tokens: usize) -> Value {
    let mut map = serde_json::Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    put("prompt_tokens", json!(prompt_tokens));
    put("gen_tokens", json!(gen_tokens));
    put("prefill_tokens_per_s", json!(rate(prompt_tokens, m.prefill)));
    put("decode_tokens_per_s", json!(rate(m.decoded, m.decode)));
    put("time_to_first_token_s", json!(m.time_to_first_token.as_secs_f64()));
    put("read_bytes_per_token", json!(m.reads.bytes as f64 / m.decoded.max(1) as f64));
    put("drive_bytes_per_s", json!(m.reads.bytes_per_s()));
    put("drive_fraction", Value::Null); // what the drive can do is not measured yet
    put("expert_hit_rate", json!(m.reads.hit_rate));
    put("prompt_read_bytes", json!(m.prompt_reads.bytes));
    put("prompt_drive_bytes_per_s", json!(m.prompt_reads.bytes_per_s()));
    put("prompt_expert_hit_rate", json!(m.prompt_reads.hit_rate));
    map.extend(loaded.describe());
    Value::Object(map)
}
