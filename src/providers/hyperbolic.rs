//! Hyperbolic: OpenAI's chat completions, without embeddings and without a promise to follow a schema.

use std::{collections::BTreeMap, sync::Arc};

use crate::util::secret::{ExposeSecret, SecretString};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    BuildError, Provider, ProviderConfig, ProviderKind,
    openai::chat::{Client, Dialect, Structured},
    wire::Endpoint,
};
use crate::util::{http::Http, plugin};

inventory::submit! {
    ProviderKind {
        name: "hyperbolic",
        example: "api_key: ${HYPERBOLIC_API_KEY}",
        schema: plugin::schema::<HyperbolicConfig>,
        parse: |node, faults| plugin::parse::<HyperbolicConfig>(node, faults).map(|config| Box::new(config) as Box<dyn ProviderConfig>),
    }
}

/// Hyperbolic.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HyperbolicConfig {
    /// Sent as a bearer token.
    #[schemars(with = "String")]
    api_key: SecretString,
    /// Up to and without `/chat/completions`. Default <https://api.hyperbolic.xyz/v1>.
    #[serde(default = "default_base_url")]
    base_url: String,
    /// Further headers of every request, over all others.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    headers: BTreeMap<String, SecretString>,
    /// How an answer is made to follow a schema. Default `json_object`: schemas are not documented there.
    #[serde(default = "default_structured")]
    structured: Structured,
}

fn default_base_url() -> String {
    "https://api.hyperbolic.xyz/v1".to_owned()
}

fn default_structured() -> Structured {
    Structured::JsonObject
}

impl ProviderConfig for HyperbolicConfig {
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError> {
        let mut endpoint = Endpoint::new(http, &self.base_url)?;
        endpoint.header("api_key", "authorization", &format!("Bearer {}", self.api_key.expose_secret().trim()))?;
        endpoint.extra_headers(&self.headers)?;
        Ok(Arc::new(Client::new(endpoint, Dialect { structured: self.structured, embeddings: false, ..Dialect::default() })))
    }
}
