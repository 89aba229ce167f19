//! The gateway for others: `OpenAI`'s chat completions, with a profile's name as the model.
//!
//! What would change the meaning of an answer and is not carried out (tools, several choices) is refused by name; what only
//! tunes or labels a call is taken and ignored, as other gateways do.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, error::SendTimeoutError};
use uuid::Uuid;

use super::Web;
use crate::providers::{CallCx, CallError, Message, Model, Part, Question, Reply, Role, Stop};

/// Parts of a stream that wait for their client.
const AHEAD: usize = 16;

/// How long a client of a stream may read nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest body taken: a prompt of some ten million tokens.
const MAX_BODY: usize = 32 << 20;

pub(super) fn routes() -> Router<Web> {
    Router::new()
        .route("/v1/chat/completions", post(chat).layer(axum::extract::DefaultBodyLimit::max(MAX_BODY)))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
}

/// What is read of a request; all other keys are looked at by [`unsupported`].
#[derive(Debug, Deserialize)]
struct Asked {
    model: String,
    messages: Vec<AskedMessage>,
    #[serde(default)]
    temperature: Option<f64>,
    #[serde(default)]
    top_p: Option<f64>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    stop: Option<Stops>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    response_format: Option<ResponseFormat>,
}

#[derive(Debug, Deserialize)]
struct AskedMessage {
    role: String,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Debug, Deserialize)]
struct ContentPart {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stops {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: NamedSchema },
}

#[derive(Debug, Deserialize)]
struct NamedSchema {
    schema: Value,
}

/// An error as `OpenAI` tells it.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl Refusal {
    fn bad(param: impl Into<Option<String>>, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "invalid_request_error", code: None, param: param.into(), message: message.into() }
    }

    fn body(&self) -> Value {
        json!({ "error": { "message": self.message, "type": self.kind, "param": self.param, "code": self.code } })
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        let (status, kind, code) = match &error {
            CallError::OverBudget(_) => (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", Some("insufficient_quota")),
            CallError::Blocked(_) => (StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("provider_blocked")),
            CallError::Failed { kind: "rate_limited" | "overloaded", .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded")),
            CallError::Failed { kind: "timeout", .. } => (StatusCode::GATEWAY_TIMEOUT, "server_error", None),
            CallError::Failed { kind: "filtered", .. } => (StatusCode::BAD_REQUEST, "invalid_request_error", Some("content_filter")),
            CallError::Failed { kind: "bad_request" | "too_large" | "unsupported", .. } => (StatusCode::BAD_REQUEST, "invalid_request_error", None),
            CallError::Failed { .. } => (StatusCode::BAD_GATEWAY, "server_error", None),
        };
        Self { status, kind, code, param: None, message: error.to_string() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}

/// The first key whose meaning would be lost.
fn unsupported(body: &Value) -> Option<String> {
    const REFUSED: [&str; 8] = ["tools", "tool_choice", "functions", "function_call", "audio", "modalities", "logprobs", "web_search_options"];
    let said = |key: &str| body.get(key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)) && *value != json!([]));
    REFUSED.into_iter().find(|key| said(key)).map(str::to_owned).or_else(|| body.get("n").filter(|n| **n != json!(1) && !n.is_null()).map(|_| "n".to_owned()))
}

fn read(body: &[u8]) -> Result<Asked, Refusal> {
    let body: Value = serde_json::from_slice(body).map_err(|error| Refusal::bad(None, format!("the body is no JSON: {error}")))?;
    if let Some(key) = unsupported(&body) {
        let message = format!("`{key}` is not supported here");
        return Err(Refusal { code: Some("unsupported_parameter"), ..Refusal::bad(key, message) });
    }
    serde_json::from_value(body).map_err(|error| Refusal::bad(None, error.to_string()))
}

impl Content {
    fn text(self) -> Result<String, Refusal> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Parts(parts) => match parts.iter().find(|part| part.kind != "text") {
                Some(part) => Err(Refusal::bad("messages".to_owned(), format!("content of type `{}` is not supported here", part.kind))),
                None => Ok(parts.into_iter().map(|part| part.text).collect::<Vec<_>>().join("\n")),
            },
        }
    }
}

fn question(asked: Asked) -> Result<Question, Refusal> {
    let mut system = Vec::new();
    let mut messages = Vec::with_capacity(asked.messages.len());
    for message in asked.messages {
        let text = message.content.text()?;
        match message.role.as_str() {
            "system" | "developer" => system.push(text),
            "user" => messages.push(Message { role: Role::User, text }),
            "assistant" => messages.push(Message { role: Role::Assistant, text }),
            other => return Err(Refusal::bad("messages".to_owned(), format!("messages of the role `{other}` are not supported here"))),
        }
    }
    if messages.is_empty() {
        return Err(Refusal::bad("messages".to_owned(), "there is no message of a user"));
    }
    let stop = asked.stop.map_or_else(Vec::new, |stop| match stop {
        Stops::One(one) => vec![one],
        Stops::Many(many) => many,
    });
    let schema = asked.response_format.and_then(|format| match format {
        ResponseFormat::Text => None,
        ResponseFormat::JsonObject => Some(json!({ "type": "object" })),
        ResponseFormat::JsonSchema { json_schema } => Some(json_schema.schema),
    });
    Ok(Question {
        system: (!system.is_empty()).then(|| system.join("\n\n")),
        messages,
        temperature: asked.temperature,
        top_p: asked.top_p,
        stop,
        max_tokens: asked.max_completion_tokens.or(asked.max_tokens),
        schema: schema.map(Arc::new),
        sample: 0,
    })
}

async fn chat(State(web): State<Web>, body: axum::body::Bytes) -> Result<Response, Refusal> {
    let asked = read(&body)?;
    let model = web.models.model(&asked.model).map_err(|message| Refusal {
        status: StatusCode::NOT_FOUND,
        code: Some("model_not_found"),
        ..Refusal::bad("model".to_owned(), message)
    })?;
    let profile = asked.model.clone();
    let with_usage = asked.stream_options.as_ref().is_some_and(|options| options.include_usage);
    let streams = asked.stream.unwrap_or(false);
    let question = question(asked)?;
    let call = Call { id: Uuid::now_v7().simple().to_string(), created: jiff::Timestamp::now().as_second(), profile };
    if streams {
        return Ok(call.stream(&web, model, question, with_usage).await?.into_response());
    }
    let reply = model.ask(question, call.cx()).await?;
    Ok(Json(call.completion(&reply)).into_response())
}

/// One request, for what its answer has to say of itself.
#[derive(Debug, Clone)]
struct Call {
    id: String,
    created: i64,
    profile: String,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: String,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Option<WireUsage>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Answer<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Answer<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<&'a str>,
}

#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
#[derive(Serialize)]
struct WireUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

fn usage(reply: &Reply) -> Option<WireUsage> {
    let (prompt_tokens, completion_tokens) = reply.usage.input_tokens.zip(reply.usage.output_tokens)?;
    Some(WireUsage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens })
}

fn finish_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End => "stop",
        Stop::Length => "length",
        Stop::Refusal => "content_filter",
    }
}

impl Call {
    /// Whoever asks from outside pays from the budgets of all.
    fn cx(&self) -> CallCx<'_> {
        CallCx { monitor: "", metric: "", run_id: &self.id, item_id: "", budgets: &[], fresh: false, background: None }
    }

    fn completion<'a>(&'a self, reply: &'a Reply) -> Completion<'a> {
        let refused = reply.stop == Stop::Refusal;
        Completion {
            id: format!("chatcmpl-{}", self.id),
            object: "chat.completion",
            created: self.created,
            model: reply.usage.model.as_deref().unwrap_or(&self.profile),
            choices: [Choice {
                index: 0,
                message: Answer { role: "assistant", content: &reply.text, refusal: refused.then_some(reply.text.as_str()) },
                logprobs: None,
                finish_reason: finish_reason(reply.stop),
            }],
            usage: usage(reply),
        }
    }

    fn chunk(&self, delta: &Value, finish: Option<&'static str>) -> Value {
        json!({ "id": format!("chatcmpl-{}", self.id), "object": "chat.completion.chunk", "created": self.created, "model": self.profile,
                "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }] })
    }

    /// The first part is awaited here: what fails before it is an answer with a status, not a stream that breaks.
    async fn stream(self, web: &Web, model: Arc<dyn Model>, question: Question, with_usage: bool) -> Result<impl IntoResponse + use<>, Refusal> {
        let (out, parts) = mpsc::channel(AHEAD);
        // A daemon that is going down drops it, and with it the sender: the stream ends without a part.
        let _ = web.work.send(Box::pin(pour(self.clone(), model, question, out)));
        let mut parts = Box::pin(stream::unfold(parts, |mut parts| async move { parts.recv().await.map(|part| (part, parts)) }));
        let first = match parts.next().await {
            Some(Err(error)) => return Err(error.into()),
            Some(Ok(part)) => Some(Ok(part)),
            None => None,
        };
        let begin = self.chunk(&json!({ "role": "assistant", "content": "" }), None);
        let rest = stream::iter(first).chain(parts).flat_map(move |part| stream::iter(self.events(part, with_usage)));
        let events = stream::once(std::future::ready(begin.to_string())).chain(rest);
        Ok(Sse::new(events.map(|data| Ok::<_, Infallible>(Event::default().data(data)))).keep_alive(KeepAlive::default()))
    }

    fn events(&self, part: Result<Part, CallError>, with_usage: bool) -> Vec<String> {
        match part {
            Ok(Part::Text(text)) => vec![self.chunk(&json!({ "content": text }), None).to_string()],
            Ok(Part::End(reply)) => {
                let mut events = vec![self.chunk(&json!({}), Some(finish_reason(reply.stop))).to_string()];
                if with_usage {
                    let mut last = self.chunk(&json!({}), None);
                    last["choices"] = json!([]);
                    last["usage"] = json!(usage(&reply));
                    events.push(last.to_string());
                }
                events.push("[DONE]".to_owned());
                events
            }
            Err(error) => vec![Refusal::from(error).body().to_string()],
        }
    }
}

/// The parts of an answer, for as long as somebody takes them. What a client that is there but does not read holds up (a place, money
/// that is set aside) is let go.
async fn pour(call: Call, model: Arc<dyn Model>, question: Question, out: mpsc::Sender<Result<Part, CallError>>) {
    let mut parts = model.stream(question, call.cx());
    loop {
        let part = tokio::select! {
            () = out.closed() => return,
            part = parts.next() => part,
        };
        let Some(part) = part else { return };
        match out.send_timeout(part, PATIENCE).await {
            Ok(()) => {}
            Err(SendTimeoutError::Closed(_)) => return,
            Err(SendTimeoutError::Timeout(_)) => {
                return tracing::warn!(profile = call.profile, "a client has not read its stream for {} s; the stream is ended", PATIENCE.as_secs());
            }
        }
    }
}

fn listed(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "assayd" })
}

async fn models(State(web): State<Web>) -> Json<Value> {
    let data: Vec<Value> = web.models.profiles().iter().map(|name| listed(name)).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(State(web): State<Web>, axum::extract::Path(name): axum::extract::Path<String>) -> Result<Json<Value>, Refusal> {
    if web.models.profiles().contains(&name) {
        Ok(Json(listed(&name)))
    } else {
        let message = format!("there is no profile `{}`", crate::util::text::one_line(&name, 60));
        Err(Refusal { status: StatusCode::NOT_FOUND, code: Some("model_not_found"), ..Refusal::bad("model".to_owned(), message) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::stream::BoxStream;

    use super::*;

    /// Never at the end of what it has to say; knows how many listen.
    #[derive(Default)]
    struct Talker(Arc<AtomicUsize>);

    struct Listener(Arc<AtomicUsize>);

    impl Drop for Listener {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[async_trait::async_trait]
    impl Model for Talker {
        async fn ask(&self, _: Question, _: CallCx<'_>) -> Result<Reply, CallError> {
            unreachable!("it only streams")
        }

        fn stream<'a>(&'a self, _: Question, _: CallCx<'a>) -> BoxStream<'a, Result<Part, CallError>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let listener = Listener(Arc::clone(&self.0));
            Box::pin(stream::repeat_with(move || {
                let _ = &listener;
                Ok(Part::Text("and ".to_owned()))
            }))
        }

        fn identity(&self) -> String {
            String::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_left() {
        let talker = Arc::new(Talker::default());
        let call = Call { id: "1".to_owned(), created: 0, profile: "judge".to_owned() };
        let (out, mut parts) = mpsc::channel(AHEAD);
        let begin = tokio::time::Instant::now();
        pour(call.clone(), Arc::clone(&talker) as Arc<dyn Model>, Question::default(), out).await;
        assert_eq!((begin.elapsed(), talker.0.load(Ordering::SeqCst)), (PATIENCE, 0), "the call is over, and holds nothing");
        let mut had = 0;
        while parts.recv().await.is_some() {
            had += 1;
        }
        assert_eq!(had, AHEAD, "what came before is there, and then the end");

        // Whoever hangs up is left at once, also while the model is silent or has more to say.
        let (out, parts) = mpsc::channel(AHEAD);
        drop(parts);
        let begin = tokio::time::Instant::now();
        pour(call, Arc::clone(&talker) as Arc<dyn Model>, Question::default(), out).await;
        assert_eq!((begin.elapsed(), talker.0.load(Ordering::SeqCst)), (Duration::ZERO, 0));
    }
}
