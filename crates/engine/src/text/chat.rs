//! Messages, tool calls and tool definitions, in the JSON shapes of the OpenAI chat API.

use std::sync::Arc;

use files::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json::{Json, JsonMap};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The operator's instructions.
    System,
    /// Instructions of the application; some templates know only `system`.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// As the APIs write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// The content of a message: one text, or a list of parts such as `{"type": "text", "text": "…"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts, as the request had them.
    Parts(Vec<Map<String, Value>>),
}

impl Content {
    /// All text of the content, parts joined without a separator.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => parts.iter().filter_map(|p| p.get("text")?.as_str()).collect(),
        }
    }

    fn template_value(&self) -> Json {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Parts(parts) => {
                Json::Array(parts.iter().map(|p| Value::Object(p.clone()).into()).collect())
            }
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; absent in a message that only calls tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The model's thoughts before the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls that the model makes.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The speaker's or tool's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tokens as which the model wrote this turn, if they are known: see [`Model::recall`](crate::Model::recall).
    #[serde(skip)]
    pub written: Option<Arc<[u32]>>,
    /// Other fields of the request, which some templates read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<ToolCall>, D::Error> {
    Ok(Option::<Vec<ToolCall>>::deserialize(deserializer)?.unwrap_or_default())
}

impl Message {
    /// A message with text and nothing else.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(Content::Text(content.into())),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            written: None,
            extra: Map::new(),
        }
    }

    /// The shape that templates read: as in the API, but a call's arguments are an object, and a message
    /// without content has an empty one.
    pub fn template_value(&self) -> Json {
        let mut map = JsonMap::new();
        map.insert("role".into(), self.role.name().into());
        // Many templates add the content to a text without looking whether there is any.
        map.insert("content".into(), self.content.as_ref().map_or("".into(), Content::template_value));
        if let Some(reasoning) = &self.reasoning_content {
            map.insert("reasoning_content".into(), reasoning.as_str().into());
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(ToolCall::template_value).collect();
            map.insert("tool_calls".into(), Json::Array(calls));
        }
        if let Some(id) = &self.tool_call_id {
            map.insert("tool_call_id".into(), id.as_str().into());
        }
        if let Some(name) = &self.name {
            map.insert("name".into(), name.as_str().into());
        }
        for (key, value) in &self.extra {
            map.entry(key.clone()).or_insert_with(|| value.clone().into());
        }
        Json::Object(map)
    }
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "WireCall", into = "WireCall")]
pub struct ToolCall {
    /// Names the call, so that its result can refer to it. May be empty.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments, an object; anything else only where the request wrote it so. Numbers keep their digits.
    pub arguments: Json,
}

impl ToolCall {
    /// The shape that templates read.
    pub fn template_value(&self) -> Json {
        let function = [("name", self.name.as_str().into()), ("arguments", self.arguments.clone())];
        let mut map = JsonMap::new();
        if !self.id.is_empty() {
            map.insert("id".into(), self.id.as_str().into());
        }
        map.insert("type".into(), "function".into());
        let function = function.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        map.insert("function".into(), Json::Object(function));
        Json::Object(map)
    }
}

/// The API's shape: `{"id", "type": "function", "function": {"name", "arguments": "<JSON text>"}}`.
#[derive(Clone, Serialize, Deserialize)]
struct WireCall {
    #[serde(default)]
    id: Option<String>,
    #[serde(rename = "type", default = "function")]
    kind: String,
    function: WireFunction,
}

#[derive(Clone, Serialize, Deserialize)]
struct WireFunction {
    name: String,
    #[serde(default)]
    arguments: Json,
}

fn function() -> String {
    "function".into()
}

impl From<WireCall> for ToolCall {
    fn from(wire: WireCall) -> Self {
        // The API writes arguments as JSON text, templates and many clients as an object.
        let arguments = match wire.function.arguments {
            Json::Null => Json::Object(JsonMap::new()),
            Json::String(text) if text.trim().is_empty() => Json::Object(JsonMap::new()),
            Json::String(text) => match Json::parse(&text) {
                Ok(Json::Object(map)) => Json::Object(map),
                _ => Json::String(text),
            },
            other => other,
        };
        Self { id: wire.id.unwrap_or_default(), name: wire.function.name, arguments }
    }
}

impl From<ToolCall> for WireCall {
    fn from(call: ToolCall) -> Self {
        let arguments = match call.arguments {
            Json::String(text) => text,
            other => other.to_string(),
        };
        let function = WireFunction { name: call.name, arguments: arguments.into() };
        Self { id: Some(call.id).filter(|id| !id.is_empty()), kind: self::function(), function }
    }
}

/// The definition of a tool, kept as the request wrote it: templates print it, key order included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
pub struct ToolSpec {
    value: Json,
}

impl ToolSpec {
    /// Takes `{"type": "function", "function": {"name", "description", "parameters"}}`.
    pub fn new(value: impl Into<Json>) -> Result<Self> {
        let value = value.into();
        let function = value.get("function").filter(|f| f.as_object().is_some());
        let function =
            function.ok_or_else(|| Error::invalid("tools: an entry has no object \"function\""))?;
        if function.get("name").and_then(Json::as_str).is_none_or(str::is_empty) {
            return Err(Error::invalid("tools: an entry has no \"function\".\"name\""));
        }
        Ok(Self { value })
    }

    /// The tool's name.
    pub fn name(&self) -> &str {
        self.function("name").and_then(Json::as_str).unwrap_or_default()
    }

    /// The JSON schema of the argument `key`, if the tool declares one.
    pub fn parameter(&self, key: &str) -> Option<&Json> {
        self.properties()?.get(key)
    }

    /// The arguments that the tool declares, with their schemas.
    pub fn properties(&self) -> Option<&JsonMap> {
        self.parameters()?.get("properties")?.as_object()
    }

    /// Whether the request wants the arguments to fit their schema in all its keywords.
    pub fn is_strict(&self) -> bool {
        self.function("strict") == Some(&Json::Bool(true))
    }

    /// The JSON schema of the arguments.
    pub fn parameters(&self) -> Option<&Json> {
        self.function("parameters")
    }

    fn function(&self, key: &str) -> Option<&Json> {
        self.value.get("function")?.get(key)
    }

    /// The definition as the request wrote it.
    pub fn value(&self) -> &Json {
        &self.value
    }
}

impl TryFrom<Json> for ToolSpec {
    type Error = Error;

    fn try_from(value: Json) -> Result<Self> {
        Self::new(value)
    }
}

impl From<ToolSpec> for Json {
    fn from(spec: ToolSpec) -> Self {
        spec.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_and_writes_the_api_shapes() {
        let text = r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function",
            "function":{"name":"f","arguments":"{\"b\":1,\"a\":\"x\"}"}}],"prefix":true}"#;
        let message: Message = serde_json::from_str(text).unwrap();
        assert_eq!(message.content, None);
        assert_eq!(message.tool_calls[0].arguments, json!({"b": 1, "a": "x"}));
        assert_eq!(message.extra["prefix"], json!(true));
        let back = serde_json::to_value(&message).unwrap();
        assert_eq!(back["tool_calls"][0]["function"]["arguments"], json!(r#"{"b":1,"a":"x"}"#));
        let template = message.template_value();
        let call = &template.get("tool_calls").and_then(Json::as_array).unwrap()[0];
        assert_eq!(call.get("function").unwrap().get("arguments").unwrap(), &json!({"b": 1, "a": "x"}));
        assert_eq!(template.get("content"), Some(&Json::from("")));
    }

    /// Whether a client writes the arguments as text or as an object.
    #[test]
    fn digits_of_arguments_pass_through() {
        for arguments in [
            r#""{\"n\":98765432109876543210,\"x\":[1.0,1e400]}""#,
            r#"{"n":98765432109876543210,"x":[1.0,1e400]}"#,
        ] {
            let text = format!(
                r#"{{"role":"assistant","tool_calls":[{{"function":{{"name":"f","arguments":{arguments}}}}}]}}"#
            );
            let message: Message = serde_json::from_str(&text).unwrap();
            let back = serde_json::to_string(&message).unwrap();
            assert!(back.contains(r#""{\"n\":98765432109876543210,\"x\":[1.0,1e400]}""#), "{back}");
        }
        let tool =
            r#"{"type":"function","function":{"name":"f","parameters":{"maximum":98765432109876543210}}}"#;
        let spec: ToolSpec = serde_json::from_str(tool).unwrap();
        assert_eq!(spec.value().to_string(), tool);
    }

    #[test]
    fn parts_and_refusals() {
        let text = r#"{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}"#;
        let message: Message = serde_json::from_str(text).unwrap();
        assert_eq!(message.content.map(|c| c.text()).as_deref(), Some("ab"));
        assert!(serde_json::from_str::<Message>(r#"{"role":"robot","content":"x"}"#).is_err());
        let unnamed = serde_json::from_str::<ToolSpec>(r#"{"type":"function","function":{}}"#);
        assert!(unnamed.unwrap_err().to_string().contains("name"));
    }
}
