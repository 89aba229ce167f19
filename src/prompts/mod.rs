//! Prompts that Langfuse keeps: read, cached, and read anew when Langfuse says that one has changed.
//!
//! What a judge gets ([`metrics::Prompts::current`]) comes from memory. [`Keeper`] looks at every prompt in use once a minute, so
//! memory is at most that old even where no webhook reaches us; a webhook ([`hook`]) makes everything stale at once, and
//! whoever asks next waits for a fresh look. While Langfuse does not answer, the last version that could be read is judged
//! with, from memory or from the store. That there is no such prompt, or that the keys are refused, is no such failure but a
//! fault of the settings, or of somebody in Langfuse: then there is nothing to judge with until it is mended.
//!
//! Absent on purpose: what a prompt means (`metrics::llm_judge`), and deciding whom to tell (`daemon`).

mod event;
mod hook;
mod keeper;
mod read;
mod signature;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

pub use self::{
    hook::{Refusal, Taken},
    keeper::Keeper,
};
use self::{keeper::Errand, read::Fault};
use crate::{
    connections::{self, Langfuse, LangfuseConnection},
    metrics,
    model::{PromptRef, PromptVersion, Route},
    schedule::clock::Clock,
    store::{PromptRow, Store},
    util::http::Http,
};

/// How long what was read counts as fresh: what Langfuse's own clients use.
const TTL_US: i64 = 60_000_000;
/// After a look that failed, while there is something to judge with.
const RETRY_US: i64 = 5_000_000;

/// How long who asks waits for what was read to be kept.
const STORE: Duration = Duration::from_secs(2);

/// Which metric of which monitor judges with a prompt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub monitor: String,
    pub metric: String,
    pub prompt: PromptRef,
}

/// What prompts are kept with.
pub struct PromptsCx<'a> {
    pub connections: &'a BTreeMap<String, LangfuseConnection>,
    pub http: &'a Http,
    /// Without one nothing outlives the process, and no webhook is taken.
    pub store: Option<Store>,
    pub clock: Arc<dyn Clock>,
    /// Whom a webhook's event is told.
    pub routes: Vec<Route>,
    /// Tells the outbox that there is something to send.
    pub outbox: Arc<watch::Sender<()>>,
}

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Prompts(Arc<Inner>);

struct Inner {
    projects: BTreeMap<String, Project>,
    store: Option<Store>,
    clock: Arc<dyn Clock>,
    routes: Vec<Route>,
    outbox: Arc<watch::Sender<()>>,
    entries: Mutex<BTreeMap<PromptRef, Arc<Entry>>>,
    uses: Mutex<BTreeSet<Use>>,
    errands: mpsc::UnboundedSender<Errand>,
}

/// A project of Langfuse.
struct Project {
    connection: LangfuseConnection,
    /// Tries as often as the settings say: for what is needed and not known.
    patient: Langfuse,
    /// Tries once and briefly: where there is something to judge with.
    brief: Langfuse,
}

#[derive(Default)]
struct Entry {
    state: Mutex<State>,
    /// Held by who looks: others wait for what it finds.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, Default)]
struct State {
    kept: Option<Arc<PromptVersion>>,
    fault: Option<String>,
    /// Until then the state is taken for what Langfuse has.
    fresh_until_us: i64,
    /// Counts the webhooks: what a look found that began before one of them is not fresh.
    generation: u64,
    /// A webhook came since the last look: nobody is served what was known before.
    changed: bool,
}

impl State {
    fn answer(&self) -> Option<Result<Arc<PromptVersion>, String>> {
        self.fault.clone().map(Err).or_else(|| self.kept.clone().map(Ok))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every statement, so a panic elsewhere leaves it sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Prompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompts").finish_non_exhaustive()
    }
}

impl Prompts {
    /// The caller runs the keeper; without it nothing is looked at ahead of time.
    #[must_use]
    pub fn new(cx: PromptsCx<'_>) -> (Self, Keeper) {
        let (errands, received) = mpsc::unbounded_channel();
        let projects = cx.connections.iter().map(|(name, connection)| (name.clone(), Project::new(connection, cx.http))).collect();
        let inner = Inner {
            projects,
            store: cx.store,
            clock: cx.clock,
            routes: cx.routes,
            outbox: cx.outbox,
            entries: Mutex::default(),
            uses: Mutex::default(),
            errands,
        };
        let prompts = Self(Arc::new(inner));
        let keeper = Keeper::new(prompts.clone(), cx.http.clone(), received);
        (prompts, keeper)
    }

    /// Says which prompts are judged with; others are not looked at ahead of time.
    pub fn set_uses(&self, uses: BTreeSet<Use>) {
        *lock(&self.0.uses) = uses;
        self.send(Errand::Look);
    }

    /// Makes everything stale: the next to ask waits for a fresh look. Of one prompt is not enough, since others may be
    /// composed of it.
    fn expire(&self) {
        for entry in lock(&self.0.entries).values() {
            let mut state = lock(&entry.state);
            state.generation += 1;
            state.changed = true;
            state.fresh_until_us = 0;
        }
        self.send(Errand::Look);
    }

    /// Looks at every prompt in use now, or at those of one name; what each look found.
    pub async fn refresh(&self, name: Option<&str>) -> Vec<PromptRow> {
        let wanted: BTreeSet<PromptRef> =
            lock(&self.0.uses).iter().map(|one| &one.prompt).filter(|prompt| name.is_none_or(|name| prompt.name == name)).cloned().collect();
        self.expire();
        let looks = wanted.into_iter().map(|prompt| async move {
            let found = metrics::Prompts::current(self, &prompt).await;
            let (kept, fault) = match found {
                Ok(kept) => (Some(PromptVersion::clone(&kept)), None),
                Err(fault) => (None, Some(fault)),
            };
            // When it was read: long ago, where Langfuse does not answer now.
            let stored = match &self.0.store {
                Some(store) => store.prompt(&prompt).await.ok().flatten(),
                None => None,
            };
            PromptRow { prompt, kept, fault, fetched_us: stored.map_or_else(|| self.now_us(), |row| row.fetched_us) }
        });
        futures_util::future::join_all(looks).await
    }

    fn now_us(&self) -> i64 {
        self.0.clock.now().as_microsecond()
    }

    fn send(&self, errand: Errand) {
        // Without a keeper nobody runs errands: whoever asks looks for itself.
        let _ = self.0.errands.send(errand);
    }

    fn has_keeper(&self) -> bool {
        !self.0.errands.is_closed()
    }

    fn entry(&self, prompt: &PromptRef) -> Arc<Entry> {
        Arc::clone(lock(&self.0.entries).entry(prompt.clone()).or_default())
    }

    /// Prompts in use that are not fresh, each once.
    fn due(&self) -> Vec<PromptRef> {
        let now_us = self.now_us();
        let prompts: BTreeSet<PromptRef> = lock(&self.0.uses).iter().map(|one| one.prompt.clone()).collect();
        prompts.into_iter().filter(|prompt| lock(&self.entry(prompt).state).fresh_until_us <= now_us).collect()
    }

    /// Asks Langfuse unless somebody else has just done so.
    async fn look(&self, prompt: &PromptRef) -> Result<Arc<PromptVersion>, String> {
        let entry = self.entry(prompt);
        let _turn = entry.looking.lock().await;
        let before = lock(&entry.state).clone();
        if before.fresh_until_us > self.now_us()
            && let Some(answer) = before.answer()
        {
            return answer;
        }
        let (known, known_fault) = match before.answer() {
            Some(_) => (before.kept.clone(), before.fault.clone()),
            None => self.stored(prompt).await,
        };
        let project = self.0.projects.get(&prompt.connection).ok_or_else(|| format!("there is no langfuse connection `{}`", prompt.connection))?;
        let found = read::read(if known.is_some() { &project.brief } else { &project.patient }, prompt).await;
        let (answer, kept, fault, fresh_us) = match found {
            Ok(version) => {
                let version = Arc::new(version);
                if known.is_some_and(|known| known.version != version.version) || known_fault.is_some() {
                    tracing::info!(prompt = %prompt, version = version.version, "a prompt has changed; the next run judges with it");
                }
                (Ok(Arc::clone(&version)), Some(version), None, TTL_US)
            }
            Err(Fault::None(fault)) => {
                if known_fault.as_ref() != Some(&fault) {
                    tracing::error!(prompt = %prompt, connection = %prompt.connection, %fault, "there is no prompt to judge with");
                }
                (Err(fault.clone()), known, Some(fault), TTL_US)
            }
            // What Langfuse said last holds until it says something else.
            Err(Fault::Unavailable(error)) => match (known_fault, known) {
                (Some(fault), known) => (Err(fault.clone()), known, Some(fault), RETRY_US),
                (None, Some(known)) => {
                    tracing::warn!(prompt = %prompt, version = known.version, %error, "a prompt could not be read; the last one that could is judged with");
                    (Ok(Arc::clone(&known)), Some(known), None, RETRY_US)
                }
                (None, None) => {
                    // The next run asks at once; looks ahead of time need not.
                    lock(&entry.state).fresh_until_us = self.now_us() + RETRY_US;
                    return Err(format!("the prompt `{prompt}` could not be read, and none was read before: {error}"));
                }
            },
        };
        let now_us = self.now_us();
        {
            let mut state = lock(&entry.state);
            let unchanged = state.generation == before.generation;
            let fresh_until_us = if unchanged { now_us + fresh_us } else { 0 };
            *state = State { kept, fault: fault.clone(), fresh_until_us, generation: state.generation, changed: !unchanged };
        }
        if fresh_us == TTL_US
            && let Some(store) = &self.0.store
        {
            let kept = answer.as_ref().ok().map(|kept| PromptVersion::clone(kept));
            let row = PromptRow { prompt: prompt.clone(), kept, fault, fetched_us: now_us };
            // While the store refuses writes this one stays queued; who asks need not wait for it.
            let _ = tokio::time::timeout(STORE, store.keep_prompt(row)).await;
        }
        answer
    }

    /// What an earlier process read, and what it found wrong.
    async fn stored(&self, prompt: &PromptRef) -> (Option<Arc<PromptVersion>>, Option<String>) {
        let Some(store) = &self.0.store else { return (None, None) };
        match store.prompt(prompt).await {
            Ok(row) => row.map(|row| (row.kept.map(Arc::new), row.fault)).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "the prompts kept in the store could not be read");
                (None, None)
            }
        }
    }
}

impl Project {
    fn new(connection: &LangfuseConnection, http: &Http) -> Self {
        let brief = Http { timeout: read::BRIEF.min(http.timeout), retry: crate::util::backoff::Policy { attempts: 1, ..http.retry }, ..http.clone() };
        Self { patient: Langfuse::new(connection, http.clone()), brief: Langfuse::new(connection, brief), connection: connection.clone() }
    }
}

#[async_trait]
impl metrics::Prompts for Prompts {
    fn check(&self, prompt: &PromptRef) -> Result<(), String> {
        connections::find("langfuse", &self.0.projects, &prompt.connection).map(drop)
    }

    async fn current(&self, prompt: &PromptRef) -> Result<Arc<PromptVersion>, String> {
        let state = lock(&self.entry(prompt).state).clone();
        let answer = state.answer().filter(|_| !state.changed);
        match answer {
            Some(answer) if state.fresh_until_us > self.now_us() => answer,
            // Stale while it is looked at; a fault is looked at again, since somebody may have mended it.
            Some(Ok(kept)) if self.has_keeper() => {
                self.send(Errand::Look);
                Ok(kept)
            }
            _ => self.look(prompt).await,
        }
    }
}
