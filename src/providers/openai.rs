//! `OpenAI`'s chat completions, and every server that speaks them.
//!
//! Servers differ in three ways that only a refusal tells: how strictly an answer can be made to follow a schema, what
//! the limit of the answer is called, and whether a temperature is taken. Each is tried once, and what a server
//! refuses is left out from then on ([`Quirks`]).

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use reqwest::Url;
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{
    BuildError, ChatAnswer, ChatRequest, Provider, ProviderConfig, ProviderError, ProviderKind, Stop, Tokens, prices,
    wire::{self, Complaint, Endpoint, Learnt},
};
use crate::util::{
    http::{self, Http, HttpError},
    plugin, text,
};

inventory::submit! {
    ProviderKind {
        name: "openai",
        example: "api_key: ${OPENAI_API_KEY}",
        schema: plugin::schema::<OpenAiConfig>,
        parse: |node, faults| plugin::parse::<OpenAiConfig>(node, faults).map(|config| Box::new(config) as Box<dyn ProviderConfig>),
    }
}

const OPENAI: &str = "https://api.openai.com/v1";

/// `OpenAI`, or any server that speaks its chat completions: vLLM, LM Studio, llama.cpp, `LiteLLM`, `OpenRouter`, Groq ...
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenAiConfig {
    /// Sent as a bearer token. Local servers need none.
    #[schemars(with = "Option<String>")]
    #[serde(default)]
    api_key: Option<SecretString>,
    /// Up to and without `/chat/completions`. Default <https://api.openai.com/v1>.
    #[serde(default = "default_base_url")]
    base_url: String,
    /// Sent as `OpenAI-Organization`.
    #[serde(default)]
    organization: Option<String>,
    /// Sent as `OpenAI-Project`.
    #[serde(default)]
    project: Option<String>,
    /// Further headers of every request, over all others.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    headers: BTreeMap<String, SecretString>,
    /// What the limit of the answer is called. Default: `max_completion_tokens` at `OpenAI` and Azure, else `max_tokens`.
    #[serde(default)]
    max_tokens_field: Option<LimitField>,
    /// How an answer is made to follow a schema. Default `json_schema`; what the server refuses is replaced by the next
    /// weaker way.
    #[serde(default)]
    structured: Structured,
}

fn default_base_url() -> String {
    OPENAI.to_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LimitField {
    MaxTokens,
    MaxCompletionTokens,
}

/// From strict to weak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Structured {
    /// `response_format` with the schema.
    #[default]
    JsonSchema,
    /// `response_format` that asks for any JSON object; the schema is told in words.
    JsonObject,
    /// A function that has to be called with the answer.
    Tool,
    /// The schema is told in words.
    Prompt,
}

impl ProviderConfig for OpenAiConfig {
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError> {
        let mut endpoint = Endpoint::new(http, &self.base_url)?;
        match &self.api_key {
            Some(key) => endpoint.header("api_key", "authorization", &format!("Bearer {}", key.expose_secret().trim()))?,
            None if endpoint.host() == "api.openai.com" && self.headers.is_empty() => {
                return Err(BuildError::at("api_key", "api.openai.com needs an `api_key`"));
            }
            None => {}
        }
        if let Some(organization) = &self.organization {
            endpoint.header("organization", "openai-organization", organization)?;
        }
        if let Some(project) = &self.project {
            endpoint.header("project", "openai-project", project)?;
        }
        endpoint.extra_headers(&self.headers)?;
        let newer = |host: &str| host == "api.openai.com" || host.ends_with(".openai.azure.com") || host.ends_with(".services.ai.azure.com");
        let default_field = if newer(endpoint.host()) { LimitField::MaxCompletionTokens } else { LimitField::MaxTokens };
        let first = Quirks { structured: self.structured, limit: self.max_tokens_field.unwrap_or(default_field), limit_renamed: false, temperature: true };
        Ok(Arc::new(OpenAi { chat: endpoint.url(&["chat", "completions"]), endpoint, first, learnt: Learnt::default() }))
    }
}

/// What a model takes, as far as its refusals have told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quirks {
    structured: Structured,
    limit: LimitField,
    /// Only once, so that a server that knows neither name is not asked for ever.
    limit_renamed: bool,
    temperature: bool,
}

impl Quirks {
    /// What to try after this complaint; `None` where the request itself is at fault. Ends: each step gives up
    /// something for good.
    fn after(self, complaint: &Complaint, request: &ChatRequest) -> Option<Self> {
        if self.temperature && request.temperature.is_some() && complaint.refuses("temperature") {
            return Some(Self { temperature: false, ..self });
        }
        let (field, other) = match self.limit {
            LimitField::MaxTokens => ("max_tokens", LimitField::MaxCompletionTokens),
            LimitField::MaxCompletionTokens => ("max_completion_tokens", LimitField::MaxTokens),
        };
        if !self.limit_renamed && complaint.refuses(field) {
            return Some(Self { limit: other, limit_renamed: true, ..self });
        }
        let (words, weaker): (&[&str], _) = match self.structured {
            Structured::JsonSchema => (&["response_format", "json_schema", "response format", "structured output"], Structured::JsonObject),
            Structured::Tool => (&["tool", "function"], Structured::JsonObject),
            Structured::JsonObject => (&["response_format", "json_object", "response format"], Structured::Prompt),
            Structured::Prompt => return None,
        };
        (request.schema.is_some() && complaint.names(words)).then_some(Self { structured: weaker, ..self })
    }
}

#[derive(Debug)]
struct OpenAi {
    endpoint: Endpoint,
    chat: Url,
    first: Quirks,
    learnt: Learnt<Quirks>,
}

#[async_trait]
impl Provider for OpenAi {
    async fn chat(&self, request: &ChatRequest) -> Result<ChatAnswer, ProviderError> {
        let known = self.learnt.of(&request.model, || self.guess(&request.model));
        let mut quirks = known;
        loop {
            let complaint = match self.send(request, quirks).await? {
                Ok(answer) => {
                    // Only now it is sure that what was left out was the reason.
                    if quirks != known {
                        tracing::info!(
                            host = self.endpoint.host(),
                            model = request.model,
                            ?quirks,
                            "the server refused a parameter and is asked without it from now on"
                        );
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
        let answer = self.endpoint.get(self.endpoint.url(&["models"])).await.map_err(into_error)?;
        wire::model_ids(&answer).map_err(|error| into_error(self.endpoint.complaint(&error)))
    }
}

impl OpenAi {
    fn guess(&self, model: &str) -> Quirks {
        Quirks { temperature: prices::abilities(model).supports_sampling_params != Some(false), ..self.first }
    }

    /// One request. The outer error is ours, the inner one the server's.
    async fn send(&self, request: &ChatRequest, quirks: Quirks) -> Result<Result<ChatAnswer, Complaint>, ProviderError> {
        let body = wire_request(request, quirks)?;
        Ok(match self.endpoint.post(&self.chat, body).await {
            Ok(answer) => read(&answer, &request.model).map_err(|error| self.endpoint.complaint(&error)),
            Err(complaint) => Err(complaint),
        })
    }
}

/// Money and quota used up come in the clothes of a rate limit.
fn into_error(complaint: Complaint) -> ProviderError {
    let capped = matches!(complaint.status, 400 | 403 | 429) && complaint.has_code(&["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"]);
    complaint.into_error(capped)
}

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
    response_format: Option<ResponseFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<[Tool<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<ToolChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat<'a> {
    JsonSchema { json_schema: NamedSchema<'a> },
    JsonObject,
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
fn wire_request(request: &ChatRequest, quirks: Quirks) -> Result<Vec<u8>, ProviderError> {
    let schema = request.schema.as_deref();
    let told = schema.filter(|_| matches!(quirks.structured, Structured::JsonObject | Structured::Prompt));
    let system = wire::told_in_words(request.system.as_deref(), told);
    let messages = system.as_deref().map(|content| Message { role: "system", content });
    let messages = messages.into_iter().chain(request.messages.iter().map(|message| Message { role: message.role.as_str(), content: &message.text })).collect();
    let as_tool = schema.filter(|_| quirks.structured == Structured::Tool);
    let limit = |field| (quirks.limit == field).then_some(request.max_tokens);
    let body = Body {
        model: &request.model,
        messages,
        max_tokens: limit(LimitField::MaxTokens),
        max_completion_tokens: limit(LimitField::MaxCompletionTokens),
        temperature: request.temperature.filter(|_| quirks.temperature),
        top_p: request.top_p.filter(|_| quirks.temperature),
        stop: &request.stop,
        response_format: match (quirks.structured, schema) {
            (Structured::JsonSchema, Some(schema)) => Some(ResponseFormat::JsonSchema { json_schema: NamedSchema { name: "verdict", strict: true, schema } }),
            (Structured::JsonObject, Some(_)) => Some(ResponseFormat::JsonObject),
            _ => None,
        },
        tools: as_tool.map(|parameters| [Tool { function: Function { name: RECORD, description: "Records the answer.", strict: true, parameters } }]),
        tool_choice: as_tool.map(|_| ToolChoice { function: Named { name: RECORD } }),
        parallel_tool_calls: as_tool.map(|_| false),
    };
    wire::body(&body, request.bytes() + 4096)
}

#[derive(Deserialize)]
struct Completion<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default, borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    message: WireMessage<'a>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct WireMessage<'a> {
    #[serde(default, deserialize_with = "content")]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default, borrow)]
    tool_calls: Option<Vec<ToolCall<'a>>>,
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(borrow)]
    function: Called<'a>,
}

#[derive(Deserialize)]
struct Called<'a> {
    /// JSON in a string, or, from some servers, the JSON itself.
    #[serde(borrow)]
    arguments: &'a RawValue,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default, deserialize_with = "wire::count")]
    prompt_tokens: Option<u64>,
    #[serde(default, deserialize_with = "wire::count")]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    #[serde(default, deserialize_with = "wire::count")]
    cached_tokens: Option<u64>,
    #[serde(default, deserialize_with = "wire::count")]
    cache_write_tokens: Option<u64>,
}

fn read(answer: &http::Answer, asked_model: &str) -> Result<ChatAnswer, HttpError> {
    let completion: Completion<'_> = http::json(answer)?;
    if let Some(error) = completion.error {
        return Err(late_error(error, answer));
    }
    let Some(choice) = completion.choices.unwrap_or_default().into_iter().next() else {
        return Err(HttpError::NotJson("the answer has no `choices`".to_owned()));
    };
    let refusal = choice.message.refusal.filter(|refusal| !refusal.is_empty());
    let stop = match choice.finish_reason.as_deref() {
        _ if refusal.is_some() => Stop::Refusal,
        Some("content_filter") => Stop::Refusal,
        Some("length") => Stop::Length,
        _ => Stop::End,
    };
    let called = || choice.message.tool_calls.unwrap_or_default().into_iter().next().map(|call| arguments(call.function.arguments));
    let text = refusal.or(choice.message.content.filter(|content| !content.is_empty())).or_else(called).unwrap_or_default();
    let details = completion.usage.as_ref().and_then(|usage| usage.prompt_tokens_details.as_ref());
    let tokens = Tokens {
        input: completion.usage.as_ref().and_then(|usage| usage.prompt_tokens),
        output: completion.usage.as_ref().and_then(|usage| usage.completion_tokens),
        cached_input: details.and_then(|details| details.cached_tokens),
        cache_write: details.and_then(|details| details.cache_write_tokens),
    };
    let model = completion.model.filter(|model| !model.is_empty()).unwrap_or_else(|| asked_model.to_owned());
    Ok(ChatAnswer { text, stop, model, tokens, id: completion.id, headroom: wire::headroom(&answer.headers) })
}

/// `OpenRouter` and some gateways find out too late and put an error into a 200; its `code` is then the true status.
fn late_error(error: &RawValue, answer: &http::Answer) -> HttpError {
    #[derive(Deserialize)]
    struct Coded {
        #[serde(default, deserialize_with = "wire::count")]
        code: Option<u64>,
    }
    let code = serde_json::from_str::<Coded>(error.get()).ok().and_then(|coded| coded.code);
    let status = code.and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code)).unwrap_or(502);
    let body = format!(r#"{{"error":{}}}"#, text::one_line(error.get(), 2000));
    HttpError::Status { status, body, retry_after: http::retry_after(&answer.headers), headers: Box::new(answer.headers.clone()) }
}

fn arguments(raw: &RawValue) -> String {
    serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

/// `content`: a text, null, or a list of parts of which those with a `text` count (Mistral sends its thoughts as others).
fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        text: Option<String>,
    }

    struct Content;

    impl<'de> Visitor<'de> for Content {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of parts")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(text.to_owned()))
        }

        fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
            Ok(Some(text))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
            let mut whole = String::new();
            while let Some(part) = parts.next_element::<Part>()? {
                whole.push_str(part.text.as_deref().unwrap_or_default());
            }
            Ok(Some(whole))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }

    deserializer.deserialize_any(Content)
}
