//! One profile's way from question to answer: read [`Ladder::ask`], [`Profile::answer`] and [`Profile::attempt`] in this order.
//! The same in parts is [`super::pour`]'s.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::time::Instant;

use super::{
    budget::{Budgets, Refusal, Reservation},
    cache::{self, Answers, Keep},
    circuit::{Change, Circuit, Pass},
    fair::{Fair, Place},
    hooks::{Call, Hooks, Line},
    lane::{Entry, Lane},
    meter::{Meter, Tally},
};
use crate::{
    model::{Usage, nano_usd},
    providers::{
        CallCx, CallError, ChatAnswer, ChatRequest, FallbackOn, Message, Model, Part, Provider, ProviderError, Question, Reply, Tokens, prices::Price,
    },
    schedule::clock::Clock,
    util::{
        backoff::{self, Policy},
        driven::driven,
        duration::Human,
        redact::{self, Kind},
    },
};

/// A profile and those that are asked where it cannot answer.
pub(super) struct Ladder {
    pub(super) rungs: Vec<Arc<Profile>>,
    on: Vec<FallbackOn>,
}

impl Ladder {
    /// `rungs`: at least one. `on`: when to go down; empty is always.
    pub(super) fn new(rungs: Vec<Arc<Profile>>, on: Vec<FallbackOn>) -> Self {
        Self { rungs, on }
    }

    pub(super) fn goes_down_on(&self, error: &CallError) -> bool {
        let why = match error {
            CallError::Blocked(_) => FallbackOn::Unavailable,
            CallError::Failed { kind: "rate_limited" | "overloaded", .. } => FallbackOn::RateLimited,
            // The same question would be as wrong elsewhere.
            CallError::Failed { kind: "bad_request" | "filtered" | "too_large" | "unsupported", .. } | CallError::OverBudget(_) => return false,
            CallError::Failed { .. } => FallbackOn::Unavailable,
        };
        self.on.is_empty() || self.on.contains(&why)
    }
}

#[async_trait]
impl Model for Ladder {
    async fn ask(&self, question: Question, cx: CallCx<'_>) -> Result<Reply, CallError> {
        let mut first = None;
        for rung in &self.rungs {
            match rung.answer(&question, cx).await {
                Err(error) if self.goes_down_on(&error) => {
                    tracing::debug!(monitor = cx.monitor, metric = cx.metric, item = cx.item_id, profile = rung.name, %error, "the profile cannot answer");
                    // The reason that people can act on is the first profile's.
                    first.get_or_insert(error);
                }
                outcome => return outcome,
            }
        }
        Err(first.unwrap_or_else(|| CallError::Failed { kind: "unsupported", message: "no profile was asked".to_owned() }))
    }

    fn stream<'a>(&'a self, question: Question, cx: CallCx<'a>) -> BoxStream<'a, Result<Part, CallError>> {
        driven(move |out| async move { self.pour(&question, cx, &out).await })
    }

    fn guess(&self, question: &Question, output: u64) -> Option<f64> {
        let rung = self.rungs.first()?;
        let request = rung.request(question);
        let input = request.bytes() as u64 / BYTES_A_TOKEN + TOKENS_A_MESSAGE * (request.messages.len() as u64 + 1);
        rung.price?.cost(Tokens { input: Some(input), output: Some(output.min(u64::from(request.max_tokens))), ..Tokens::default() })
    }

    fn identity(&self) -> String {
        self.rungs.first().map(|rung| rung.identity()).unwrap_or_default()
    }
}

/// A provider and a model with all that goes round them.
pub(super) struct Profile {
    /// As in the settings.
    pub name: String,
    pub provider: Arc<dyn Provider>,
    /// See [`super::ProviderSpec`].
    pub origin: String,
    /// As in the settings.
    pub provider_name: String,
    pub model: String,
    pub temperature: Option<f64>,
    pub max_tokens: u32,
    pub system: Option<String>,
    pub timeout: Duration,
    pub retry: Policy,
    pub price: Option<Price>,
    pub meter: Meter,
    /// Shared by the profiles of the same provider and model.
    pub circuit: Arc<Circuit>,
    /// The profile's own, then the provider's, which its profiles share.
    pub lanes: [Arc<Lane>; 2],
    /// Shared by all.
    pub everywhere: Arc<Fair>,
    /// Shared by all.
    pub budgets: Arc<Budgets>,
    /// Where answers are kept; shared by all.
    pub keep: Option<(Keep, Arc<Answers>)>,
    pub hooks: Hooks,
    /// Shared by all.
    pub line: Line,
    pub redact: Vec<Kind>,
    /// Shared by all.
    pub tally: Arc<Tally>,
    pub clock: Arc<dyn Clock>,
}

/// What an attempt holds while it is under way, and never while it waits to be tried again.
pub(super) struct Hold<'a> {
    pass: Pass<'a>,
    entries: [Entry; 2],
    _everywhere: Place,
}

/// Why an attempt was not made, or how it failed.
pub(super) enum Fault {
    /// No call was made and none will be for now.
    Refused(CallError),
    Provider(ProviderError),
}

impl Profile {
    /// The answer that is kept, or else a new one; told to the hooks and the books.
    async fn answer(&self, question: &Question, cx: CallCx<'_>) -> Result<Reply, CallError> {
        let request = self.request(question);
        let told = self.tell_before(&request, &cx);
        let begun = Instant::now();
        let outcome = match self.keep.as_ref().filter(|(keep, _)| !cx.fresh && keep.takes(&request)) {
            Some((keep, answers)) => {
                let key = cache::key(&self.origin, &request, question.sample);
                answers.get_or(key, *keep, request.schema.is_some(), || self.fetch(&request, cx)).await
            }
            None => self.fetch(&request, cx).await,
        };
        self.tell_after(told, begun.elapsed(), cx, &outcome);
        outcome
    }

    pub(super) fn tell_before(&self, request: &ChatRequest, cx: &CallCx<'_>) -> Option<Arc<Call>> {
        let wanted = !self.hooks.is_empty() || self.line.of(cx.monitor).is_some();
        let call = wanted.then(|| Arc::new(Call::new(self.clock.now(), cx, &self.name, &self.provider_name, request)))?;
        self.line.tell(&self.hooks.before, &call);
        Some(call)
    }

    pub(super) fn tell_after(&self, told: Option<Arc<Call>>, took: Duration, cx: CallCx<'_>, outcome: &Result<Reply, CallError>) {
        self.tally.add(self.clock.now(), &self.provider_name, &self.model, cx.monitor, outcome);
        if let Some(call) = told {
            let call = Arc::new(Arc::unwrap_or_clone(call).ended(took, outcome));
            self.line.tell(&self.hooks.after, &call);
            if let Some(hooks) = self.line.of(cx.monitor) {
                self.line.tell(&hooks, &call);
            }
        }
    }

    /// Asks until there is an answer or no attempt is left.
    async fn fetch(&self, request: &ChatRequest, cx: CallCx<'_>) -> Result<Reply, CallError> {
        let mut started = None;
        let mut attempt = 1;
        loop {
            let fault = match self.attempt(request, cx, &mut started).await {
                Ok(answer) => return Ok(self.reply(answer, started)),
                Err(fault) => fault,
            };
            let (error, again) = self.verdict(fault, attempt, started);
            let Some(wait) = again else { return Err(error) };
            tracing::debug!(monitor = cx.monitor, metric = cx.metric, item = cx.item_id, profile = self.name, attempt, ?wait, %error, "trying again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// circuit -> budget -> limits -> provider, and back.
    async fn attempt(&self, request: &ChatRequest, cx: CallCx<'_>, started: &mut Option<Instant>) -> Result<ChatAnswer, Fault> {
        let (hold, mut reservation) = self.admit(request, cx).await.map_err(Fault::Refused)?;
        reservation.begin();
        let begun = Instant::now();
        // Where time is measured, waiting for a place is not part of the call.
        started.get_or_insert(begun);
        let outcome = in_time(self.timeout, self.provider.chat(request)).await;
        self.meter.attempt(begun.elapsed(), &outcome);
        self.settle(hold, reservation, &outcome, false);
        outcome.map_err(Fault::Provider)
    }

    /// circuit -> budget -> limits.
    pub(super) async fn admit(&self, request: &ChatRequest, cx: CallCx<'_>) -> Result<(Hold<'_>, Reservation), CallError> {
        self.circuit.check().map_err(|reason| self.blocked(&reason))?;
        let reservation = self.reserve(request, cx).await?;
        Ok((self.hold(request, cx).await?, reservation))
    }

    /// What to tell of a failed attempt, and how long to wait until the next one, where there is to be one.
    pub(super) fn verdict(&self, fault: Fault, attempt: u32, started: Option<Instant>) -> (CallError, Option<Duration>) {
        let (kind, message, retry_after) = match fault {
            Fault::Refused(error) => return (error, None),
            Fault::Provider(ProviderError::Blocked { message, .. }) => return (self.blocked(&message), None),
            Fault::Provider(ProviderError::Rejected { kind, message }) => return (CallError::Failed { kind, message }, None),
            Fault::Provider(ProviderError::Transient { kind, message, retry_after }) => (kind, message, retry_after),
        };
        let elapsed = started.map_or(Duration::ZERO, |started| started.elapsed());
        let wait = self.retry.wait(attempt, elapsed, retry_after, backoff::chance());
        if wait.is_some() {
            self.meter.retry(kind);
        }
        (CallError::Failed { kind, message: gave_up(attempt, elapsed, &message) }, wait)
    }

    pub(super) fn request(&self, question: &Question) -> ChatRequest {
        let system = match (&self.system, &question.system) {
            (Some(own), Some(asked)) => Some(format!("{own}\n\n{asked}")),
            (own, asked) => own.clone().or_else(|| asked.clone()),
        };
        let cleared = |text: &str| redact::redact(text, &self.redact).into_owned();
        let message = |message: &Message| Message { role: message.role, text: cleared(&message.text) };
        ChatRequest {
            model: self.model.clone(),
            system: system.map(|system| cleared(&system)),
            messages: question.messages.iter().map(message).collect(),
            temperature: question.temperature.or(self.temperature),
            top_p: question.top_p,
            stop: question.stop.clone(),
            // Some servers read 0 as no limit, which no budget could hold.
            max_tokens: question.max_tokens.unwrap_or(self.max_tokens).max(1),
            schema: question.schema.clone(),
        }
    }

    /// Sets aside what the call can cost at most.
    async fn reserve(&self, request: &ChatRequest, cx: CallCx<'_>) -> Result<Reservation, CallError> {
        if !self.budgets.apply(&cx) {
            return Ok(Reservation::default());
        }
        let Some(price) = self.price else {
            let (model, provider) = (&self.model, &self.provider_name);
            return Err(CallError::OverBudget(format!(
                "no price is known for `{model}` of `{provider}`, and a budget needs one: add `prices: {{ {model}: {{ input_cost_per_token: .., output_cost_per_token: .. }} }}` to assayd.yaml"
            )));
        };
        let worst = nano_usd(price.ceiling(input_tokens_at_most(request), u64::from(request.max_tokens)));
        self.budgets.reserve(&cx, worst).await.map_err(|refusal| match refusal {
            Refusal::Over(reason) => CallError::OverBudget(reason),
            Refusal::Closed => CallError::Blocked("the store is closed: nothing can be paid for".to_owned()),
        })
    }

    /// Waits until a call may be made.
    async fn hold(&self, request: &ChatRequest, cx: CallCx<'_>) -> Result<Hold<'_>, CallError> {
        let [own, provider] = &self.lanes;
        loop {
            self.circuit.check().map_err(|reason| self.blocked(&reason))?;
            provider.resumed(self.retry.max_elapsed).await.map_err(|left| self.blocked(&paused(left)))?;
            self.circuit.head_start().await;
            // The narrower place first: who waits for a slow provider must not hold a place that others could use.
            let entries = [own.enter(&cx, request).await, provider.enter(&cx, request).await];
            let everywhere = self.everywhere.place(cx.monitor, cx.background.is_some()).await;
            // Queueing takes time, and what held before may not hold now.
            if provider.pause().is_none() {
                let pass = self.circuit.enter().map_err(|reason| self.blocked(&reason))?;
                return Ok(Hold { pass, entries, _everywhere: everywhere });
            }
            for (lane, entry) in self.lanes.iter().zip(&entries) {
                lane.give_back(entry);
            }
        }
    }

    /// Gives back what was held and lets everything shared learn from the outcome. `partly`: text had come before it.
    pub(super) fn settle(&self, hold: Hold<'_>, reservation: Reservation, outcome: &Result<ChatAnswer, ProviderError>, partly: bool) {
        // A stream that breaks with an error of the provider's is billed up to there.
        reservation.settle(if partly && outcome.is_err() { None } else { self.cost_at_most(outcome) });
        for (lane, entry) in self.lanes.iter().zip(&hold.entries) {
            lane.observe(entry, outcome);
        }
        match hold.pass.settle(outcome) {
            Some(Change::Blocked) => tracing::warn!(
                provider = self.provider_name,
                model = self.model,
                reason = self.circuit.reason(),
                "the judge is blocked; it is tried again in a minute"
            ),
            Some(Change::Unblocked) => tracing::info!(provider = self.provider_name, model = self.model, "the judge answers again"),
            None => {}
        }
    }

    /// In nano-USD; `None` where only the worst is known.
    fn cost_at_most(&self, outcome: &Result<ChatAnswer, ProviderError>) -> Option<i64> {
        match outcome {
            Ok(answer) => self.price.and_then(|price| price.cost(answer.tokens)).map(nano_usd),
            // The request went out and no answer came in whole: it may have been worked on, and billed.
            Err(
                ProviderError::Transient { kind: "timeout" | "transport" | "not_json" | "too_large", .. } | ProviderError::Rejected { kind: "too_large", .. },
            ) => None,
            // An error status is not billed.
            Err(_) => Some(0),
        }
    }

    pub(super) fn reply(&self, answer: ChatAnswer, started: Option<Instant>) -> Reply {
        let cost_usd = self.price.and_then(|price| price.cost(answer.tokens));
        self.meter.used(answer.tokens, cost_usd);
        let usage = Usage {
            provider: Some(self.provider_name.clone()),
            model: Some(answer.model),
            input_tokens: answer.tokens.input,
            output_tokens: answer.tokens.output,
            cost_usd,
            latency_ms: started.and_then(|started| u64::try_from(started.elapsed().as_millis()).ok()),
        };
        Reply { text: answer.text, stop: answer.stop, usage, id: answer.id, cached: false }
    }

    fn identity(&self) -> String {
        format!("{}/{}", self.provider_name, self.model)
    }

    fn blocked(&self, reason: &str) -> CallError {
        CallError::Blocked(format!("{}/{}: {reason}", self.provider_name, self.model))
    }
}

/// Around the texts: roles, separators, a tool's or a schema's own words.
const TOKENS_A_MESSAGE: u64 = 16;
const TOKENS_OF_A_SCHEMA: u64 = 512;
/// Of English text, about; what is asked is never decided by it.
const BYTES_A_TOKEN: u64 = 4;

/// An upper bound, no guess: every tokenizer in use falls back to single bytes, so no token is shorter than one.
fn input_tokens_at_most(request: &ChatRequest) -> u64 {
    let schema = request.schema.as_ref().map_or(0, |schema| schema.to_string().len() as u64 + TOKENS_OF_A_SCHEMA);
    request.bytes() as u64 + TOKENS_A_MESSAGE * (request.messages.len() as u64 + 1) + schema
}

fn gave_up(attempts: u32, elapsed: Duration, message: &str) -> String {
    let times = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    format!("gave up after {times} in {:.0} s: {message}", elapsed.as_secs_f64())
}

fn paused(left: Duration) -> String {
    format!("asked too often; the provider wants to be left alone for {}", Human(Duration::from_secs(left.as_secs())))
}

/// A provider's call with a bound on its time.
pub(super) async fn in_time<T>(bound: Duration, call: impl Future<Output = Result<T, ProviderError>>) -> Result<T, ProviderError> {
    tokio::time::timeout(bound, call)
        .await
        .unwrap_or_else(|_| Err(ProviderError::Transient { kind: "timeout", message: format!("no answer within {}", Human(bound)), retry_after: None }))
}
