//! Langfuse's public API. [`Mode::V4`] is a server in its default write mode (no legacy reads), [`Mode::V3`] one from
//! before (no v2 reads). It pages, sorts, filters and answers errors as the real one does.

mod datasets;
mod prompts;
mod reads;
mod rows;
mod scores;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use self::rows::Row;
pub use self::{
    prompts::{WEBHOOK_SECRET, prompt_event, signature},
    rows::{Child, NewTrace},
    scores::ScoreRow,
};
use super::{
    Breaches, Pulse,
    faults::{self, Faults},
    schema::Schema,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    V3,
    V4,
}

/// A read that breaks its own contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quirk {
    /// The first page again and again, with a way to the next.
    RepeatPage,
    /// The first page says that it is the last.
    EarlyEnd,
}

/// `pk-lf-test:sk-lf-test`
const CREDENTIALS: &str = "Basic cGstbGYtdGVzdDpzay1sZi10ZXN0";

pub struct Langfuse {
    pub url: String,
    /// Of listings and single traces.
    pub reads: Faults,
    /// Of scores, datasets and spans.
    pub writes: Faults,
    /// Of links of a dataset's items, beside `writes`: a cut one was made all the same.
    pub links: Faults,
    /// Of reads of prompts.
    pub prompts: Faults,
    state: Mutex<Inner>,
    pulse: Pulse,
    breaches: Breaches,
    create_score: Schema,
    ingestion_event: Schema,
    prompt_answer: Schema,
    dataset_schemas: DatasetSchemas,
}

struct DatasetSchemas {
    create_dataset: Schema,
    dataset: Schema,
    create_item: Schema,
    item: Schema,
    create_link: Schema,
    link: Schema,
}

struct Inner {
    mode: Mode,
    /// It was of v3 once: what is sent the old way was not known to be wrong.
    upgraded: bool,
    rows: Vec<Row>,
    accepted: Vec<ScoreRow>,
    refused_traces: BTreeSet<String>,
    quirk: Option<Quirk>,
    keys_revoked: bool,
    listings: Vec<Timestamp>,
    children_served: usize,
    prompts: Vec<prompts::Prompt>,
    prompt_reads: usize,
    datasets: datasets::Datasets,
}

impl Inner {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            upgraded: false,
            rows: Vec::new(),
            accepted: Vec::new(),
            refused_traces: BTreeSet::new(),
            quirk: None,
            keys_revoked: false,
            listings: Vec::new(),
            children_served: 0,
            prompts: Vec::new(),
            prompt_reads: 0,
            datasets: datasets::Datasets::default(),
        }
    }
}

impl Langfuse {
    pub(super) fn new(mode: Mode, url: String, pulse: Pulse, breaches: Breaches) -> Self {
        Self {
            url,
            reads: Faults::default(),
            writes: Faults::default(),
            links: Faults::default(),
            prompts: Faults::default(),
            state: Mutex::new(Inner::new(mode)),
            pulse,
            breaches,
            create_score: Schema::of("CreateScoreRequest"),
            ingestion_event: Schema::of("IngestionEvent"),
            prompt_answer: Schema::of("Prompt"),
            dataset_schemas: DatasetSchemas {
                create_dataset: Schema::of("CreateDatasetRequest"),
                dataset: Schema::of("Dataset"),
                create_item: Schema::of("CreateDatasetItemRequest"),
                item: Schema::of("DatasetItem"),
                create_link: Schema::of("CreateDatasetRunItemRequest"),
                link: Schema::of("DatasetRunItem"),
            },
        }
    }

    pub fn quirk(&self, quirk: Option<Quirk>) {
        self.state.lock().unwrap().quirk = quirk;
    }

    /// From now on the keys are refused, or good again.
    pub fn revoke_keys(&self, revoked: bool) {
        self.state.lock().unwrap().keys_revoked = revoked;
    }

    /// Every score of this trace is refused with a 400.
    pub fn refuse_scores_of(&self, trace: &str) {
        self.state.lock().unwrap().refused_traces.insert(trace.to_owned());
    }

    /// No trace's scores are refused any more.
    pub fn accept_scores(&self) {
        self.state.lock().unwrap().refused_traces.clear();
    }

    pub fn mode(&self) -> Mode {
        self.state.lock().unwrap().mode
    }

    /// From now on the server is one of v4.
    pub fn upgrade(&self) {
        let mut state = self.state.lock().unwrap();
        state.mode = Mode::V4;
        state.upgraded = true;
    }

    /// How often a page of traces was asked for; probes (`limit=1`) do not count.
    pub fn listings(&self) -> usize {
        self.state.lock().unwrap().listings.len()
    }

    /// Rows of children handed out so far.
    pub fn children_served(&self) -> usize {
        self.state.lock().unwrap().children_served
    }

    fn refuses(&self, headers: &HeaderMap) -> Option<Response> {
        let given = headers.get("authorization").and_then(|value| value.to_str().ok());
        let revoked = self.state.lock().unwrap().keys_revoked;
        let refused = revoked || given != Some(CREDENTIALS);
        refused.then(|| error(StatusCode::UNAUTHORIZED, "Invalid credentials. Confirm that you've configured the correct host.", None))
    }
}

pub(super) fn router(langfuse: Arc<Langfuse>) -> Router {
    Router::new()
        .route("/api/public/health", get(health))
        .route("/api/public/projects", get(projects))
        .route("/api/public/v2/observations", get(reads::observations))
        .route("/api/public/traces", get(reads::traces))
        .route("/api/public/traces/{id}", get(reads::trace))
        .route("/api/public/v2/prompts/{name}", get(prompts::prompt))
        .route("/api/public/v2/datasets", post(datasets::put_dataset))
        .route("/api/public/v2/datasets/{name}", get(datasets::dataset))
        .route("/api/public/dataset-items", post(datasets::put_item))
        .route("/api/public/dataset-run-items", get(datasets::links).post(datasets::link))
        .route("/api/public/otel/v1/traces", post(datasets::otel))
        .route("/api/public/scores", post(scores::scores))
        .route("/api/public/ingestion", post(scores::ingestion))
        .fallback(any(|| async { error(StatusCode::NOT_FOUND, "no such path", Some("LangfuseNotFoundError")) }))
        .with_state(langfuse)
}

async fn health(State(langfuse): State<Arc<Langfuse>>) -> Json<Value> {
    let version = if langfuse.mode() == Mode::V4 { "4.16.0" } else { "3.180.0" };
    Json(json!({ "status": "OK", "version": version }))
}

async fn projects(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap) -> Response {
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    Json(json!({ "data": [{ "id": "p1", "name": "test", "organization": { "id": "o1", "name": "org" }, "metadata": {} }] })).into_response()
}

fn error(status: StatusCode, message: &str, kind: Option<&str>) -> Response {
    let body = match kind {
        Some(kind) => json!({ "message": message, "error": kind }),
        None => json!({ "message": message }),
    };
    (status, Json(body)).into_response()
}

/// The truth, or what a fault makes of it.
async fn through(faults: &Faults, truth: impl FnOnce() -> Result<Value, Response>) -> Response {
    match faults.strike().await {
        None => truth().map_or_else(|refusal| refusal, |body| Json(body).into_response()),
        Some(fault @ faults::Fault::Cut) => match truth() {
            Ok(body) => faults::answer(fault, body.to_string().as_bytes()),
            Err(refusal) => refusal,
        },
        Some(fault) => faults::answer(fault, b""),
    }
}
