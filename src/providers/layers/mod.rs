//! All that goes round a provider: the block on a refused key, limits, timeout, retry, usage and cost. A provider makes
//! one request; whoever asks sees none of this.
//!
//! The order is `Profile::ask`'s, and further layers take their place there: what needs no call (a cache) before its
//! loop, what holds for one attempt (a budget's reservation) around `attempt`, what asks another profile (a fallback)
//! as a `Model` around it.

mod circuit;
mod lane;
mod meter;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use self::{
    circuit::{Change, Circuit, Pass},
    lane::Lane,
    meter::Meter,
};
use super::{
    CallCx, CallError, ChatAnswer, ChatRequest, Model, Models, Provider, ProviderError, Question, Reply,
    prices::{Price, Prices},
};
use crate::{
    model::Usage,
    util::{
        backoff::{self, Policy},
        duration::Human,
    },
};

/// Of an answer, where neither profile nor question says.
const MAX_TOKENS: u32 = 1024;

/// Of one attempt, where the profile does not say.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A probe asks for a list and no judgement.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a gateway is made of.
pub struct GatewaySpec {
    pub providers: BTreeMap<String, ProviderSpec>,
    pub profiles: BTreeMap<String, ProfileSpec>,
    /// Over the shipped table.
    pub prices: BTreeMap<String, Price>,
    /// Calls at the same time, over all providers; at least 1.
    pub judge_calls: usize,
    pub retry: Policy,
}

pub struct ProviderSpec {
    pub provider: Arc<dyn Provider>,
    /// Calls at the same time to this one; at least 1. `None`: only `judge_calls` counts.
    pub concurrency: Option<usize>,
}

/// A provider and a model with how to ask it.
#[derive(Debug, Clone, Default)]
pub struct ProfileSpec {
    pub provider: String,
    pub model: String,
    pub temperature: Option<f64>,
    /// Of the answer, where a question does not say. Default 1024.
    pub max_tokens: Option<u32>,
    /// Put before every question's own.
    pub system: Option<String>,
    /// Of one attempt. Default 60 s.
    pub timeout: Option<Duration>,
}

/// A profile names a provider that is not there.
#[derive(Debug, Clone, thiserror::Error)]
#[error("profile `{profile}`: there is no provider `{provider}`; there {}", listed(.known))]
pub struct UnknownProvider {
    pub profile: String,
    pub provider: String,
    pub known: Vec<String>,
}

/// `is ...`, `are ...` or `are none`, for a sentence about names.
fn listed(names: &[String]) -> String {
    match names {
        [] => "are none".to_owned(),
        [only] => format!("is `{only}`"),
        all => format!("are {}", all.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// All profiles, sharing what belongs to a provider or to all of them.
pub struct Gateway {
    providers: BTreeMap<String, Arc<dyn Provider>>,
    profiles: BTreeMap<String, Arc<Profile>>,
    circuits: BTreeMap<(String, String), Arc<Circuit>>,
}

impl Gateway {
    /// Touches neither network nor disk.
    ///
    /// # Errors
    /// The first profile whose provider is missing.
    pub fn new(spec: GatewaySpec) -> Result<Self, UnknownProvider> {
        let prices = Prices::of(&spec.prices, spec.profiles.values().map(|profile| (profile.provider.as_str(), profile.model.as_str())));
        let everywhere = Arc::new(Semaphore::new(spec.judge_calls.clamp(1, Semaphore::MAX_PERMITS)));
        let lanes: HashMap<&str, Arc<Lane>> =
            spec.providers.iter().map(|(name, provider)| (name.as_str(), Arc::new(Lane::new(provider.concurrency)))).collect();
        let mut circuits: BTreeMap<(String, String), Arc<Circuit>> = BTreeMap::new();
        let mut profiles = BTreeMap::new();
        for (name, ProfileSpec { provider: provider_name, model, temperature, max_tokens, system, timeout }) in spec.profiles {
            let (Some(provider), Some(lane)) = (spec.providers.get(&provider_name), lanes.get(provider_name.as_str())) else {
                return Err(UnknownProvider { profile: name, provider: provider_name, known: spec.providers.into_keys().collect() });
            };
            let profile = Profile {
                provider: Arc::clone(&provider.provider),
                meter: Meter::new(&provider_name, &model),
                price: prices.get(&provider_name, &model),
                circuit: Arc::clone(circuits.entry((provider_name.clone(), model.clone())).or_default()),
                lane: Arc::clone(lane),
                everywhere: Arc::clone(&everywhere),
                retry: spec.retry,
                timeout: timeout.unwrap_or(TIMEOUT),
                provider_name,
                model,
                temperature,
                max_tokens: max_tokens.unwrap_or(MAX_TOKENS),
                system,
            };
            profiles.insert(name, Arc::new(profile));
        }
        let providers = spec.providers.into_iter().map(|(name, provider)| (name, provider.provider)).collect();
        Ok(Self { providers, profiles, circuits })
    }

    /// One free request to a provider, without retry.
    ///
    /// # Errors
    /// What the provider says, or that there is none of that name.
    pub async fn probe(&self, provider: &str) -> Result<(), ProviderError> {
        let Some(found) = self.providers.get(provider) else {
            let names: Vec<String> = self.providers.keys().cloned().collect();
            return Err(ProviderError::Rejected { kind: "bad_request", message: format!("there is no provider `{provider}`; there {}", listed(&names)) });
        };
        in_time(PROBE_TIMEOUT, found.models()).await.map(drop)
    }

    /// The judges that are blocked now (`provider/model`), each with the reason.
    #[must_use]
    pub fn blocked(&self) -> Vec<(String, String)> {
        let reasons = self.circuits.iter().filter_map(|((provider, model), circuit)| Some((format!("{provider}/{model}"), circuit.reason()?)));
        reasons.collect()
    }
}

impl Models for Gateway {
    fn model(&self, profile: &str) -> Result<Arc<dyn Model>, String> {
        let Some(found) = self.profiles.get(profile) else {
            let names: Vec<String> = self.profiles.keys().cloned().collect();
            return Err(format!("there is no profile `{profile}`; there {}", listed(&names)));
        };
        Ok(Arc::clone(found) as Arc<dyn Model>)
    }
}

/// A provider with all layers round it.
struct Profile {
    provider: Arc<dyn Provider>,
    /// As in the settings.
    provider_name: String,
    model: String,
    temperature: Option<f64>,
    max_tokens: u32,
    system: Option<String>,
    timeout: Duration,
    retry: Policy,
    price: Option<Price>,
    meter: Meter,
    /// Shared by the profiles of the same provider and model.
    circuit: Arc<Circuit>,
    /// Shared by the profiles of the same provider.
    lane: Arc<Lane>,
    /// Shared by all.
    everywhere: Arc<Semaphore>,
}

/// What an attempt holds while it is under way, and never while it waits to be tried again.
struct Place<'a> {
    pass: Pass<'a>,
    _lane: SemaphorePermit<'a>,
    _everywhere: SemaphorePermit<'a>,
}

#[async_trait]
impl Model for Profile {
    async fn ask(&self, question: Question, cx: CallCx<'_>) -> Result<Reply, CallError> {
        let request = self.request(question);
        let mut started = None;
        let mut attempt = 1;
        loop {
            let place = self.place().await?;
            let started = *started.get_or_insert_with(Instant::now);
            let outcome = self.attempt(&request).await;
            self.settle(place, &outcome);
            let (kind, message, retry_after) = match outcome {
                Ok(answer) => return Ok(self.reply(answer, started)),
                Err(ProviderError::Blocked { message, .. }) => return Err(self.blocked(&message)),
                Err(ProviderError::Rejected { kind, message }) => return Err(CallError::Failed { kind, message }),
                Err(ProviderError::Transient { kind, message, retry_after }) => (kind, message, retry_after),
            };
            let Some(wait) = self.retry.wait(attempt, started.elapsed(), retry_after, backoff::chance()) else {
                return Err(CallError::Failed { kind, message: gave_up(attempt, started.elapsed(), &message) });
            };
            tracing::debug!(
                monitor = cx.monitor,
                metric = cx.metric,
                item = cx.item_id,
                provider = self.provider_name,
                attempt,
                ?wait,
                error = message,
                "a call failed and is tried again"
            );
            self.meter.retry(kind);
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    fn identity(&self) -> String {
        format!("{}/{}", self.provider_name, self.model)
    }
}

impl Profile {
    fn request(&self, question: Question) -> ChatRequest {
        let system = match (&self.system, question.system) {
            (Some(own), Some(asked)) => Some(format!("{own}\n\n{asked}")),
            (Some(own), None) => Some(own.clone()),
            (None, asked) => asked,
        };
        ChatRequest {
            model: self.model.clone(),
            system,
            messages: question.messages,
            temperature: question.temperature.or(self.temperature),
            top_p: question.top_p,
            stop: question.stop,
            max_tokens: question.max_tokens.unwrap_or(self.max_tokens),
            schema: question.schema,
        }
    }

    /// Waits until a call may be made.
    async fn place(&self) -> Result<Place<'_>, CallError> {
        loop {
            self.circuit.check().map_err(|reason| self.blocked(&reason))?;
            self.lane.resumed(self.retry.max_elapsed).await.map_err(|left| self.blocked(&paused(left)))?;
            self.circuit.head_start().await;
            // The provider's place first: who waits for a slow provider must not hold a place that others could use.
            let lane = self.lane.place().await;
            let everywhere = self.everywhere.acquire().await.expect("invariant: the semaphore is never closed");
            // Queueing takes time, and what held before may not hold now.
            if self.lane.pause().is_none() {
                let pass = self.circuit.enter().map_err(|reason| self.blocked(&reason))?;
                return Ok(Place { pass, _lane: lane, _everywhere: everywhere });
            }
        }
    }

    async fn attempt(&self, request: &ChatRequest) -> Result<ChatAnswer, ProviderError> {
        let started = Instant::now();
        let outcome = in_time(self.timeout, self.provider.chat(request)).await;
        self.meter.attempt(started.elapsed(), &outcome);
        outcome
    }

    /// Gives the place back and lets the shared layers learn from the outcome.
    fn settle(&self, place: Place<'_>, outcome: &Result<ChatAnswer, ProviderError>) {
        self.lane.observe(outcome);
        match place.pass.settle(outcome) {
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

    fn reply(&self, answer: ChatAnswer, started: Instant) -> Reply {
        let cost_usd = self.price.and_then(|price| price.cost(answer.tokens));
        self.meter.used(answer.tokens, cost_usd);
        let usage = Usage {
            provider: Some(self.provider_name.clone()),
            model: Some(answer.model),
            input_tokens: answer.tokens.input,
            output_tokens: answer.tokens.output,
            cost_usd,
            latency_ms: u64::try_from(started.elapsed().as_millis()).ok(),
        };
        Reply { text: answer.text, stop: answer.stop, usage, id: answer.id, cached: false }
    }

    fn blocked(&self, reason: &str) -> CallError {
        CallError::Blocked(format!("{}/{}: {reason}", self.provider_name, self.model))
    }
}

fn gave_up(attempts: u32, elapsed: Duration, message: &str) -> String {
    let times = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    format!("gave up after {times} in {:.0} s: {message}", elapsed.as_secs_f64())
}

fn paused(left: Duration) -> String {
    format!("asked too often; the provider wants to be left alone for {}", Human(Duration::from_secs(left.as_secs())))
}

/// A provider's call with a bound on its time.
async fn in_time<T>(bound: Duration, call: impl Future<Output = Result<T, ProviderError>>) -> Result<T, ProviderError> {
    tokio::time::timeout(bound, call)
        .await
        .unwrap_or_else(|_| Err(ProviderError::Transient { kind: "timeout", message: format!("no answer within {}", Human(bound)), retry_after: None }))
}
