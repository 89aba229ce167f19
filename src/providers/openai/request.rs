//! What is sent.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;

use super::{
    Effort,
    chat::{Dialect, LimitField, Quirks, Structured, SystemRole},
};
use crate::providers::{ChatRequest, ProviderError, wire};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<Effort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<[Tool<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<ToolChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Cow<'a, str>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat<'a> {
    JsonSchema {
        json_schema: NamedSchema<'a>,
    },
    JsonObject {
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<&'a Value>,
    },
}

#[derive(Serialize)]
struct NamedSchema<'a> {
    name: &'static str,
    strict: bool,
    schema: &'a Value,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "function")]
struct Tool<'a> {
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'static str,
    description: &'static str,
    strict: bool,
    parameters: &'a Value,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "function")]
struct ToolChoice {
    function: Named,
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
}

/// The function that a model has to call with its answer.
const RECORD: &str = "record";

/// The body, from borrowed parts: prompts are long and not copied before they are written.
pub(super) fn body(request: &ChatRequest, quirks: Quirks, dialect: &Dialect, streamed: bool) -> Result<Vec<u8>, ProviderError> {
    let schema = request.schema.as_deref();
    let as_tool = schema.filter(|_| quirks.structured == Structured::Tool);
    let limit = |field| (quirks.limit == field).then_some(request.max_tokens);
    let body = Body {
        model: &request.model,
        messages: messages(request, quirks),
        max_tokens: limit(LimitField::MaxTokens),
        max_completion_tokens: limit(LimitField::MaxCompletionTokens),
        temperature: request.temperature.filter(|_| quirks.sampling),
        top_p: request.top_p.filter(|_| quirks.sampling),
        stop: if quirks.stop { &request.stop } else { &[] },
        reasoning_effort: dialect.effort.filter(|_| quirks.effort),
        stream: streamed.then_some(true),
        stream_options: (streamed && quirks.stream_usage).then_some(StreamOptions { include_usage: true }),
        response_format: match (quirks.structured, schema) {
            (Structured::JsonSchema, Some(schema)) => Some(ResponseFormat::JsonSchema { json_schema: NamedSchema { name: "verdict", strict: true, schema } }),
            (Structured::JsonValue, Some(_)) => Some(ResponseFormat::JsonObject { value: schema }),
            (Structured::JsonObject, Some(_)) => Some(ResponseFormat::JsonObject { value: None }),
            _ => None,
        },
        tools: as_tool.map(|parameters| [Tool { function: Function { name: RECORD, description: "Records the answer.", strict: true, parameters } }]),
        tool_choice: as_tool.map(|_| ToolChoice { function: Named { name: RECORD } }),
        parallel_tool_calls: as_tool.map(|_| false),
    };
    let room = request.bytes() + 4096;
    if dialect.extra_body.is_empty() { wire::body(&body, room) } else { wire::body(&with_extra(&body, dialect)?, room) }
}

fn messages(request: &ChatRequest, quirks: Quirks) -> Vec<Message<'_>> {
    let told = request.schema.as_deref().filter(|_| matches!(quirks.structured, Structured::JsonObject | Structured::Prompt));
    let mut system = wire::told_in_words(request.system.as_deref(), told);
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    if quirks.role != SystemRole::User {
        messages.extend(system.take().map(|content| Message { role: quirks.role.as_str(), content }));
    }
    // Roles take turns where there is no system: so it is no message of its own.
    messages.extend(request.messages.iter().map(|message| {
        let content = match system.take() {
            Some(system) => Cow::Owned(format!("{system}\n\n{}", message.text)),
            None => Cow::Borrowed(message.text.as_str()),
        };
        Message { role: message.role.as_str(), content }
    }));
    messages
}

fn with_extra(body: &Body<'_>, dialect: &Dialect) -> Result<Value, ProviderError> {
    let mut body = serde_json::to_value(body).map_err(wire::unwritable)?;
    if let Value::Object(fields) = &mut body {
        fields.extend(dialect.extra_body.clone());
    }
    Ok(body)
}
