//! The client of the whole family.
//!
//! Servers differ in ways that only a refusal tells: how strictly an answer can be made to follow a schema, what the limit
//! of the answer is called, whether a temperature is taken. Each is tried once, and what a server refuses is left out from
//! then on ([`Quirks`]).

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Effort, answer, embed, request, stream::Chunks};
use crate::providers::{
    ChatAnswer, ChatRequest, Embeddings, Piece, Provider, ProviderError, prices,
    sse::Framing,
    streaming::{self, Begun},
    wire::{self, Complaint, Endpoint, Learnt},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::providers) enum LimitField {
    MaxTokens,
    MaxCompletionTokens,
}

/// From strict to weak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::providers) enum Structured {
    /// `response_format` with the schema.
    #[default]
    JsonSchema,
    /// `response_format` that asks for a JSON object, with the schema as its `value`: what hf-inference has instead.
    #[serde(skip)]
    JsonValue,
    /// `response_format` that asks for any JSON object; the schema is told in words.
    JsonObject,
    /// A function that has to be called with the answer.
    Tool,
    /// The schema is told in words.
    Prompt,
}

/// Who gives the orders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::providers) enum SystemRole {
    #[default]
    System,
    Developer,
    /// Put before the first message: some models know no system prompt.
    User,
}

impl SystemRole {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
        }
    }
}

/// How a server is spoken to until it refuses something.
#[expect(clippy::struct_excessive_bools, reason = "each is a thing that servers do or do not do")]
#[derive(Debug)]
pub(in crate::providers) struct Dialect {
    pub structured: Structured,
    pub limit: LimitField,
    /// `temperature` and `top_p`, where the user set them.
    pub sampling: bool,
    pub system_role: SystemRole,
    /// Reasoning models are given their orders by the developer.
    pub developer: bool,
    pub effort: Option<Effort>,
    /// Asks for the tokens at the end of a stream.
    pub stream_usage: bool,
    /// Over what we send.
    pub extra_body: Map<String, Value>,
    /// The model is part of the address (Azure's deployments).
    pub deployments: bool,
    /// There are embeddings below the same address.
    pub embeddings: bool,
}

impl Default for Dialect {
    fn default() -> Self {
        Self {
            structured: Structured::JsonSchema,
            limit: LimitField::MaxTokens,
            sampling: true,
            system_role: SystemRole::System,
            developer: false,
            effort: None,
            stream_usage: true,
            extra_body: Map::new(),
            deployments: false,
            embeddings: true,
        }
    }
}

/// What a model takes, as far as its refusals have told.
#[expect(clippy::struct_excessive_bools, reason = "each is a parameter that is taken or not")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quirks {
    pub structured: Structured,
    pub limit: LimitField,
    /// Only once, so that a server that knows neither name is not asked for ever.
    limit_renamed: bool,
    pub sampling: bool,
    pub stop: bool,
    pub effort: bool,
    pub role: SystemRole,
    pub stream_usage: bool,
}

impl wire::Quirks for Quirks {
    fn after(self, complaint: &Complaint, request: &ChatRequest) -> Option<Self> {
        let sampled = (request.temperature.is_some() && complaint.refuses("temperature")) || (request.top_p.is_some() && complaint.refuses("top_p"));
        if self.sampling && sampled {
            return Some(Self { sampling: false, ..self });
        }
        let (field, other) = match self.limit {
            LimitField::MaxTokens => ("max_tokens", LimitField::MaxCompletionTokens),
            LimitField::MaxCompletionTokens => ("max_completion_tokens", LimitField::MaxTokens),
        };
        if !self.limit_renamed && complaint.refuses(field) {
            return Some(Self { limit: other, limit_renamed: true, ..self });
        }
        if self.effort && complaint.refuses("reasoning_effort") {
            return Some(Self { effort: false, ..self });
        }
        if self.stream_usage && complaint.refuses("stream_options") {
            return Some(Self { stream_usage: false, ..self });
        }
        if self.stop && !request.stop.is_empty() && complaint.refuses_exactly("stop") {
            return Some(Self { stop: false, ..self });
        }
        if let Some(role) = self.role_after(complaint, request) {
            return Some(Self { role, ..self });
        }
        let (words, weaker): (&[&str], _) = match self.structured {
            Structured::JsonSchema => (&["response_format", "json_schema", "response format", "structured output"], Structured::JsonObject),
            Structured::JsonValue => (&["response_format", "json_object", "response format", "grammar"], Structured::JsonObject),
            Structured::Tool => (&["tool", "function"], Structured::JsonObject),
            Structured::JsonObject => (&["response_format", "json_object", "response format"], Structured::Prompt),
            Structured::Prompt => return None,
        };
        (request.schema.is_some() && complaint.names(words)).then_some(Self { structured: weaker, ..self })
    }
}

impl Quirks {
    /// Another place for the system prompt, where this one is refused.
    fn role_after(self, complaint: &Complaint, request: &ChatRequest) -> Option<SystemRole> {
        let weaker = match self.role {
            // Their complaints list the roles that they know.
            SystemRole::Developer if complaint.names(&["developer"]) => SystemRole::System,
            SystemRole::System if complaint.names(&["System role", "system role", "role 'system'", "role: system"]) => SystemRole::User,
            _ => return None,
        };
        let told = request.system.is_some() || matches!(self.structured, Structured::JsonObject | Structured::Prompt);
        told.then_some(weaker)
    }
}

/// One server that speaks chat completions.
#[derive(Debug)]
pub(in crate::providers) struct Client {
    endpoint: Endpoint,
    dialect: Dialect,
    learnt: Learnt<Quirks>,
}

#[async_trait]
impl Provider for Client {
    async fn chat(&self, request: &ChatRequest) -> Result<ChatAnswer, ProviderError> {
        self.learnt.ask(request, || self.guess(&request.model), |quirks| self.send(request, quirks), into_error).await
    }

    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxStream<'a, Result<Piece, ProviderError>> {
        let begin = self.learnt.ask(request, || self.guess(&request.model), |quirks| self.begin(request, quirks), into_error);
        streaming::pieces(&self.endpoint, begin, into_error)
    }

    async fn embed(&self, model: &str, texts: &[String]) -> Result<Embeddings, ProviderError> {
        if !self.dialect.embeddings {
            return Err(ProviderError::Rejected { kind: "unsupported", message: "this provider has no embeddings".to_owned() });
        }
        embed::embed(&self.endpoint, &self.url(model, &["embeddings"]), model, texts).await
    }

    async fn models(&self) -> Result<Vec<String>, ProviderError> {
        let answer = self.endpoint.get(self.endpoint.url(&["models"])).await.map_err(into_error)?;
        wire::model_ids(&answer).map_err(|error| into_error(self.endpoint.complaint(&error)))
    }
}

impl Client {
    pub(in crate::providers) fn new(endpoint: Endpoint, dialect: Dialect) -> Self {
        Self { endpoint, dialect, learnt: Learnt::default() }
    }

    fn url(&self, model: &str, path: &[&str]) -> Url {
        let below = if self.dialect.deployments { &["deployments", model][..] } else { &[] };
        self.endpoint.url(&[below, path].concat())
    }

    fn guess(&self, model: &str) -> Quirks {
        let dialect = &self.dialect;
        Quirks {
            structured: match dialect.structured {
                // Only that one backend of HuggingFace's router.
                Structured::JsonSchema if model.ends_with(":hf-inference") => Structured::JsonValue,
                structured => structured,
            },
            limit: dialect.limit,
            limit_renamed: false,
            sampling: dialect.sampling && prices::abilities(model).supports_sampling_params != Some(false),
            stop: true,
            effort: dialect.effort.is_some(),
            role: if dialect.developer && reasons(model) { SystemRole::Developer } else { dialect.system_role },
            stream_usage: dialect.stream_usage,
        }
    }

    async fn send(&self, request: &ChatRequest, quirks: Quirks) -> Result<Result<ChatAnswer, Complaint>, ProviderError> {
        let body = request::body(request, quirks, &self.dialect, false)?;
        Ok(match self.endpoint.post(&self.url(&request.model, &["chat", "completions"]), body).await {
            Ok(answer) => answer::read(&answer, &request.model).map_err(|error| self.endpoint.complaint(&error)),
            Err(complaint) => Err(complaint),
        })
    }

    async fn begin(&self, request: &ChatRequest, quirks: Quirks) -> Result<Result<Begun<Chunks>, Complaint>, ProviderError> {
        let body = request::body(request, quirks, &self.dialect, true)?;
        let url = self.url(&request.model, &["chat", "completions"]);
        let chunks = |incoming: &crate::util::http::Incoming| Chunks::new(&request.model, &incoming.headers);
        let whole = |whole: &crate::util::http::Answer| answer::read(whole, &request.model);
        Ok(streaming::begin(&self.endpoint, &url, body, Framing::Events, chunks, whole).await)
    }
}

/// Whether the model is one of `OpenAI`'s that think first: the o-series, and gpt-5 and later.
fn reasons(model: &str) -> bool {
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse::<u32>().ok());
    match model.strip_prefix("gpt-") {
        Some(version) => number(version).is_some_and(|version| version >= 5),
        None => model.strip_prefix('o').and_then(number).is_some(),
    }
}

/// Money and quota used up come in the clothes of a rate limit.
pub(super) fn into_error(complaint: Complaint) -> ProviderError {
    let capped = matches!(complaint.status, 400 | 403 | 429) && complaint.has_code(&["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"]);
    let unknown_deployment = complaint.status == 404 && complaint.has_code(&["DeploymentNotFound"]);
    let complaint = if unknown_deployment { complaint.hinting("at Azure `model` is the name of a deployment") } else { complaint };
    complaint.into_error(capped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_models_are_known_by_name() {
        for model in ["o1", "o3-mini", "o4-mini-2025-04-16", "gpt-5", "gpt-5.4-mini", "gpt-6-luna", "gpt-10"] {
            assert!(reasons(model), "{model}");
        }
        for model in ["gpt-4o", "gpt-4.1-mini", "gpt-3.5-turbo", "gpt-oss-120b", "openchat", "omni", ""] {
            assert!(!reasons(model), "{model}");
        }
    }
}
