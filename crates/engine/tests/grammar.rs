//! Answers that are held to a form, with random logits in place of a model.

use std::sync::OnceLock;

use files::TensorIndex;
use proptest::prelude::*;
use serde_json::{Value, json};
use tidemill_engine::generate::{FinishReason, GenerateOptions, Generation};
use tidemill_engine::sample::SampleParams;
use tidemill_engine::text::{
    AnswerForm, CallFormat, CallRules, Constraint, ConstraintRequest, Json, ReplyEvent, ReplyOptions,
    ReplyTurn, Specials, Tokenizer, ToolChoice, ToolSpec,
};

use crate::common::root;

/// The demo model's tokenizer, whose markers of calls and thoughts are tokens, and a small one, whose are not.
fn tokenizers() -> &'static [Tokenizer; 2] {
    static BOTH: OnceLock<[Tokenizer; 2]> = OnceLock::new();
    BOTH.get_or_init(|| {
        ["models/demo", "testdata/goldens/qwen3-dense/bf16"]
            .map(|path| Tokenizer::of_model(&TensorIndex::open(&root().join(path)).unwrap().1).unwrap())
    })
}

fn tool(name: &str, parameters: Value) -> ToolSpec {
    let function = json!({"name": name, "parameters": parameters});
    ToolSpec::new(json!({"type": "function", "function": function})).unwrap()
}

fn strict(name: &str, parameters: Value) -> ToolSpec {
    let function = json!({"name": name, "parameters": parameters, "strict": true});
    ToolSpec::new(json!({"type": "function", "function": function})).unwrap()
}

fn weather() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "exact": {"type": "boolean"},
            "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 3},
            "note": {"type": "string", "maxLength": 12},
            "code": {"type": "string", "pattern": "^[a-z]{2}-[0-9]+$"},
        },
        "required": ["city", "days"],
        "$defs": {"place": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "name": {"type": ["string", "null"]}},
            "required": ["x"],
            "additionalProperties": false,
        }},
    })
}

/// Why `value` does not fit, as far as the schemas of these tests go.
fn misfit(value: &Value, schema: &Value, root: &Value) -> Option<String> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return misfit(value, root.pointer(&reference[1..]).unwrap(), root);
    }
    let fail = |what: &str| Some(format!("{what}: {value} for {schema}"));
    if schema.get("enum").is_some_and(|list| !list.as_array().unwrap().contains(value)) {
        return fail("enum");
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|kind| is_a(value, kind)) {
        return fail("type");
    }
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let above = |key: &str, count: usize| bound(key).is_some_and(|most| count as f64 > most);
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap();
            let below = bound("minimum").is_some_and(|least| number < least);
            let bad = below || bound("maximum").is_some_and(|most| number > most);
            if bad { fail("bounds") } else { None }
        }
        Value::String(text) => {
            let (letters, digits) = text.split_once('-').unwrap_or_default();
            let fits = letters.len() == 2 && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let bad = schema.get("pattern").is_some() && !fits;
            if bad || above("maxLength", text.chars().count()) { fail("text") } else { None }
        }
        Value::Array(list) if above("maxItems", list.len()) => fail("maxItems"),
        Value::Array(list) => list.iter().find_map(|item| misfit(item, schema.get("items")?, root)),
        Value::Object(map) => object_misfit(map, schema, root),
        _ => None,
    }
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => value.is_null(),
    }
}

fn object_misfit(map: &serde_json::Map<String, Value>, schema: &Value, root: &Value) -> Option<String> {
    let none = serde_json::Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let inner = map.iter().find_map(|(key, value)| misfit(value, properties.get(key)?, root));
    let more = map.keys().any(|key| !properties.contains_key(key));
    let mut required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    // Keys come in the schema's order.
    let place = |key: &String| properties.keys().position(|declared| declared == key);
    let order: Vec<usize> = map.keys().filter_map(place).collect();
    match () {
        () if inner.is_some() => inner,
        () if more && schema.get("additionalProperties") == Some(&Value::Bool(false)) => {
            Some(format!("more: {map:?}"))
        }
        () if required.any(|key| !map.contains_key(key.as_str().unwrap())) => {
            Some(format!("required: {map:?}"))
        }
        () if !order.is_sorted() => Some(format!("order: {map:?}")),
        () => None,
    }
}

/// A model that knows nothing but how values end: random logits, better ones for what ends a value, and best ones for what
/// goes on with a closing tag that has begun.
struct Noise<'a> {
    tokenizer: &'a Tokenizer,
    state: u64,
    base: Vec<f32>,
    next: Vec<(u32, u32)>,
}

impl<'a> Noise<'a> {
    fn new(tokenizer: &'a Tokenizer, seed: u64) -> Self {
        let mut base = vec![0.0; tokenizer.vocab_size()];
        for id in 0..base.len() as u32 {
            let text = tokenizer.token_bytes(id);
            base[id as usize] = match text {
                b"\"" | b"}" | b"]" | b"\"}" | b"\"," => 7.0,
                b"\n" => 5.0,
                b" " | b"  " | b"\t" => 4.0,
                _ if tokenizer.end_tokens().contains(&id) => 6.0,
                _ => 0.0,
            };
        }
        let encode = |text: &str| tokenizer.encode(text, Specials::Ignore).unwrap();
        let tails = ["\n</parameter>\n", "</function>\n", "</tool_call>"].map(encode);
        let next = tails.iter().flat_map(|ids| ids.windows(2).map(|pair| (pair[0], pair[1]))).collect();
        Self { tokenizer, state: seed | 1, base, next }
    }

    fn logits(&mut self, last: Option<u32>) -> Vec<f32> {
        let mut logits = self.base.clone();
        for logit in &mut logits {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            *logit += (self.state >> 40) as f32 / (1 << 22) as f32;
        }
        for (_, then) in self.next.iter().filter(|(first, _)| Some(*first) == last) {
            logits[*then as usize] += 12.0;
        }
        logits
    }
}

struct Made {
    events: Vec<ReplyEvent>,
    turn: ReplyTurn,
    finish: FinishReason,
    tokens: Vec<u32>,
}

/// Says `first`, then what the noise says, 400 tokens at most.
fn make(tokenizer: &Tokenizer, options: &GenerateOptions, first: &str, seed: u64) -> Made {
    let options = GenerateOptions { max_tokens: Some(400), ..options.clone() };
    let mut generation = Generation::new(tokenizer, &options).unwrap();
    let mut noise = Noise::new(tokenizer, seed);
    let mut events = Vec::new();
    for token in tokenizer.encode(first, Specials::Parse).unwrap() {
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        logits[token as usize] = 1000.0;
        events.extend(generation.accept(&logits, &[], usize::MAX).unwrap());
        assert_eq!(
            generation.tokens().last(),
            Some(&token),
            "{first:?} is not held: {:?}",
            noise.tokenizer.token_name(token)
        );
    }
    while generation.finish().is_none() {
        let logits = noise.logits(generation.tokens().last().copied());
        events.extend(generation.accept(&logits, &[], usize::MAX).unwrap());
    }
    let mut turn = ReplyTurn::default();
    events.iter().for_each(|event| turn.take(event));
    let finish = generation.finish().unwrap();
    Made { events, turn, finish, tokens: generation.tokens().to_vec() }
}

fn sampled(seed: u64) -> GenerateOptions {
    let sampling = SampleParams { seed: Some(seed), ..SampleParams::default() };
    GenerateOptions { sampling, ..GenerateOptions::default() }
}

fn calls(format: &str, tools: &[ToolSpec], choice: ToolChoice, parallel: bool) -> ConstraintRequest {
    let format = CallFormat::named(format).unwrap();
    let calls = Some(CallRules { format, tools: tools.to_vec(), choice, parallel });
    ConstraintRequest { calls, ..ConstraintRequest::default() }
}

fn answer(form: AnswerForm) -> ConstraintRequest {
    ConstraintRequest { answer: Some(form), ..ConstraintRequest::default() }
}

fn schema(value: Value) -> AnswerForm {
    AnswerForm::JsonSchema(value.into())
}

fn options(
    tokenizer: &Tokenizer,
    request: &ConstraintRequest,
    reply: ReplyOptions,
    seed: u64,
) -> GenerateOptions {
    let constraint = Some(Constraint::new(tokenizer, request).unwrap());
    GenerateOptions { constraint, reply: Some(reply), ..sampled(seed) }
}

fn check_calls(made: &Made, tools: &[ToolSpec]) {
    // The one way to an unfinished call is that there are no more tokens.
    for event in &made.events {
        if let ReplyEvent::MalformedToolCall { reason, .. } | ReplyEvent::BrokenToolCall { reason, .. } =
            event
        {
            assert_eq!(made.finish, FinishReason::Length, "{reason}: {:?}", made.turn);
        }
    }
    for call in &made.turn.calls {
        let tool = tools.iter().find(|tool| tool.name() == call.name).unwrap();
        let arguments: Value = serde_json::from_str(&call.arguments.to_string()).unwrap();
        let parameters: Value = serde_json::from_str(&tool.parameters().unwrap().to_string()).unwrap();
        assert_eq!(misfit(&arguments, &parameters, &parameters), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn required_calls_fit_their_schemas(seed: u64, xml: bool, small: bool, parallel: bool) {
        let tokenizer = &tokenizers()[usize::from(small)];
        let tools = [tool("weather", weather()), tool("stop", json!({"type": "object", "properties": {}}))];
        let request = calls(if xml { "xml" } else { "json" }, &tools, ToolChoice::Required, parallel);
        let reply = ReplyOptions { tools: tools.to_vec(), ..ReplyOptions::default() };
        let made = make(tokenizer, &options(tokenizer, &request, reply, seed), "", seed);
        check_calls(&made, &tools);
        if made.finish == FinishReason::Stop {
            prop_assert_eq!(&made.turn.text, "");
            prop_assert!(!made.turn.calls.is_empty());
            prop_assert!(parallel || made.turn.calls.len() == 1);
        }
    }

    #[test]
    fn a_call_in_free_text_fits_its_schema(seed: u64, xml: bool, small: bool) {
        let tokenizer = &tokenizers()[usize::from(small)];
        let tools = [tool("weather", weather())];
        let request = calls(if xml { "xml" } else { "json" }, &tools, ToolChoice::Auto, false);
        let reply = ReplyOptions { tools: tools.to_vec(), ..ReplyOptions::default() };
        let made = make(tokenizer, &options(tokenizer, &request, reply, seed), "Let me see.\n<tool_call>", seed);
        check_calls(&made, &tools);
        prop_assert_eq!(&made.turn.text.as_str()[..11], "Let me see.");
        prop_assert!(made.finish == FinishReason::Length || made.turn.calls.len() == 1, "{:?}", made.turn);
    }

    #[test]
    fn json_fits_its_schema(seed: u64, small: bool) {
        let tokenizer = &tokenizers()[usize::from(small)];
        let request = answer(schema(weather()));
        let made = make(tokenizer, &options(tokenizer, &request, ReplyOptions::default(), seed), "", seed);
        if made.finish == FinishReason::Stop {
            let value: Value = serde_json::from_str(&made.turn.text).unwrap();
            prop_assert_eq!(misfit(&value, &weather(), &weather()), None);
        }
        // White space ends, whatever the model likes best.
        prop_assert!(!made.turn.text.contains(&" ".repeat(21)) && !made.turn.text.contains("\n\n"));
    }
}

#[test]
fn most_answers_end() {
    let tokenizer = &tokenizers()[0];
    let tools = [tool("weather", weather())];
    for format in ["xml", "json"] {
        let request = calls(format, &tools, ToolChoice::Required, false);
        let reply = || ReplyOptions { tools: tools.to_vec(), ..ReplyOptions::default() };
        let ended = (0..6).filter(|seed| {
            make(tokenizer, &options(tokenizer, &request, reply(), *seed), "", seed * 77 + 5).finish
                == FinishReason::Stop
        });
        assert!(ended.count() >= 3, "{format}");
    }
}

#[test]
fn other_forms() {
    for tokenizer in tokenizers() {
        for (form, fits) in [
            (
                AnswerForm::Choice(vec!["yes".into(), "no".into()]),
                (&|t: &str| t == "yes" || t == "no") as &dyn Fn(&str) -> bool,
            ),
            (AnswerForm::Regex("[0-9]{3}-[a-c]".into()), &|t| t.len() == 5 && t.as_bytes()[3] == b'-'),
            (AnswerForm::Lark("start: \"a\" \"b\"? \"c\"".into()), &|t| t == "abc" || t == "ac"),
            (AnswerForm::JsonObject, &|t| t.starts_with('{')),
        ] {
            let constraint = Some(Constraint::new(tokenizer, &answer(form.clone())).unwrap());
            for seed in 0..6 {
                let options = GenerateOptions { constraint: constraint.clone(), ..sampled(seed) };
                let made = make(tokenizer, &options, "", seed + 1);
                assert!(fits(&made.turn.text), "{form:?} {:?}", made.turn.text);
            }
        }
    }
}

#[test]
fn thoughts_are_free() {
    let tokenizer = &tokenizers()[0];
    let form = AnswerForm::Choice(vec!["yes".into(), "no".into()]);
    let request = ConstraintRequest { may_think: true, ..answer(form.clone()) };
    for (opens_thinking, first) in
        [(false, "<think>\nHm, {\n</think>\n\n"), (true, "Hm, {\n</think>\n\n"), (true, "Hm, {</think>")]
    {
        let reply = ReplyOptions { opens_thinking, ..ReplyOptions::default() };
        let made = make(tokenizer, &options(tokenizer, &request, reply, 3), first, 9);
        assert_eq!(made.turn.thinking, "Hm, {");
        assert!(["yes", "no"].contains(&made.turn.text.as_str()), "{:?}", made.turn);
        assert_eq!(made.finish, FinishReason::Stop);
    }
    // Where it may not think, the form holds from the first token on.
    let made = make(tokenizer, &options(tokenizer, &answer(form), ReplyOptions::default(), 3), "", 9);
    assert!(made.tokens.len() <= 3 && ["yes", "no"].contains(&made.turn.text.as_str()));
}

#[test]
fn one_tool_and_answers_beside_calls() {
    let tokenizer = &tokenizers()[0];
    let tools = [tool("a", json!({"type": "object"})), tool("b", json!({"type": "object"}))];
    let reply = || ReplyOptions { tools: tools.to_vec(), ..ReplyOptions::default() };
    for format in ["xml", "json"] {
        for seed in 0..4 {
            let request = calls(format, &tools, ToolChoice::Tool("b".into()), false);
            let made = make(tokenizer, &options(tokenizer, &request, reply(), seed), "", seed + 1);
            assert_eq!(made.turn.calls.len(), 1);
            assert_eq!(made.turn.calls[0].name, "b");
            let both = ConstraintRequest {
                answer: Some(AnswerForm::Choice(vec!["none".into()])),
                ..calls(format, &tools, ToolChoice::Auto, true)
            };
            let made = make(tokenizer, &options(tokenizer, &both, reply(), seed), "", seed + 1);
            assert!(
                made.turn.text == "none"
                    || !made.turn.calls.is_empty()
                    || made.finish == FinishReason::Length
            );
        }
    }
    let request = calls("xml", &tools, ToolChoice::Tool("c".into()), false);
    assert!(Constraint::new(tokenizer, &request).unwrap_err().message().contains("\"c\""));
}

#[test]
fn what_cannot_be_kept_is_named() {
    let tokenizer = &tokenizers()[1];
    for (value, word) in [
        (json!({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}), "not"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "string", "format": "phone"}), "format"),
        (json!({"type": "string", "minLength": 9, "maxLength": 3}), "minLength"),
        (json!({"type": "string", "minLength": 4_000_000_000u64, "maxLength": 3}), "minLength"),
        (json!({"enum": []}), "nothing fits"),
        (json!({"$ref": "#"}), "nothing fits"),
        (json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "nothing fits"),
        (
            json!({"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}),
            "nothing fits",
        ),
        (json!({"$ref": "https://example.com/x"}), "$ref"),
        (json!({"type": "string", "pattern": "(?=a)b"}), "pattern"),
        (json!({"type": "strong"}), "strong"),
        (json!(false), "nothing fits"),
        (json!([1]), "schema"),
        (json!({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}), "oneOf"),
    ] {
        let e = Constraint::new(tokenizer, &answer(schema(value.clone())))
            .err()
            .unwrap_or_else(|| panic!("{value}"));
        assert_eq!(e.kind(), files::ErrorKind::InvalidRequest);
        assert!(e.message().contains(word), "{value}: {}", e.message());
    }
    for (form, word) in [
        (AnswerForm::Regex("(".into()), "regex"),
        (AnswerForm::Lark("start: nothing".into()), "nothing"),
        (AnswerForm::Choice(Vec::new()), "empty"),
    ] {
        let e = Constraint::new(tokenizer, &answer(form.clone())).err().unwrap_or_else(|| panic!("{form:?}"));
        assert!(e.message().contains(word), "{form:?}: {}", e.message());
    }
}

#[test]
fn tools_lose_what_cannot_be_kept() {
    let tokenizer = &tokenizers()[1];
    let parameters = json!({"type": "object", "properties": {
        "a": {"type": "array", "items": {"type": "string"}, "uniqueItems": true},
        "b": {"type": "string", "format": "phone"},
        "c": {"type": "string", "pattern": "(?=x)y"},
        "not": {"type": "string"},
    }, "if": {"required": ["a"]}});
    for format in ["xml", "json"] {
        let tools = [tool("f", parameters.clone()), tool("g", weather())];
        let constraint = Constraint::new(tokenizer, &calls(format, &tools, ToolChoice::Auto, true)).unwrap();
        let left_out = constraint.left_out().join("\n");
        for part in ["f: parameters/properties/a/uniqueItems", "f: parameters/if", "pattern"] {
            assert!(left_out.contains(part), "{format}: {left_out}");
        }
        assert!(!left_out.contains(" g:") && !left_out.contains("/not"), "{left_out}");
        let tools = [strict("f", parameters.clone())];
        let e = Constraint::new(tokenizer, &calls(format, &tools, ToolChoice::Auto, true)).err().unwrap();
        assert!(e.message().contains("f: parameters"), "{e}");
        let tools =
            [tool("f", json!({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}))];
        assert!(Constraint::new(tokenizer, &calls(format, &tools, ToolChoice::Auto, true)).is_err());
    }
}

#[test]
fn the_grammar_reads_what_templates_write() {
    let names = [
        "Qwen3.5-4B",
        "Qwen3-Coder",
        "Qwen-Qwen3-0.6B",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        "GLM-4.6",
        "openai-gpt-oss-120b",
    ];
    let found = names.map(|name| {
        let source =
            std::fs::read_to_string(root().join(format!("testdata/text/templates/{name}.jinja"))).unwrap();
        tidemill_engine::text::Template::new(&source).unwrap().call_format().map(CallFormat::name)
    });
    assert_eq!(found, [Some("xml"), Some("xml"), Some("json"), Some("json"), None, None]);
    let demo = std::fs::read_to_string(root().join("models/demo/chat_template.jinja")).unwrap();
    assert!(tidemill_engine::text::Template::new(&demo).unwrap().call_format().is_some());
}

#[test]
fn values_hold_what_they_may() {
    let tokenizer = &tokenizers()[0];
    let tools = [tool("weather", weather())];
    let request = calls("xml", &tools, ToolChoice::Required, false);
    let reply = ReplyOptions { tools: tools.to_vec(), ..ReplyOptions::default() };
    let city = "a </function> <b>\n\n{\"x\": 1}\n</tool_call> é";
    let said = format!(
        "<tool_call>\n<function=weather>\n<parameter=city>\n{city}\n</parameter>\n<parameter=unit>\nF\n</parameter>\n\
         <parameter=days>\n3\n</parameter>\n<parameter=places>\n[{{\"x\": 1.5, \"name\": null}}]\n</parameter>\n\
         <parameter=code>\nab-12\n</parameter>\n</function>\n</tool_call>"
    );
    let made = make(tokenizer, &options(tokenizer, &request, reply, 1), &said, 1);
    let want =
        json!({"city": city, "unit": "F", "days": 3, "places": [{"x": 1.5, "name": null}], "code": "ab-12"});
    assert_eq!(made.turn.calls.len(), 1);
    assert_eq!(made.turn.calls[0].arguments, Json::from(want));
    assert_eq!(made.finish, FinishReason::Stop);
}

/// A closing tag that only begins is text, also where its length is counted and its form is looked at.
#[test]
fn texts_with_bounds_hold_the_beginnings_of_tags() {
    let tokenizer = &tokenizers()[0];
    let cases = [
        (json!({"type": "string", "maxLength": 5000}), "<p>x</p> <</parameter"),
        (json!({"type": "string", "pattern": "^\\S+ \\S+$", "maxLength": 60}), "ab<parameter"),
    ];
    for (bound, text) in cases {
        let tools = [tool("f", json!({"type": "object", "properties": {"a": bound}, "required": ["a"]}))];
        let request = calls("xml", &tools, ToolChoice::Required, false);
        let reply = ReplyOptions { tools: tools.to_vec(), ..ReplyOptions::default() };
        let options = options(tokenizer, &request, reply, 7);
        let said = format!("<tool_call>\n<function=f>\n<parameter=a>\n{text}");
        for call in make(tokenizer, &options, &said, 7).turn.calls {
            let value = call.arguments.get("a").and_then(Json::as_str).unwrap();
            assert!(value.starts_with(text), "{value:?}");
        }
    }
}

#[test]
fn many_tools_and_alternatives_are_held() {
    let tokenizer = &tokenizers()[0];
    let tools: Vec<_> =
        (0..1200).map(|i| tool(&format!("tool_{i}"), json!({"type": "object", "properties": {}}))).collect();
    for format in ["xml", "json"] {
        let request = calls(format, &tools, ToolChoice::Required, false);
        let reply = ReplyOptions { tools: tools.clone(), ..ReplyOptions::default() };
        let made = make(tokenizer, &options(tokenizer, &request, reply, 3), "", 3);
        assert_eq!(made.turn.calls.len(), 1, "{:?}", made.turn);
    }
    let one = |i| json!({"type": "object", "properties": {format!("k{i}"): {"type": "string"}, "z": {}}});
    let any: Vec<Value> = (0..300).map(one).collect();
    let request = answer(schema(json!({"anyOf": any})));
    let reply = ReplyOptions::default();
    let made = make(tokenizer, &options(tokenizer, &request, reply, 3), "{\"k7\": \"a\", ", 3);
    assert!(made.turn.text.starts_with("{\"k7\": \"a\", "), "{:?}", made.turn);
}

/// Each of these took seconds and gigabytes, or the compiler's numbers overflowed.
#[test]
fn what_costs_too_much_together_is_refused() {
    let tokenizer = &tokenizers()[0];
    let patterns: Vec<Value> = (0..200).map(|i| json!({"pattern": format!("a{{{i}}}b")})).collect();
    let properties: serde_json::Map<_, _> = (0..2000).map(|i| (format!("p{i}"), json!({}))).collect();
    let cases = [
        (json!({"type": "string", "allOf": patterns}), "\"pattern\""),
        (
            json!({"properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$defs": {"a": {"allOf": patterns}}}),
            "\"pattern\"",
        ),
        (json!({"type": "object", "properties": properties}), "\"properties\""),
        (json!({"allOf": [{"multipleOf": 99991}, {"multipleOf": 99989}]}), "\"multipleOf\""),
    ];
    for (schema_, keyword) in cases {
        let e = Constraint::new(tokenizer, &answer(schema(schema_))).err().unwrap();
        assert!(e.message().contains("too large") && e.message().contains(keyword), "{e}");
    }
    let date = json!({"type": "string", "format": "date"});
    let dates: serde_json::Map<_, _> = (0..9).map(|i| (format!("d{i}"), date.clone())).collect();
    let mut chain: serde_json::Map<_, _> = (0..30)
        .map(|i| (format!("c{i}"), json!({"allOf": vec![json!({"$ref": format!("#/$defs/c{}", i + 1)}); 2]})))
        .collect();
    chain.insert("c30".into(), json!({"type": "string"}));
    for few in [
        json!({"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "b$"}]}),
        json!({"allOf": [{"type": "object", "properties": dates}, {"properties": {"n": {"multipleOf": 5}}}]}),
        json!({"$ref": "#/$defs/c0", "$defs": chain}),
    ] {
        assert!(Constraint::new(tokenizer, &answer(schema(few.clone()))).is_ok(), "{few}");
    }
}
