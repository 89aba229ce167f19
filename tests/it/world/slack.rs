//! Slack's Web API under `/api/` and an incoming webhook under `/hook`. Block Kit's limits are checked; what channels
//! hold is kept by the file beside.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, post},
};
use serde_json::{Value, json};

use super::{
    Breaches, Pulse,
    faults::{self, Fault, Faults},
    history::History,
};

pub struct Slack {
    pub url: String,
    pub faults: Faults,
    pub history: History,
    state: Mutex<Inner>,
    pulse: Pulse,
    breaches: Breaches,
}

#[derive(Default)]
struct Inner {
    /// `chat.postMessage`, with the `ts` and the channel's id that were given.
    messages: Vec<Value>,
    updates: Vec<Value>,
    hooks: Vec<Value>,
    channels: BTreeMap<String, String>,
}

impl Slack {
    pub(super) fn new(url: String, pulse: Pulse, breaches: Breaches) -> Self {
        Self { url, faults: Faults::default(), history: History::new(breaches.clone()), state: Mutex::default(), pulse, breaches }
    }

    /// Messages that began a thread of their own.
    pub fn messages(&self) -> Vec<Value> {
        self.state.lock().unwrap().messages.iter().filter(|message| message["thread_ts"].is_null()).cloned().collect()
    }

    /// Replies in threads.
    pub fn replies(&self) -> Vec<Value> {
        self.state.lock().unwrap().messages.iter().filter(|message| !message["thread_ts"].is_null()).cloned().collect()
    }

    pub fn updates(&self) -> Vec<Value> {
        self.state.lock().unwrap().updates.clone()
    }

    pub fn hooks(&self) -> Vec<Value> {
        self.state.lock().unwrap().hooks.clone()
    }

    fn check(&self, message: &Value) {
        for breach in breaches_of(message) {
            self.breaches.push(format!("Slack message: {breach} in {message}"));
        }
    }
}

/// Block Kit's limits, as far as alerts come near them.
fn breaches_of(message: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let blocks: Vec<&Value> = message["blocks"].as_array().into_iter().flatten().collect();
    let attached: Vec<&Value> =
        message["attachments"].as_array().into_iter().flatten().flat_map(|part| part["blocks"].as_array().into_iter().flatten()).collect();
    if blocks.len() > 50 {
        found.push(format!("{} blocks", blocks.len()));
    }
    if message["text"].as_str().is_none_or(str::is_empty) {
        found.push("no fallback text".to_owned());
    }
    let mut total = 0;
    for block in blocks.iter().chain(&attached) {
        let most = |kind: &str| match kind {
            "header" => 150,
            _ => 3000,
        };
        let kind = block["type"].as_str().unwrap_or("");
        let text = block["text"]["text"].as_str().unwrap_or("");
        total += text.chars().count();
        if !block["text"].is_null() && (text.is_empty() || text.chars().count() > most(kind)) {
            found.push(format!("a {kind} of {} characters", text.chars().count()));
        }
        let fields: Vec<&Value> = block["fields"].as_array().into_iter().flatten().collect();
        total += fields.iter().map(|field| field["text"].as_str().unwrap_or("").chars().count()).sum::<usize>();
        if fields.len() > 10 || fields.iter().any(|field| field["text"].as_str().unwrap_or("").chars().count() > 2000) {
            found.push("too many or too long fields".to_owned());
        }
        if block["elements"].as_array().is_some_and(|elements| elements.len() > 25 || (kind == "context" && elements.len() > 10)) {
            found.push("too many elements".to_owned());
        }
    }
    if total > 12_000 {
        found.push(format!("{total} characters in all"));
    }
    found
}

pub(super) fn router(slack: Arc<Slack>) -> Router {
    Router::new().route("/hook", post(hook)).route("/api/{method}", any(api)).with_state(slack)
}

async fn hook(State(slack): State<Arc<Slack>>, Json(message): Json<Value>) -> Response {
    let fault = slack.faults.strike().await;
    if let Some(fault) = fault {
        slack.pulse.beat();
        return faults::answer(fault, b"ok");
    }
    slack.check(&message);
    slack.state.lock().unwrap().hooks.push(message);
    slack.pulse.beat();
    "ok".into_response()
}

async fn api(State(slack): State<Arc<Slack>>, Path(method): Path<String>, RawQuery(query): RawQuery, headers: HeaderMap, body: Bytes) -> Response {
    let fault = slack.faults.strike().await;
    if let Some(fault) = fault.filter(|fault| *fault != Fault::Cut) {
        slack.pulse.beat();
        return faults::answer(fault, b"");
    }
    let answer = if headers.get("authorization").is_none_or(|token| token != "Bearer xoxb-test") {
        json!({ "ok": false, "error": "invalid_auth" })
    } else if let ("conversations.history" | "conversations.replies", Some(wait)) = (method.as_str(), slack.history.slowed(&method)) {
        slack.pulse.beat();
        let body = Json(json!({ "ok": false, "error": "ratelimited" }));
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, wait.to_string())], body).into_response();
    } else {
        match method.as_str() {
            // Methods that read take no JSON body.
            "conversations.history" | "conversations.replies" => {
                slack.history.call(&method, &form(query.as_deref().unwrap_or("").as_bytes(), |text| json!(text)))
            }
            _ => slack.call(&method, arguments(&headers, &body)),
        }
    };
    slack.pulse.beat();
    match fault {
        Some(fault) => faults::answer(fault, answer.to_string().as_bytes()),
        None => Json(answer).into_response(),
    }
}

/// From a JSON body or a form.
fn arguments(headers: &HeaderMap, body: &[u8]) -> Value {
    let is_json = headers.get("content-type").and_then(|kind| kind.to_str().ok()).is_some_and(|kind| kind.contains("json"));
    if is_json { serde_json::from_slice(body).unwrap_or_default() } else { form(body, |text| serde_json::from_str(text).unwrap_or_else(|_| json!(text))) }
}

fn form(text: &[u8], read: impl Fn(&str) -> Value) -> Value {
    url::form_urlencoded::parse(text).map(|(key, value)| (key.into_owned(), read(&value))).collect()
}

impl Slack {
    fn call(&self, method: &str, mut arguments: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        match method {
            "auth.test" => {
                json!({ "ok": true, "url": "https://test.slack.com/", "team": "test", "user": "assayd", "team_id": "T1", "user_id": "UBOT", "bot_id": "B1" })
            }
            "chat.postMessage" => {
                self.check(&arguments);
                let Some(channel) = arguments["channel"].as_str().map(str::to_owned) else { return json!({ "ok": false, "error": "channel_not_found" }) };
                let parent = arguments["thread_ts"].as_str();
                if parent.is_some_and(|parent| !state.messages.iter().any(|message| message["ts"] == parent && message["thread_ts"].is_null())) {
                    self.breaches.push(format!("a reply to {parent:?}, which is no message"));
                }
                let (next, at) = (format!("C{}", state.channels.len() + 1), format!("{}.{:06}", jiff::Timestamp::now().as_second(), state.messages.len() + 1));
                let id = if state.channels.values().any(|id| *id == channel) { channel } else { state.channels.entry(channel).or_insert(next).clone() };
                arguments["ts"] = json!(at);
                arguments["channel_id"] = json!(id);
                let text = arguments["text"].clone();
                let kept = ["text", "thread_ts", "metadata"].map(|key| (key.to_owned(), arguments[key].clone()));
                let kept: serde_json::Map<_, _> = kept.into_iter().filter(|(_, value)| !value.is_null()).chain([("ts".to_owned(), json!(at))]).collect();
                self.history.say(&id, Value::Object(kept));
                state.messages.push(arguments);
                json!({ "ok": true, "channel": id, "ts": at, "message": { "type": "message", "subtype": "bot_message", "text": text, "ts": at, "bot_id": "B1" } })
            }
            "chat.update" => {
                self.check(&arguments);
                let known = state.messages.iter().any(|message| message["ts"] == arguments["ts"] && message["channel_id"] == arguments["channel"]);
                if !known {
                    self.breaches.push(format!("an update of a message that is not there: {arguments}"));
                    return json!({ "ok": false, "error": "message_not_found" });
                }
                let (channel, at, text) = (arguments["channel"].clone(), arguments["ts"].clone(), arguments["text"].clone());
                state.updates.push(arguments);
                json!({ "ok": true, "channel": channel, "ts": at, "text": text, "message": { "type": "message", "text": text, "ts": at } })
            }
            "conversations.list" => {
                let all = state.channels.iter().map(|(name, id)| json!({ "id": id, "name": name.trim_start_matches('#') })).collect::<Vec<_>>();
                json!({ "ok": true, "channels": all, "response_metadata": { "next_cursor": "" } })
            }
            "reactions.add" => json!({ "ok": true }),
            "chat.getPermalink" => json!({ "ok": true, "channel": arguments["channel"], "permalink": "https://test.slack.com/archives/C1/p1" }),
            _ => json!({ "ok": false, "error": "unknown_method" }),
        }
    }
}
