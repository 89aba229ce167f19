//! What looks at a call before it goes and after it returned. Best effort: a hook that fails, hangs or panics is logged and
//! changes nothing, and none holds a call up. Calls are handed to the hooks through a bounded line; when the hooks
//! cannot follow, events are dropped and counted.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    connections::Langfuse,
    providers::Stop,
    store::{CallRow, Store},
    util::{
        http::Http,
        redact,
        secret::{ExposeSecret, SecretString},
        text,
    },
};

mod call;
mod otlp;

pub(super) use call::Call;

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

/// Out of a log, all that can be.
const ALL: [redact::Kind; 5] = [redact::Kind::Secret, redact::Kind::Email, redact::Kind::Card, redact::Kind::Ip, redact::Kind::Phone];

/// Events that wait for their hooks, and the bytes of their texts; beyond, they are dropped.
const LINE: usize = 4096;
const LINE_BYTES: usize = 64 << 20;
/// Events taken at a time.
const BATCH: usize = 1024;
/// With more than these there is no need to wait for others.
const FEW: usize = 256;
/// How long the first of a batch waits for others: what is kept of a thousand calls costs one write.
const GATHER: Duration = Duration::from_millis(50);
/// Hooks at work at the same time: a webhook is no target for a thousand requests at once.
const AT_ONCE: usize = 16;
/// Of one hook and event.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a prompt, in a log line.
const PREVIEW: usize = 200;

struct Event {
    hooks: Arc<[Hook]>,
    call: Arc<Call>,
    _room: OwnedSemaphorePermit,
}

/// What comes down the line.
enum Word {
    Event(Event),
    /// The last one; answered when all before it is done.
    End(oneshot::Sender<()>),
}

/// The near end of the line.
#[derive(Debug, Clone)]
pub(super) struct Line {
    words: mpsc::Sender<Word>,
    /// [`LINE_BYTES`] of it.
    room: Arc<Semaphore>,
    /// Hooks that a monitor has beside its profiles'.
    of_monitors: Arc<RwLock<HashMap<String, Arc<[Hook]>>>>,
}

impl Line {
    /// From now on, calls for a monitor are told to these too.
    pub(super) fn set(&self, monitor: &str, hooks: Arc<[Hook]>) {
        // Whole after every statement.
        let mut of_monitors = self.of_monitors.write().unwrap_or_else(PoisonError::into_inner);
        if hooks.is_empty() {
            of_monitors.remove(monitor);
        } else {
            of_monitors.insert(monitor.to_owned(), hooks);
        }
    }

    pub(super) fn of(&self, monitor: &str) -> Option<Arc<[Hook]>> {
        self.of_monitors.read().unwrap_or_else(PoisonError::into_inner).get(monitor).cloned()
    }

    pub(super) fn tell(&self, hooks: &Arc<[Hook]>, call: &Arc<Call>) {
        if hooks.is_empty() {
            return;
        }
        let bytes = u32::try_from(call.bytes()).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes);
        let event = room.map(|room| Event { hooks: Arc::clone(hooks), call: Arc::clone(call), _room: room });
        if !event.is_ok_and(|event| self.words.try_send(Word::Event(event)).is_ok()) {
            metrics::counter!("llm_hook_events_dropped_total").increment(1);
        }
    }

    /// Returns when all that was told is done.
    pub(super) async fn end(&self) {
        let (done, answer) = oneshot::channel();
        if self.words.send(Word::End(done)).await.is_ok() {
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
    (Line { words: sender, room: Arc::new(Semaphore::new(LINE_BYTES)), of_monitors: Arc::default() }, Runner { words, store })
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
        let others = |event: &Event| {
            event.hooks.iter().filter(|hook| !matches!(hook, Hook::Record)).map(|hook| (hook.clone(), Arc::clone(&event.call))).collect::<Vec<_>>()
        };
        let rest: Vec<(Hook, Arc<Call>)> = events.iter().flat_map(others).collect();
        stream::iter(rest).for_each_concurrent(AT_ONCE, |(hook, call)| async move { guarded(hook.name(), look(&hook, &call)).await }).await;
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
    use super::{call::Outcome, *};
    use crate::{
        model::Usage,
        providers::{CallCx, ChatRequest},
    };

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
        let cx = CallCx { monitor: "", metric: "", run_id: "r", item_id: "i", budgets: &[], fresh: false, background: None };
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
