//! The command line: commands, and the options that most of them share.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use engine::drive::{DiskKind, DriveOptions};
use engine::{CacheKind, Device, KvFormat, OpenOptions, PolicyKind};

use crate::{
    bench, chat, completions, doctor, eval, failure, inspect, logits, pull, run, selftest, serve, synth,
};

const EXAMPLES: &str = "\
Examples:
  tidemill chat                                   chat with the built-in demo model
  tidemill chat model.gguf --memory 12GiB         a model of your own, in 12 GiB at most
  tidemill run -p 'Tell me a story about a fox'   one answer on stdout
  tidemill inspect model.gguf                     what a model is and needs";

/// Runs Mixture-of-Experts language models that are larger than your memory.
///
/// MODEL is a GGUF file (the first one, if it is split), a directory of safetensors files with its config.json, the
/// name of a model in the cache directory, or `demo`, the small model that is built in. Where MODEL is optional, that is
/// the default.
#[derive(Parser)]
#[command(name = "tidemill", version, max_term_width = 110)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}", failure::EXIT_CODES))]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Chat with a model; `/help` lists what you can type, Ctrl-C stops an answer
    Chat(chat::Args),
    /// Print one answer: text on stdout, statistics on stderr
    Run(run::Args),
    /// Serve a model over HTTP, as OpenAI's and Anthropic's APIs
    Serve(Box<serve::Args>),
    /// Measure the speed of prompts and of generation
    Bench(bench::Args),
    /// Write the float32 logits of given tokens, to compare Tidemill with other programs
    Logits(logits::Args),
    /// Measure how well a model predicts known texts or tool calls
    Eval(eval::Args),
    /// Examine this machine, and predict what it will do with a model, downloaded or not
    Doctor(doctor::Args),
    /// Test every kernel of every device of this machine against the reference, and measure them
    Selftest(selftest::Args),
    /// Show architecture, number formats, and bytes per expert and per token
    Inspect(inspect::Args),
    /// Make a model of random weights in a published shape, to measure with
    Synth(synth::Args),
    /// Download a model from the Hugging Face hub
    Pull(pull::Args),
    /// List the models that were pulled
    List(pull::ListArgs),
    /// Remove a pulled model
    Rm(pull::RmArgs),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// How to run a model, as far as a prediction of it can tell.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Running the model")]
pub(crate) struct MachineArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub(crate) device: DeviceArg,
    /// float32 activations throughout: slower, the mode in which results are checked
    #[arg(long)]
    pub(crate) exact: bool,
    /// How keys and values of the context are stored: q8 takes half the memory, and changes answers a little; --exact
    /// keeps them in float32
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "exact")]
    pub(crate) kv: Option<KvArg>,
    /// The ceiling for everything Tidemill keeps in memory, such as 12GiB; default: what the machine can spare. A GPU
    /// without memory of its own (integrated, software) reads the same bytes, and adds nothing
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) memory: Option<u64>,
    /// Pretend that the drive reads no more than this, in decimal gigabytes per second
    #[arg(long, value_name = "GB/s", value_parser = rate)]
    pub(crate) throttle: Option<f64>,
    /// Threads for arithmetic; default: one for each core
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) threads: Option<usize>,
    /// Tokens of context to plan for; default: the model's own limit, 8192 at most
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) ctx: Option<usize>,
    /// Use K experts per token instead of the model's own number: changes the answers
    #[arg(long, value_name = "K", value_parser = positive)]
    pub(crate) experts_per_token: Option<usize>,
    /// Sequences that share steps.
    #[arg(skip)]
    pub(crate) sequences: Option<usize>,
}

/// How to open and run a model.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Running the model")]
pub(crate) struct ComputeArgs {
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The ceiling for what is kept in a discrete GPU's memory (VRAM), such as 4GiB; not used where the CPU computes. A GPU
    /// that shares the machine's memory needs none; with one, experts are copied for it, on top of --memory
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) vram: Option<u64>,
    /// Who keeps experts in memory: slots of our own, or the operating system's page cache
    #[arg(long, value_enum, default_value_t = CacheArg::Slots)]
    pub(crate) cache: CacheArg,
    /// Who reads: what a probe of the drive finds best, io_uring, reading threads, or threads and the page cache
    #[arg(long, value_enum, default_value_t = DiskArg::Auto)]
    pub(crate) disk: DiskArg,
    /// A directory on another drive with copies of the model's files, to read from both; they are compared in part
    #[arg(long, value_name = "DIR")]
    pub(crate) mirror: Option<PathBuf>,
    /// Which expert is evicted first
    #[arg(long, value_enum, default_value_t = PolicyArg::Lfu, hide = true)]
    pub(crate) policy: PolicyArg,
    /// At most this many expert slots
    #[arg(long, value_name = "N", value_parser = positive, hide = true)]
    pub(crate) max_slots: Option<usize>,
    /// Keep the planned slots whatever other programs need
    #[arg(long, hide = true)]
    pub(crate) fixed_slots: bool,
    /// Tokens of a prompt to compute at a time; default: as many as memory allows, 2048 at most where it holds all experts
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) chunk_tokens: Option<usize>,
    /// Whether there is memory for what a next prompt may begin with.
    #[arg(skip)]
    pub(crate) keeps_states: bool,
    /// Whether answers are held to schemas.
    #[arg(skip)]
    pub(crate) serves: bool,
    /// Memory that the command needs besides.
    #[arg(skip)]
    pub(crate) beside_bytes: u64,
}

/// Where what the model has computed outlives the process.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StateArgs {
    /// Keep what the model has computed in this directory: a prompt that begins like an earlier one, also of a run before,
    /// goes on from there
    #[arg(long, value_name = "DIR", help_heading = "Running the model")]
    pub(crate) state_dir: Option<PathBuf>,
    /// The most that it may take; what was not used for longest goes first
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "16GiB", requires = "state_dir")]
    #[arg(help_heading = "Running the model")]
    pub(crate) state_space: u64,
}

impl MachineArgs {
    /// The same for the engine.
    pub(crate) fn open_options(&self) -> OpenOptions {
        OpenOptions {
            device: match self.device {
                DeviceArg::Auto => Device::Auto,
                DeviceArg::Cpu => Device::Cpu,
                DeviceArg::Gpu => Device::Gpu,
            },
            exact: self.exact,
            kv_format: self.kv.map(|kv| match kv {
                KvArg::F16 => KvFormat::F16,
                KvArg::Q8 => KvFormat::Q8,
            }),
            memory_bytes: self.memory,
            threads: self.threads,
            context: self.ctx,
            sessions: self.sequences,
            kept_bytes: Some(0),
            experts_per_token: self.experts_per_token,
            drive: DriveOptions {
                throttle_bytes_per_s: self.throttle.map(|rate| rate * 1e9),
                ..DriveOptions::default()
            },
            ..OpenOptions::default()
        }
    }
}

impl ComputeArgs {
    /// Whether nothing but a probe decides how the drive is read, and nothing slows it down.
    pub(crate) fn reads_as_probed(&self) -> bool {
        let own = self.disk == DiskArg::Auto && self.cache == CacheArg::Slots;
        own && self.mirror.is_none() && self.machine.throttle.is_none()
    }

    /// The same for the engine.
    pub(crate) fn open_options(&self) -> OpenOptions {
        let own = self.machine.open_options();
        OpenOptions {
            vram_bytes: self.vram,
            cache: match self.cache {
                CacheArg::Slots => CacheKind::Slots,
                CacheArg::Os => CacheKind::Os,
            },
            chunk_tokens: self.chunk_tokens,
            drive: DriveOptions {
                kind: match self.disk {
                    DiskArg::Auto => DiskKind::Auto,
                    DiskArg::Uring => DiskKind::Uring,
                    DiskArg::Pread => DiskKind::Pread,
                    DiskArg::Buffered => DiskKind::Buffered,
                },
                mirror: self.mirror.clone(),
                ..own.drive
            },
            policy: match self.policy {
                PolicyArg::Lfu => PolicyKind::Lfu,
                PolicyArg::Lru => PolicyKind::Lru,
                PolicyArg::S3fifo => PolicyKind::S3Fifo,
            },
            kept_bytes: own.kept_bytes.filter(|_| !self.keeps_states),
            serves: self.serves,
            beside_bytes: self.beside_bytes,
            slots_max: self.max_slots,
            fixed_slots: self.fixed_slots,
            ..own
        }
    }
}

/// `--device`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// A GPU where it is measured to be faster than the CPU
    Auto,
    /// The CPU
    Cpu,
    /// The first GPU
    Gpu,
}

/// `--kv`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvArg {
    /// Half precision, the default
    F16,
    /// Signed bytes in blocks of 32 with a scale each
    Q8,
}

/// `--cache`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheArg {
    /// Slots of our own, read past the page cache
    Slots,
    /// The operating system's page cache
    Os,
}

/// `--disk`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiskArg {
    /// What a probe of the drive finds best
    Auto,
    /// io_uring
    Uring,
    /// Reading threads
    Pread,
    /// Reading threads and the page cache
    Buffered,
}

/// `--policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyArg {
    /// Least frequently used, with aging
    Lfu,
    /// Least recently used
    Lru,
    /// Three queues
    S3fifo,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("not a rate; write 3.5 for 3.5 GB/s".into()),
    }
}

pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".into()),
    }
}

/// Bytes from `12GiB`, `12G` (the same), `12GB` (decimal), `1.5GiB` or a plain number of bytes.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || "not a size; write 12GiB, 1.5GiB, 800MiB, 12GB or a number of bytes".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim().to_ascii_lowercase();
    let (prefix, base) = match unit.strip_suffix("ib") {
        Some(prefix) => (prefix, 1024f64),
        None => match unit.strip_suffix('b') {
            Some(prefix) => (prefix, 1000f64),
            None => (unit.as_str(), 1024f64),
        },
    };
    let power = ["", "k", "m", "g", "t"].iter().position(|p| *p == prefix).ok_or_else(bad)?;
    let bytes = number * base.powi(power as i32);
    if bytes >= 1.0 && bytes < 2f64.powi(63) { Ok(bytes as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_binary_unless_they_say_decimal() {
        let cases = [
            ("12GiB", 12 << 30),
            ("12G", 12 << 30),
            ("12g", 12 << 30),
            ("12GB", 12_000_000_000),
            ("1.5 GiB", 3 << 29),
            ("800MiB", 800 << 20),
            ("4096", 4096),
            ("1k", 1024),
            ("7b", 7),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "-1GiB", "12XB", "1e3", "0", "99999999999TiB", "1..5G", "nan"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
