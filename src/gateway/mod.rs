//! All that goes round a provider. A provider makes one request; whoever asks sees none of this.
//!
//! What a call goes through, in the order of the code ([`profile`]'s `ask` and below, one screen):
//!
//! ```text
//! for each profile of the ladder (the one asked, then its fallbacks)
//!     cache, where the profile has one: an answer that is known, or is being fetched for somebody else
//!     for each attempt
//!         circuit   refuses what is refused anyway (key, billing, no such model)
//!         budget    sets the worst case aside, in the store
//!         limits    a fair place; requests and tokens a minute; the provider's own word
//!         provider  one request, bounded in time
//!         settle    each of the above learns how it ended
//!     retry, as the settings say
//! ```
//!
//! [`hooks`] see a call before and after, and hold up none.

mod budget;
mod cache;
mod circuit;
mod fair;
pub mod hooks;
mod lane;
mod meter;
mod pour;
mod profile;
mod rate;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use self::{
    budget::Budgets,
    cache::Answers,
    circuit::Circuit,
    fair::Fair,
    lane::Lane,
    meter::{Meter, Tally},
    profile::{Ladder, Profile, in_time},
};
pub use self::{
    cache::{Keep, Shelf},
    hooks::{Hook, Hooks, Runner},
};
use crate::{
    connections::Langfuse,
    model::Budget,
    providers::{
        FallbackOn, Limits, Model, Models, Provider, ProviderError,
        prices::{Price, Prices},
    },
    schedule::clock::Clock,
    store::Store,
    util::{backoff::Policy, redact::Kind},
};

/// What hooks get to finish in when the process ends.
const LAST_HOOKS: Duration = Duration::from_secs(10);

/// What a monitor may name instead of a profile: the one of the environment.
const DEFAULT: &str = "default";

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
    /// The profile that `default` stands for.
    pub default: Option<String>,
    /// Over the shipped table.
    pub prices: BTreeMap<String, Price>,
    /// Calls at the same time, over all providers; at least 1.
    pub judge_calls: usize,
    pub retry: Policy,
    /// Of all monitors together, and of calls from outside.
    pub budgets: Vec<Budget>,
    /// Where answers are kept beyond the process, and how many bytes of them in memory.
    pub cache: CacheSpec,
    /// Where money set aside is written down; without it (a gateway that only probes) nothing is, and no budget holds.
    pub store: Option<Store>,
    pub clock: Arc<dyn Clock>,
}

#[derive(Debug, Clone)]
pub struct CacheSpec {
    pub shelf: Option<Shelf>,
    pub memory: u64,
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self { shelf: None, memory: 32 << 20 }
    }
}

pub struct ProviderSpec {
    pub provider: Arc<dyn Provider>,
    /// Whom its answers are of, for those that are kept: the same under another name, or in another process.
    pub origin: String,
    pub limits: Limits,
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
    pub limits: Limits,
    /// Profiles that are asked instead, in this order.
    pub fallback: Vec<String>,
    /// When they are. Default: always when this one cannot answer.
    pub fallback_on: Vec<FallbackOn>,
    /// Whether answers are kept.
    pub keep: Option<Keep>,
    pub hooks: Hooks,
    /// What is taken out of every text before it leaves the machine.
    pub redact: Vec<Kind>,
}

/// A profile names what is not there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unknown {
    #[error("profile `{profile}`: there is no provider `{provider}`; there {}", listed(.known))]
    Provider { profile: String, provider: String, known: Vec<String> },
    #[error("profile `{profile}`: its fallback `{fallback}` is no profile")]
    Fallback { profile: String, fallback: String },
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
    profiles: BTreeMap<String, Arc<Ladder>>,
    circuits: BTreeMap<(String, String), Arc<Circuit>>,
    budgets: Arc<Budgets>,
    tally: Arc<Tally>,
    answers: Arc<Answers>,
    store: Option<Store>,
    line: hooks::Line,
}

/// What profiles share.
struct Shared {
    answers: Arc<Answers>,
    tally: Arc<Tally>,
    line: hooks::Line,
    clock: Arc<dyn Clock>,
    everywhere: Arc<Fair>,
    lanes: HashMap<String, Arc<Lane>>,
    circuits: BTreeMap<(String, String), Arc<Circuit>>,
    budgets: Arc<Budgets>,
    retry: Policy,
    judge_calls: usize,
}

impl Gateway {
    /// Tells the calls made for a monitor to these projects, beside what its profiles' hooks do. None ends it.
    pub fn trace_calls(&self, monitor: &str, projects: Vec<Langfuse>) {
        self.line.set(monitor, projects.into_iter().map(Hook::Langfuse).collect());
    }

    /// Touches neither network nor disk. The caller runs the runner, which the hooks hang on.
    ///
    /// # Errors
    /// The first profile that names what is not there.
    pub fn new(spec: GatewaySpec) -> Result<(Self, Runner), Unknown> {
        let prices = Prices::of(&spec.prices, spec.profiles.values().map(|profile| (profile.provider.as_str(), profile.model.as_str())));
        let judge_calls = spec.judge_calls.max(1);
        let (line, runner) = hooks::line(spec.store.clone());
        let mut shared = Shared {
            answers: Arc::new(Answers::new(spec.cache.shelf, spec.cache.memory, Arc::clone(&spec.clock))),
            tally: Arc::default(),
            line,
            clock: Arc::clone(&spec.clock),
            everywhere: Fair::new(judge_calls),
            lanes: spec.providers.iter().map(|(name, provider)| (name.clone(), Arc::new(Lane::new(provider.limits, judge_calls)))).collect(),
            circuits: BTreeMap::new(),
            budgets: Arc::new(Budgets::new(spec.store.clone(), spec.clock, spec.budgets)),
            retry: spec.retry,
            judge_calls,
        };
        let mut rungs = BTreeMap::new();
        for (name, profile) in &spec.profiles {
            let Some(provider) = spec.providers.get(&profile.provider) else {
                let (profile, provider) = (name.clone(), profile.provider.clone());
                return Err(Unknown::Provider { profile, provider, known: spec.providers.into_keys().collect() });
            };
            rungs.insert(name.clone(), Arc::new(shared.profile(name, profile, provider, prices.get(&profile.provider, &profile.model))));
        }
        let mut profiles = BTreeMap::new();
        for (name, profile) in spec.profiles {
            let mut ladder = vec![Arc::clone(&rungs[&name])];
            for fallback in profile.fallback {
                let rung = rungs.get(&fallback).ok_or_else(|| Unknown::Fallback { profile: name.clone(), fallback: fallback.clone() })?;
                ladder.push(Arc::clone(rung));
            }
            profiles.insert(name, Arc::new(Ladder::new(ladder, profile.fallback_on)));
        }
        if let Some(ladder) = spec.default.and_then(|name| profiles.get(&name).cloned()) {
            profiles.entry(DEFAULT.to_owned()).or_insert(ladder);
        }
        let providers = spec.providers.into_iter().map(|(name, provider)| (name, provider.provider)).collect();
        let gateway = Self {
            providers,
            profiles,
            circuits: shared.circuits,
            budgets: shared.budgets,
            tally: shared.tally,
            answers: shared.answers,
            store: spec.store,
            line: shared.line,
        };
        Ok((gateway, runner))
    }

    /// The models that a provider lists: one free request, without retry.
    ///
    /// # Errors
    /// What the provider says, or that there is none of that name.
    pub async fn probe(&self, provider: &str) -> Result<Vec<String>, ProviderError> {
        let Some(found) = self.providers.get(provider) else {
            let names: Vec<String> = self.providers.keys().cloned().collect();
            return Err(ProviderError::Rejected { kind: "bad_request", message: format!("there is no provider `{provider}`; there {}", listed(&names)) });
        };
        in_time(PROBE_TIMEOUT, found.models()).await
    }

    /// The judges that are blocked now (`provider/model`), each with the reason.
    #[must_use]
    pub fn blocked(&self) -> Vec<(String, String)> {
        let reasons = self.circuits.iter().filter_map(|((provider, model), circuit)| Some((format!("{provider}/{model}"), circuit.reason()?)));
        reasons.collect()
    }

    /// The end: hooks are told all there was, the books are closed. Before the store closes.
    pub async fn finish(&self) {
        if tokio::time::timeout(LAST_HOOKS, self.line.end()).await.is_err() {
            tracing::warn!("hooks were still at work when the time was up; what they had not been told is lost");
        }
        self.keep_books().await;
    }

    /// Writes down what has to be, and gives back what is not needed; now and then.
    pub async fn keep_books(&self) {
        self.budgets.rest().await;
        if let Some(store) = &self.store {
            self.tally.write_down(store).await;
            self.answers.write_down().await;
        }
    }
}

impl Shared {
    fn profile(&mut self, name: &str, spec: &ProfileSpec, provider: &ProviderSpec, price: Option<Price>) -> Profile {
        let model = (spec.provider.clone(), spec.model.clone());
        Profile {
            name: name.to_owned(),
            meter: Meter::new(&spec.provider, &spec.model),
            price,
            circuit: Arc::clone(self.circuits.entry(model).or_default()),
            lanes: [Arc::new(Lane::new(spec.limits, self.judge_calls)), Arc::clone(&self.lanes[&spec.provider])],
            everywhere: Arc::clone(&self.everywhere),
            budgets: Arc::clone(&self.budgets),
            retry: self.retry,
            timeout: spec.timeout.unwrap_or(TIMEOUT),
            provider: Arc::clone(&provider.provider),
            origin: provider.origin.clone(),
            provider_name: spec.provider.clone(),
            model: spec.model.clone(),
            temperature: spec.temperature,
            max_tokens: spec.max_tokens.unwrap_or(MAX_TOKENS),
            system: spec.system.clone(),
            keep: spec.keep.map(|keep| (keep, Arc::clone(&self.answers))),
            hooks: spec.hooks.clone(),
            line: self.line.clone(),
            redact: spec.redact.clone(),
            tally: Arc::clone(&self.tally),
            clock: Arc::clone(&self.clock),
        }
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

    fn profiles(&self) -> Vec<String> {
        self.profiles.keys().cloned().collect()
    }
}
