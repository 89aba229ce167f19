//! Anthropic's Messages API.
//!
//! An answer is made to follow a schema by `output_config.format` where the model has it, else by a tool that it is
//! forced to call, else in words. What a model refuses is not sent to it again ([`Quirks`]).

mod answer;
mod request;
mod stream;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use self::stream::Events;
use super::{
    BuildError, ChatAnswer, ChatRequest, Piece, Provider, ProviderConfig, ProviderError, ProviderKind, prices,
    sse::Framing,
    streaming::{self, Begun},
    wire::{self, Complaint, Endpoint, Learnt},
};
use crate::util::{
    http::{self, Http, Incoming},
    plugin,
    secret::{ExposeSecret, SecretString},
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
        Ok(Arc::new(Anthropic { messages: endpoint.url(&["v1", "messages"]), endpoint, takes_sampling: self.version == VERSION, learnt: Learnt::default() }))
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
    /// `temperature` and `top_p`.
    sampling: bool,
}

impl wire::Quirks for Quirks {
    fn after(self, complaint: &Complaint, request: &ChatRequest) -> Option<Self> {
        let sampled = (request.temperature.is_some() && complaint.refuses("temperature")) || (request.top_p.is_some() && complaint.refuses("top_p"));
        if self.sampling && sampled {
            return Some(Self { sampling: false, ..self });
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
    takes_sampling: bool,
    learnt: Learnt<Quirks>,
}

#[async_trait]
impl Provider for Anthropic {
    async fn chat(&self, request: &ChatRequest) -> Result<ChatAnswer, ProviderError> {
        self.learnt.ask(request, || self.guess(&request.model), |quirks| self.send(request, quirks), into_error).await
    }

    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxStream<'a, Result<Piece, ProviderError>> {
        let begin = self.learnt.ask(request, || self.guess(&request.model), |quirks| self.begin(request, quirks), into_error);
        streaming::pieces(&self.endpoint, begin, into_error)
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
        Quirks { structured, next, sampling: self.takes_sampling && abilities.supports_sampling_params != Some(false) }
    }

    async fn send(&self, request: &ChatRequest, quirks: Quirks) -> Result<Result<ChatAnswer, Complaint>, ProviderError> {
        let body = request::body(request, quirks, false)?;
        Ok(match self.endpoint.post(&self.messages, body).await {
            Ok(answer) => answer::read(&answer, &request.model).map_err(|error| self.endpoint.complaint(&error)),
            Err(complaint) => Err(complaint),
        })
    }

    async fn begin(&self, request: &ChatRequest, quirks: Quirks) -> Result<Result<Begun<Events>, Complaint>, ProviderError> {
        let body = request::body(request, quirks, true)?;
        let by_tool = request.schema.is_some() && quirks.structured == Structured::Tool;
        let events = |incoming: &Incoming| Events::new(&request.model, by_tool, &incoming.headers);
        let whole = |whole: &http::Answer| answer::read(whole, &request.model);
        Ok(streaming::begin(&self.endpoint, &self.messages, body, Framing::Events, events, whole).await)
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
