//! Any other server that speaks OpenAI's chat completions: vLLM, TGI, LM Studio, llama.cpp, LiteLLM, OpenRouter, Groq ...

use std::{collections::BTreeMap, sync::Arc};

use crate::util::secret::{ExposeSecret, SecretString};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    BuildError, Provider, ProviderConfig, ProviderKind,
    openai::{
        Effort,
        chat::{Client, Dialect, LimitField, Structured, SystemRole},
    },
    wire::Endpoint,
};
use crate::util::{http::Http, plugin};

inventory::submit! {
    ProviderKind {
        name: "openai_compatible",
        example: "base_url: http://localhost:8000/v1",
        schema: plugin::schema::<OpenAiCompatibleConfig>,
        parse: |node, faults| plugin::parse::<OpenAiCompatibleConfig>(node, faults).map(|config| Box::new(config) as Box<dyn ProviderConfig>),
    }
}

/// Any server that speaks OpenAI's chat completions.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenAiCompatibleConfig {
    /// Up to and without `/chat/completions`.
    base_url: String,
    /// Sent as a bearer token. Local servers need none.
    #[schemars(with = "Option<String>")]
    #[serde(default)]
    api_key: Option<SecretString>,
    /// Further headers of every request, over all others.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    headers: BTreeMap<String, SecretString>,
    /// Further fields of every request's body, over all others.
    #[serde(default)]
    extra_body: Map<String, Value>,
    /// What the limit of the answer is called. Default `max_tokens`; the other name is tried where the server refuses it.
    #[serde(default = "default_limit")]
    max_tokens_field: LimitField,
    /// How an answer is made to follow a schema. Default `json_schema`; what the server refuses is replaced by the next
    /// weaker way.
    #[serde(default)]
    structured: Structured,
    /// Whether a temperature that is set is sent. Default true.
    #[serde(default = "yes")]
    send_temperature: bool,
    /// Who says the system prompt; `user` puts it before the first message. Default `system`.
    #[serde(default)]
    system_role: SystemRole,
    /// How long reasoning models think before they answer.
    #[serde(default)]
    reasoning_effort: Option<Effort>,
    /// Whether the tokens are asked for at the end of a stream. Default true.
    #[serde(default = "yes")]
    stream_usage: bool,
}

fn default_limit() -> LimitField {
    LimitField::MaxTokens
}

fn yes() -> bool {
    true
}

impl ProviderConfig for OpenAiCompatibleConfig {
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError> {
        let mut endpoint = Endpoint::new(http, &self.base_url)?;
        if let Some(key) = &self.api_key {
            endpoint.header("api_key", "authorization", &format!("Bearer {}", key.expose_secret().trim()))?;
        }
        endpoint.extra_headers(&self.headers)?;
        // Another value of these would be an answer to something else than was asked.
        if let Some(own) = ["model", "messages", "stream"].into_iter().find(|own| self.extra_body.contains_key(*own)) {
            return Err(BuildError::at("extra_body", format!("`extra_body` cannot set `{own}`")));
        }
        let dialect = Dialect {
            structured: self.structured,
            limit: self.max_tokens_field,
            sampling: self.send_temperature,
            system_role: self.system_role,
            effort: self.reasoning_effort,
            stream_usage: self.stream_usage,
            extra_body: self.extra_body.clone(),
            ..Dialect::default()
        };
        Ok(Arc::new(Client::new(endpoint, dialect)))
    }
}
