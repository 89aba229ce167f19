//! Who answers a judge. A provider makes one request and classifies what comes back; retry, timeout, limits, the block
//! on a refused key and cost are [`layers`]', the only way from a metric to a provider.
//!
//! To add one: a file with its config struct, an example, the [`Provider`] and an `inventory::submit!`, and one `mod` line.

mod anthropic;
pub mod layers;
mod openai;
pub mod prices;
#[cfg(test)]
mod tests;
mod wire;

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;

pub use crate::util::plugin::BuildError;
use crate::{
    model::Usage,
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

    /// Calls to this provider at the same time; `None` where only the limit over all providers counts.
    fn concurrency(&self) -> Option<usize> {
        None
    }
}

/// One question to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub model: String,
    pub system: Option<String>,
    pub user: String,
    /// Sent only where the user set it: many models refuse it.
    pub temperature: Option<f64>,
    pub max_tokens: u32,
    /// The JSON Schema that the answer has to follow, by the strictest means that the model offers.
    pub schema: Option<Arc<Value>>,
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

    /// A free check that the provider answers and the key holds (`validate --live`).
    async fn probe(&self) -> Result<(), ProviderError>;
}

/// What a caller must tell apart. The text is for people and carries no key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProviderError {
    /// Worth another try: 408, 409, 429, 5xx, 529, connection loss.
    #[error("{message}")]
    Transient { kind: &'static str, message: String, retry_after: Option<Duration> },
    /// Key refused, billing, no such model: the same for every call until somebody acts.
    #[error("{0}")]
    Blocked(String),
    /// This request will not do (too long, refused by a filter); another may.
    #[error("{0}")]
    Rejected(String),
}

impl ProviderError {
    /// For a metric's label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Transient { kind, .. } => kind,
            Self::Blocked(_) => "blocked",
            Self::Rejected(_) => "rejected",
        }
    }
}

/// Who asks: goes to log lines, and to budgets and fair shares.
#[derive(Debug, Clone, Copy)]
pub struct CallCx<'a> {
    pub monitor: &'a str,
    pub metric: &'a str,
    pub run_id: &'a str,
    pub item_id: &'a str,
}

/// What a metric asks a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub system: Option<String>,
    pub user: String,
    pub max_tokens: Option<u32>,
    pub schema: Option<Arc<Value>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub text: String,
    pub stop: Stop,
    pub usage: Usage,
}

/// A profile, ready to be asked: the provider with all layers round it.
#[async_trait]
pub trait Model: Send + Sync {
    /// Waits for a free place, tries again, gives up. May be cancelled at any await.
    async fn ask(&self, question: Question, cx: CallCx<'_>) -> Result<Reply, CallError>;

    /// Provider and model by name: part of a judge's revision.
    fn identity(&self) -> String;
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The judge is blocked (key, billing, model): no call was made or no further ones will be. Comes back later.
    #[error("{0}")]
    Blocked(String),
    /// Retries ran out or the request was refused: a failed judgement.
    #[error("{0}")]
    Failed(String),
}

/// The profiles of the settings, by name.
pub trait Models: Send + Sync {
    /// # Errors
    /// A sentence naming the profiles there are.
    fn model(&self, profile: &str) -> Result<Arc<dyn Model>, String>;
}
