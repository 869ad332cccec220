//! What a running answer and somebody else's prompt cost each other: each alone, then both at once, with several shares of the
//! time for answers.
//!
//! `cargo bench -p tidemill-engine --bench beside -- MODEL MEMORY_MIB [PROMPT_TOKENS] [DRIVE_GB_PER_S]`

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_engine::generate::{GenerateOptions, Generated};
use tidemill_engine::sample::SampleParams;
use tidemill_engine::scheduler::{Request, RequestEvent, Scheduler, SchedulerOptions, Ticket};
use tidemill_engine::text::Tokenizer;
use tidemill_engine::{Device, Model, OpenOptions, Result};

/// Tokens of the answer that is measured alone.
const ANSWER_TOKENS: usize = 48;

/// What answers get of the time.
const SHARES: [f64; 3] = [0.25, 0.5, 0.75];

struct Bench {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    prompt_tokens: usize,
}

impl Bench {
    fn scheduler(&self, answers_share: f64) -> Result<Scheduler> {
        let options = SchedulerOptions { answers_share, ..SchedulerOptions::new(2) };
        Scheduler::start(self.model.clone(), self.tokenizer.clone(), options)
    }

    /// A request; `seed` makes its tokens others.
    fn request(&self, seed: usize, prompt: usize, answer: usize) -> Request {
        let vocab = self.model.meta().vocab_size;
        let options = GenerateOptions {
            sampling: SampleParams::greedy(),
            max_tokens: Some(answer),
            ignore_end: true,
            ..Default::default()
        };
        let prompt = (0..prompt).map(|i| ((i * 7919 + seed * 104_729 + 13) % vocab) as u32).collect();
        Request { prompt, options, borders: Vec::new(), cache: true, priority: 0, client: 0, deadline: None }
    }

    /// Seconds a token of an answer that is alone.
    fn answer_alone(&self) -> Result<f64> {
        let scheduler = self.scheduler(0.5)?;
        let answer = end(&scheduler.submit(self.request(1, 16, ANSWER_TOKENS))?)?;
        Ok(answer.decode.as_secs_f64() / (answer.tokens.len() - 1) as f64)
    }

    /// Seconds to the first token of a prompt that is alone.
    fn prompt_alone(&self, seed: usize) -> Result<f64> {
        let scheduler = self.scheduler(0.5)?;
        let answer = end(&scheduler.submit(self.request(seed, self.prompt_tokens, 1))?)?;
        Ok(answer.time_to_first_token.as_secs_f64())
    }

    /// Both: seconds to the prompt's first token, and tokens of the answer meanwhile.
    fn both(&self, seed: usize, answers_share: f64) -> Result<(f64, u64)> {
        let scheduler = self.scheduler(answers_share)?;
        let answer = scheduler.submit(self.request(1, 16, self.model.context() - 32))?;
        while scheduler.counts().answer_tokens < 4 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (before, start) = (scheduler.counts().answer_tokens, Instant::now());
        let prompt = scheduler.submit(self.request(seed, self.prompt_tokens, 1))?;
        end(&prompt)?;
        let (time, tokens) = (start.elapsed().as_secs_f64(), scheduler.counts().answer_tokens - before);
        answer.cancel();
        end(&answer)?;
        Ok((time, tokens))
    }
}

fn end(ticket: &Ticket) -> Result<Generated> {
    loop {
        if let Some(RequestEvent::Ended(end)) = ticket.next_event() {
            return end;
        }
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [path, memory_mib, more @ ..] = &args[..] else {
        println!("SKIP beside: give MODEL MEMORY_MIB [PROMPT_TOKENS] [DRIVE_GB_PER_S]");
        return Ok(());
    };
    let number = |text: &String| text.parse::<f64>().expect("a number");
    let prompt_tokens = more.first().map_or(2048, |n| number(n) as usize);
    let mut options = OpenOptions {
        device: Device::Cpu,
        memory_bytes: Some((number(memory_mib) * f64::from(1 << 20)) as u64),
        context: Some(prompt_tokens + 1024),
        sessions: Some(2),
        kept_bytes: Some(0),
        fixed_slots: true,
        ..OpenOptions::default()
    };
    options.drive.throttle_bytes_per_s = more.get(1).map(|rate| number(rate) * 1e9);
    let model = Model::open(Path::new(path), &options, &mut |_, _| ControlFlow::Continue(()))?;
    let tokenizer = Arc::new(Tokenizer::of_model(model.meta())?);
    println!("{}\n{}\nchunks of {}", model.describe(), model.plan(), model.chunk_tokens());
    let bench = Bench { model, tokenizer, prompt_tokens };
    bench.answer_alone()?; // warms up
    let (token_s, prompt_s) = (bench.answer_alone()?, bench.prompt_alone(2)?);
    println!("alone: {:.2} tokens/s; a prompt of {prompt_tokens} in {prompt_s:.2} s", 1.0 / token_s);
    for (i, share) in SHARES.into_iter().enumerate() {
        let (time, tokens) = bench.both(3 + i, share)?;
        let rate = tokens as f64 / time;
        println!(
            "answers get {share}: {rate:.2} tokens/s, {:.0} % of alone; the prompt in {time:.2} s, {:.2} of its own time \
             and that of {tokens} tokens",
            100.0 * rate * token_s,
            time / (prompt_s + tokens as f64 * token_s)
        );
    }
    Ok(())
}
