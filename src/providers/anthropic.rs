//! Anthropic's Messages API.
//!
//! An answer is made to follow a schema by `output_config.format` where the model has it, else by a tool that it is
//! forced to call, else in words. What a model refuses is not sent to it again ([`Quirks`]).

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use reqwest::Url;
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, value::RawValue};

use super::{
    BuildError, ChatAnswer, ChatRequest, Provider, ProviderConfig, ProviderError, ProviderKind, Stop, Tokens, prices,
    wire::{self, Complaint, Endpoint, Learnt},
};
use crate::util::{
    http::{self, Http, HttpError},
    plugin,
};

inventory::submit! {
    ProviderKind {
        name: "anthropic",
        example: "api_key: ${ANTHROPIC_API_KEY}",
        schema: plugin::schema::<AnthropicConfig>,
        parse: |node, faults| plugin::parse::<AnthropicConfig>(node, faults).map(|config| Box::new(config) as Box<dyn ProviderConfig>),
    }
}

/// The last version that takes a temperature, and still the one that most proxies know.
const VERSION: &str = "2023-06-01";

/// Anthropic's Messages API.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AnthropicConfig {
    /// Sent as `x-api-key`.
    #[schemars(with = "String")]
    api_key: SecretString,
    /// Up to and without `/v1/messages`. Default <https://api.anthropic.com>.
    #[serde(default = "default_base_url")]
    base_url: String,
    /// Sent as `anthropic-version`. Default 2023-06-01; later ones take no temperature.
    #[serde(default = "default_version")]
    version: String,
    /// Further headers of every request, over all others.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    headers: BTreeMap<String, SecretString>,
}

fn default_base_url() -> String {
    "https://api.anthropic.com".to_owned()
}

fn default_version() -> String {
    VERSION.to_owned()
}

impl ProviderConfig for AnthropicConfig {
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError> {
        let mut endpoint = Endpoint::new(http, &self.base_url)?;
        endpoint.header("api_key", "x-api-key", self.api_key.expose_secret().trim())?;
        endpoint.header("version", "anthropic-version", &self.version)?;
        endpoint.extra_headers(&self.headers)?;
        Ok(Arc::new(Anthropic { messages: endpoint.url(&["v1", "messages"]), endpoint, takes_temperature: self.version == VERSION, learnt: Learnt::default() }))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Structured {
    Native,
    Tool,
    Prompt,
}

/// What a model takes, as far as the shipped table or its refusals have told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quirks {
    structured: Structured,
    /// What is left where `structured` is refused, the better first.
    next: &'static [Structured],
    temperature: bool,
}

impl Quirks {
    /// What to try after this complaint; `None` where the request itself is at fault. Ends: each step gives up
    /// something for good.
    fn after(self, complaint: &Complaint, request: &ChatRequest) -> Option<Self> {
        if self.temperature && request.temperature.is_some() && complaint.refuses("temperature") {
            return Some(Self { temperature: false, ..self });
        }
        let words: &[&str] = match self.structured {
            Structured::Native => &["output_config", "output_format", "json_schema", "structured output", "schema"],
            Structured::Tool => &["tool_choice", "tools", "tool use", "forces tool"],
            Structured::Prompt => return None,
        };
        let (structured, next) = self.next.split_first()?;
        (request.schema.is_some() && complaint.names(words)).then_some(Self { structured: *structured, next, ..self })
    }
}

#[derive(Debug)]
struct Anthropic {
    endpoint: Endpoint,
    messages: Url,
    takes_temperature: bool,
    learnt: Learnt<Quirks>,
}

#[async_trait]
impl Provider for Anthropic {
    async fn chat(&self, request: &ChatRequest) -> Result<ChatAnswer, ProviderError> {
        let known = self.learnt.of(&request.model, || self.guess(&request.model));
        let mut quirks = known;
        loop {
            let complaint = match self.send(request, quirks).await? {
                Ok(answer) => {
                    // Only now it is sure that what was left out was the reason.
                    if quirks != known {
                        tracing::info!(model = request.model, ?quirks, "the model refused a parameter and is asked without it from now on");
                        self.learnt.set(&request.model, quirks);
                    }
                    return Ok(answer);
                }
                Err(complaint) => complaint,
            };
            match quirks.after(&complaint, request) {
                Some(next) => quirks = next,
                None => return Err(into_error(complaint)),
            }
        }
    }

    async fn models(&self) -> Result<Vec<String>, ProviderError> {
        let mut url = self.endpoint.url(&["v1", "models"]);
        url.query_pairs_mut().append_pair("limit", "1000");
        let answer = self.endpoint.get(url).await.map_err(into_error)?;
        wire::model_ids(&answer).map_err(|error| into_error(self.endpoint.complaint(&error)))
    }
}

impl Anthropic {
    fn guess(&self, model: &str) -> Quirks {
        let abilities = prices::abilities(model);
        let native_first = abilities.supports_native_structured_output == Some(true);
        let tool = abilities.supports_forced_tool_use != Some(false);
        // A model that the table does not know is likely newer than it, so the native way is still tried second.
        let (structured, next): (_, &[_]) = match (native_first, tool) {
            (true, true) => (Structured::Native, &[Structured::Tool, Structured::Prompt]),
            (_, false) => (Structured::Native, &[Structured::Prompt]),
            (false, true) => (Structured::Tool, &[Structured::Native, Structured::Prompt]),
        };
        Quirks { structured, next, temperature: self.takes_temperature && abilities.supports_sampling_params != Some(false) }
    }

    /// One request. The outer error is ours, the inner one the server's.
    async fn send(&self, request: &ChatRequest, quirks: Quirks) -> Result<Result<ChatAnswer, Complaint>, ProviderError> {
        let body = wire_request(request, quirks)?;
        Ok(match self.endpoint.post(&self.messages, body).await {
            Ok(answer) => read(&answer, &request.model).map_err(|error| self.endpoint.complaint(&error)),
            Err(complaint) => Err(complaint),
        })
    }
}

/// A spend limit comes as a wrong request or as a rate limit without an end.
fn into_error(complaint: Complaint) -> ProviderError {
    let capped = match complaint.status {
        400 => complaint.names(&["usage limit", "spend limit", "credit balance"]) || complaint.has_code(&["billing_error"]),
        429 => complaint.retry_after.is_none() && complaint.has_code(&["enforced_spend_limit_reached", "contract_spend_limit_reached"]),
        _ => false,
    };
    complaint.into_error(capped)
}

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
fn wire_request(request: &ChatRequest, quirks: Quirks) -> Result<Vec<u8>, ProviderError> {
    let schema = |way| request.schema.as_deref().filter(|_| quirks.structured == way);
    let system = wire::told_in_words(request.system.as_deref(), schema(Structured::Prompt));
    let body = Body {
        model: &request.model,
        max_tokens: request.max_tokens,
        system: system.as_deref(),
        messages: request.messages.iter().map(|message| Message { role: message.role.as_str(), content: &message.text }).collect(),
        temperature: request.temperature.filter(|_| quirks.temperature),
        top_p: request.top_p.filter(|_| quirks.temperature),
        stop_sequences: &request.stop,
        output_config: schema(Structured::Native).map(|schema| OutputConfig { format: Format { schema: Boundless(schema) } }),
        tools: schema(Structured::Tool).map(|schema| [Tool { name: RECORD, description: "Records the answer.", input_schema: schema }]),
        tool_choice: schema(Structured::Tool).map(|_| ToolChoice { name: RECORD, disable_parallel_tool_use: true }),
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

#[derive(Deserialize)]
struct WireAnswer<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(borrow)]
    content: Vec<Block<'a>>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    stop_details: Option<StopDetails>,
    #[serde(default)]
    usage: WireUsage,
}

/// One block of any type; which fields it has depends on the type.
#[derive(Deserialize)]
struct Block<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default, borrow)]
    input: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StopDetails {
    #[serde(default)]
    explanation: Option<String>,
}

#[expect(clippy::struct_field_names, reason = "Anthropic's names")]
#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    #[serde(deserialize_with = "wire::count")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "wire::count")]
    output_tokens: Option<u64>,
    #[serde(deserialize_with = "wire::count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(deserialize_with = "wire::count")]
    cache_read_input_tokens: Option<u64>,
}

fn read(answer: &http::Answer, asked_model: &str) -> Result<ChatAnswer, HttpError> {
    let headroom = wire::headroom(&answer.headers);
    let answer: WireAnswer<'_> = http::json(answer)?;
    let stop = match answer.stop_reason.as_deref() {
        Some("max_tokens" | "model_context_window_exceeded") => Stop::Length,
        Some("refusal") => Stop::Refusal,
        _ => Stop::End,
    };
    // By type and not by place: thoughts come before the text.
    let mut text = String::new();
    let mut recorded = None;
    for block in answer.content {
        match block.kind.as_str() {
            "text" => text.push_str(block.text.as_deref().unwrap_or_default()),
            "tool_use" => recorded = recorded.or(block.input),
            _ => {}
        }
    }
    if let Some(input) = recorded {
        input.get().clone_into(&mut text);
    }
    if text.is_empty() && stop == Stop::Refusal {
        text = answer.stop_details.and_then(|details| details.explanation).unwrap_or_default();
    }
    let usage = answer.usage;
    let cached = [usage.cache_creation_input_tokens, usage.cache_read_input_tokens].into_iter().flatten().sum::<u64>();
    let tokens = Tokens {
        // Anthropic counts only what is neither read from nor written to its cache.
        input: usage.input_tokens.map(|input| input + cached),
        output: usage.output_tokens,
        cached_input: usage.cache_read_input_tokens,
        cache_write: usage.cache_creation_input_tokens,
    };
    let model = answer.model.filter(|model| !model.is_empty()).unwrap_or_else(|| asked_model.to_owned());
    Ok(ChatAnswer { text, stop, model, tokens, id: answer.id, headroom })
}
