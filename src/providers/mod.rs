//! Who answers a judge. A provider makes one request and classifies what comes back; retry, timeout, limits, the block
//! on a refused key and cost are `gateway`'s, the only way from a metric to a provider.
//!
//! To add one: a file with its config struct, an example, the [`Provider`] and an `inventory::submit!`, and one `mod` line.

mod anthropic;
mod azure;
mod complaint;
mod huggingface;
mod hyperbolic;
mod ollama;
mod openai;
mod openai_compatible;
pub mod prices;
mod sse;
mod streaming;
#[cfg(test)]
mod tests;
mod vectors;
mod wire;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::util::plugin::BuildError;
use crate::{
    model::{Budget, Usage},
    util::{http::Http, plugin::Kind},
};

pub type ProviderKind = Kind<dyn ProviderConfig>;
inventory::collect!(ProviderKind);

/// Settings of one entry of `providers:`, without `type`.
pub trait ProviderConfig: Debug + Send + Sync {
    /// Pure, like `SourceConfig::build`.
    ///
    /// # Errors
    /// What is wrong with the settings, and the key it hangs on.
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError>;
}

/// What a provider or a profile takes. Default: what `concurrency.judge_calls` allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests a minute, spread evenly.
    pub rpm: Option<u32>,
    /// Tokens a minute, of question and answer.
    pub tpm: Option<u32>,
    /// Calls at the same time.
    pub concurrency: Option<usize>,
}

/// Why another profile is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FallbackOn {
    /// The model is blocked, or retries ran out on an outage.
    Unavailable,
    /// Retries ran out on refusals for rate.
    RateLimited,
}

/// Who said a message. What the system says has a place of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    User,
    Assistant,
}

impl Role {
    /// The word that every protocol here uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub text: String,
}

impl Message {
    #[must_use]
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, text: text.into() }
    }

    #[must_use]
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: Role::Assistant, text: text.into() }
    }
}

/// One question to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    pub system: Option<String>,
    /// At least one; the first and the last are the user's.
    pub messages: Vec<Message>,
    /// Sent only where the user set it: many models refuse it.
    pub temperature: Option<f64>,
    /// As `temperature`.
    pub top_p: Option<f64>,
    /// Texts at which the model stops.
    pub stop: Vec<String>,
    pub max_tokens: u32,
    /// The JSON Schema that the answer has to follow, by the strictest means that the model offers.
    pub schema: Option<Arc<Value>>,
}

impl ChatRequest {
    /// Bytes of all texts: what a body is made room for, and, since no token is shorter than a byte, what bounds the
    /// input's tokens from above.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.system.as_deref().map_or(0, str::len) + self.messages.iter().map(|message| message.text.len()).sum::<usize>()
    }
}

/// Why the model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    End,
    /// `max_tokens` reached: the text is cut off.
    Length,
    /// The model, or the provider's filter, declined.
    Refusal,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ChatAnswer {
    pub text: String,
    pub stop: Stop,
    /// The model as the provider names it, which may be more exact than what was asked for.
    pub model: String,
    pub tokens: Tokens,
    /// The provider's own id of the answer.
    pub id: Option<String>,
    /// What its headers say is left of its limits.
    pub headroom: Headroom,
}

/// What a provider still takes, by its own rate-limit headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Headroom {
    pub requests: Option<Left>,
    pub tokens: Option<Left>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    pub remaining: u64,
    /// From the answer until the whole limit is there again.
    pub resets_in: Duration,
}

/// A part of an answer as it comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Text(String),
    /// The last one: the whole answer, its text included.
    End(ChatAnswer),
}

/// Vectors, one a text, in the texts' order.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    pub vectors: Vec<Vec<f32>>,
    pub model: String,
    pub tokens: Tokens,
}

/// Unknown stays `None`. `cached_input` is part of `input`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub cached_input: Option<u64>,
    pub cache_write: Option<u64>,
}

#[async_trait]
pub trait Provider: Send + Sync {
    /// One request, no retry, no wait; only what a refused parameter calls for is sent again at once, without it.
    /// May be cancelled at any await. Bounds no time of its own.
    async fn chat(&self, request: &ChatRequest) -> Result<ChatAnswer, ProviderError>;

    /// Like [`Provider::chat`], in pieces as they come; ends after [`Piece::End`] or the first error. Where a provider
    /// cannot stream, the whole answer is one piece.
    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxStream<'a, Result<Piece, ProviderError>> {
        let whole = async move {
            match self.chat(request).await {
                Ok(answer) => vec![Ok(Piece::Text(answer.text.clone())), Ok(Piece::End(answer))],
                Err(error) => vec![Err(error)],
            }
        };
        Box::pin(futures_util::stream::once(whole).flat_map(futures_util::stream::iter))
    }

    /// Vectors of texts, where the provider has them.
    async fn embed(&self, _model: &str, _texts: &[String]) -> Result<Embeddings, ProviderError> {
        Err(ProviderError::Rejected { kind: "unsupported", message: "this provider has no embeddings".to_owned() })
    }

    /// The models it lists: a free check that the provider answers and the key holds. Empty where it lists none.
    async fn models(&self) -> Result<Vec<String>, ProviderError>;
}

/// What a caller must tell apart. The text is for people and carries no key; the kind is a metric's label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// Worth another try: 408, 409, 429, 5xx, 529, connection loss.
    /// `rate_limited` | `overloaded` | `server_error` | `timeout` | `connect` (nothing was sent, so nothing can have been
    /// billed) | `transport` (cut half-way) | `not_json` | ...
    #[error("{message}")]
    Transient { kind: &'static str, message: String, retry_after: Option<Duration> },
    /// The same for every call until somebody acts. `auth` | `billing` | `forbidden` | `not_found`
    #[error("{message}")]
    Blocked { kind: &'static str, message: String },
    /// This request will not do; another may. `bad_request` | `filtered` | `too_large` | `unsupported`
    #[error("{message}")]
    Rejected { kind: &'static str, message: String },
}

impl ProviderError {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Transient { kind, .. } | Self::Blocked { kind, .. } | Self::Rejected { kind, .. } => kind,
        }
    }
}

/// Who asks: goes to log lines and traces, and says whose budgets pay and whose fair share it is.
#[derive(Debug, Clone, Copy)]
pub struct CallCx<'a> {
    /// Empty where no monitor asks.
    pub monitor: &'a str,
    pub metric: &'a str,
    pub run_id: &'a str,
    pub item_id: &'a str,
    /// Of the monitor; those of all monitors are the gateway's own.
    pub budgets: &'a [Budget],
    /// What the model says now is wanted: no answer that is kept, and this one is not kept.
    pub fresh: bool,
    /// Of work that nobody waits for.
    pub background: Option<&'a Background>,
}

/// Work that others go before, with money of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Background {
    /// Whose money it is; the same when the work is begun again.
    pub id: String,
    /// All that it may spend, on top of what other budgets leave.
    pub budget: Option<Budget>,
}

impl Background {
    /// Under which name the store keeps what was spent of its budget.
    #[must_use]
    pub fn account(&self) -> String {
        format!("backfill:{}", self.id)
    }
}

impl CallCx<'_> {
    /// 32 hex digits: one trace an item and run, so that all of an item's calls stand together.
    #[must_use]
    pub fn trace_id(&self) -> String {
        crate::model::trace_id(self.run_id, self.item_id)
    }
}

/// What is asked of a profile; what it leaves open is the profile's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Question {
    /// Behind the profile's own.
    pub system: Option<String>,
    pub messages: Vec<Message>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub stop: Vec<String>,
    pub max_tokens: Option<u32>,
    pub schema: Option<Arc<Value>>,
    /// Which of several answers to the same question is wanted: each is cached on its own.
    pub sample: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub text: String,
    pub stop: Stop,
    /// Of what was paid now: a reply from the cache cost nothing.
    pub usage: Usage,
    /// The provider's own id of the answer.
    pub id: Option<String>,
    pub cached: bool,
}

/// A part of a reply as it comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    Text(String),
    /// The last one: the whole reply, its text included.
    End(Reply),
}

/// A profile, ready to be asked: the provider with all layers round it.
#[async_trait]
pub trait Model: Send + Sync {
    /// Waits for a free place, tries again, gives up. May be cancelled at any await.
    async fn ask(&self, question: Question, cx: CallCx<'_>) -> Result<Reply, CallError>;

    /// Like [`Model::ask`], in parts as they come; ends after [`Part::End`] or the first error. Nothing is tried again once
    /// a part has come.
    fn stream<'a>(&'a self, question: Question, cx: CallCx<'a>) -> BoxStream<'a, Result<Part, CallError>> {
        let whole = async move {
            match self.ask(question, cx).await {
                Ok(reply) => vec![Ok(Part::Text(reply.text.clone())), Ok(Part::End(reply))],
                Err(error) => vec![Err(error)],
            }
        };
        Box::pin(futures_util::stream::once(whole).flat_map(futures_util::stream::iter))
    }

    /// What an answer of `output` tokens to the question would cost, roughly, in USD; `None` where no price is known.
    fn guess(&self, _question: &Question, _output: u64) -> Option<f64> {
        None
    }

    /// Provider and model by name: part of a judge's revision.
    fn identity(&self) -> String;
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The model is blocked (key, billing, no such model): no call was made or no further ones will be. Comes back later.
    #[error("{0}")]
    Blocked(String),
    /// The call does not fit in a budget, or its price is not known and a budget wants it. Comes back later.
    #[error("{0}")]
    OverBudget(String),
    /// Retries ran out or the request was refused: a failed judgement. `kind` is the last attempt's.
    #[error("{message}")]
    Failed { kind: &'static str, message: String },
}

/// The profiles of the settings, by name.
pub trait Models: Send + Sync {
    /// # Errors
    /// A sentence naming the profiles there are.
    fn model(&self, profile: &str) -> Result<Arc<dyn Model>, String>;

    /// All names, in their order.
    fn profiles(&self) -> Vec<String>;
}
