//! Ollama's own protocol (its OpenAI-compatible one cannot set `num_ctx` or `keep_alive`).
//!
//! Ollama cuts prompts that do not fit and says nothing. It is told not to (`truncate`, `shift`), the size of its context is
//! always set, and an answer to a prompt that filled all of it is refused: a judgement of half a text is none.

mod wire;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::wire::{Documents, EmbedBody, Embedded, Tags};
use super::{
    BuildError, ChatAnswer, ChatRequest, Embeddings, Piece, Provider, ProviderConfig, ProviderError, ProviderKind,
    sse::Framing,
    streaming::{self, Begun},
    vectors::{Vectors, batches},
    wire::{self as shared, Complaint, Endpoint, Learnt},
};
use crate::util::{
    http::{self, Http, HttpError, Incoming},
    plugin,
    secret::{ExposeSecret, SecretString},
};

inventory::submit! {
    ProviderKind {
        name: "ollama",
        example: "base_url: http://localhost:11434",
        schema: plugin::schema::<OllamaConfig>,
        parse: |node, faults| plugin::parse::<OllamaConfig>(node, faults).map(|config| Box::new(config) as Box<dyn ProviderConfig>),
    }
}

/// Ollama itself takes a request of any size; this keeps its answer, and the wait for it, in bounds.
const MOST_TEXTS: usize = 512;

/// See `MOST_TEXTS`.
const MOST_BYTES: usize = 1_000_000;

/// An Ollama server.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OllamaConfig {
    /// Up to and without `/api`. Default <http://localhost:11434>.
    #[serde(default = "default_base_url")]
    base_url: String,
    /// Sent as a bearer token: <https://ollama.com> wants one, a local server none.
    #[schemars(with = "Option<String>")]
    #[serde(default)]
    api_key: Option<SecretString>,
    /// `/api/chat` or `/api/generate`. Default `chat`.
    #[serde(default)]
    api: Api,
    /// Tokens of prompt and answer together that a model is loaded for; more needs more memory. Default 8192.
    #[serde(default = "default_num_ctx")]
    num_ctx: u32,
    /// How long the model stays loaded after a call: `5m`, `-1` (for ever), `0`. Default: the server's.
    #[serde(default)]
    keep_alive: Option<KeepAlive>,
    /// Whether, or how long, a thinking model thinks before it answers. Default: the model's own.
    #[serde(default)]
    think: Option<Think>,
    /// Further headers of every request, over all others.
    #[schemars(with = "BTreeMap<String, String>")]
    #[serde(default)]
    headers: BTreeMap<String, SecretString>,
}

fn default_base_url() -> String {
    "http://localhost:11434".to_owned()
}

fn default_num_ctx() -> u32 {
    8192
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Api {
    #[default]
    Chat,
    Generate,
}

/// Seconds, or a duration as Ollama writes them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum KeepAlive {
    Seconds(i64),
    Duration(String),
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Think {
    Switch(bool),
    Level(Level),
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Level {
    Low,
    Medium,
    High,
}

impl ProviderConfig for OllamaConfig {
    fn build(&self, http: &Http) -> Result<Arc<dyn Provider>, BuildError> {
        let mut endpoint = Endpoint::new(http, &self.base_url)?;
        if let Some(key) = &self.api_key {
            endpoint.header("api_key", "authorization", &format!("Bearer {}", key.expose_secret().trim()))?;
        }
        endpoint.extra_headers(&self.headers)?;
        let path = match self.api {
            Api::Chat => "chat",
            Api::Generate => "generate",
        };
        Ok(Arc::new(Ollama { url: endpoint.url(&["api", path]), endpoint, config: self.clone(), learnt: Learnt::default() }))
    }
}

/// How an answer is made to follow a schema, from strict to weak. It is told in words besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Schema,
    /// Any JSON: all that servers before 0.5 know.
    Json,
    None,
}

/// What a model takes, as far as its refusals have told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Quirks {
    format: Format,
    think: bool,
}

impl shared::Quirks for Quirks {
    fn after(self, complaint: &Complaint, request: &ChatRequest) -> Option<Self> {
        if self.think && complaint.names(&["think"]) {
            return Some(Self { think: false, ..self });
        }
        let weaker = match self.format {
            Format::Schema => Format::Json,
            Format::Json => Format::None,
            Format::None => return None,
        };
        (request.schema.is_some() && complaint.names(&["format", "grammar", "schema"])).then_some(Self { format: weaker, ..self })
    }
}

#[derive(Debug)]
struct Ollama {
    endpoint: Endpoint,
    url: Url,
    config: OllamaConfig,
    learnt: Learnt<Quirks>,
}

#[async_trait]
impl Provider for Ollama {
    async fn chat(&self, request: &ChatRequest) -> Result<ChatAnswer, ProviderError> {
        let into_error = |complaint| into_error(complaint, &request.model);
        let answer = self.learnt.ask(request, || self.guess(), |quirks| self.send(request, quirks), into_error).await?;
        self.uncut(answer)
    }

    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxStream<'a, Result<Piece, ProviderError>> {
        use futures_util::StreamExt;
        let into_error = |complaint| into_error(complaint, &request.model);
        let begin = self.learnt.ask(request, || self.guess(), |quirks| self.begin(request, quirks), into_error);
        let pieces = streaming::pieces(&self.endpoint, begin, into_error);
        let uncut = |piece| match piece? {
            Piece::End(answer) => self.uncut(answer).map(Piece::End),
            text @ Piece::Text(_) => Ok(text),
        };
        pieces.map(uncut).boxed()
    }

    async fn embed(&self, model: &str, texts: &[String]) -> Result<Embeddings, ProviderError> {
        let (url, keep_alive) = (self.endpoint.url(&["api", "embed"]), self.config.keep_alive.as_ref());
        let mut all = Vectors::new(model);
        for batch in batches(texts, MOST_TEXTS, MOST_BYTES)? {
            let body = EmbedBody { model, input: batch, truncate: false, keep_alive };
            let body = shared::body(&body, batch.iter().map(String::len).sum::<usize>() + 1024)?;
            let answer = self.endpoint.post_for_vectors(&url, body).await.map_err(|complaint| into_error(complaint, model))?;
            let embedded = http::json::<Embedded>(&answer).and_then(|embedded| embedded.of(batch.len()));
            let embedded = embedded.map_err(|error| into_error(self.endpoint.complaint(&error), model))?;
            all.add(embedded.embeddings, embedded.model, embedded.prompt_eval_count);
        }
        Ok(all.into())
    }

    async fn models(&self) -> Result<Vec<String>, ProviderError> {
        let answer = self.endpoint.get(self.endpoint.url(&["api", "tags"])).await.map_err(|complaint| into_error(complaint, "NAME"))?;
        let tags: Tags = http::json(&answer).map_err(|error| into_error(self.endpoint.complaint(&error), "NAME"))?;
        Ok(tags.models.into_iter().map(|tag| tag.name).collect())
    }
}

impl Ollama {
    fn guess(&self) -> Quirks {
        Quirks { format: Format::Schema, think: self.config.think.is_some() }
    }

    async fn send(&self, request: &ChatRequest, quirks: Quirks) -> Result<Result<ChatAnswer, Complaint>, ProviderError> {
        let body = wire::body(request, quirks, &self.config, false)?;
        Ok(match self.endpoint.post(&self.url, body).await {
            Ok(answer) => wire::read(&answer, &request.model).map_err(|error| self.endpoint.complaint(&error)),
            Err(complaint) => Err(complaint),
        })
    }

    async fn begin(&self, request: &ChatRequest, quirks: Quirks) -> Result<Result<Begun<Documents>, Complaint>, ProviderError> {
        let body = wire::body(request, quirks, &self.config, true)?;
        let documents = |_: &Incoming| Documents::new(&request.model);
        let whole = |whole: &http::Answer| wire::read(whole, &request.model);
        Ok(streaming::begin(&self.endpoint, &self.url, body, Framing::Lines, documents, whole).await)
    }

    /// Servers before 0.12 cut a prompt all the same; then what they counted is all that there was room for.
    fn uncut(&self, answer: ChatAnswer) -> Result<ChatAnswer, ProviderError> {
        let room = self.config.num_ctx;
        match answer.tokens.input {
            Some(input) if input >= u64::from(room) => {
                Err(ProviderError::Rejected { kind: "too_large", message: format!("the prompt was cut: it has more tokens than `num_ctx` ({room})") })
            }
            _ => Ok(answer),
        }
    }
}

fn into_error(complaint: Complaint, model: &str) -> ProviderError {
    if complaint.status == 404 && complaint.message.contains("not found") {
        return complaint.hinting(format!("`ollama pull {model}` gets a model")).into_error(false);
    }
    if complaint.names(&["context length", "context window", "context size"]) {
        return ProviderError::Rejected { kind: "too_large", message: complaint.shown() };
    }
    complaint.into_error(false)
}

/// An error of Ollama is a text in a document that is otherwise an answer.
fn late_error(error: &str) -> HttpError {
    HttpError::Status { status: 500, body: serde_json::json!({ "error": error }).to_string(), retry_after: None, headers: Box::default() }
}
