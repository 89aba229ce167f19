//! What is sent.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::{Quirks, Structured};
use crate::providers::{ChatRequest, ProviderError, wire};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<&'a str>,
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop_sequences: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<[Tool<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<ToolChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct OutputConfig<'a> {
    format: Format<'a>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "json_schema")]
struct Format<'a> {
    schema: Boundless<'a>,
}

#[derive(Serialize)]
struct Tool<'a> {
    name: &'static str,
    description: &'static str,
    input_schema: &'a Value,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "tool")]
struct ToolChoice {
    name: &'static str,
    disable_parallel_tool_use: bool,
}

/// The tool that a model has to call with its answer.
const RECORD: &str = "record";

/// The body, from borrowed parts: prompts are long and not copied before they are written.
pub(super) fn body(request: &ChatRequest, quirks: Quirks, streamed: bool) -> Result<Vec<u8>, ProviderError> {
    let schema = |way| request.schema.as_deref().filter(|_| quirks.structured == way);
    let system = wire::told_in_words(request.system.as_deref(), schema(Structured::Prompt));
    let body = Body {
        model: &request.model,
        max_tokens: request.max_tokens,
        system: system.as_deref(),
        messages: request.messages.iter().map(|message| Message { role: message.role.as_str(), content: &message.text }).collect(),
        temperature: request.temperature.filter(|_| quirks.sampling),
        top_p: request.top_p.filter(|_| quirks.sampling),
        stop_sequences: &request.stop,
        output_config: schema(Structured::Native).map(|schema| OutputConfig { format: Format { schema: Boundless(schema) } }),
        tools: schema(Structured::Tool).map(|schema| [Tool { name: RECORD, description: "Records the answer.", input_schema: schema }]),
        tool_choice: schema(Structured::Tool).map(|_| ToolChoice { name: RECORD, disable_parallel_tool_use: true }),
        stream: streamed.then_some(true),
    };
    wire::body(&body, request.bytes() + 4096)
}

/// A schema without the bounds that `output_config.format` refuses; who asked checks them on the answer anyway.
struct Boundless<'a>(&'a Value);

/// The values of `properties` and `$defs`: names given by the user, not keywords.
struct Named<'a>(&'a Value);

const REFUSED: [&str; 9] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems", "uniqueItems"];

impl Serialize for Boundless<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(schema) => {
                let mut map = serializer.serialize_map(None)?;
                for (key, value) in schema {
                    match key.as_str() {
                        refused if REFUSED.contains(&refused) => {}
                        "properties" | "$defs" | "definitions" => map.serialize_entry(key, &Named(value))?,
                        "enum" | "const" | "default" | "examples" => map.serialize_entry(key, value)?,
                        _ => map.serialize_entry(key, &Boundless(value))?,
                    }
                }
                map.end()
            }
            Value::Array(schemas) => serializer.collect_seq(schemas.iter().map(Boundless)),
            plain => plain.serialize(serializer),
        }
    }
}

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(named) => serializer.collect_map(named.iter().map(|(name, schema)| (name, Boundless(schema)))),
            other => other.serialize(serializer),
        }
    }
}
