//! `tidemill serve`: a model behind the OpenAI and Anthropic APIs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use engine::inspect::Inspection;
use engine::text::Templates;
use engine::{Error, ErrorKind, Meta};
use server::{Defaults, Log, LogFormat, Options, Served, Server};

use crate::args::{ComputeArgs, StateArgs, parse_bytes, positive};
use crate::failure::{Failure, Result};
use crate::load::{Loaded, resolve};
use crate::sampling::SamplingArgs;
use crate::{interrupt, out, read, remembered, tui};

const EXAMPLES: &str = "\
Examples:
  tidemill serve
  tidemill serve model.gguf --memory 12GiB --ctx 32768 --state-dir ~/states
  tidemill serve model.gguf --host 0.0.0.0 --api-key-file keys.txt

Point a client of OpenAI's API at http://127.0.0.1:8080/v1, one of Anthropic's at http://127.0.0.1:8080. Ctrl-C or \
SIGTERM lets running answers finish; a second one ends at once.";

/// Sequences that share steps where nobody says how many, as many of these as the plan has room for.
const PARALLEL: [usize; 3] = [4, 2, 1];

/// Arguments of `serve`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A .gguf file, a directory of safetensors files, or a pulled name; default: the built-in demo model
    model: Option<String>,
    /// Sequences that share steps; others wait [default: 4, or what there is memory for]
    #[arg(long, value_name = "N", value_parser = positive)]
    parallel: Option<usize>,
    /// Requests that may wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 64)]
    queue: usize,
    /// What the model is called in answers [default: its file's name, or demo]
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// Seconds of silence in a stream before a sign of life
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "10")]
    ping: Duration,
    /// A chat template in place of the model's own
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Refuse unknown fields, tools of unknown types and names of other models
    #[arg(long)]
    strict: bool,
    /// Write prompts to the log
    #[arg(long)]
    log_prompts: bool,
    /// How each request is logged on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogArg::Text)]
    log_format: LogArg,
    /// Nothing at `/`: no page for browsers
    #[arg(long)]
    no_page: bool,
    /// Show rates, memory, experts and the log on the whole terminal; q stops the server
    #[arg(long)]
    tui: bool,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    states: StateArgs,
}

/// Where to listen, and to whom.
#[derive(clap::Args)]
#[command(next_help_heading = "Listening")]
struct ListenArgs {
    /// The address or name to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// A key that requests must have, as `Authorization: Bearer KEY` or `x-api-key: KEY`; can be given more than once
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// A file with such keys, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Answer other machines without a key
    #[arg(long)]
    open: bool,
    /// An origin whose web pages may ask, such as `https://chat.example`, or * for all; can be given more than once
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// The largest body of a request; the plan has about four times as much for bodies
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "32MiB")]
    max_body: u64,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogArg {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "not a time; write seconds, such as 10 or 0.5".into())
}

/// Serves until a signal ends it.
pub(crate) fn main(args: &Args) -> Result<()> {
    // What can be known to be wrong is said before anybody listens.
    let path = resolve(args.model.as_deref())?;
    args.sampling.request().params(&Meta::default())?;
    let lines = args.tui.then(tui::Lines::default);
    if args.tui {
        tui::check()?;
    }
    let server = Server::start(args.options()?, log(lines.clone()))?;
    let has_screen = args.tui;
    server.stop_on_signals(move |count| match count {
        1 => interrupt::stop(),
        _ => {
            if has_screen {
                tui::restore();
            }
            std::process::exit(interrupt::INTERRUPTED)
        }
    })?;
    let address = server.address();
    out::note(format_args!("listening on http://{address}, loading {}", args.shown_model()));
    let (loaded, shown) = match args.load(&path) {
        Ok((loaded, served)) => {
            let parallel = served.parallel;
            server.serve(served)?;
            let started = args.started(&loaded, address, parallel);
            let shown = match (&lines, server.viewer()) {
                (Some(lines), Some(viewer)) => tui::run(&server, viewer, started, lines),
                _ => Ok(out::line(&started)?),
            };
            (loaded, shown)
        }
        // A signal came first: that is how a server ends.
        Err(Failure::Error(e)) if e.kind() == ErrorKind::Cancelled => return Ok(server.wait()?),
        Err(failure) => return Err(failure),
    };
    server.wait()?;
    remembered::keep_warm(&loaded.model);
    loaded.flush_states();
    shown
}

/// Where the log goes: to stderr, or to the screen.
fn log(lines: Option<tui::Lines>) -> Log {
    match lines {
        Some(lines) => Box::new(move |line| lines.push(line)),
        None => Box::new(|line| out::note(line)),
    }
}

impl Args {
    fn options(&self) -> Result<Options> {
        let listen = &self.listen;
        let mut keys = listen.api_key.clone();
        if let Some(path) = &listen.api_key_file {
            let text = read::file(path)?;
            let before = keys.len();
            keys.extend(text.lines().map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned));
            if keys.len() == before {
                return Err(Error::invalid(format!("{}: there is no key in it", path.display())).into());
            }
        }
        Ok(Options {
            host: listen.host.clone(),
            port: listen.port,
            keys,
            open: listen.open,
            queue: self.queue,
            ping: self.ping,
            cors: listen.cors.clone(),
            body_bytes_max: self.body_bytes_max(),
            strict: self.strict,
            log_prompts: self.log_prompts,
            log_format: match self.log_format {
                LogArg::Text => LogFormat::Text,
                LogArg::Json => LogFormat::Json,
            },
            page: !self.no_page,
            ..Options::default()
        })
    }

    fn body_bytes_max(&self) -> usize {
        usize::try_from(self.listen.max_body).unwrap_or(usize::MAX)
    }

    fn shown_model(&self) -> &str {
        self.model.as_deref().unwrap_or("demo")
    }

    /// The model, and what the server is given of it.
    fn load(&self, path: &Path) -> Result<(Loaded, Served)> {
        // Before the model has its memory.
        let files = Inspection::of(path)?;
        let (parameters, size_bytes) = (files.weights(), files.bytes());
        drop(files);
        let (loaded, parallel) = self.open()?;
        loaded.store_states(&self.states);
        remembered::warm(&loaded.model);
        let template = self.chat_template.as_deref().map(read::file).transpose()?;
        let (templates, template_text) = templates(&loaded, template)?;
        let served = Served {
            model: loaded.model.clone(),
            tokenizer: Arc::new(loaded.tokenizer()?),
            templates,
            template_text,
            alias: self.alias.clone().unwrap_or_else(|| alias(self.model.as_deref(), path)),
            parallel,
            parameters,
            size_bytes,
            defaults: Defaults {
                sampling: self.sampling.request(),
                max_tokens: self.sampling.max_tokens,
                stop: self.sampling.stop.clone(),
            },
        };
        Ok((loaded, served))
    }

    /// Opens the model for as many sequences as were asked for, or as there is room for.
    fn open(&self) -> Result<(Loaded, usize)> {
        let asked = self.parallel.map(|parallel| vec![parallel]);
        let mut tries = asked.unwrap_or_else(|| PARALLEL.to_vec()).into_iter().peekable();
        loop {
            let parallel = tries.next().unwrap_or(1);
            let beside_bytes = server::body_memory_bytes(self.body_bytes_max());
            let mut compute =
                ComputeArgs { keeps_states: true, serves: true, beside_bytes, ..self.compute.clone() };
            compute.machine.sequences = Some(parallel);
            match Loaded::open(self.model.as_deref(), &compute) {
                Err(Failure::Error(e)) if e.kind() == ErrorKind::Memory && tries.peek().is_some() => {}
                opened => return Ok((opened?, parallel)),
            }
        }
    }

    /// The line that says that it is ready.
    fn started(&self, loaded: &Loaded, address: std::net::SocketAddr, parallel: usize) -> String {
        let (model, plan) = (&loaded.model, loaded.model.plan());
        format!(
            "http://{address} · {} · context {} · {parallel} in parallel · {} of {} planned",
            loaded.name,
            model.context(),
            out::bytes(plan.total_bytes),
            out::bytes(plan.budget_bytes)
        )
    }
}

/// The templates and the text of the plain one. A model without any continues texts.
fn templates(loaded: &Loaded, own: Option<String>) -> Result<(Option<Templates>, Option<String>)> {
    let name = loaded.model.path().display().to_string();
    if let Some(source) = own {
        return Ok((Some(Templates::of_source(&source, &name)?), Some(source)));
    }
    let meta = loaded.meta();
    if meta.chat_template.is_none() {
        out::note(
            "note: the model has no chat template, so it only continues texts; --chat-template gives it one",
        );
        return Ok((None, None));
    }
    Ok((Some(Templates::of_model(meta, &name)?), meta.chat_template.clone()))
}

/// The name of a model's file or directory without its suffix; the built-in one is `demo`.
fn alias(given: Option<&str>, path: &Path) -> String {
    let Some(given) = given.filter(|given| *given != "demo") else { return "demo".into() };
    let named = if Path::new(given).exists() { path } else { Path::new(given) };
    let name = named.canonicalize().unwrap_or_else(|_| named.to_path_buf());
    let stem =
        if name.extension().is_some_and(|e| e == "gguf") { name.file_stem() } else { name.file_name() };
    stem.map_or_else(|| given.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_its_file() {
        assert_eq!(alias(None, Path::new("/x/demo-1234")), "demo");
        assert_eq!(alias(Some("demo"), Path::new("/x/demo-1234")), "demo");
        assert_eq!(alias(Some("who/model-7B-Q4.gguf"), Path::new("/nowhere")), "model-7B-Q4");
        assert_eq!(alias(Some("who/Model-1.5"), Path::new("/nowhere")), "Model-1.5");
    }

    #[test]
    fn silence_is_measured_in_seconds() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
