//! `OpenAI`'s chat completions and embeddings: [`chat::Client`] speaks them for every provider of the family, each of which
//! brings a config of its own. This file has `OpenAI`'s.

mod answer;
pub(super) mod chat;
mod embed;
mod request;
mod stream;

use std::{collections::BTreeMap, sync::Arc};

use crate::util::secret::{ExposeSecret, SecretString};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::chat::{Client, Dialect, LimitField, Structured};
use super::{BuildError, Provider, ProviderConfig, ProviderKind, wire::Endpoint};
use crate::util::{http::Http, plugin};

inventory::submit! {
    ProviderKind {
        name: "openai",
        example: "api_key: ${OPENAI_API_KEY}",
        schema: plugin::schema::<OpenAiConfig>,
        parse: |node, faults| plugin::parse::<OpenAiConfig>(node, faults).map(|config| Box::new(config) as Box<dyn ProviderConfig>),
    }
}

const OPENAI: &str = "https://api.openai.com/v1";

/// `OpenAI`. For servers that speak its chat completions, `openai_compatible` has more to set.
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
    /// How long reasoning models think before they answer. Default: as long as the model thinks fit.
    #[serde(default)]
    reasoning_effort: Option<Effort>,
}

fn default_base_url() -> String {
    OPENAI.to_owned()
}

/// How long a reasoning model thinks. Which of these a model takes differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

impl ProviderConfig for OpenAiConfig {
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError> {
        let mut endpoint = Endpoint::new(http, &self.base_url)?;
        let at_openai = endpoint.host() == "api.openai.com";
        match &self.api_key {
            Some(key) => endpoint.header("api_key", "authorization", &format!("Bearer {}", key.expose_secret().trim()))?,
            None if at_openai && self.headers.is_empty() => {
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
        let newer = |host: &str| at_openai || host.ends_with(".openai.azure.com") || host.ends_with(".services.ai.azure.com");
        let default_limit = if newer(endpoint.host()) { LimitField::MaxCompletionTokens } else { LimitField::MaxTokens };
        let dialect = Dialect {
            structured: self.structured,
            limit: self.max_tokens_field.unwrap_or(default_limit),
            developer: at_openai,
            effort: self.reasoning_effort,
            ..Dialect::default()
        };
        Ok(Arc::new(Client::new(endpoint, dialect)))
    }
}
