//! HuggingFace: chat by its router, which speaks OpenAI's protocol, and embeddings by its own inference provider.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BuildError, ChatAnswer, ChatRequest, Embeddings, Piece, Provider, ProviderConfig, ProviderError, ProviderKind,
    openai::chat::{Client, Dialect, Structured},
    vectors::{Vectors, batches},
    wire::{self, Endpoint},
};
use crate::util::{
    http::{self, Http, HttpError},
    plugin,
    secret::{ExposeSecret, SecretString},
};

inventory::submit! {
    ProviderKind {
        name: "huggingface",
        example: "api_key: ${HF_TOKEN}",
        schema: plugin::schema::<HuggingFaceConfig>,
        parse: |node, faults| plugin::parse::<HuggingFaceConfig>(node, faults).map(|config| Box::new(config) as Box<dyn ProviderConfig>),
    }
}

/// No maximum is documented; this is what its embedding servers take unless they are told otherwise.
const MOST_TEXTS: usize = 32;

/// As `MOST_TEXTS`: 2 MB of JSON, with room for escapes.
const MOST_BYTES: usize = 1_000_000;

/// HuggingFace's router. A profile's `model` is `org/name`, or `org/name:provider`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HuggingFaceConfig {
    /// A token that may make calls to inference providers. Sent as a bearer token.
    #[schemars(with = "String")]
    api_key: SecretString,
    /// Up to and without `/chat/completions`. Default <https://router.huggingface.co/v1>.
    #[serde(default = "default_base_url")]
    base_url: String,
    /// The organization that pays. Sent as `X-HF-Bill-To`.
    #[serde(default)]
    bill_to: Option<String>,
    /// Further headers of every request, over all others.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    headers: BTreeMap<String, SecretString>,
    /// How an answer is made to follow a schema. Default `json_schema`; what the provider behind the model refuses is
    /// replaced by the next weaker way.
    #[serde(default)]
    structured: Structured,
}

fn default_base_url() -> String {
    "https://router.huggingface.co/v1".to_owned()
}

impl HuggingFaceConfig {
    fn endpoint(&self, http: &Http, base_url: &str) -> Result<Endpoint, BuildError> {
        let mut endpoint = Endpoint::new(http, base_url)?;
        endpoint.header("api_key", "authorization", &format!("Bearer {}", self.api_key.expose_secret().trim()))?;
        if let Some(organization) = &self.bill_to {
            endpoint.header("bill_to", "x-hf-bill-to", organization)?;
        }
        endpoint.extra_headers(&self.headers)?;
        Ok(endpoint)
    }
}

impl ProviderConfig for HuggingFaceConfig {
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError> {
        let base = self.base_url.trim_end_matches('/');
        // The inference provider lies beside the router's `/v1`.
        let own = self.endpoint(http, base.strip_suffix("/v1").unwrap_or(base))?;
        let chat = Client::new(self.endpoint(http, base)?, Dialect { structured: self.structured, ..Dialect::default() });
        Ok(Arc::new(HuggingFace { chat, own }))
    }
}

#[derive(Debug)]
struct HuggingFace {
    chat: Client,
    own: Endpoint,
}

#[derive(Serialize)]
struct Inputs<'a> {
    inputs: &'a [String],
}

#[async_trait]
impl Provider for HuggingFace {
    async fn chat(&self, request: &ChatRequest) -> Result<ChatAnswer, ProviderError> {
        self.chat.chat(request).await
    }

    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxStream<'a, Result<Piece, ProviderError>> {
        self.chat.stream(request)
    }

    async fn embed(&self, model: &str, texts: &[String]) -> Result<Embeddings, ProviderError> {
        let name = model.strip_suffix(":hf-inference").unwrap_or(model);
        let path: Vec<&str> = ["hf-inference", "models"].into_iter().chain(name.split('/')).chain(["pipeline", "feature-extraction"]).collect();
        let url = self.own.url(&path);
        let into_error = |error: &HttpError| self.own.complaint(error).into_error(false);
        let mut all = Vectors::new(model);
        for batch in batches(texts, MOST_TEXTS, MOST_BYTES)? {
            let body = wire::body(&Inputs { inputs: batch }, batch.iter().map(String::len).sum::<usize>() + 1024)?;
            let answer = self.own.post_for_vectors(&url, body).await.map_err(|complaint| complaint.into_error(false))?;
            let vectors = match http::json::<Vec<Vec<f32>>>(&answer) {
                Ok(vectors) => vectors,
                Err(_) if http::json::<Vec<Vec<Vec<f32>>>>(&answer).is_ok() => return Err(by_token(model)),
                Err(error) => return Err(into_error(&error)),
            };
            if vectors.len() != batch.len() || vectors.iter().any(Vec::is_empty) {
                return Err(into_error(&HttpError::NotJson(format!("not one vector for each of {} texts", batch.len()))));
            }
            all.add(vectors, None, None);
        }
        Ok(all.into())
    }

    async fn models(&self) -> Result<Vec<String>, ProviderError> {
        self.chat.models().await
    }
}

/// Which of its vectors stands for the text, only the model's maker knows.
fn by_token(model: &str) -> ProviderError {
    ProviderError::Rejected { kind: "unsupported", message: format!("`{model}` gives a vector for each token, not one for a text") }
}
