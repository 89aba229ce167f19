//! Azure OpenAI and Foundry: OpenAI's protocol at addresses of its own.

use std::{collections::BTreeMap, sync::Arc};

use crate::util::secret::{ExposeSecret, SecretString};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::{
    BuildError, Provider, ProviderConfig, ProviderKind,
    openai::{
        Effort,
        chat::{Client, Dialect, LimitField, Structured},
    },
    wire::Endpoint,
};
use crate::util::{http::Http, plugin};

inventory::submit! {
    ProviderKind {
        name: "azure",
        example: "base_url: https://my-resource.openai.azure.com\napi_key: ${AZURE_OPENAI_API_KEY}",
        schema: plugin::schema::<AzureConfig>,
        parse: |node, faults| plugin::parse::<AzureConfig>(node, faults).map(|config| Box::new(config) as Box<dyn ProviderConfig>),
    }
}

/// Azure OpenAI and Foundry. A profile's `model` is the name of a deployment.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AzureConfig {
    /// The resource: `https://NAME.openai.azure.com` or `https://NAME.services.ai.azure.com`.
    base_url: String,
    /// A date such as `2024-10-21`: asks below `/openai/deployments/`. Without one, or with `preview`: below `/openai/v1/`.
    #[serde(default)]
    api_version: Option<String>,
    /// Sent as `api-key`. Either this or `token`.
    #[schemars(with = "Option<String>")]
    #[serde(default)]
    api_key: Option<SecretString>,
    /// Of Entra, sent as a bearer token. Either this or `api_key`.
    #[schemars(with = "Option<String>")]
    #[serde(default)]
    token: Option<SecretString>,
    /// Further headers of every request, over all others.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    headers: BTreeMap<String, SecretString>,
    /// How an answer is made to follow a schema. Default `json_schema`; what the deployment refuses is replaced by the
    /// next weaker way.
    #[serde(default)]
    structured: Structured,
    /// How long reasoning models think before they answer. Default: as long as the model thinks fit.
    #[serde(default)]
    reasoning_effort: Option<Effort>,
}

impl AzureConfig {
    /// Whether the deployment is part of the address.
    fn deployments(&self) -> bool {
        self.api_version.as_deref().is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    }

    /// The address that all paths hang below. What the portal shows may already have some of it.
    fn base(&self) -> Result<String, BuildError> {
        let wrong = || BuildError::at("base_url", "`base_url` is no address like `https://my-resource.openai.azure.com`");
        let mut base = Url::parse(&self.base_url).map_err(|_| wrong())?;
        let path = base.path().trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path);
        let path = path.strip_suffix("/openai").unwrap_or(path);
        let path = format!("{path}/openai{}", if self.deployments() { "" } else { "/v1" });
        base.set_path(&path);
        if let Some(version) = &self.api_version {
            base.set_query(None);
            base.query_pairs_mut().append_pair("api-version", version);
        }
        Ok(base.into())
    }
}

impl ProviderConfig for AzureConfig {
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError> {
        let mut endpoint = Endpoint::new(http, &self.base()?)?;
        match (&self.api_key, &self.token) {
            (Some(key), None) => endpoint.header("api_key", "api-key", key.expose_secret().trim())?,
            (None, Some(token)) => endpoint.header("token", "authorization", &format!("Bearer {}", token.expose_secret().trim()))?,
            (None, None) if !self.headers.is_empty() => {}
            (None, None) => return Err(BuildError::at("api_key", "Azure needs an `api_key` or a `token`")),
            (Some(_), Some(_)) => return Err(BuildError::at("token", "`api_key` and `token` are two ways to say who asks: one has to go")),
        }
        endpoint.extra_headers(&self.headers)?;
        let dialect = Dialect {
            structured: self.structured,
            limit: LimitField::MaxCompletionTokens,
            effort: self.reasoning_effort,
            deployments: self.deployments(),
            ..Dialect::default()
        };
        Ok(Arc::new(Client::new(endpoint, dialect)))
    }
}
