//! What was said in Slack's channels, read by `conversations.history` and `conversations.replies` under Slack's rules:
//! newest first and oldest first, cursors that hold for the arguments they were given for, limits by method.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::Breaches;

/// Calls that were on their way when a limit was told are no breach of it.
const ON_THE_WAY: Duration = Duration::from_millis(300);
const RETRY_AFTER: Duration = Duration::from_secs(1);

pub struct History {
    state: Mutex<Inner>,
    breaches: Breaches,
}

#[derive(Default)]
struct Inner {
    /// Channel -> messages in order of time.
    channels: BTreeMap<String, Vec<Value>>,
    /// Channels in which the app is not.
    closed: Vec<String>,
    /// Threads that are listed and can no longer be read.
    gone: Vec<String>,
    /// Parent -> a reply that comes when its thread is read.
    at_reading: BTreeMap<String, Value>,
    /// Most messages a page has, whatever is asked for.
    page: Option<usize>,
    /// Cursor -> the arguments it belongs to and where it goes on.
    cursors: BTreeMap<String, (BTreeMap<String, String>, usize)>,
    given: usize,
    forget_at: Option<usize>,
    calls: Vec<(String, Value)>,
    /// Calls of a method that are answered before Slack asks to wait.
    burst: Option<usize>,
    limits: BTreeMap<String, Limit>,
}

#[derive(Default)]
struct Limit {
    calls: usize,
    told: Option<Instant>,
}

impl History {
    pub(super) fn new(breaches: Breaches) -> Self {
        Self { state: Mutex::default(), breaches }
    }

    /// A message as Slack keeps it: at least `ts`, and `thread_ts` for a reply.
    pub fn say(&self, channel: &str, message: Value) {
        let mut state = self.state.lock().unwrap();
        let messages = state.channels.entry(channel.to_owned()).or_default();
        let mut whole = json!({ "type": "message", "text": "" });
        whole.as_object_mut().unwrap().extend(message.as_object().unwrap().clone());
        messages.push(whole);
        messages.sort_by(|a, b| a["ts"].as_str().cmp(&b["ts"].as_str()));
    }

    /// A thread whose first message says when it began; each part is (sender, seconds after the first, text). A sender
    /// that begins with `B` is a bot's profile name behind the `:`, such as `B1:Support Bot`.
    pub fn thread(&self, channel: &str, began: jiff::Timestamp, parts: &[(&str, i64, &str)]) -> String {
        let parent = ts(began, parts[0].1);
        for (at, (sender, after, text)) in parts.iter().enumerate() {
            let mut message = json!({ "ts": ts(began, *after), "text": text });
            if at > 0 {
                message["thread_ts"] = json!(parent);
            }
            match sender.split_once(':') {
                Some((id, name)) => {
                    message["bot_id"] = json!(id);
                    message["bot_profile"] = json!({ "id": id, "name": name, "app_id": "A1" });
                    message["user"] = json!(format!("U{id}"));
                }
                None => message["user"] = json!(sender),
            }
            self.say(channel, message);
        }
        parent
    }

    pub fn close(&self, channel: &str) {
        self.state.lock().unwrap().closed.push(channel.to_owned());
    }

    /// The thread is deleted behind the back of who has listed it.
    pub fn vanish(&self, parent: &str) {
        self.state.lock().unwrap().gone.push(parent.to_owned());
    }

    /// A reply that is written between the list of threads and the reading of this one.
    pub fn say_when_read(&self, parent: &str, reply: Value) {
        self.state.lock().unwrap().at_reading.insert(parent.to_owned(), reply);
    }

    pub fn page(&self, most: usize) {
        self.state.lock().unwrap().page = Some(most);
    }

    /// From now on a method is answered this often, then Slack asks to wait a second, and so on.
    pub fn limit(&self, burst: usize) {
        self.state.lock().unwrap().burst = Some(burst);
    }

    /// At its nth call from the start Slack restarts: no cursor holds any longer.
    pub fn forget_cursors_at(&self, call: usize) {
        self.state.lock().unwrap().forget_at = Some(call);
    }

    pub fn calls(&self, method: &str) -> Vec<Value> {
        self.state.lock().unwrap().calls.iter().filter(|(called, _)| called == method).map(|(_, arguments)| arguments.clone()).collect()
    }

    /// Seconds to wait, where the method's limit is used up.
    pub(super) fn slowed(&self, method: &str) -> Option<u64> {
        let mut state = self.state.lock().unwrap();
        let burst = state.burst?;
        let limit = state.limits.entry(method.to_owned()).or_default();
        if let Some(told) = limit.told {
            let since = told.elapsed();
            if since < RETRY_AFTER {
                if since > ON_THE_WAY {
                    self.breaches.push(format!("{method} was called {since:?} after it was told to wait {RETRY_AFTER:?}"));
                }
                return Some(RETRY_AFTER.as_secs());
            }
            *limit = Limit::default();
        }
        limit.calls += 1;
        if limit.calls > burst {
            limit.told = Some(Instant::now());
            return Some(RETRY_AFTER.as_secs());
        }
        None
    }

    pub(super) fn call(&self, method: &str, arguments: &Value) -> Value {
        let late = arguments["ts"].as_str().and_then(|parent| self.state.lock().unwrap().at_reading.remove(parent));
        if let (Some(late), Some(channel)) = (late, arguments["channel"].as_str()) {
            self.say(channel, late);
        }
        let mut state = self.state.lock().unwrap();
        state.calls.push((method.to_owned(), arguments.clone()));
        if state.forget_at == Some(state.calls.len()) {
            state.cursors.clear();
        }
        let answer = state.answer(method, arguments);
        answer.unwrap_or_else(|error| {
            // What no reader meets by chance.
            if ["invalid_arguments", "invalid_limit", "invalid_ts_oldest", "invalid_ts_latest"].contains(&error) {
                self.breaches.push(format!("{method}: {error} for {arguments}"));
            }
            json!({ "ok": false, "error": error })
        })
    }
}

impl Inner {
    fn answer(&mut self, method: &str, arguments: &Value) -> Result<Value, &'static str> {
        let text = |key: &str| arguments[key].as_str();
        let channel = text("channel").ok_or("invalid_arguments")?;
        let said = self.channels.get(channel).ok_or("channel_not_found")?;
        if self.closed.iter().any(|closed| closed == channel) {
            return Err("not_in_channel");
        }
        let limit = match text("limit") {
            None => 100,
            Some(limit) => limit.parse().ok().filter(|limit| (1..=999).contains(limit)).ok_or("invalid_limit")?,
        };
        let bound = |key: &str, error| match text(key) {
            None => Ok(None),
            Some(bound) if is_ts(bound) => Ok(Some(bound)),
            Some(_) => Err(error),
        };
        let (oldest, latest) = (bound("oldest", "invalid_ts_oldest")?, bound("latest", "invalid_ts_latest")?);
        let inclusive = matches!(text("inclusive"), Some("true" | "1"));
        let inside = |message: &&Value| {
            let at = message["ts"].as_str().unwrap();
            oldest.is_none_or(|oldest| at > oldest || inclusive && at == oldest) && latest.is_none_or(|latest| at < latest || inclusive && at == latest)
        };
        let is_reply = |message: &Value| !message["thread_ts"].is_null() && message["thread_ts"] != message["ts"];
        let (first, listed): (Option<Value>, Vec<Value>) = match method {
            "conversations.history" => {
                let top = said.iter().rev().filter(|message| !is_reply(message) || message["subtype"] == "thread_broadcast").filter(inside);
                (None, top.map(|message| parent(message, said)).collect())
            }
            _ => {
                let ts = text("ts").filter(|ts| is_ts(ts)).ok_or("invalid_arguments")?;
                if self.gone.iter().any(|gone| gone == ts) {
                    return Err("thread_not_found");
                }
                let begun = said.iter().find(|message| message["ts"] == ts && !is_reply(message)).ok_or("thread_not_found")?;
                let replies = said.iter().filter(|message| is_reply(message) && message["thread_ts"] == ts).filter(inside);
                (Some(parent(begun, said)), replies.cloned().collect())
            }
        };
        let same: BTreeMap<String, String> =
            arguments.as_object().unwrap().iter().filter(|(key, _)| *key != "cursor").map(|(key, value)| (key.clone(), value.to_string())).collect();
        let from = match text("cursor") {
            None => 0,
            Some(cursor) => self.cursors.get(cursor).filter(|(arguments, _)| *arguments == same).ok_or("invalid_cursor")?.1,
        };
        let size = self.page.map_or(limit, |most| most.min(limit));
        let page = listed.iter().skip(from).take(size).cloned();
        let messages: Vec<Value> = first.into_iter().chain(page).collect();
        let more = from + size < listed.len();
        let mut next = String::new();
        if more {
            self.given += 1;
            next = format!("bmV4dF90czo{:06}=", self.given);
            self.cursors.insert(next.clone(), (same, from + size));
        }
        Ok(json!({ "ok": true, "messages": messages, "has_more": more, "response_metadata": { "next_cursor": next } }))
    }
}

/// The message with what Slack says of its thread.
fn parent(message: &Value, said: &[Value]) -> Value {
    let replies: Vec<&Value> = said.iter().filter(|reply| reply["thread_ts"] == message["ts"] && reply["ts"] != message["ts"]).collect();
    let mut message = message.clone();
    if let Some(last) = replies.last() {
        message["thread_ts"] = message["ts"].clone();
        message["reply_count"] = json!(replies.len());
        message["latest_reply"] = last["ts"].clone();
    }
    message
}

fn is_ts(text: &str) -> bool {
    let (secs, micros) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits(secs) && digits(micros) && secs.len() <= 10 && micros.len() <= 6
}

/// The `ts` of a message that was said so many seconds after a time.
pub fn ts(at: jiff::Timestamp, after: i64) -> String {
    let us = at.as_microsecond() + after * 1_000_000;
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}
