//! What values the fields of requests take, as data: the tables name a shape for each field, and the OpenAPI document is
//! made of them. What is read and what is said of it are held together by a test that feeds each field with values inside
//! and outside its shape.

mod replies;
mod requests;

use engine::text::Json;
use serde_json::{Map, Value, json};

use crate::Limits;
use crate::fields::{Field, FieldKind};

pub use replies::replies;
pub use requests::requests;

/// The values that a field takes, besides `null`, which stands for its absence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Any: it is not looked at.
    Any,
    /// `true` or `false`.
    Flag,
    /// A string.
    Text,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A whole number from the first to the second; `u64::MAX` stands for no end.
    Whole(u64, u64),
    /// A whole number, or -1 for none.
    WholeOrNone,
    /// A whole number of 64 bits, signed or not.
    Seed,
    /// As many as a request may have choices.
    Choices,
    /// A number from the first to the second.
    Number(f64, f64),
    /// A number above 0, up to this one.
    Above0(f64),
    /// An object with any members.
    Object,
    /// A JSON schema.
    Schema,
    /// A list of strings.
    Texts,
    /// A list of token ids, of at least one.
    Tokens,
    /// A list of at least one string, and at most so many.
    SomeTexts(usize),
    /// A string or a list of strings, so many of so many bytes at most.
    TextOrTexts(usize, usize),
    /// An object of numbers from the second to the third by token ids, so many at most.
    Biases(usize, f64, f64),
    /// What [`requests`] describes under this name.
    Named(&'static str),
}

/// A reference to a named schema.
pub fn named(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// Schemas by name.
type Named = Vec<(&'static str, Value)>;

fn text() -> Value {
    json!({"type": "string"})
}

fn one_of_texts(names: &[&str]) -> Value {
    json!({"type": "string", "enum": names})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn any_of(schemas: &[Value]) -> Value {
    json!({"anyOf": schemas})
}

/// An object whose members `required` must be there.
fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

/// The least and the most of whole numbers or numbers.
fn between(kind: &str, least: &Value, most: &Value) -> Value {
    json!({"type": kind, "minimum": least, "maximum": most})
}

impl Shape {
    /// The shape as a JSON schema.
    pub fn schema(&self, limits: &Limits) -> Value {
        match *self {
            Self::Any => json!({}),
            Self::Flag => json!({"type": "boolean"}),
            Self::Text => text(),
            Self::OneOf(names) => one_of_texts(names),
            Self::Whole(least, u64::MAX) => json!({"type": "integer", "minimum": least}),
            Self::Whole(least, most) => between("integer", &json!(least), &json!(most)),
            Self::WholeOrNone => json!({"type": "integer", "minimum": -1}),
            Self::Seed => between("integer", &json!(i64::MIN), &json!(u64::MAX)),
            Self::Choices => Self::Whole(1, limits.choices_max.max(1) as u64).schema(limits),
            Self::Number(least, most) => between("number", &json!(least), &json!(most)),
            Self::Above0(most) => json!({"type": "number", "exclusiveMinimum": 0, "maximum": most}),
            Self::Object => json!({"type": "object"}),
            Self::Schema => json!({"type": ["object", "boolean"]}),
            Self::Tokens => {
                json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1})
            }
            Self::Texts => list(text()),
            Self::SomeTexts(most) => {
                json!({"type": "array", "items": text(), "minItems": 1, "maxItems": most})
            }
            Self::TextOrTexts(most, bytes) => {
                let text = json!({"type": "string", "maxLength": bytes});
                any_of(&[text.clone(), json!({"type": "array", "items": text, "maxItems": most})])
            }
            Self::Biases(most, low, high) => json!({
                "type": "object",
                "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                "additionalProperties": between("number", &json!(low), &json!(high)),
                "maxProperties": most,
            }),
            Self::Named(name) => named(name),
        }
    }
}

/// The schema of a body whose fields are those of `table`. What `spared` names need not be there after all.
pub fn body(table: &[Field], spared: &[&str], limits: &Limits) -> Value {
    let mut body = members(table, "", limits);
    let needed = table.iter().filter(|field| field.needed && !spared.contains(&field.path));
    body["required"] = needed.map(|field| field.path).collect();
    body
}

/// The object whose members stand in `table` below `prefix`.
fn members(table: &[Field], prefix: &str, limits: &Limits) -> Value {
    let mut properties = Map::new();
    for field in table {
        let Some(rest) = field.path.strip_prefix(prefix) else { continue };
        match rest.split_once('.') {
            None => _ = properties.insert(rest.to_owned(), property(field, limits)),
            Some((outer, _)) if !properties.contains_key(outer) => {
                let below = members(table, &format!("{prefix}{outer}."), limits);
                properties.insert(outer.to_owned(), or_null(below));
            }
            Some(_) => {}
        }
    }
    json!({"type": "object", "properties": properties})
}

fn property(field: &Field, limits: &Limits) -> Value {
    let mut schema = match field.kind {
        FieldKind::Refused(harmless) => {
            let values = harmless.iter().filter_map(|text| Json::parse(text).ok());
            let values = values.map(|value| crate::body::lossy(&value));
            let values: Vec<Value> = [Value::Null].into_iter().chain(values).collect();
            json!({"enum": values})
        }
        _ if field.needed => field.shape.schema(limits),
        _ if field.shape == Shape::Any => json!({}),
        _ => or_null(field.shape.schema(limits)),
    };
    let text = match field.kind {
        FieldKind::Honoured => field.note.to_owned(),
        FieldKind::Inert | FieldKind::InertAs(_) => {
            format!("Without effect. {}", field.note).trim_end().to_owned()
        }
        FieldKind::Refused(_) => format!("Refused: {}.", field.note),
    };
    if !text.is_empty() {
        schema["description"] = text.into();
    }
    schema
}

/// The same, or `null`, which all fields take for their absence.
fn or_null(schema: Value) -> Value {
    match schema.get("type").and_then(Value::as_str) {
        Some(kind) if schema.get("enum").is_none() => {
            let kinds = json!([kind, "null"]);
            let mut schema = schema;
            schema["type"] = kinds;
            schema
        }
        _ => any_of(&[schema, json!({"type": "null"})]),
    }
}
