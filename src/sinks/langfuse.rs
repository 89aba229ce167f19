//! Scores on the traces of a Langfuse project.
//!
//! By `POST /ingestion` with `score-create` events: one request for a batch, served by v3 and by v4 in every mode, with
//! an answer for each row. Where a server has no such path, by `POST /scores`, one object a request. The score's id,
//! name and timestamp are the same whenever it is sent, which makes a repeat an upsert.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use futures_util::future::join_all;
use reqwest::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{BuildError, Delivery, RowError, Sink, SinkConfig, SinkCx, SinkError, SinkKind};
use crate::{
    connections::{self, Langfuse},
    util::{
        http::{self, HttpError},
        plugin, text,
    },
};

/// Writes each score to its trace.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LangfuseConfig {
    /// Langfuse connection. Default `default`.
    #[serde(default = "connection")]
    connection: String,
    /// Publish scores. Default true.
    #[serde(default = "yes")]
    scores: bool,
}

fn connection() -> String {
    connections::DEFAULT.to_owned()
}

fn yes() -> bool {
    true
}

inventory::submit! {
    SinkKind {
        name: "langfuse",
        example: "connection: default\nscores: true\n",
        schema: plugin::schema::<LangfuseConfig>,
        parse: |node, faults| plugin::parse::<LangfuseConfig>(node, faults).map(|config| Box::new(config) as Box<dyn SinkConfig>),
    }
}

impl SinkConfig for LangfuseConfig {
    fn build(&self, cx: &SinkCx<'_>) -> Result<Arc<dyn Sink>, BuildError> {
        if !self.scores {
            return Err(BuildError::at("scores", "with `scores: false` this sink publishes nothing; leave the entry out"));
        }
        let connection = connections::find("langfuse", &cx.connections.langfuse, &self.connection).map_err(|message| BuildError::at("connection", message))?;
        Ok(Arc::new(Sender { langfuse: Langfuse::new(connection, cx.http.clone()), one_by_one: AtomicBool::new(false) }))
    }

    fn queue(&self) -> String {
        if self.connection == connections::DEFAULT { "langfuse".to_owned() } else { format!("langfuse:{}", self.connection) }
    }
}

#[derive(Debug)]
struct Sender {
    langfuse: Langfuse,
    /// The server has no batch path.
    one_by_one: AtomicBool,
}

/// Requests at the same time where there is one a score.
const PARALLEL: usize = 8;
/// Characters of a reason: Langfuse takes more, a reader does not.
const COMMENT: usize = 4_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    id: &'a str,
    trace_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    observation_id: Option<&'a str>,
    name: &'a str,
    value: Value,
    data_type: &'a str,
    comment: String,
    metadata: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<&'a str>,
    timestamp: String,
}

fn body(delivery: &Delivery) -> Result<Body<'_>, RowError> {
    let score = &delivery.score;
    let trace_id = score.trace_id.as_deref().ok_or_else(|| RowError::Dead("the item has no trace to hang a score on".to_owned()))?;
    let number = score.value.filter(|value| value.is_finite()).ok_or_else(|| RowError::Dead("the score has no value".to_owned()));
    let value = match delivery.data_type.as_str() {
        "BOOLEAN" => json!(u8::from(number? >= 0.5)),
        "CATEGORICAL" => json!(score.label.as_deref().ok_or_else(|| RowError::Dead("the score has no label".to_owned()))?),
        _ => json!(number?),
    };
    let metadata = json!({ "monitor": score.monitor, "run_id": score.run_id, "metric_revision": score.metric_revision, "raw": score.raw, "passed": score.passed, "model": score.model });
    Ok(Body {
        id: &score.score_id,
        trace_id,
        observation_id: delivery.observation_id.as_deref(),
        name: &score.metric,
        value,
        data_type: &delivery.data_type,
        comment: text::clip(&score.reason, COMMENT),
        metadata,
        environment: delivery.environment.as_deref(),
        timestamp: score.created_at.to_string(),
    })
}

/// What a status means for the sink as a whole.
fn sink_error(error: &HttpError) -> SinkError {
    let transient = !matches!(error.status(), Some(401 | 403));
    let hint = if transient { "" } else { " (check the connection's keys)" };
    SinkError { message: format!("Langfuse: {error}{hint}"), retry_after: error.retry_after(), transient }
}

#[derive(Deserialize)]
struct IngestionAnswer {
    #[serde(default)]
    errors: Vec<IngestionError>,
}

#[derive(Deserialize)]
struct IngestionError {
    id: String,
    #[serde(default)]
    status: u16,
    #[serde(default)]
    message: Option<String>,
}

impl Sender {
    async fn batch(&self, bodies: &[Body<'_>]) -> Result<Vec<Result<(), RowError>>, HttpError> {
        // The event's id is for Langfuse's own deduplication: the same event is the same score.
        let events: Vec<Value> =
            bodies.iter().map(|body| json!({ "id": body.id, "type": "score-create", "timestamp": body.timestamp, "body": body })).collect();
        let request = self.langfuse.request(Method::POST, "/ingestion").json(&json!({ "batch": events, "metadata": {} }));
        let answer: IngestionAnswer = http::json(&self.langfuse.http().attempt(request).await?)?;
        Ok(bodies
            .iter()
            .map(|body| match answer.errors.iter().find(|error| error.id == body.id) {
                None => Ok(()),
                Some(error) => Err(row_error(error.status, error.message.as_deref().unwrap_or("refused"))),
            })
            .collect())
    }

    async fn single(&self, body: &Body<'_>) -> Result<Result<(), RowError>, HttpError> {
        let sent = self.langfuse.http().attempt(self.langfuse.request(Method::POST, "/scores").json(body)).await;
        match sent {
            Ok(_) => Ok(Ok(())),
            Err(HttpError::Status { status: status @ (400 | 413 | 422), body, .. }) => Ok(Err(row_error(status, &body))),
            Err(error) => Err(error),
        }
    }
}

fn row_error(status: u16, message: &str) -> RowError {
    let message = format!("Langfuse: HTTP {status}: {}", text::one_line(message, 300));
    if status == 429 || status >= 500 { RowError::Retry(message) } else { RowError::Dead(message) }
}

#[async_trait]
impl Sink for Sender {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Result<(), RowError>>, SinkError> {
        let bodies: Vec<Result<Body<'_>, RowError>> = batch.iter().map(body).collect();
        let mut sound = Vec::with_capacity(batch.len());
        let mut answers: Vec<Result<(), RowError>> = Vec::with_capacity(batch.len());
        for body in bodies {
            answers.push(body.as_ref().map(|_| ()).map_err(Clone::clone));
            sound.extend(body.ok());
        }
        if sound.is_empty() {
            return Ok(answers);
        }
        let mut sent = None;
        if !self.one_by_one.load(Ordering::Relaxed) {
            match self.batch(&sound).await {
                Ok(rows) => sent = Some(rows),
                Err(HttpError::Status { status: 404 | 405 | 410, .. }) => self.one_by_one.store(true, Ordering::Relaxed),
                // One row spoils the envelope, or the whole is too large: each row for itself.
                Err(HttpError::Status { status: 400 | 413 | 422, .. }) => {}
                Err(error) => return Err(sink_error(&error)),
            }
        }
        let sent = match sent {
            Some(rows) => rows,
            None => {
                let mut rows = Vec::with_capacity(sound.len());
                for some in sound.chunks(PARALLEL) {
                    let mut requests = Vec::with_capacity(some.len());
                    for body in some {
                        requests.push(self.single(body));
                    }
                    rows.extend(join_all(requests).await.into_iter().map(|row| row.unwrap_or_else(|error| Err(RowError::Retry(sink_error(&error).message)))));
                }
                rows
            }
        };
        let mut sent = sent.into_iter();
        Ok(answers.into_iter().map(|answer| answer.and_then(|()| sent.next().unwrap_or(Ok(())))).collect())
    }

    async fn probe(&self) -> Result<String, SinkError> {
        let project = self.langfuse.project_id().await.map_err(|error| sink_error(&error))?;
        Ok(format!("Langfuse takes scores for project {project}"))
    }
}
