//! A model server that speaks OpenAI's chat completions and Anthropic's messages at once. What it answers is decided by
//! a function of the prompt; how the answer is dressed, by a style.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use regex::Regex;
use serde_json::{Value, json};

use super::{
    Pulse,
    faults::{self, Fault, Faults},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Fenced,
    Prose,
    SingleQuotes,
    TrailingComma,
    Garbage,
    Empty,
    /// Half an answer, and the finish reason says so.
    Cut,
    /// A number off the scale.
    OutOfRange,
    Refusal,
}

type ByPrompt<T> = Arc<dyn Fn(&str) -> T + Send + Sync>;

pub struct Llm {
    pub url: String,
    pub faults: Faults,
    state: Mutex<Inner>,
    pulse: Pulse,
}

struct Inner {
    verdict: ByPrompt<f64>,
    style: ByPrompt<Style>,
    words: ByPrompt<Option<String>>,
    reason: String,
    calls: BTreeMap<String, usize>,
    prompts: Vec<String>,
    requests: usize,
    answered: usize,
    /// Of all answers, in tokens, whether they arrived or not.
    billed: usize,
    in_flight: usize,
    peak: usize,
}

static MARK: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[\[item:([^\]]+)\]\]").unwrap());

impl Llm {
    pub(super) fn new(url: String, pulse: Pulse) -> Self {
        let state = Inner {
            verdict: Arc::new(|_| 0.8),
            style: Arc::new(|_| Style::Plain),
            words: Arc::new(|_| None),
            reason: "because of the evidence".to_owned(),
            calls: BTreeMap::new(),
            prompts: Vec::new(),
            requests: 0,
            answered: 0,
            billed: 0,
            in_flight: 0,
            peak: 0,
        };
        Self { url, faults: Faults::default(), state: Mutex::new(state), pulse }
    }

    /// The quality in [0, 1] that a prompt's answer is given; 0.8 unless told.
    pub fn verdict(&self, verdict: impl Fn(&str) -> f64 + Send + Sync + 'static) {
        self.state.lock().unwrap().verdict = Arc::new(verdict);
    }

    pub fn style(&self, style: Style) {
        self.style_by(move |_| style);
    }

    pub fn style_by(&self, style: impl Fn(&str) -> Style + Send + Sync + 'static) {
        self.state.lock().unwrap().style = Arc::new(style);
    }

    /// Answers word for word; where this gives none, a verdict in its style.
    pub fn words(&self, words: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        self.state.lock().unwrap().words = Arc::new(words);
    }

    pub fn reason(&self, reason: &str) {
        reason.clone_into(&mut self.state.lock().unwrap().reason);
    }

    /// Answered calls by item. An answer in a bad style is an answer: it was paid for.
    pub fn calls(&self) -> BTreeMap<String, usize> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Most answered calls of one item.
    pub fn most_calls(&self) -> usize {
        self.calls().into_values().max().unwrap_or(0)
    }

    pub fn answered(&self) -> usize {
        self.state.lock().unwrap().answered
    }

    /// What the provider would charge for, at the same price for each token.
    pub fn bill(&self, usd_per_token: f64) -> f64 {
        self.state.lock().unwrap().billed as f64 * usd_per_token
    }

    fn charge(&self, tokens: usize) {
        self.state.lock().unwrap().billed += tokens;
    }

    /// Answered or not.
    pub fn requests(&self) -> usize {
        self.state.lock().unwrap().requests
    }

    pub fn in_flight(&self) -> usize {
        self.state.lock().unwrap().in_flight
    }

    /// Most calls there ever were at the same time.
    pub fn peak(&self) -> usize {
        self.state.lock().unwrap().peak
    }

    pub fn prompts(&self) -> Vec<String> {
        self.state.lock().unwrap().prompts.clone()
    }

    fn arrive(self: &Arc<Self>) -> InFlight {
        let mut state = self.state.lock().unwrap();
        state.requests += 1;
        state.in_flight += 1;
        state.peak = state.peak.max(state.in_flight);
        drop(state);
        self.pulse.beat();
        InFlight(self.clone())
    }

    /// The text of an answer, counted as paid.
    fn reply(&self, prompt: &str, schema: Option<&Value>) -> (String, Style) {
        let mut state = self.state.lock().unwrap();
        state.answered += 1;
        state.prompts.push(prompt.to_owned());
        let marks: std::collections::BTreeSet<&str> = MARK.captures_iter(prompt).filter_map(|found| found.get(1)).map(|mark| mark.as_str()).collect();
        for mark in marks {
            *state.calls.entry(mark.to_owned()).or_default() += 1;
        }
        let (score, style) = ((state.verdict)(prompt), (state.style)(prompt));
        let words = (state.words)(prompt);
        (words.unwrap_or_else(|| dress(&verdict(score, &state.reason, schema), style)), style)
    }
}

/// A call under way; it ends when its answer is made or nobody waits for it any more.
struct InFlight(Arc<Llm>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().in_flight -= 1;
        self.0.pulse.beat();
    }
}

pub(super) fn router(llm: Arc<Llm>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(openai))
        .route("/v1/messages", post(anthropic))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(models))
        .with_state(llm)
}

async fn models() -> Json<Value> {
    Json(json!({ "object": "list", "data": [{ "id": "gpt-4o-mini", "object": "model", "type": "model" }], "has_more": false }))
}

fn verdict(score: f64, reason: &str, schema: Option<&Value>) -> Value {
    match schema {
        Some(schema) => fill(schema, schema, score, reason),
        None => json!({ "reason": reason, "score": 1.0 + 4.0 * score, "passed": score >= 0.5, "label": "yes" }),
    }
}

/// A value that a model could give for a JSON Schema. Where a number is wanted it rates from 1 to 5, unless the schema
/// says otherwise.
fn fill(root: &Value, schema: &Value, score: f64, reason: &str) -> Value {
    if let Some(path) = schema["$ref"].as_str() {
        return root.pointer(path.trim_start_matches('#')).map_or(Value::Null, |target| fill(root, target, score, reason));
    }
    if let Some(options) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        return fill(root, &options[0], score, reason);
    }
    if let Some(values) = schema["enum"].as_array() {
        let at = (score * (values.len() - 1) as f64).round() as usize;
        return values[at.min(values.len() - 1)].clone();
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or("string");
    let (low, high) = (schema["minimum"].as_f64().unwrap_or(1.0), schema["maximum"].as_f64().unwrap_or(5.0));
    let number = low + (high - low) * score;
    match kind {
        "object" => schema["properties"].as_object().into_iter().flatten().map(|(key, part)| (key.clone(), fill(root, part, score, reason))).collect(),
        "array" => json!([fill(root, &schema["items"], score, reason)]),
        "boolean" => json!(score >= 0.5),
        "integer" => json!(number.round() as i64),
        "number" => json!(number),
        _ => json!(reason),
    }
}

fn dress(answer: &Value, style: Style) -> String {
    let plain = answer.to_string();
    match style {
        Style::Plain => plain,
        Style::Fenced => format!("Sure, here is my verdict:\n```json\n{plain}\n```\nHope this helps!"),
        Style::Prose => format!("Let me think {{step by step}} about it. {plain} That is all."),
        Style::SingleQuotes => plain.replace('"', "'"),
        Style::TrailingComma => format!("{},}}", plain.trim_end_matches('}')),
        Style::Garbage => "I would rather talk about the weather.".to_owned(),
        Style::Empty | Style::Refusal => String::new(),
        Style::Cut => plain.chars().take(plain.chars().count() / 2).collect(),
        Style::OutOfRange => off_scale(answer).to_string(),
    }
}

fn off_scale(answer: &Value) -> Value {
    let fields = answer.as_object().into_iter().flatten();
    fields.map(|(key, value)| (key.clone(), if value.is_number() { json!(97) } else { value.clone() })).collect()
}

fn tokens(body: &Value) -> usize {
    (body["messages"].to_string().len() / 4).max(1)
}

/// Every text of a request's messages, one after another.
fn prompt(body: &Value) -> String {
    fn texts(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::String(text) => found.push(text.clone()),
            Value::Array(list) => list.iter().for_each(|value| texts(value, found)),
            Value::Object(map) => map.iter().filter(|(key, _)| *key != "role" && *key != "type").for_each(|(_, value)| texts(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    texts(&body["system"], &mut found);
    texts(&body["messages"], &mut found);
    found.join("\n")
}

async fn openai(State(llm): State<Arc<Llm>>, headers: HeaderMap, body: Bytes) -> Response {
    let _in_flight = llm.arrive();
    let fault = llm.faults.strike().await;
    if headers.get("authorization").is_none_or(|key| key != "Bearer sk-test") {
        let refusal =
            json!({ "error": { "message": "Incorrect API key provided", "type": "invalid_request_error", "param": null, "code": "invalid_api_key" } });
        return (StatusCode::UNAUTHORIZED, Json(refusal)).into_response();
    }
    if let Some(fault) = fault.filter(|fault| *fault != Fault::Cut) {
        return faults::answer(fault, b"");
    }
    let Ok(body) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let schema = &body["response_format"]["json_schema"]["schema"];
    let tool = &body["tools"][0]["function"];
    let by_tool = schema.is_null() && !tool.is_null();
    let wanted = if by_tool { &tool["parameters"] } else { schema };
    let (text, style) = llm.reply(&prompt(&body), Some(wanted).filter(|schema| !schema.is_null()));
    let message = match style {
        Style::Refusal => json!({ "role": "assistant", "content": null, "refusal": "I cannot rate this." }),
        _ if by_tool => json!({ "role": "assistant", "content": null, "refusal": null,
            "tool_calls": [{ "id": "call_1", "type": "function", "function": { "name": tool["name"], "arguments": text } }] }),
        _ => json!({ "role": "assistant", "content": text, "refusal": null }),
    };
    let (input, output) = (tokens(&body), 20);
    llm.charge(input + output);
    if body["stream"] == true {
        return streamed(&text, input, output);
    }
    let answer = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_790_000_000, "model": body["model"],
        "choices": [{ "index": 0, "message": message, "finish_reason": if style == Style::Cut { "length" } else { "stop" }, "logprobs": null }],
        "usage": { "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output },
    });
    finish(fault, &answer)
}

/// The text in three chunks, then the usage.
fn streamed(text: &str, input: usize, output: usize) -> Response {
    let chunk = |choices: Value, usage: Value| {
        let chunk = json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini", "choices": choices, "usage": usage });
        format!("data: {chunk}\n\n")
    };
    let third = text.chars().count().div_ceil(3).max(1);
    let chars: Vec<char> = text.chars().collect();
    let mut body: String = chars
        .chunks(third)
        .map(|part| chunk(json!([{ "index": 0, "delta": { "content": part.iter().collect::<String>() }, "finish_reason": null }]), Value::Null))
        .collect();
    body += &chunk(json!([{ "index": 0, "delta": {}, "finish_reason": "stop" }]), Value::Null);
    body += &chunk(json!([]), json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output }));
    body += "data: [DONE]\n\n";
    ([("content-type", "text/event-stream")], body).into_response()
}

async fn anthropic(State(llm): State<Arc<Llm>>, headers: HeaderMap, body: Bytes) -> Response {
    let _in_flight = llm.arrive();
    let fault = llm.faults.strike().await;
    let refuse = |status: StatusCode, kind: &str, message: &str| {
        (status, Json(json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": "req_1" }))).into_response()
    };
    if headers.get("anthropic-version").is_none() || headers.get("x-api-key").is_none_or(|key| key != "sk-ant-test") {
        return refuse(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key");
    }
    if let Some(fault) = fault.filter(|fault| *fault != Fault::Cut) {
        return faults::answer(fault, b"");
    }
    let Ok(body) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    if body["messages"].as_array().is_none_or(|messages| messages.iter().any(|message| message["role"] == "system")) {
        return refuse(StatusCode::BAD_REQUEST, "invalid_request_error", "messages: Unexpected role \"system\".");
    }
    if !body["max_tokens"].is_u64() {
        return refuse(StatusCode::BAD_REQUEST, "invalid_request_error", "max_tokens: Field required");
    }
    let schema = &body["output_config"]["format"]["schema"];
    let tool = &body["tools"][0];
    let by_tool = schema.is_null() && !tool.is_null();
    let wanted = if by_tool { &tool["input_schema"] } else { schema };
    let (text, style) = llm.reply(&prompt(&body), Some(wanted).filter(|schema| !schema.is_null()));
    let input = by_tool.then(|| serde_json::from_str::<Value>(&text).ok()).flatten();
    let content = match input {
        _ if style == Style::Refusal => json!([]),
        Some(input) => json!([{ "type": "tool_use", "id": "tu_1", "name": tool["name"], "input": input }]),
        None => json!([{ "type": "text", "text": text }]),
    };
    let stop = match style {
        Style::Refusal => "refusal",
        Style::Cut => "max_tokens",
        _ if content[0]["type"] == "tool_use" => "tool_use",
        _ => "end_turn",
    };
    llm.charge(tokens(&body) + 20);
    let usage = json!({ "input_tokens": tokens(&body), "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 20 });
    let answer = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": content, "stop_reason": stop, "stop_sequence": null, "usage": usage,
    });
    finish(fault, &answer)
}

fn finish(fault: Option<Fault>, answer: &Value) -> Response {
    match fault {
        Some(fault) => faults::answer(fault, answer.to_string().as_bytes()),
        None => Json(answer).into_response(),
    }
}
