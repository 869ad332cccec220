//! The block at the end of `doctor` and `selftest`: what whoever looks into an issue asks first, to be pasted as it is. It
//! names no path and nobody.

use std::fs;
use std::process::Command;

use engine::doctor::{DriveRate, MachineMemory, machine_memory};
use engine::drive::{DiskChoice, Engine};
use serde_json::{Map, Value};

use crate::out;

/// Before the block, on a line of its own.
const INVITATION: &str = "In an issue, paste this block:";

/// What the block says, line by line.
pub(crate) struct Report {
    lines: Vec<(&'static str, String)>,
}

impl Report {
    /// What every report says of the program and the machine: `gpus` are adapters with their drivers, `drive` is what reads
    /// and how fast. `results` follow, in the words of the command.
    pub(crate) fn new(
        gpus: &[String],
        drive: Option<&DriveRate>,
        results: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Self {
        let gpu = match gpus {
            [] => "none".to_owned(),
            several => several.join("; "),
        };
        let drive = drive.map_or("not measured; `tidemill doctor` does".to_owned(), described);
        let facts = [
            ("version", version()),
            ("system", system()),
            ("processor", processor()),
            ("instructions", engine::doctor::instruction_set().to_owned()),
            ("memory", memory(machine_memory().ok().as_ref())),
            ("gpu", gpu),
            ("drive", drive),
        ];
        Self { lines: facts.into_iter().chain(results).collect() }
    }

    /// As text, in marks that keep its lines apart wherever it is pasted.
    pub(crate) fn text(&self) -> String {
        let line = |(key, value): &(&str, String)| format!("{key:<14}{}\n", out::visible_line(value));
        let lines: String = self.lines.iter().map(line).collect();
        format!("\n{INVITATION}\n```text\n{lines}```\n")
    }

    /// The same for programs.
    pub(crate) fn json(&self) -> Value {
        let mut map = Map::new();
        for (key, value) in &self.lines {
            // A key that comes again, such as a device of several, is a list.
            match map.get_mut(*key) {
                Some(Value::Array(list)) => list.push(value.clone().into()),
                Some(one) => *one = vec![one.take(), value.clone().into()].into(),
                None => drop(map.insert((*key).into(), value.clone().into())),
            }
        }
        Value::Object(map)
    }
}

/// How a drive is read, and how fast.
fn described(rate: &DriveRate) -> String {
    format!("{}: {:.2} GB/s", way(&rate.choice), rate.bytes_per_s / 1e9)
}

/// A way to read, for people.
pub(crate) fn way(choice: &DiskChoice) -> String {
    let engine = match choice.engine {
        Engine::Pread => "pread",
        Engine::Uring => "io_uring",
    };
    let mode = if choice.direct { "direct" } else { "buffered" };
    format!("{engine}, {mode}, {} x {}", choice.depth, out::bytes(choice.piece_bytes as u64))
}

/// The program: release, commit where it is known, and how it was compiled.
pub(crate) fn version() -> String {
    let commit = option_env!("TIDEMILL_COMMIT").filter(|commit| !commit.is_empty());
    let build = if cfg!(debug_assertions) { "dev build" } else { "release build" };
    let commit = commit.map_or(String::new(), |commit| format!(" ({commit})"));
    format!("tidemill {}{commit}, {build}", env!("CARGO_PKG_VERSION"))
}

fn system() -> String {
    let name = match std::env::consts::OS {
        "linux" => linux(),
        "macos" => said_by("sw_vers", &["-productVersion"]).map(|version| format!("macOS {version}")),
        _ => None,
    };
    format!("{} {}", name.unwrap_or_else(|| std::env::consts::OS.to_owned()), std::env::consts::ARCH)
}

fn linux() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = value_of(&release, "PRETTY_NAME", '=').map_or("Linux", |name| name.trim_matches('"'));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(format!("{name}, Linux {}", kernel.trim()))
}

fn processor() -> String {
    let name = match std::env::consts::OS {
        "linux" => {
            let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let board = fs::read_to_string("/proc/device-tree/model").unwrap_or_default();
            let names = ["model name", "Model", "Hardware"].into_iter();
            let board = board.trim_end_matches('\0');
            names
                .filter_map(|key| value_of(&text, key, ':'))
                .chain([board])
                .find(|n| !n.is_empty())
                .map(str::to_owned)
        }
        "macos" => said_by("sysctl", &["-n", "machdep.cpu.brand_string"]),
        _ => std::env::var("PROCESSOR_IDENTIFIER").ok(),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {threads} threads", name.unwrap_or_else(|| "unknown".to_owned()))
}

/// The value of the first `key` in lines of keys and values.
fn value_of<'a>(text: &'a str, key: &str, separator: char) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(separator));
    lines.find_map(|(found, value)| (found.trim() == key).then_some(value.trim()))
}

/// The first line that a program of the system prints.
fn said_by(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
    Some(line).filter(|line| !line.is_empty())
}

fn memory(found: Option<&MachineMemory>) -> String {
    let Some(found) = found else { return "unknown".to_owned() };
    let limit = match found.limit_bytes {
        Some(_) => ", a limit of the cgroup",
        None => "",
    };
    format!("{} available of {}{limit}", out::bytes(found.available_bytes), out::bytes(found.total_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_can_be_pasted_and_has_every_fact() {
        let choice = DiskChoice { engine: Engine::Uring, direct: true, piece_bytes: 2 << 20, depth: 4 };
        let drive = DriveRate { choice, bytes_per_s: 2.5e9 };
        let results =
            [("device", "a".to_owned()), ("device", "b\x1b[2J\n```".to_owned()), ("end", "c".to_owned())];
        let report = Report::new(&["llvmpipe (Mesa 25)".to_owned()], Some(&drive), results);
        let text = report.text();
        let block: Vec<&str> = text.lines().skip_while(|line| *line != "```text").collect();
        assert_eq!((block.len(), block.last()), (2 + 7 + 3, Some(&"```")), "{text}");
        assert!(!text.contains('\x1b'), "what a driver says is not obeyed: {text}");
        for said in [
            "tidemill 0.",
            "threads",
            "available of",
            "llvmpipe",
            "io_uring, direct, 4 x 2.00 MiB: 2.50 GB/s",
        ] {
            assert!(text.contains(said), "{said:?} is not in {text}");
        }
        let json = report.json();
        assert_eq!((json["device"][1].as_str(), &json["end"]), (Some("b\x1b[2J\n```"), &Value::from("c")));
        assert!(json["processor"].is_string() && json["system"].is_string(), "{json}");
        let none = Report::new(&[], None, []).json();
        assert!(
            none["gpu"] == "none" && none["drive"].as_str().is_some_and(|d| d.contains("doctor")),
            "{none}"
        );
    }

    #[test]
    fn values_are_found_by_their_whole_key() {
        let text = "model\t\t: 85\nmodel name\t: A Processor\nmodel name\t: Another\n";
        assert_eq!(value_of(text, "model name", ':'), Some("A Processor"));
        assert_eq!(value_of("NAME=x\nPRETTY_NAME=\"y z\"\n", "PRETTY_NAME", '='), Some("\"y z\""));
        assert_eq!(value_of(text, "Hardware", ':'), None);
    }
}
