//! What is computed again, and what is not, as agents talk: with the bundled model's template, and with Qwen3.5's, which
//! drops thoughts when the next question comes and refuses late system messages.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Running, Setup, loading, options, with};

const CHAT: &str = "/v1/chat/completions";

/// Tokens that may be computed again besides those that are new.
const SLACK: u64 = 24;

fn qwen() -> String {
    let path = "../../testdata/text/templates/Qwen3.5-4B.jinja";
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a template")
}

/// Each way of serving: the template, and whether to think.
fn ways() -> [(Option<String>, bool); 3] {
    [(None, false), (Some(qwen()), false), (Some(qwen()), true)]
}

/// How much of the prompt after a turn is known. Qwen3.5's template writes answers before the last question without their
/// thoughts, and without the marks of none, so that they are other prompts and have to be computed again.
fn known_after(turn: Turn, template: Option<&String>) -> u64 {
    if template.is_some() { turn.prompt } else { turn.end() }
}

fn serve(template: Option<String>, states: Option<&Path>) -> Running {
    let server = loading(options());
    let states = states.map(Path::to_owned);
    server.load_as(&Setup { parallel: 3, context: 4096, template, states });
    server
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "pick", "description": "Picks a card.", "parameters": {
        "type": "object", "required": ["suit", "rank"], "additionalProperties": false,
        "properties": {"suit": {"enum": ["spades", "hearts", "clubs"]}, "rank": {"type": "integer", "maximum": 13},
        "note": {"type": "string", "maxLength": 8}}}}}])
}

/// A client that sends all of its conversation each time.
struct Client<'a> {
    server: &'a Running,
    base: Value,
    messages: Vec<Value>,
    /// Tokens that the conversation had when its last answer ended, and before its last question.
    last: Turn,
}

/// What a turn cost.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    prompt: u64,
    cached: u64,
    /// Of the answer.
    answer: u64,
}

impl Turn {
    fn end(&self) -> u64 {
        self.prompt + self.answer
    }
}

impl<'a> Client<'a> {
    fn new(server: &'a Running, name: &str, thinks: bool) -> Self {
        let system = format!("You are {name}. {}", "Answer the question in a short sentence. ".repeat(6));
        let base = json!({"model": "demo", "max_tokens": 40, "temperature": 1.6, "seed": 7,
            "chat_template_kwargs": {"enable_thinking": thinks}});
        let messages = vec![json!({"role": "system", "content": system})];
        Self { server, base, messages, last: Turn::default() }
    }

    fn say(&mut self, role: &str, text: &str) -> &mut Self {
        self.messages.push(json!({"role": role, "content": text}));
        self
    }

    /// Has the model answer, and takes its answer into the conversation as clients do: arguments of calls with other spaces
    /// and another order of keys.
    fn answer(&mut self, more: Value) -> Turn {
        let body = with(&with(&self.base, json!({"messages": self.messages})), more);
        let answer = self.server.post(CHAT, &body).ok();
        let usage = &answer["usage"];
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{answer}"));
        let turn = Turn {
            prompt: number(&usage["prompt_tokens"]),
            cached: number(&usage["prompt_tokens_details"]["cached_tokens"]),
            answer: number(&usage["completion_tokens"]),
        };
        let mut message = answer["choices"][0]["message"].clone();
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            let arguments: Value =
                serde_json::from_str(call["function"]["arguments"].as_str().expect("a text")).expect("JSON");
            let mut keys: Vec<(String, Value)> =
                arguments.as_object().expect("an object").clone().into_iter().collect();
            keys.sort_by(|a, b| b.0.cmp(&a.0));
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("\"{key}\" :  {value}")).collect();
            call["function"]["arguments"] = format!("{{ {} }}", keys.join(" , ")).into();
        }
        self.messages.push(message);
        self.last = turn;
        turn
    }

    /// A call that must come, and its result.
    fn call(&mut self) -> Turn {
        let turn =
            self.answer(json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200}));
        let calls = self.messages.last().expect("an answer")["tool_calls"].clone();
        for call in calls.as_array().unwrap_or_else(|| panic!("no call: {:?}", self.messages)) {
            self.messages
                .push(json!({"role": "tool", "tool_call_id": call["id"], "content": "It is yours."}));
        }
        turn
    }
}

/// That `turn` computed no more than what is new after `known` tokens that were computed before.
#[track_caller]
fn goes_on(turn: Turn, known: u64) {
    assert!(turn.cached + SLACK >= known, "{known} of its tokens were known: {turn:?}");
}

#[test]
fn a_conversation_is_never_computed_twice() {
    for (template, thinks) in ways() {
        let server = serve(template.clone(), None);
        let mut client = Client::new(&server, "Ann", thinks);
        let mut known = 0;
        for question in ["What is your name?", "And mine?", "Why is that?", "Who said so?", "Is it true?"] {
            let turn = client.say("user", question).answer(json!({}));
            goes_on(turn, known);
            known = known_after(turn, template.as_ref());
        }
    }
}

#[test]
fn a_loop_of_calls_is_never_computed_twice() {
    for (template, thinks) in ways() {
        let server = serve(template.clone(), None);
        let mut client = Client::new(&server, "Bob", thinks);
        let first = client.say("user", "Pick six cards.").call();
        for _ in 0..5 {
            let known = client.last.end();
            goes_on(client.call(), known);
        }
        let known = client.last.end();
        let done = client.answer(json!({"tools": tools()}));
        goes_on(done, known);
        // The question after it: templates that drop thoughts go back to the question before.
        let known = if template.is_some() { first.prompt } else { done.end() };
        goes_on(client.say("user", "Thanks. Which one is best?").answer(json!({"tools": tools()})), known);
    }
}

#[test]
fn company_takes_nothing_from_a_conversation() {
    for (template, thinks) in ways() {
        let server = serve(template.clone(), None);
        let mut clients = ["Cat", "Dan", "Eve"].map(|name| Client::new(&server, name, thinks));
        let mut known = [0; 3];
        for question in ["What is your name?", "And mine?", "Why?"] {
            for (client, known) in clients.iter_mut().zip(&mut known) {
                let turn = client.say("user", question).answer(json!({}));
                goes_on(turn, *known);
                *known = known_after(turn, template.as_ref());
            }
            for small in 0..12 {
                let body = json!({"model": "demo", "max_tokens": 4,
                    "messages": [{"role": "user", "content": format!("Title {small}: {question}")}]});
                server.post(CHAT, &body).ok();
            }
        }
    }
}

#[test]
fn what_agents_change_in_a_prompt_costs_what_they_changed() {
    for (template, thinks) in ways() {
        let server = serve(template.clone(), None);
        let mut client = Client::new(&server, "Fay", thinks);
        let first = client.say("user", "Tell me a story about a river and a mill.").answer(json!({}));
        // A late system message comes with every turn, each time another one.
        client.say("system", "9000 tokens left.").say("user", "Go on.");
        let second = client.answer(json!({}));
        let known = known_after(first, template.as_ref());
        goes_on(second, known);
        // A turn is edited: what was before it stays.
        let edited =
            client.messages.iter().rposition(|message| message["role"] == "user").expect("a question");
        client.messages.truncate(edited);
        let third = client.say("user", "Now something else.").answer(json!({}));
        goes_on(third, known);
        if template.is_none() {
            server.logged(&["departs=\"message 4 (user) + 0\""]);
        }
    }
}

#[test]
fn a_line_that_changes_with_each_request_costs_nothing() {
    let server = serve(None, None);
    let ask = |cch: &str, turns: Value| {
        let system =
            format!("x-anthropic-billing-header: cc_version=2.1; cch={cch};\n{}", "Be brief. ".repeat(40));
        let body =
            json!({"model": "demo", "max_tokens": 8, "temperature": 0, "system": system, "messages": turns});
        server.post("/v1/messages", &body).ok()["usage"].clone()
    };
    let one = json!({"role": "user", "content": "What is your name?"});
    let first = ask("0a1b2", json!([one]));
    let again = ask(
        "f00d1",
        json!([one, {"role": "assistant", "content": "Ann."}, {"role": "user", "content": "Why?"}]),
    );
    let (before, read) = (first["input_tokens"].as_u64(), again["cache_read_input_tokens"].as_u64());
    assert!(read > Some(100) && read.map(|read| read + SLACK) >= before, "{first} {again}");
}

#[test]
fn a_text_that_is_written_on_is_not_computed_again() {
    let server = serve(None, None);
    let text = "Once there was a mill by the river. ".repeat(20);
    let ask = |text: &str| {
        let body = json!({"model": "demo", "prompt": text, "max_tokens": 5, "temperature": 1.2, "seed": 3});
        let usage = server.post("/v1/completions", &body).ok()["usage"].clone();
        let of = |value: &Value| value.as_u64().expect("a number");
        (of(&usage["prompt_tokens"]), of(&usage["prompt_tokens_details"]["cached_tokens"]))
    };
    let (first, _) = ask(&text);
    let (_, cached) = ask(&format!("{text}Its wheel turned day and night."));
    assert!(cached + 4 >= first, "{cached} of {first}");
}

/// All tokens with their log-probabilities.
fn logprobs(answer: &Value) -> Vec<(Value, u32)> {
    let content =
        answer["choices"][0]["logprobs"]["content"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let one =
        |of: &Value| (of["bytes"].clone(), (of["logprob"].as_f64().expect("a number") as f32).to_bits());
    content.iter().map(one).collect()
}

#[test]
fn the_same_tokens_alone_in_company_from_the_cache_streamed_and_after_a_restart() {
    let states = tempfile::tempdir().expect("a folder");
    for (template, thinks) in ways() {
        let folder = states.path().join(format!("{}{thinks}", template.is_some()));
        let server = serve(template.clone(), Some(&folder));
        let mut client = Client::new(&server, "Gus", thinks);
        client.say("user", "Tell me about a mill.").answer(json!({}));
        client.say("user", "And what does it grind?");
        let body = with(
            &with(&client.base, json!({"messages": client.messages})),
            json!({"logprobs": true, "max_tokens": 24, "temperature": 0.8,
                "chat_template_kwargs": {"enable_thinking": false}}),
        );
        let alone = server.post(CHAT, &with(&body, json!({"cache_prompt": false}))).ok();
        assert_eq!(alone["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "{alone}");
        let expected = logprobs(&alone);
        assert!(expected.len() > 4, "{alone}");
        let cached = |server: &Running| {
            let answer = server.post(CHAT, &body).ok();
            let usage = answer["usage"].clone();
            assert_eq!(logprobs(&answer), expected, "{usage}");
            usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
        };
        assert!(cached(&server) > 0);
        let prompt = alone["usage"]["prompt_tokens"].as_u64().expect("a number");
        assert!(cached(&server) + SLACK >= prompt, "asked twice");
        // Beside a long prompt and two other answers.
        std::thread::scope(|scope| {
            let long = json!({"model": "demo", "max_tokens": 30, "ignore_eos": true,
                "messages": [{"role": "user", "content": "A long tale. ".repeat(400)}]});
            let others =
                [long.clone(), with(&long, json!({"messages": [{"role": "user", "content": "Hi."}]}))];
            let others = others.map(|body| scope.spawn(|| server.post(CHAT, &{ body }).ok()));
            let uncached = server.post(CHAT, &with(&body, json!({"cache_prompt": false}))).ok();
            assert_eq!(logprobs(&uncached), expected, "in company");
            others.into_iter().for_each(|other| drop(other.join().expect("answers")));
        });
        let events = server.stream(CHAT, &with(&body, json!({"stream": true}))).events();
        let streamed: Vec<(Value, u32)> = events
            .iter()
            .filter_map(|(_, data)| serde_json::from_str::<Value>(data).ok())
            .filter(|chunk| chunk["choices"][0]["logprobs"]["content"].is_array())
            .flat_map(|chunk| logprobs(&chunk))
            .collect();
        assert_eq!(streamed, expected, "streamed");
        drop(server);
        let server = serve(template, Some(&folder));
        assert!(cached(&server) + SLACK >= prompt, "after a restart");
    }
}
