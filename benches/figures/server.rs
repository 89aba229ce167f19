//! `serve TRACES LATENCY_MS`: a model and a Langfuse in its v4 dialect, as small as they can be, in a process of their
//! own. Traces are made from their number when they are asked for; nothing is kept but counts.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, State},
    http::header::CONTENT_TYPE,
    response::IntoResponse,
    routing::{get, post},
    serve::ListenerExt,
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::process::{self, Background};

/// Traces lie evenly in this long before [`AGE`].
const SPREAD: SignedDuration = SignedDuration::from_hours(20);
/// The newest trace is this old: settled for every monitor.
const AGE: SignedDuration = SignedDuration::from_mins(30);

/// A server in a process of its own.
#[derive(Debug)]
pub struct Server {
    process: Background,
    pub url: String,
}

#[derive(Debug, Deserialize)]
pub struct Counts {
    pub calls: u64,
    pub scores: u64,
}

impl Server {
    pub fn start(traces: u64, latency_ms: u64) -> anyhow::Result<Self> {
        let (process, url) = Background::start_and_read(&mut process::this(&["serve", &traces.to_string(), &latency_ms.to_string()])?)?;
        anyhow::ensure!(url.starts_with("http://127.0.0.1:"), "the server did not start");
        Ok(Self { process, url })
    }

    /// What was asked of it since the last time.
    pub fn counts(&self) -> anyhow::Result<Counts> {
        let text = crate::client::get(&format!("{}/counts", self.url)).with_context(|| format!("asking the server, process {}", self.process.pid()))?;
        Ok(serde_json::from_str(&text)?)
    }
}

#[derive(Debug)]
struct World {
    traces: i64,
    first_us: i64,
    step_us: i64,
    latency: Duration,
    calls: AtomicU64,
    scores: AtomicU64,
}

pub fn main(arguments: &[String]) -> anyhow::Result<()> {
    let number = |at: usize| arguments.get(at).and_then(|text: &String| text.parse::<i64>().ok()).context("serve TRACES LATENCY_MS");
    let (traces, latency) = (number(0)?, Duration::from_millis(number(1)?.unsigned_abs()));
    let newest_us = (Timestamp::now() - AGE).as_microsecond();
    // Whole milliseconds: that is what the API tells and is asked for.
    let step_us = (i64::try_from(SPREAD.as_micros())? / traces.max(1)).max(1_000) / 1_000 * 1_000;
    let first_us = newest_us / 1_000 * 1_000 - step_us * (traces - 1).max(0);
    let world = Arc::new(World { traces, first_us, step_us, latency, calls: AtomicU64::new(0), scores: AtomicU64::new(0) });
    let app = Router::new()
        .route("/api/public/projects", get(|| async { Json(json!({ "data": [{ "id": "p1", "name": "bench" }] })) }))
        .route("/api/public/v2/observations", get(observations))
        .route("/api/public/ingestion", post(ingestion))
        .route("/v1/chat/completions", post(chat))
        .route("/counts", get(counts))
        .layer(DefaultBodyLimit::max(64 << 20))
        .with_state(world);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("http://{}", listener.local_addr()?);
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        axum::serve(listener, app).await?;
        Ok(())
    })
}

async fn counts(State(world): State<Arc<World>>) -> Json<Value> {
    Json(json!({ "calls": world.calls.swap(0, Ordering::Relaxed), "scores": world.scores.swap(0, Ordering::Relaxed) }))
}

const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1790000000,"model":"gpt-4o-mini","choices":[{"index":0,"message":{"role":"assistant","content":"{\"reason\": \"The answer names the page and the steps, which is what was asked.\", \"score\": 4}"},"finish_reason":"stop"}],"usage":{"prompt_tokens":310,"completion_tokens":28,"total_tokens":338}}"#;

async fn chat(State(world): State<Arc<World>>, _: Bytes) -> impl IntoResponse {
    world.calls.fetch_add(1, Ordering::Relaxed);
    if !world.latency.is_zero() {
        tokio::time::sleep(world.latency).await;
    }
    ([(CONTENT_TYPE, "application/json")], ANSWER)
}

#[derive(Deserialize)]
struct Batch {
    batch: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    id: String,
}

async fn ingestion(State(world): State<Arc<World>>, Json(batch): Json<Batch>) -> impl IntoResponse {
    world.scores.fetch_add(batch.batch.len() as u64, Ordering::Relaxed);
    let successes: Vec<Value> = batch.batch.into_iter().map(|event| json!({ "id": event.id, "status": 201 })).collect();
    (axum::http::StatusCode::MULTI_STATUS, Json(json!({ "successes": successes, "errors": [] })))
}

/// Newest first; `fromStartTime` inclusive, `toStartTime` exclusive; the cursor is the number of rows passed.
async fn observations(State(world): State<Arc<World>>, Query(query): Query<HashMap<String, String>>) -> impl IntoResponse {
    let time = |key: &str| query.get(key).and_then(|text| text.parse::<Timestamp>().ok()).map(Timestamp::as_microsecond);
    let at = |us: i64| ((us - world.first_us).max(0) + world.step_us - 1).div_euclid(world.step_us).min(world.traces);
    let (low, high) = (time("fromStartTime").map_or(0, at), time("toStartTime").map_or(world.traces, at));
    let limit: i64 = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(50);
    let passed: i64 = query.get("cursor").and_then(|text| text.parse().ok()).unwrap_or(0);
    let (top, bottom) = (high - passed, (high - passed - limit).max(low));
    let mut body = String::with_capacity(1_400 * usize::try_from((top - bottom).max(0)).unwrap_or(0) + 64);
    body.push_str(r#"{"data":["#);
    for number in (bottom..top).rev() {
        if number + 1 < top {
            body.push(',');
        }
        row(&mut body, number, world.first_us + number * world.step_us);
    }
    body.push_str(r#"],"meta":{"#);
    if bottom > low {
        body.push_str(&format!(r#""cursor":"{}""#, passed + limit));
    }
    body.push_str("}}");
    ([(CONTENT_TYPE, "application/json")], body)
}

/// Some 1,300 bytes, as a short conversation has.
fn row(body: &mut String, number: i64, at_us: i64) {
    use std::fmt::Write;
    let at = Timestamp::from_microsecond(at_us).unwrap_or_default();
    let _ = write!(
        body,
        r#"{{"id":"o-{number:08}","traceId":"t-{number:08}","startTime":"{at:.3}","endTime":"{at:.3}","projectId":"p1","parentObservationId":null,"type":"SPAN","name":"chat-turn","traceName":"chat-turn","level":"DEFAULT","statusMessage":null,"version":null,"environment":"production","bookmarked":false,"public":false,"userId":"u-{user}","sessionId":null,"isRootObservation":true,"input":"Question {number}: {QUESTION}","output":"{OUTPUT}","metadata":{{"tenant":"acme","plan":"team"}},"usageDetails":{{"input":10,"output":5,"total":15}},"costDetails":{{"total":0.001}},"totalCost":0.001,"latency":0.5,"timeToFirstToken":null,"tags":["prod"],"release":null}}"#,
        user = number % 97,
    );
}

const QUESTION: &str = "I signed up last week with my work address and now the login page says that the account is locked. How do I reset my password, and will I lose the reports that I made on the trial?";
pub const OUTPUT: &str = "You can unlock the account yourself. Open the login page, choose 'Forgot password' and enter the address that you signed up with. We send a link that is good for one hour; it asks for a new password of at least twelve characters and unlocks the account at once. Your reports stay where they are: a trial keeps everything for thirty days after its end, and a locked account counts as active. If the message does not come within a few minutes, look into the spam folder, and if your company uses single sign-on, ask an administrator to invite you again, since passwords are switched off for such accounts.";
