//! Scores on the traces of a Langfuse project.
//!
//! By `POST /ingestion` with `score-create` events: one request for a batch, served by v3 and by v4 in every mode, with
//! an answer for each row. Where a server has no such path, by `POST /scores`, one object a request. The score's id,
//! name and timestamp are the same whenever it is sent, which makes a repeat an upsert. With `experiment:` the scores are
//! also those of a dataset's run ([`experiment`]).

mod experiment;

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

use self::experiment::{Experiment, ExperimentConfig};
use super::{BuildError, Delivery, RowError, Sink, SinkConfig, SinkCx, SinkError, SinkKind, queue_name};
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
    /// Publish scores on the traces. Default true.
    #[serde(default = "yes")]
    scores: bool,
    /// Metrics that are published: `METRIC` with all its parts, or `METRIC.PART`. Default: all.
    #[serde(default)]
    metrics: Vec<String>,
    /// Make the scores the run of a dataset too.
    experiment: Option<ExperimentConfig>,
    /// Tell the calls that judges make as traces of their own, in the environment `langfuse-assayd`, which views of
    /// production hide. Default false.
    #[serde(default)]
    trace_calls: bool,
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
        if !self.scores && self.experiment.is_none() {
            return Err(BuildError::at("scores", "with `scores: false` and no `experiment` this sink publishes nothing; leave the entry out"));
        }
        let connection = connections::find("langfuse", &cx.connections.langfuse, &self.connection).map_err(|message| BuildError::at("connection", message))?;
        let langfuse = Langfuse::new(connection, cx.http.clone());
        let experiment = self.experiment.as_ref().map(|experiment| experiment.build(&self.connection, &langfuse, cx.runs, &self.metrics)).transpose()?;
        let sender = Sender { langfuse, one_by_one: AtomicBool::new(false) };
        Ok(Arc::new(Publisher { sender, scores: self.scores, experiment }))
    }

    /// What is published differently is queued by itself.
    fn queue(&self) -> String {
        let mut parts = Vec::new();
        if self.connection != connections::DEFAULT {
            parts.push(("connection", self.connection.clone()));
        }
        if let Some(experiment) = &self.experiment {
            parts.push(("experiment", experiment.name()));
        }
        if !self.metrics.is_empty() {
            parts.push(("metrics", self.metrics.iter().map(|name| name.replace('%', "%25").replace(',', "%2C")).collect::<Vec<_>>().join(",")));
        }
        if !self.scores {
            parts.push(("scores", "false".to_owned()));
        }
        queue_name("langfuse", &parts)
    }

    fn scores_traces_of(&self) -> Option<&str> {
        self.scores.then_some(self.connection.as_str())
    }

    fn trace_calls(&self) -> Option<&str> {
        self.trace_calls.then_some(self.connection.as_str())
    }

    fn metrics(&self) -> &[String] {
        &self.metrics
    }
}

struct Publisher {
    sender: Sender,
    scores: bool,
    experiment: Option<Experiment>,
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
struct Body {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dataset_run_id: Option<String>,
    name: String,
    value: Value,
    data_type: String,
    comment: String,
    metadata: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    timestamp: String,
}

fn body(delivery: &Delivery) -> Result<Body, RowError> {
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
        id: score.score_id.clone(),
        trace_id: Some(trace_id.to_owned()),
        observation_id: delivery.observation_id.clone(),
        dataset_run_id: None,
        name: score.metric.clone(),
        value,
        data_type: delivery.data_type.clone(),
        comment: text::clip(&score.reason, COMMENT),
        metadata,
        environment: delivery.environment.clone(),
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
    async fn batch(&self, bodies: &[Body]) -> Result<Vec<Result<(), RowError>>, HttpError> {
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

    async fn single(&self, body: &Body) -> Result<Result<(), RowError>, HttpError> {
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

impl Sender {
    /// Answers for every score, in their order.
    async fn send(&self, bodies: &[Body]) -> Result<Vec<Result<(), RowError>>, SinkError> {
        if bodies.is_empty() {
            return Ok(Vec::new());
        }
        if !self.one_by_one.load(Ordering::Relaxed) {
            match self.batch(bodies).await {
                Ok(rows) => return Ok(rows),
                Err(HttpError::Status { status: 404 | 405 | 410, .. }) => self.one_by_one.store(true, Ordering::Relaxed),
                // One row spoils the envelope, or the whole is too large: each row for itself.
                Err(HttpError::Status { status: 400 | 413 | 422, .. }) => {}
                Err(error) => return Err(sink_error(&error)),
            }
        }
        let (mut rows, mut answered) = (Vec::with_capacity(bodies.len()), false);
        for some in bodies.chunks(PARALLEL) {
            let mut requests = Vec::with_capacity(some.len());
            for body in some {
                requests.push(self.single(body));
            }
            let mut away = None;
            for row in join_all(requests).await {
                answered |= row.is_ok();
                rows.push(row.unwrap_or_else(|error| Err(RowError::Retry(away.insert(sink_error(&error)).message.clone()))));
            }
            // Not one answer: that is no row's fault, and the rest would wait for nothing.
            if let Some(error) = away.filter(|_| !answered) {
                return Err(error);
            }
        }
        Ok(rows)
    }

    /// The same for rows, some of which may be no scores that Langfuse takes.
    async fn scores(&self, rows: &[&Delivery]) -> Result<Vec<Result<(), RowError>>, SinkError> {
        let bodies: Vec<Result<Body, RowError>> = rows.iter().map(|delivery| body(delivery)).collect();
        let answers: Vec<Result<(), RowError>> = bodies.iter().map(|body| body.as_ref().map(drop).map_err(Clone::clone)).collect();
        let sound: Vec<Body> = bodies.into_iter().filter_map(Result::ok).collect();
        let mut sent = self.send(&sound).await?.into_iter();
        Ok(answers.into_iter().map(|answer| answer.and_then(|()| sent.next().unwrap_or(Ok(())))).collect())
    }
}

#[async_trait]
impl Sink for Publisher {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Result<(), RowError>>, SinkError> {
        let rows: Vec<&Delivery> = batch.iter().collect();
        let answers = if self.scores { self.sender.scores(&rows).await? } else { vec![Ok(()); rows.len()] };
        let Some(experiment) = &self.experiment else { return Ok(answers) };
        let published = experiment.publish(&self.sender, &rows).await?;
        Ok(answers.into_iter().zip(published).map(|(score, item)| score.and(item)).collect())
    }

    fn wants_item(&self) -> bool {
        self.experiment.is_some()
    }

    async fn probe(&self) -> Result<String, SinkError> {
        let project = self.sender.langfuse.project_id().await.map_err(|error| sink_error(&error))?;
        Ok(format!("Langfuse takes scores for project {project}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_no_metric_and_two_metrics_are_not_one() {
        let queue = |settings: Value| serde_json::from_value::<LangfuseConfig>(settings).unwrap().queue();
        assert_eq!(queue(json!({})), "langfuse");
        assert_eq!(queue(json!({ "connection": "safety" })), "langfuse:connection=safety");
        assert_eq!(queue(json!({ "metrics": ["safety", "tone"] })), "langfuse:metrics=safety,tone");
        assert_ne!(queue(json!({ "metrics": ["safety,tone"] })), queue(json!({ "metrics": ["safety", "tone"] })));
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_no_rows_fault_where_there_is_one_request_a_score_too() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = json!({ "base_url": format!("http://{address}"), "public_key": "p", "secret_key": "s" });
        let http = crate::util::http::Http::new(reqwest::Client::new(), crate::util::backoff::Policy::default());
        let sender = Sender { langfuse: Langfuse::new(&serde_json::from_value(settings).unwrap(), http), one_by_one: AtomicBool::new(false) };
        // No batch path; of scores one is taken and the rest are not answered for.
        let score = |axum::Json(score): axum::Json<Value>| async move {
            let status = if score["id"] == "taken" { axum::http::StatusCode::OK } else { axum::http::StatusCode::SERVICE_UNAVAILABLE };
            (status, axum::Json(json!({ "id": "x" })))
        };
        let router = axum::Router::new().route("/api/public/scores", axum::routing::post(score));
        let body = |id: &str| Body {
            id: id.to_owned(),
            trace_id: Some("t".to_owned()),
            observation_id: None,
            dataset_run_id: None,
            name: "m".to_owned(),
            value: json!(1),
            data_type: "NUMERIC".to_owned(),
            comment: String::new(),
            metadata: Value::Null,
            environment: None,
            timestamp: "2026-01-01T00:00:00Z".to_owned(),
        };
        let story = async {
            assert!(sender.send(&[body("a"), body("b")]).await.unwrap_err().transient);
            let rows = sender.send(&[body("a"), body("taken")]).await.unwrap();
            assert!(matches!(rows[..], [Err(RowError::Retry(_)), Ok(())]), "{rows:?}");
        };
        tokio::select! {
            served = axum::serve(listener, router) => panic!("{served:?}"),
            () = story => {}
        }
    }
}
