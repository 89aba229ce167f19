use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{super::faults, Langfuse, error};

/// A score as it was accepted.
#[derive(Debug, Clone)]
pub struct ScoreRow {
    pub id: String,
    pub name: String,
    pub trace_id: String,
    pub observation_id: Option<String>,
    /// Of a score that is about a run of a dataset, and about no trace.
    pub dataset_run_id: Option<String>,
    pub value: Value,
    pub data_type: Option<String>,
    pub comment: Option<String>,
    pub metadata: Value,
    pub environment: Option<String>,
    /// Of the score's own, else of the event, else of its arrival.
    pub timestamp: Timestamp,
}

/// The bounds that the server puts on a body.
const SCORES_LIMIT: usize = 1 << 20;
const INGESTION_LIMIT: usize = 4_500_000;

impl Langfuse {
    /// Every accepted score, repeats included.
    pub fn posts(&self) -> Vec<ScoreRow> {
        self.state.lock().unwrap().accepted.clone()
    }

    /// What the server shows: the last row of each (day, name, id), by trace and name.
    pub fn scores(&self) -> BTreeMap<(String, String), Vec<ScoreRow>> {
        let mut shown: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for row in self.kept().into_iter().filter(|row| row.dataset_run_id.is_none()) {
            shown.entry((row.trace_id.clone(), row.name.clone())).or_default().push(row);
        }
        shown
    }

    /// Scores of runs of datasets.
    pub fn run_scores(&self) -> Vec<ScoreRow> {
        self.kept().into_iter().filter(|row| row.dataset_run_id.is_some()).collect()
    }

    fn kept(&self) -> Vec<ScoreRow> {
        let mut rows = BTreeMap::new();
        for row in &self.state.lock().unwrap().accepted {
            rows.insert((row.timestamp.strftime("%F").to_string(), row.name.clone(), row.id.clone()), row.clone());
        }
        rows.into_values().collect()
    }

    /// How many items have a score of this name.
    pub fn scored(&self, name: &str) -> usize {
        self.scores().keys().filter(|(_, metric)| metric == name).count()
    }

    /// Checks one score; `Err` is why the server refuses it.
    fn take(&self, body: &Value, event_time: Option<Timestamp>) -> Result<String, String> {
        check(body)?;
        let text = |key: &str| body[key].as_str().map(str::to_owned);
        let trace_id = text("traceId").unwrap_or_default();
        if self.state.lock().unwrap().refused_traces.contains(&trace_id) {
            return Err("made-up refusal of this trace's scores".to_owned());
        }
        if text("id").is_none_or(|id| id.is_empty() || id.len() > 800) {
            self.breaches.push(format!("a score without an id is a new one each time it is sent: {body}"));
        }
        let row = ScoreRow {
            id: text("id").unwrap_or_default(),
            name: text("name").unwrap_or_default(),
            trace_id,
            observation_id: text("observationId"),
            dataset_run_id: text("datasetRunId"),
            value: body["value"].clone(),
            data_type: text("dataType"),
            comment: text("comment"),
            metadata: body["metadata"].clone(),
            environment: text("environment"),
            timestamp: text("timestamp").and_then(|time| time.parse().ok()).or(event_time).unwrap_or_else(Timestamp::now),
        };
        let id = row.id.clone();
        self.state.lock().unwrap().accepted.push(row);
        Ok(id)
    }
}

/// What the server checks beyond the schema.
fn check(score: &Value) -> Result<(), String> {
    let targets = ["traceId", "sessionId", "datasetRunId"].into_iter().filter(|key| !score[*key].is_null()).count();
    if targets != 1 {
        return Err("exactly one of traceId, sessionId, datasetRunId".to_owned());
    }
    let (value, kind) = (&score["value"], score["dataType"].as_str());
    let fits = match kind {
        None => value.is_number() || value.is_string(),
        Some("NUMERIC") => value.is_number(),
        Some("BOOLEAN") => value.as_f64().is_some_and(|value| value == 0.0 || value == 1.0),
        Some("CATEGORICAL" | "TEXT") => value.as_str().is_some_and(|text| !text.is_empty()),
        Some(_) => false,
    };
    if fits { Ok(()) } else { Err(format!("value {value} does not fit dataType {kind:?}")) }
}

fn invalid(message: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "message": "Invalid request data", "error": [{ "code": "custom", "path": [], "message": message }] })))
        .into_response()
}

/// `POST /scores`, the object form: what 4.16 and every v3 take.
pub(super) async fn scores(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    if let Some(fault) = langfuse.writes.strike().await {
        langfuse.pulse.beat();
        return faults::answer(fault, b"{\"id\":\"half\"}");
    }
    let answer = match serde_json::from_slice::<Value>(&body) {
        _ if body.len() > SCORES_LIMIT => error(StatusCode::PAYLOAD_TOO_LARGE, "Body exceeded 1mb limit", None),
        Ok(score) if score.is_object() => {
            for breach in langfuse.create_score.faults(&score) {
                langfuse.breaches.push(format!("POST /scores: {breach} in {score}"));
            }
            langfuse.take(&score, None).map_or_else(|reason| invalid(&reason), |id| Json(json!({ "id": id })).into_response())
        }
        Ok(_) => invalid("Expected object, received array"),
        Err(_) => error(StatusCode::BAD_REQUEST, "Invalid JSON", None),
    };
    langfuse.pulse.beat();
    answer
}

/// `POST /ingestion`: 207 with an answer for each event.
pub(super) async fn ingestion(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, body: Bytes) -> Response {
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    if let Some(fault) = langfuse.writes.strike().await {
        langfuse.pulse.beat();
        return faults::answer(fault, b"{\"successes\":[],\"errors\":[]}");
    }
    if body.len() > INGESTION_LIMIT {
        return error(StatusCode::PAYLOAD_TOO_LARGE, "Body exceeded 4.5mb limit", None);
    }
    let envelope: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(events) = envelope["batch"].as_array() else {
        langfuse.breaches.push(format!("POST /ingestion without a batch: {envelope}"));
        return invalid("batch is required");
    };
    let (mut successes, mut errors) = (Vec::new(), Vec::new());
    for event in events {
        for breach in langfuse.ingestion_event.faults(event) {
            langfuse.breaches.push(format!("POST /ingestion: {breach} in {event}"));
        }
        let time = event["timestamp"].as_str().and_then(|time| time.parse().ok());
        match langfuse.take(&event["body"], time) {
            Ok(_) => successes.push(json!({ "id": event["id"], "status": 201 })),
            Err(reason) => errors.push(json!({ "id": event["id"], "status": 400, "message": "Invalid request data", "error": reason })),
        }
    }
    // The order of the answers is not that of the events.
    successes.reverse();
    langfuse.pulse.beat();
    (StatusCode::MULTI_STATUS, Json(json!({ "successes": successes, "errors": errors }))).into_response()
}
