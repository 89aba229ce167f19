//! What looks at a call before it goes and after it returned. Best effort: a hook that fails, hangs or panics is logged and
//! changes nothing, and none holds a call up. Calls are handed to the hooks through a bounded line; when the hooks
//! cannot follow, events are dropped and counted.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use crate::{
    connections::Langfuse,
    model::Usage,
    providers::{CallCx, CallError, ChatRequest, Reply, Role, Stop},
    store::{CallRow, Store},
    util::{
        http::Http,
        redact,
        secret::{ExposeSecret, SecretString},
        text,
    },
};

mod otlp;

/// What a hook does.
#[derive(Debug, Clone)]
pub enum Hook {
    /// A line in the log with the begin of the prompt, redacted.
    LogRequest,
    /// A line in the log with tokens, cost and time.
    LogUsage,
    /// A warning for what a caller should look at: cut off, refused, empty, not of the schema.
    Guard,
    /// The call, kept in the store.
    Record,
    /// A generation in Langfuse, under the call's trace.
    Langfuse(Langfuse),
    /// The call as JSON, posted to an address.
    Webhook { http: Http, url: SecretString },
}

impl Hook {
    fn name(&self) -> &'static str {
        match self {
            Self::LogRequest => "log_request",
            Self::LogUsage => "log_usage",
            Self::Guard => "guard",
            Self::Record => "record",
            Self::Langfuse(_) => "langfuse",
            Self::Webhook { .. } => "webhook",
        }
    }
}

/// The hooks of a profile.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    pub before: Arc<[Hook]>,
    pub after: Arc<[Hook]>,
}

impl Hooks {
    pub(super) fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }
}

/// A call, as hooks see it.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub at: jiff::Timestamp,
    pub trace_id: String,
    pub monitor: String,
    pub metric: String,
    pub item_id: String,
    pub profile: String,
    pub provider: String,
    pub model: String,
    pub system: Option<String>,
    pub messages: Vec<crate::providers::Message>,
    pub schema: Option<Arc<serde_json::Value>>,
    pub outcome: Option<Outcome>,
}

/// How a call ended.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub took: Duration,
    /// Text and why it ended, or what went wrong and its kind.
    pub result: Result<(String, Stop), (String, &'static str)>,
    pub usage: Usage,
    pub cached: bool,
}

impl Call {
    pub(super) fn new(at: jiff::Timestamp, cx: &CallCx<'_>, profile: &str, provider: &str, request: &ChatRequest) -> Self {
        Self {
            at,
            trace_id: cx.trace_id(),
            monitor: cx.monitor.to_owned(),
            metric: cx.metric.to_owned(),
            item_id: cx.item_id.to_owned(),
            profile: profile.to_owned(),
            provider: provider.to_owned(),
            model: request.model.clone(),
            system: request.system.clone(),
            messages: request.messages.clone(),
            schema: request.schema.clone(),
            outcome: None,
        }
    }

    pub(super) fn ended(mut self, took: Duration, outcome: &Result<Reply, CallError>) -> Self {
        let (result, usage, cached) = match outcome {
            Ok(reply) => (Ok((reply.text.clone(), reply.stop)), reply.usage.clone(), reply.cached),
            Err(error) => {
                let kind = match error {
                    CallError::Blocked(_) => "blocked",
                    CallError::OverBudget(_) => "over_budget",
                    CallError::Failed { kind, .. } => kind,
                };
                (Err((error.to_string(), kind)), Usage::default(), false)
            }
        };
        self.outcome = Some(Outcome { took, result, usage, cached });
        self
    }

    /// System, then the messages, each under its role.
    fn prompt(&self) -> String {
        let system = self.system.iter().map(|system| format!("system: {system}"));
        let messages = self.messages.iter().map(|message| format!("{}: {}", message.role.as_str(), message.text));
        system.chain(messages).collect::<Vec<_>>().join("\n\n")
    }

    fn question(&self) -> &str {
        self.messages.iter().rev().find(|message| message.role == Role::User).map(|message| message.text.as_str()).unwrap_or_default()
    }

    fn status(&self) -> &'static str {
        match &self.outcome {
            None => "begun",
            Some(Outcome { cached: true, .. }) => "cached",
            Some(Outcome { result: Ok(_), .. }) => "ok",
            Some(Outcome { result: Err((_, kind)), .. }) => kind,
        }
    }

    fn row(&self) -> CallRow {
        let outcome = self.outcome.as_ref();
        let usage = outcome.map(|outcome| outcome.usage.clone()).unwrap_or_default();
        CallRow {
            trace_id: self.trace_id.clone(),
            monitor: self.monitor.clone(),
            metric: self.metric.clone(),
            item_id: self.item_id.clone(),
            profile: self.profile.clone(),
            provider: usage.provider.unwrap_or_else(|| self.provider.clone()),
            model: usage.model.unwrap_or_else(|| self.model.clone()),
            prompt: self.prompt(),
            response: outcome.and_then(|outcome| outcome.result.as_ref().ok()).map(|(text, _)| text.clone()),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            latency_ms: outcome.map_or(0, |outcome| u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX)),
            cost_usd: usage.cost_usd,
            status: self.status().to_owned(),
            error: outcome.and_then(|outcome| outcome.result.as_ref().err()).map(|(message, _)| message.clone()),
            created_us: self.at.as_microsecond(),
        }
    }
}

/// Out of a log, all that can be.
const ALL: [redact::Kind; 5] = [redact::Kind::Secret, redact::Kind::Email, redact::Kind::Card, redact::Kind::Ip, redact::Kind::Phone];

/// Events that wait for their hooks; beyond, they are dropped.
const LINE: usize = 4096;
/// Events taken at a time.
const BATCH: usize = 1024;
/// With more than these there is no need to wait for others.
const FEW: usize = 256;
/// How long the first of a batch waits for others: what is kept of a thousand calls costs one write.
const GATHER: Duration = Duration::from_millis(50);
/// Of one hook and event.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a prompt, in a log line.
const PREVIEW: usize = 200;

struct Event {
    hooks: Arc<[Hook]>,
    call: Arc<Call>,
}

/// What comes down the line.
enum Word {
    Event(Event),
    /// The last one; answered when all before it is done.
    End(oneshot::Sender<()>),
}

/// The near end of the line.
#[derive(Debug, Clone)]
pub(super) struct Line(mpsc::Sender<Word>);

impl Line {
    pub(super) fn tell(&self, hooks: &Arc<[Hook]>, call: &Arc<Call>) {
        if !hooks.is_empty() && self.0.try_send(Word::Event(Event { hooks: Arc::clone(hooks), call: Arc::clone(call) })).is_err() {
            metrics::counter!("llm_hook_events_dropped_total").increment(1);
        }
    }

    /// Returns when all that was told is done.
    pub(super) async fn end(&self) {
        let (done, answer) = oneshot::channel();
        if self.0.send(Word::End(done)).await.is_ok() {
            // A runner that is gone has nothing left to do.
            let _ = answer.await;
        }
    }
}

/// The far end: runs the hooks. The caller runs [`Runner::run`] for as long as there are calls.
pub struct Runner {
    words: mpsc::Receiver<Word>,
    store: Option<Store>,
}

pub(super) fn line(store: Option<Store>) -> (Line, Runner) {
    let (sender, words) = mpsc::channel(LINE);
    (Line(sender), Runner { words, store })
}

impl Runner {
    /// Ends when its gateway says so ([`super::Gateway::finish`]) or is gone, with all that it was told done.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.words.recv_many(&mut batch, BATCH).await > 0 {
            if batch.len() < FEW && !batch.iter().any(|word| matches!(word, Word::End(_))) {
                tokio::time::sleep(GATHER).await;
                while batch.len() < BATCH
                    && let Ok(word) = self.words.try_recv()
                {
                    batch.push(word);
                }
            }
            let (mut events, mut end) = (Vec::with_capacity(batch.len()), None);
            for word in batch.drain(..) {
                match word {
                    Word::Event(event) => events.push(event),
                    Word::End(done) => end = Some(done),
                }
            }
            self.tell(&events).await;
            if let Some(done) = end {
                // Who asked may have given up waiting.
                let _ = done.send(());
                return;
            }
        }
    }

    async fn tell(&self, events: &[Event]) {
        let rows: Vec<CallRow> =
            events.iter().filter(|event| event.hooks.iter().any(|hook| matches!(hook, Hook::Record))).map(|event| event.call.row()).collect();
        if let Some(store) = self.store.as_ref().filter(|_| !rows.is_empty()) {
            guarded("record", async { store.keep_calls(rows).await.map_err(|error| error.to_string()) }).await;
        }
        let rest = events.iter().flat_map(|event| event.hooks.iter().map(|hook| (hook, &event.call))).filter(|(hook, _)| !matches!(hook, Hook::Record));
        futures_util::future::join_all(rest.map(|(hook, call)| guarded(hook.name(), look(hook, call)))).await;
    }
}

/// Bounded in time, with panics caught.
async fn guarded(name: &'static str, hook: impl Future<Output = Result<(), String>>) {
    let outcome = AssertUnwindSafe(tokio::time::timeout(PATIENCE, hook)).catch_unwind().await;
    let error = match outcome {
        Ok(Ok(Ok(()))) => return,
        Ok(Ok(Err(error))) => error,
        Ok(Err(_)) => format!("not done within {} s", PATIENCE.as_secs()),
        Err(_) => "it panicked; this is a defect of assayd, please report it".to_owned(),
    };
    metrics::counter!("llm_hook_errors_total", "hook" => name).increment(1);
    tracing::warn!(hook = name, %error, "a hook failed; the call is not touched by it");
}

async fn look(hook: &Hook, call: &Call) -> Result<(), String> {
    match hook {
        Hook::LogRequest => {
            let preview = text::one_line(&redact::redact(call.question(), &ALL), PREVIEW);
            tracing::info!(
                profile = call.profile,
                provider = call.provider,
                model = call.model,
                monitor = call.monitor,
                item = text::one_line(&call.item_id, 100),
                trace_id = call.trace_id,
                prompt = preview,
                "asking a model"
            );
            Ok(())
        }
        Hook::LogUsage => {
            let row = call.row();
            tracing::info!(
                profile = row.profile,
                provider = row.provider,
                model = row.model,
                monitor = row.monitor,
                trace_id = row.trace_id,
                status = row.status,
                input_tokens = row.input_tokens,
                output_tokens = row.output_tokens,
                cost_usd = row.cost_usd,
                latency_ms = row.latency_ms,
                "a model was asked"
            );
            Ok(())
        }
        Hook::Guard => {
            if let Some(finding) = finding(call) {
                metrics::counter!("llm_guard_total", "finding" => finding).increment(1);
                tracing::warn!(profile = call.profile, model = call.model, monitor = call.monitor, trace_id = call.trace_id, finding, "an answer to look at");
            }
            Ok(())
        }
        // Written in batches by the runner.
        Hook::Record => Ok(()),
        Hook::Langfuse(langfuse) => otlp::send(langfuse, call).await,
        Hook::Webhook { http, url } => webhook(http, url, call).await,
    }
}

/// What about an answer is not as it should be.
fn finding(call: &Call) -> Option<&'static str> {
    match call.outcome.as_ref()?.result.as_ref().ok()? {
        (_, Stop::Length) => Some("cut_off"),
        (_, Stop::Refusal) => Some("refused"),
        (text, Stop::End) if text.trim().is_empty() => Some("empty"),
        (text, Stop::End) => {
            let schema = call.schema.as_ref()?;
            let Ok(answer) = serde_json::from_str(text) else { return Some("not_json") };
            // Whoever asks from outside may send what is no schema; that is between him and the model.
            let schema = jsonschema::validator_for(schema).ok()?;
            (!schema.is_valid(&answer)).then_some("not_of_the_schema")
        }
    }
}

async fn webhook(http: &Http, url: &SecretString, call: &Call) -> Result<(), String> {
    let row = call.row();
    let body = serde_json::json!({
        "trace_id": row.trace_id, "monitor": row.monitor, "metric": row.metric, "item_id": row.item_id, "profile": row.profile, "provider": row.provider,
        "model": row.model, "prompt": row.prompt, "response": row.response, "input_tokens": row.input_tokens, "output_tokens": row.output_tokens,
        "latency_ms": row.latency_ms, "cost_usd": row.cost_usd, "status": row.status, "error": row.error, "created_at": call.at,
    });
    http.send(|| http.client.post(url.expose_secret()).json(&body), |_| Ok(())).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(schema: Option<serde_json::Value>, result: Result<(&str, Stop), (&str, &'static str)>) -> Call {
        let request = ChatRequest {
            model: "m".to_owned(),
            system: Some("Grade.".to_owned()),
            messages: vec![crate::providers::Message::user("How good?")],
            temperature: None,
            top_p: None,
            stop: Vec::new(),
            max_tokens: 10,
            schema: schema.map(Arc::new),
        };
        let cx = CallCx { monitor: "", metric: "", run_id: "r", item_id: "i", budgets: &[] };
        let mut call = Call::new(jiff::Timestamp::UNIX_EPOCH, &cx, "judge", "openai", &request);
        let result = result.map(|(text, stop)| (text.to_owned(), stop)).map_err(|(message, kind)| (message.to_owned(), kind));
        call.outcome = Some(Outcome { took: Duration::from_millis(7), result, usage: Usage::default(), cached: false });
        call
    }

    #[test]
    fn the_guard_finds_what_a_caller_should_look_at() {
        let schema = || Some(serde_json::json!({ "type": "object", "required": ["score"] }));
        for (schema, result, found) in [
            (None, Ok(("fine", Stop::End)), None),
            (schema(), Ok((r#"{"score": 1}"#, Stop::End)), None),
            (schema(), Ok((r#"{"rating": 1}"#, Stop::End)), Some("not_of_the_schema")),
            (schema(), Ok(("fine", Stop::End)), Some("not_json")),
            (Some(serde_json::json!({ "type": 7 })), Ok(("{}", Stop::End)), None),
            (None, Ok((" ", Stop::End)), Some("empty")),
            (None, Ok(("fi", Stop::Length)), Some("cut_off")),
            (None, Ok(("no", Stop::Refusal)), Some("refused")),
            (None, Err(("gone", "transport")), None),
        ] {
            assert_eq!(finding(&call(schema, result)), found, "{result:?}");
        }
    }

    #[tokio::test]
    async fn a_hook_that_panics_or_fails_ends_nothing() {
        guarded("webhook", async { panic!("a hook's own fault") }).await;
        guarded("webhook", async { Err("refused".to_owned()) }).await;
    }

    #[test]
    fn a_row_has_all_there_is_to_know() {
        let row = call(None, Err(("HTTP 500: no", "server_error"))).row();
        assert_eq!((row.status.as_str(), row.error.as_deref(), row.latency_ms), ("server_error", Some("HTTP 500: no"), 7));
        assert_eq!(row.prompt, "system: Grade.\n\nuser: How good?");
        assert_eq!(row.trace_id.len(), 32);
    }
}
