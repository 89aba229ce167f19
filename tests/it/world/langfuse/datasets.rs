use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    super::faults,
    Langfuse, Mode, error,
    reads::Query,
    rows::{Context, Row},
};

const ITEM_LIMIT: usize = 4_500_000;

#[derive(Default)]
pub(super) struct Datasets {
    /// Name -> id.
    datasets: BTreeMap<String, String>,
    /// Id -> as it was put.
    items: BTreeMap<String, Value>,
    /// v3's, each with the id that the server gave it.
    links: Vec<Value>,
    /// (trace, span) -> attributes and the rest of the span.
    spans: BTreeMap<(String, String), Value>,
    /// An export with this text in it is refused.
    refused_text: Option<String>,
    /// The page of a run's links that is not to be had, once.
    failing_page: Option<usize>,
}

fn hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Langfuse {
    /// The dataset's items by their id.
    pub fn dataset_items(&self, dataset: &str) -> BTreeMap<String, Value> {
        let state = self.state.lock().unwrap();
        state.datasets.items.iter().filter(|(_, item)| item["datasetName"] == dataset).map(|(id, item)| (id.clone(), item.clone())).collect()
    }

    /// v3's run items.
    pub fn run_items(&self) -> Vec<Value> {
        self.state.lock().unwrap().datasets.links.clone()
    }

    /// An export of spans that holds this text is refused as a whole.
    pub fn refuse_spans_with(&self, text: &str) {
        self.state.lock().unwrap().datasets.refused_text = Some(text.to_owned());
    }

    /// This page of a run's links is not to be had, once.
    pub fn fail_page(&self, page: usize) {
        self.state.lock().unwrap().datasets.failing_page = Some(page);
    }

    /// Whether that page was asked for.
    pub fn page_failed(&self) -> bool {
        self.state.lock().unwrap().datasets.failing_page.is_none()
    }

    /// Spans that came by OTLP: their attributes by name, and `traceId`, `spanId`, `parentSpanId`.
    pub fn spans(&self) -> Vec<BTreeMap<String, Value>> {
        let state = self.state.lock().unwrap();
        let of = |span: &Value| {
            let mut fields: BTreeMap<String, Value> = span["attributes"].as_array().into_iter().flatten().map(attribute).collect();
            fields.extend(["traceId", "spanId", "parentSpanId", "name", "startTimeUnixNano"].map(|key| (key.to_owned(), span[key].clone())));
            fields
        };
        state.datasets.spans.values().map(of).collect()
    }
}

fn attribute(attribute: &Value) -> (String, Value) {
    (attribute["key"].as_str().unwrap_or_default().to_owned(), attribute["value"]["stringValue"].clone())
}

fn missing(what: &str) -> Response {
    error(StatusCode::NOT_FOUND, what, Some("LangfuseNotFoundError"))
}

fn invalid(message: &str) -> Response {
    let fault = json!({ "code": "custom", "path": [], "message": message });
    (StatusCode::BAD_REQUEST, Json(json!({ "message": "Invalid request data", "error": [fault] }))).into_response()
}

/// What every write goes through: keys, faults, JSON. The answer is given once the work is done, so a fault may strike
/// before it or cut the answer.
async fn write(langfuse: &Langfuse, headers: &HeaderMap, body: &Bytes, work: impl FnOnce(Value) -> Result<Value, Response>) -> Response {
    if let Some(refusal) = langfuse.refuses(headers) {
        return refusal;
    }
    let fault = langfuse.writes.strike().await;
    if let Some(fault) = fault.filter(|fault| *fault != faults::Fault::Cut) {
        langfuse.pulse.beat();
        return faults::answer(fault, b"{}");
    }
    let answer = match serde_json::from_slice::<Value>(body) {
        Ok(body) => work(body),
        Err(_) => Err(error(StatusCode::BAD_REQUEST, "Invalid JSON", None)),
    };
    langfuse.pulse.beat();
    match (answer, fault) {
        (Ok(answer), Some(fault)) => faults::answer(fault, answer.to_string().as_bytes()),
        (Ok(answer), None) => Json(answer).into_response(),
        (Err(refusal), _) => refusal,
    }
}

const AT: &str = "2026-11-01T00:00:00.000Z";

impl Langfuse {
    fn held(&self, schema: &super::Schema, what: &str, body: &Value) {
        for breach in schema.faults(body) {
            self.breaches.push(format!("{what}: {breach} in {body}"));
        }
    }

    fn dataset_answer(&self, name: &str) -> Option<Value> {
        let id = self.state.lock().unwrap().datasets.datasets.get(name)?.clone();
        let answer = json!({ "id": id, "name": name, "description": null, "metadata": null, "inputSchema": null, "expectedOutputSchema": null, "projectId": "p1", "createdAt": AT, "updatedAt": AT });
        assert_eq!(self.dataset_schemas.dataset.faults(&answer), Vec::<String>::new());
        Some(answer)
    }
}

pub(super) async fn dataset(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, Path(name): Path<String>) -> Response {
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    langfuse.dataset_answer(&name).map_or_else(|| missing("Dataset not found"), |answer| Json(answer).into_response())
}

pub(super) async fn put_dataset(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, body: Bytes) -> Response {
    write(&langfuse, &headers, &body, |body| {
        langfuse.held(&langfuse.dataset_schemas.create_dataset, "POST /v2/datasets", &body);
        let name = body["name"].as_str().filter(|name| !name.is_empty()).ok_or_else(|| invalid("name"))?;
        {
            let datasets = &mut langfuse.state.lock().unwrap().datasets.datasets;
            let next = format!("ds-{}", datasets.len());
            datasets.entry(name.to_owned()).or_insert(next);
        }
        Ok(langfuse.dataset_answer(name).unwrap())
    })
    .await
}

pub(super) async fn put_item(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, body: Bytes) -> Response {
    if body.len() > ITEM_LIMIT {
        return error(StatusCode::PAYLOAD_TOO_LARGE, "Body exceeded 4.5mb limit", None);
    }
    write(&langfuse, &headers, &body, |body| {
        langfuse.held(&langfuse.dataset_schemas.create_item, "POST /dataset-items", &body);
        let name = body["datasetName"].as_str().unwrap_or_default();
        let mut state = langfuse.state.lock().unwrap();
        let dataset = state.datasets.datasets.get(name).cloned().ok_or_else(|| missing("Dataset not found"))?;
        let id = match body["id"].as_str() {
            Some(id) if id.is_empty() || id.len() > 255 => return Err(invalid("id")),
            Some(id) => id.to_owned(),
            None => {
                langfuse.breaches.push("a dataset item without an id is a new one each time it is sent");
                format!("item-{}", state.datasets.items.len())
            }
        };
        if state.datasets.items.get(&id).is_some_and(|known| known["datasetName"] != name) {
            return Err(missing("The dataset item with this id is another dataset's"));
        }
        state.datasets.items.insert(id.clone(), body.clone());
        let value = |key: &str| body.get(key).cloned().unwrap_or_default();
        let answer = json!({
            "id": id, "status": "ACTIVE", "input": value("input"), "expectedOutput": value("expectedOutput"), "metadata": value("metadata"),
            "sourceTraceId": value("sourceTraceId"), "sourceObservationId": value("sourceObservationId"), "datasetId": dataset, "datasetName": name,
            "createdAt": AT, "updatedAt": AT, "mediaReferences": [],
        });
        assert_eq!(langfuse.dataset_schemas.item.faults(&answer), Vec::<String>::new());
        Ok(answer)
    })
    .await
}

const LINK_KEYS: [&str; 8] = ["runName", "runDescription", "metadata", "datasetItemId", "observationId", "traceId", "datasetVersion", "createdAt"];

pub(super) async fn link(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, body: Bytes) -> Response {
    match langfuse.links.strike().await {
        None => make_link(&langfuse, &headers, &body).await,
        Some(fault @ faults::Fault::Cut) => {
            make_link(&langfuse, &headers, &body).await;
            faults::answer(fault, b"{\"id\": \"ri-0\"}")
        }
        Some(fault) => faults::answer(fault, b""),
    }
}

async fn make_link(langfuse: &Arc<Langfuse>, headers: &HeaderMap, body: &Bytes) -> Response {
    write(langfuse, headers, body, |body| {
        langfuse.held(&langfuse.dataset_schemas.create_link, "POST /dataset-run-items", &body);
        if body.as_object().is_none_or(|body| body.keys().any(|key| !LINK_KEYS.contains(&key.as_str()))) {
            return Err(invalid("unrecognized_keys"));
        }
        if body["traceId"].is_null() && body["observationId"].is_null() {
            return Err(invalid("traceId or observationId"));
        }
        let mut state = langfuse.state.lock().unwrap();
        let item = body["datasetItemId"].as_str().and_then(|id| state.datasets.items.get(id)).ok_or_else(|| missing("Dataset item not found"))?;
        let dataset = state.datasets.datasets[item["datasetName"].as_str().unwrap()].clone();
        let run = body["runName"].as_str().ok_or_else(|| invalid("runName"))?.to_owned();
        let id = hex(&json!(["langfuse-experiment-v1", "p1", dataset, run]).to_string());
        let answer = json!({
            "id": format!("ri-{}", state.datasets.links.len()), "datasetRunId": id, "datasetRunName": run, "datasetItemId": body["datasetItemId"],
            "traceId": body["traceId"], "observationId": body.get("observationId").cloned().unwrap_or_default(), "createdAt": AT, "updatedAt": AT,
        });
        assert_eq!(langfuse.dataset_schemas.link.faults(&answer), Vec::<String>::new());
        match state.mode {
            Mode::V3 => state.datasets.links.push(answer.clone()),
            Mode::V4 if state.upgraded => {}
            Mode::V4 => langfuse.breaches.push("v4 answers POST /dataset-run-items and stores nothing"),
        }
        Ok(answer)
    })
    .await
}

pub(super) async fn links(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, RawQuery(raw): RawQuery) -> Response {
    if langfuse.mode() == Mode::V4 {
        return missing("This endpoint is not available on deployments running in Langfuse v4 events_only mode.");
    }
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    let query = Query::parse(raw);
    let (Some(dataset), Some(run)) = (query.get("datasetId"), query.get("runName")) else { return invalid("datasetId and runName") };
    let number = |key: &str, default: usize| query.get(key).map_or(Some(default), |text| text.parse().ok()).filter(|n| *n > 0);
    let (Some(page), Some(limit)) = (number("page", 1), number("limit", 50).filter(|limit| *limit <= 100)) else { return invalid("page or limit") };
    let mut state = langfuse.state.lock().unwrap();
    if state.datasets.failing_page == Some(page) {
        state.datasets.failing_page = None;
        return error(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", None);
    }
    if !state.datasets.datasets.values().any(|id| id == dataset) {
        return missing("Dataset run not found");
    }
    let id = hex(&json!(["langfuse-experiment-v1", "p1", dataset, run]).to_string());
    let of_run: Vec<&Value> = state.datasets.links.iter().filter(|link| link["datasetRunId"] == id.as_str()).collect();
    if of_run.is_empty() {
        return missing("Dataset run not found");
    }
    let data: Vec<&Value> = of_run.iter().skip((page - 1) * limit).take(limit).copied().collect();
    let pages = of_run.len().div_ceil(limit);
    Json(json!({ "data": data, "meta": { "page": page, "limit": limit, "totalItems": of_run.len(), "totalPages": pages } })).into_response()
}

/// `POST /otel/v1/traces` in JSON. One span that does not hold spoils the whole.
pub(super) async fn otel(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, body: Bytes) -> Response {
    if headers.get("x-langfuse-ingestion-version").is_none_or(|version| version != "4") {
        langfuse.breaches.push("OTLP without x-langfuse-ingestion-version: 4 is seen minutes later");
    }
    if headers.get("content-type").is_none_or(|kind| kind != "application/json") {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": "unsupported content type" }))).into_response();
    }
    write(&langfuse, &headers, &body, |body| {
        let spans = spans_of(&body).map_err(|fault| (StatusCode::BAD_REQUEST, Json(json!({ "error": fault }))).into_response())?;
        let mut state = langfuse.state.lock().unwrap();
        if state.datasets.refused_text.as_ref().is_some_and(|text| body.to_string().contains(text)) {
            return Err((StatusCode::BAD_REQUEST, Json(json!({ "error": "made-up refusal of an export" }))).into_response());
        }
        for span in spans {
            let key = (span["traceId"].as_str().unwrap().to_owned(), span["spanId"].as_str().unwrap().to_owned());
            let row = row(&span);
            if state.datasets.spans.insert(key, span).is_none() {
                state.rows.push(row);
            }
        }
        Ok(json!({}))
    })
    .await
}

fn spans_of(body: &Value) -> Result<Vec<Value>, String> {
    let list = |value: &Value, what: &str| value.as_array().cloned().ok_or_else(|| format!("{what} is no array"));
    let mut spans = Vec::new();
    for resource in list(&body["resourceSpans"], "resourceSpans")? {
        for scope in list(&resource["scopeSpans"], "scopeSpans")? {
            spans.extend(list(&scope["spans"], "spans")?);
        }
    }
    let hex = |value: &Value, digits: usize| value.as_str().is_some_and(|text| text.len() == digits && text.chars().all(|c| c.is_ascii_hexdigit()));
    for span in &spans {
        if !hex(&span["traceId"], 32) || !hex(&span["spanId"], 16) || !(span["parentSpanId"].is_null() || hex(&span["parentSpanId"], 16)) {
            return Err(format!("ids of {span}"));
        }
        for key in ["startTimeUnixNano", "endTimeUnixNano"] {
            if span[key].as_str().is_none_or(|time| time.parse::<u64>().is_err()) {
                return Err(format!("{key} of {span}"));
            }
        }
        for attribute in list(&span["attributes"], "attributes")? {
            let value = &attribute["value"];
            if !attribute["key"].is_string() || !(value["stringValue"].is_string() || value["arrayValue"]["values"].is_array()) {
                return Err(format!("attribute {attribute}"));
            }
        }
    }
    Ok(spans)
}

/// The observation that a span becomes: production listings have to leave it out.
fn row(span: &Value) -> Row {
    let attributes: BTreeMap<String, Value> = span["attributes"].as_array().unwrap().iter().map(attribute).collect();
    let text = |key: &str| attributes.get(key).and_then(Value::as_str).map(str::to_owned);
    let nanos: i128 = span["startTimeUnixNano"].as_str().unwrap().parse().unwrap();
    Row {
        id: span["spanId"].as_str().unwrap().to_owned(),
        trace_id: span["traceId"].as_str().unwrap().to_owned(),
        start: Timestamp::from_nanosecond(nanos).unwrap(),
        parent: span["parentSpanId"].as_str().map(str::to_owned),
        kind: "SPAN".to_owned(),
        name: span["name"].as_str().unwrap_or_default().to_owned(),
        input: json!(text("langfuse.observation.input")),
        output: json!(text("langfuse.observation.output")),
        trace: Context {
            name: text("langfuse.trace.name").unwrap_or_default(),
            tags: Vec::new(),
            metadata: json!({}),
            user: None,
            session: None,
            environment: text("langfuse.environment").unwrap_or_else(|| "default".to_owned()),
        },
    }
}
