//! Errors in the shapes of the APIs.

use serde_json::json;
use tidemill_api::{ApiError, ErrorClass, body};

/// Status, type, code, and Anthropic's type.
fn names(error: &ApiError) -> String {
    let (openai, anthropic) = (error.openai(), error.anthropic("req_1"));
    assert_eq!(anthropic["type"], "error");
    assert_eq!(anthropic["request_id"], "req_1");
    format!(
        "{} {} {} {}",
        error.status(),
        openai["error"]["type"].as_str().unwrap(),
        openai["error"]["code"],
        anthropic["error"]["type"].as_str().unwrap()
    )
}

#[test]
fn names_of_every_class() {
    let classes = [
        ErrorClass::Invalid,
        ErrorClass::Key,
        ErrorClass::Forbidden,
        ErrorClass::NotFound,
        ErrorClass::Method,
        ErrorClass::TooLarge,
        ErrorClass::ContentType,
        ErrorClass::QueueFull,
        ErrorClass::Server,
        ErrorClass::Unavailable,
    ];
    let named = [ApiError::schema("tools[0]", "x"), ApiError::context_length("messages", 10, 20)];
    let rows: Vec<ApiError> =
        classes.map(|class| ApiError::new(class, "x")).into_iter().chain(named).collect();
    insta::assert_snapshot!(rows.iter().map(names).collect::<Vec<_>>().join("\n"), @r#"
    400 invalid_request_error null invalid_request_error
    401 invalid_request_error "invalid_api_key" authentication_error
    403 permission_error null permission_error
    404 not_found_error null not_found_error
    405 invalid_request_error null invalid_request_error
    413 request_too_large null request_too_large
    415 invalid_request_error null invalid_request_error
    429 rate_limit_error "queue_full" rate_limit_error
    500 server_error null api_error
    503 service_unavailable null overloaded_error
    400 invalid_request_error "invalid_schema" invalid_request_error
    400 invalid_request_error "context_length_exceeded" invalid_request_error
    "#);
}

/// The words by which agents know that they must compact.
#[test]
fn a_prompt_that_is_too_long() {
    let error = ApiError::context_length("messages", 4096, 5000);
    insta::assert_snapshot!(error.openai(), @r#"{"error":{"message":"This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens. Please reduce the length of the messages.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#);
    insta::assert_snapshot!(error.anthropic("req_1"), @r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 5000 tokens > 4096 maximum"},"request_id":"req_1"}"#);
}

#[test]
fn the_field_is_named_in_both_shapes() {
    let error = ApiError::invalid("max_tokens".to_owned(), "it must be 1 or more.");
    assert_eq!(error.openai()["error"]["param"], "max_tokens");
    assert_eq!(error.anthropic("r")["error"]["message"], "max_tokens: it must be 1 or more.");
    assert_eq!(ApiError::invalid(None, "x").openai()["error"]["param"], json!(null));
}

#[test]
fn the_engines_errors() {
    let class = |error: engine::Error| ApiError::of_engine(&error).class;
    assert_eq!(class(engine::Error::invalid("x")), ErrorClass::Invalid);
    assert_eq!(class(engine::Error::unsupported("x")), ErrorClass::Invalid);
    assert_eq!(class(engine::Error::corrupt("x")), ErrorClass::Server);
    assert_eq!(class(engine::Error::new(engine::ErrorKind::Device, "x")), ErrorClass::Server);
    assert_eq!(class(engine::Error::new(engine::ErrorKind::Cancelled, "x")), ErrorClass::Unavailable);
    let full = engine::Error::new(engine::ErrorKind::ContextFull, "x");
    assert_eq!(ApiError::of_engine(&full).code, Some("context_length_exceeded"));
}

#[test]
fn paths_of_this_machine_stay_here() {
    for (message, shown) in [
        ("/home/anna/models/x.gguf: I/O error", "x.gguf: I/O error"),
        ("\"/home/anna/My Models/x.gguf\" is short", "\"My x.gguf\" is short"),
        ("C:\\Users\\anna\\x.gguf: gone", "x.gguf: gone"),
        ("models/x.gguf: 12 tokens/s", "x.gguf: 12 tokens/s"),
        ("~/x: and/or", "x: and/or"),
    ] {
        assert_eq!(ApiError::of_engine(&engine::Error::corrupt(message)).message, shown);
    }
    // Those of a request's own schema are the client's.
    let keyword = "tools/f/parameters/properties/a: the keyword \"format\" cannot be kept";
    assert_eq!(ApiError::of_engine(&engine::Error::invalid(keyword)).message, keyword);
}

fn refused(text: impl AsRef<[u8]>) -> (Option<String>, String) {
    let error = body::parse(text.as_ref()).unwrap_err();
    assert_eq!(error.status(), 400);
    (error.param, error.message)
}

#[test]
fn bodies_that_are_no_requests() {
    for (text, word) in [
        (&b"\xff{}"[..], "UTF-8"),
        (b"", "not JSON"),
        (b"{\"a\":", "not JSON"),
        (b"{\"a\":NaN}", "not JSON"),
        (b"[]", "a list"),
        (b"null", "null"),
    ] {
        let (param, message) = refused(text);
        assert!(message.contains(word) && param.is_none(), "{message}");
    }
    let twice = refused(b"{\"a\":1,\"b c\":2,\"b c\":3}");
    assert_eq!(twice, (Some("b c".into()), "`b c` is given twice, at byte 15.".into()));
}

#[test]
fn depth_is_counted_before_anything_is_built() {
    let nested = |depth: usize| {
        format!("{{\"a\":\"[[[\\\"[\",\"metadata\":{}{}}}", "[".repeat(depth), "]".repeat(depth))
    };
    assert!(body::parse(nested(127).as_bytes()).is_ok());
    assert_eq!(refused(nested(128)).0.as_deref(), Some("metadata"));
    // Not even a closing bracket follows.
    assert_eq!(refused(format!("{{\"b\": {{\"c\":{}", "[".repeat(1 << 20))).0.as_deref(), Some("b"));
    assert_eq!(refused("[".repeat(1 << 20)).0, None);
}

#[test]
fn values_are_counted_too() {
    let many = format!("{{\"prompt\":[{}1]}}", "1,".repeat(body::VALUES_MAX));
    let (param, message) = refused(many);
    assert_eq!(param.as_deref(), Some("prompt"));
    assert!(message.contains("1048576"), "{message}");
}

#[test]
fn a_clients_name_is_made_harmless() {
    assert_eq!(body::shown("a b\r\n,é"), "a b??;?");
    assert_eq!(body::shown(&"x".repeat(1000)).len(), 100);
}
