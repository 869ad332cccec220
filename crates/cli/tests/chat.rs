//! A chat through a pipe.

use crate::common::{edit, fails_with, golden, json, piped, tidemill};

const GREEDY: [&str; 4] = ["chat", "--temperature", "0", "--exact"];

#[test]
fn a_conversation_with_commands() {
    let script = "Hello! Who are you?\n\n/stats\n/system You answer briefly.\nWhat is 7 \\\nplus 5?\n/reset\n/help\n/exit\nnever read\n";
    let (out, err) = piped(&mut tidemill(GREEDY), script, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[0],
        "I am a very small demo language model. I can tell short stories, answer simple questions and call tools."
    );
    assert!(lines[1].starts_with("prompt 21 tokens (0 reused)"), "{out}");
    assert!(out.contains("context: ") && out.contains("resident weights"), "{out}");
    let after_statistics = lines.iter().skip_while(|line| !line.starts_with("total")).nth(1);
    assert!(
        after_statistics.is_some_and(|answer| !answer.starts_with('/')),
        "one answer to the two joined lines: {out}"
    );
    assert!(out.contains("/save FILE") && !out.contains(">>>"), "{out}");
    assert!(err.contains("a new conversation begins") && err.contains("forgotten"), "{err}");
}

#[test]
fn earlier_turns_are_not_read_again() {
    let (out, _) = piped(
        &mut tidemill(GREEDY),
        "What is the capital of Japan?\nWhat is the capital of Italy?\n/stats\n",
        0,
    );
    let statistics = out.lines().find(|line| line.starts_with("prompt")).expect("statistics");
    let number = |after: &str| {
        let rest = &statistics[statistics.find(after).expect("there") + after.len()..];
        rest.split(' ').next().and_then(|n| n.parse::<usize>().ok()).expect("a number")
    };
    let (prompt, reused) = (number("prompt "), number("("));
    assert!(reused > 20 && prompt - reused < 30, "{statistics}");
}

#[test]
fn a_tool_round_trip() {
    let folder = tempfile::tempdir().expect("a folder");
    let tools = folder.path().join("tools.json");
    let weather = r#"[{"name": "get_weather", "description": "Get the weather.", "parameters": {"type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]}}]"#;
    std::fs::write(&tools, weather).expect("written");
    let script = format!(
        "/tools {}\nGet the weather in Lisbon with days 3.\n/tool {{\"temperature\": 21, \"status\": \"sunny\"}}\n",
        tools.display()
    );
    let (out, err) = piped(&mut tidemill(GREEDY), &script, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], r#"get_weather({"city":"Lisbon","days":3})"#);
    assert!(lines[1].contains("21"), "{out}");
    assert!(err.contains("tools: get_weather") && err.contains("/tool RESULT"), "{err}");
    let (_, err) = piped(&mut tidemill(GREEDY), "/tool 1\n", 2);
    assert!(err.contains("no tool call"), "{err}");
}

#[test]
fn a_saved_conversation_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("talk.json");
    let shown = file.display();
    let question = "What is the capital of Italy?\n";
    let whole = format!("/system Be brief.\nWhat is the capital of Japan?\n/save {shown}\n{question}");
    let (out, err) = piped(&mut tidemill(GREEDY), &whole, 0);
    let expected = out.lines().last().expect("an answer").to_owned();
    assert!(err.contains("saved") && folder.path().join("talk.json.state").is_file(), "{err}");

    let resume = format!("/load {shown}\n{question}/stats\n");
    let (out, err) = piped(&mut tidemill(GREEDY), &resume, 0);
    assert_eq!(out.lines().next(), Some(expected.as_str()), "{err}");
    assert!(err.contains("2 messages") && err.contains("tokens are remembered"), "{err}");
    assert!(!out.contains("(0 reused)"), "{out}");

    // A state that is damaged costs time and nothing else; so does one that is missing.
    edit(&folder.path().join("talk.json.state"), |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let (out, err) = piped(&mut tidemill(GREEDY), &resume, 0);
    assert_eq!(out.lines().next(), Some(expected.as_str()));
    assert!(err.contains("does not fit") && out.contains("(0 reused)"), "{err} {out}");
    edit(&file, |bytes| bytes.truncate(40));
    let (_, err) = piped(&mut tidemill(GREEDY), &resume, 2);
    assert!(err.contains("talk.json") && err.contains("not a saved conversation"), "{err}");
}

/// Two runs of one conversation, and one that begins like it.
#[test]
fn a_state_directory_outlives_the_chat() {
    let folder = tempfile::tempdir().expect("a folder");
    let states = folder.path().join("states");
    let with = || {
        let mut chat = tidemill(GREEDY);
        chat.arg("--state-dir").arg(&states);
        chat
    };
    let script =
        "Please tell me what the capital of Japan is called.\nWhat is the capital of Italy?\n/stats\n";
    let (expected, err) = piped(&mut with(), script, 0);
    assert!(!err.contains("states"), "{err}");
    let reused = |out: &str| {
        let statistics = out.lines().find(|line| line.starts_with("prompt")).expect("statistics").to_owned();
        let (_, rest) = statistics.split_once('(').expect("a count");
        rest.split(' ').next().and_then(|n| n.parse::<usize>().ok()).expect("a number")
    };
    let (out, _) = piped(&mut with(), script, 0);
    let answers = |out: &str| out.lines().take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(answers(&out), answers(&expected), "the same answers");
    assert!(reused(&out) > reused(&expected), "{out}\n{expected}");

    let mut run = tidemill([
        "run",
        "--temperature",
        "0",
        "--exact",
        "--json",
        "-p",
        "Please tell me what the capital of Japan is called.",
    ]);
    let first = json(run.arg("--state-dir").arg(&states));
    assert!(first["reused_tokens"].as_u64() > Some(10), "{first}");

    // What cannot be used is said, and nothing else changes.
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let mut chat = tidemill(GREEDY);
    let (out, err) = piped(chat.arg("--state-dir").arg(&file), script, 0);
    assert_eq!(answers(&out), answers(&expected));
    assert!(err.contains("states are not kept beyond this run") && err.contains("file"), "{err}");
    fails_with(&mut tidemill(["chat", "--state-space", "1GiB"]), 2, &["--state-dir"]);
}

#[test]
fn the_first_error_ends_a_script() {
    let (out, err) = piped(
        &mut tidemill(["chat", "--ctx", "24"]),
        "Tell me a long story about a fox and a hen and a barn and a moon.\nHi\n",
        8,
    );
    assert_eq!(out, "");
    assert!(err.starts_with("error: ") && err.lines().count() == 1, "{err}");
}

#[test]
fn bytes_that_are_no_text_do_not_end_a_chat() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("input");
    std::fs::write(&input, b"/system caf\xe9 \xff\nHello! Who are you?\n").expect("written");
    let output = tidemill(GREEDY).stdin(std::fs::File::open(&input).expect("there")).output().expect("runs");
    let err = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success() && !output.stdout.is_empty(), "{err}");
    assert!(err.contains("not UTF-8") && err.contains("a new conversation begins"), "{err}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_of_another_encoding_does_not_end_a_chat() {
    // How the line editor begins each line.
    let line = "\x1b[?2004h";
    let typed: [(&str, &[u8]); 4] =
        [(line, b"Hello!\r"), (line, b"caf\xe9\r"), (line, b"/stats\r"), (line, b"/exit\r")];
    let (code, shown) =
        crate::common::in_terminal(tidemill(["chat", "--device", "cpu", "--max-tokens", "4"]), &typed);
    assert_eq!(code, Some(0), "{shown}");
    // The answer before it is still there.
    assert!(shown.contains("not UTF-8") && shown.contains("answer 4 tokens"), "{shown}");
    assert!(!shown.contains("error:"), "{shown}");
}

#[test]
fn a_conversation_is_not_saved_over_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let original = std::fs::read(golden("qwen3_moe-e16/gguf-Q4_0/model-Q4_0.gguf")).expect("readable");
    for name in ["model.gguf", "talk.json.state"] {
        std::fs::write(at(name), &original).expect("writable");
    }
    std::fs::write(at("tools.json"), "[]").expect("writable");
    let tools = format!("--tools={}", at("tools.json").display());
    for name in ["model.gguf", "talk.json", "tools.json"] {
        let script = format!("/save {}\n", at(name).display());
        std::fs::write(at("script"), script).expect("writable");
        let input = std::fs::File::open(at("script")).expect("there");
        let said = if name == "tools.json" { "same file" } else { "part of a model" };
        fails_with(tidemill(["chat", &tools, "--device", "cpu"]).stdin(input), 2, &[said]);
    }
    for name in ["model.gguf", "talk.json.state"] {
        assert!(std::fs::read(at(name)).expect("there") == original, "{name}");
    }
    assert!(!at("talk.json").exists() && std::fs::read(at("tools.json")).expect("there") == b"[]");
}
