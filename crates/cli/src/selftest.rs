//! `tidemill selftest`: every kernel of every device of this machine against the scalar reference.

use engine::selftest::{Devices, Extent, Report, Speed, run};
use engine::{Error, ErrorKind};
use serde_json::{Map, Value, json};

use crate::args::DeviceArg;
use crate::failure::Result;
use crate::interrupt::Work;
use crate::load::count_bar;
use crate::report::Report as Block;
use crate::{out, remembered};

const EXAMPLES: &str = "\
Examples:
  tidemill selftest                        all devices; the block at the end is for an issue
  tidemill selftest --device gpu           the graphics adapters alone
  tidemill selftest --json > report.json   the same for programs

Ends with exit code 9 when a kernel's answer differs from the reference.";

/// Arguments of `selftest`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which devices to test: cpu (each instruction set), gpu (each adapter), or auto for all of them
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto, hide_possible_values = true)]
    device: DeviceArg,
    /// Fewer number formats, and rates of small weights, which say little
    #[arg(long)]
    quick: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Tests and prints.
pub(crate) fn main(args: &Args) -> Result<()> {
    let devices = match args.device {
        DeviceArg::Auto => Devices::All,
        DeviceArg::Cpu => Devices::Cpu,
        DeviceArg::Gpu => Devices::Gpu,
    };
    let work = Work::begin();
    let bar = count_bar("testing", 0);
    let extent = if args.quick { Extent::Quick } else { Extent::Full };
    let reports = run(devices, extent, &mut |step| {
        bar.set_message(step.to_owned());
        work.flow()
    });
    bar.finish_and_clear();
    let reports = reports?;
    let block = block(&reports, args.device);
    if args.json {
        let mut object = object(&reports);
        object["report"] = block.json();
        out::json(&object)?;
    } else {
        out::print(&(text(&reports) + &block.text()), false)?;
    }
    let failed: usize = reports.iter().map(|r| r.failed.len()).sum();
    if failed > 0 {
        let message =
            format!("{failed} tests failed; please report this with the block at the end of the output");
        return Err(Error::new(ErrorKind::Device, message).into());
    }
    Ok(())
}

/// The block for an issue.
fn block(reports: &[Report], devices: DeviceArg) -> Block {
    let gpus = match devices {
        DeviceArg::Cpu => vec!["not asked for".to_owned()],
        _ => reports.iter().filter(|r| !r.device.starts_with("CPU")).map(|r| r.device.clone()).collect(),
    };
    let drive = remembered::cache_drive();
    Block::new(&gpus, drive.as_ref(), reports.iter().flat_map(results))
}

/// What the block says of a device: how many cases agree, which do not, and its best rate of one row.
fn results(report: &Report) -> Vec<(&'static str, String)> {
    let precision = report.features.iter().find(|(name, _)| *name == "precision");
    let precision = precision.map_or(String::new(), |(_, value)| format!(", {}", value.to_lowercase()));
    let good = report.cases.saturating_sub(report.failed.len());
    let best = report.speeds.iter().map(|speed| speed.bytes_per_s).fold(0.0, f64::max);
    let best =
        if best > 0.0 { format!("; {:.1} GB/s of weights at best", best / 1e9) } else { String::new() };
    let summary = format!("{}{precision}: {good} of {} cases agree{best}", report.device, report.cases);
    let failed = report.failed.iter().map(|failed| ("FAILED", format!("{}: {}", failed.case, failed.what)));
    [("device", summary)].into_iter().chain(failed).collect()
}

fn version() -> String {
    format!("{} on {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH)
}

fn text(reports: &[Report]) -> String {
    let mut out = format!("tidemill {} selftest\n", version());
    for report in reports {
        out += &format!("\n{}\n", report.device);
        for (name, value) in &report.features {
            out += &format!("  {name} {value}\n");
        }
        for (name, value) in &report.rates {
            out += &match name.strip_suffix("_bytes_per_s") {
                Some(name) => format!("  {name} {:.1} GB/s\n", value / 1e9),
                None => format!("  {} {:.1} us\n", name.trim_end_matches("_s"), value * 1e6),
            };
        }
        let good = report.cases.saturating_sub(report.failed.len());
        let (error, case) = &report.worst;
        out += &format!("  {good} of {} cases agree; largest error {error:.1e} ({case})\n", report.cases);
        for failed in &report.failed {
            out += &format!("  FAILED {}: {}\n", failed.case, failed.what);
        }
        for speed in &report.speeds {
            out += &line(speed, report);
        }
    }
    out
}

fn line(speed: &Speed, report: &Report) -> String {
    let (gbytes, gflop) = (speed.bytes_per_s / 1e9, speed.flop_per_s / 1e9);
    let stream = report.rates.iter().find(|(name, _)| *name == "stream_bytes_per_s");
    let share = stream
        .map_or(String::new(), |(_, rate)| format!("{:5.1} % of stream", 100.0 * speed.bytes_per_s / rate));
    format!("  {:52} {gbytes:8.1} GB/s {gflop:9.1} GFLOP/s {share}\n", speed.case)
}

fn object(reports: &[Report]) -> Value {
    let devices = reports.iter().map(|report| {
        let mut device = Map::new();
        device.insert("device".into(), json!(report.device));
        let features: Map<_, _> = report.features.iter().map(|(k, v)| ((*k).into(), json!(v))).collect();
        device.insert("features".into(), features.into());
        device.extend(report.rates.iter().map(|(name, value)| ((*name).into(), json!(value))));
        device.insert("cases".into(), json!(report.cases));
        device.insert("relative_error_max".into(), json!(report.worst.0));
        let failed = report.failed.iter().map(|f| json!({"case": f.case, "what": f.what}));
        device.insert("failed".into(), failed.collect());
        let speeds = report.speeds.iter().map(|s| {
            json!({
                "case": s.case,
                "call_s": s.seconds,
                "weights_bytes_per_s": s.bytes_per_s,
                "flop_per_s": s.flop_per_s,
            })
        });
        device.insert("speeds".into(), speeds.collect());
        Value::Object(device)
    });
    json!({"version": version(), "devices": devices.collect::<Value>()})
}
