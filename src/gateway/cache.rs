//! Answers that are kept: in memory, in front of the store or a Redis. Identical calls under way share one answer.
//!
//! Kept is only what ended well: no failure, no refusal, nothing cut off, nothing that was to be JSON and is none. What is
//! asked at a temperature above 0 is meant to differ and is kept only where the profile says so. A Redis that cannot be
//! reached is a miss and a warning, never a failure.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use moka::future::Cache;
use redis::{AsyncCommands, aio::ConnectionManager};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    model::Usage,
    providers::{CallError, ChatRequest, Reply, Stop},
    schedule::clock::Clock,
    store::{CachedRow, Store},
};

/// Where answers are kept beyond the process.
#[derive(Clone)]
pub enum Shelf {
    Store(Store),
    Redis(Box<ConnectionManager>),
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Store(_) => "Store",
            // The address may carry a password.
            Self::Redis(_) => "Redis",
        })
    }
}

impl Shelf {
    /// Connects with the first call, and again after each loss.
    ///
    /// # Errors
    /// What is wrong with the address, without its password.
    pub fn redis(url: &str) -> Result<Self, String> {
        let client = redis::Client::open(url).map_err(|error| format!("no address of a Redis: {}", error.category()))?;
        let config = redis::aio::ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(Duration::from_secs(2)))
            .set_response_timeout(Some(Duration::from_secs(2)));
        let manager = ConnectionManager::new_lazy_with_config(client, config).map_err(|error| error.to_string())?;
        Ok(Self::Redis(Box::new(manager)))
    }
}

/// Of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    pub ttl: Duration,
    /// Also what was asked at a temperature above 0.
    pub random: bool,
}

pub(super) type Key = [u8; 32];

/// An answer as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    text: String,
    provider: Option<String>,
    model: Option<String>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    id: Option<String>,
    /// Microseconds since the epoch; not past this.
    until_us: i64,
}

/// What is not kept.
#[derive(Debug, Clone)]
enum Passing {
    Reply(Reply),
    Error(CallError),
}

/// Shared by all profiles.
#[derive(Debug)]
pub(super) struct Answers {
    memory: Cache<Key, Arc<Kept>>,
    shelf: Option<Shelf>,
    clock: Arc<dyn Clock>,
    /// While the shelf cannot be reached: when it is tried again.
    away: Mutex<Option<Instant>>,
    /// On their way to the store: no call waits for a disk to keep what is only a saving. A crash costs a miss.
    unwritten: Mutex<Vec<CachedRow>>,
}

/// Answers gathered before they are written to the store.
const GATHERED: usize = 64;

/// How long a shelf that could not be reached is left alone.
const COOL_DOWN: Duration = Duration::from_secs(5);

/// What an entry takes beside its texts.
const OVERHEAD: usize = 512;

impl Answers {
    /// `memory`: bytes at most.
    pub(super) fn new(shelf: Option<Shelf>, memory: u64, clock: Arc<dyn Clock>) -> Self {
        let weigh = |_: &Key, kept: &Arc<Kept>| u32::try_from(kept.text.len() + OVERHEAD).unwrap_or(u32::MAX);
        Self { memory: Cache::builder().max_capacity(memory).weigher(weigh).build(), shelf, clock, away: Mutex::default(), unwritten: Mutex::default() }
    }

    /// The answer that is kept, or else `fetch`'s, which is kept from now on if it is fit for it.
    pub(super) async fn get_or<F>(&self, key: Key, keep: Keep, schema: bool, fetch: impl Fn() -> F) -> Result<Reply, CallError>
    where
        F: Future<Output = Result<Reply, CallError>>,
    {
        loop {
            let fresh = AtomicBool::new(false);
            match self.look_or(key, keep, schema, &fresh, fetch()).await {
                // Somebody else's money was spent; the own may not be.
                Err(CallError::OverBudget(_)) if !fresh.load(Ordering::Relaxed) => {}
                outcome => return outcome,
            }
        }
    }

    /// `fresh` becomes true where it was this call that fetched.
    async fn look_or(
        &self,
        key: Key,
        keep: Keep,
        schema: bool,
        fresh: &AtomicBool,
        fetch: impl Future<Output = Result<Reply, CallError>>,
    ) -> Result<Reply, CallError> {
        let now_us = self.clock.now().as_microsecond();
        if let Some(kept) = self.memory.get(&key).await {
            if kept.until_us > now_us {
                counted("memory");
                return Ok(kept.reply());
            }
            self.memory.invalidate(&key).await;
        }
        let look = async {
            if let Some(kept) = self.shelved(&key, now_us).await {
                counted("shelf");
                return Ok(Arc::new(kept));
            }
            fresh.store(true, Ordering::Relaxed);
            counted("miss");
            let reply = fetch.await.map_err(Passing::Error)?;
            if !fit(&reply, schema) {
                return Err(Passing::Reply(reply));
            }
            let kept = Kept::of(reply.clone(), now_us.saturating_add(i64::try_from(keep.ttl.as_micros()).unwrap_or(i64::MAX)));
            self.shelve(&key, &kept, keep.ttl).await;
            self.memory.insert(key, Arc::new(kept)).await;
            // The one who asked first gets the reply as it came, with what it cost.
            Err(Passing::Reply(reply))
        };
        // An error is shared by those who wait, and not kept.
        match self.memory.try_get_with(key, look).await {
            Ok(kept) => Ok(kept.reply()),
            Err(passing) => match &*passing {
                Passing::Reply(reply) if fresh.load(Ordering::Relaxed) => Ok(reply.clone()),
                Passing::Reply(reply) => {
                    counted("shared");
                    Ok(free(reply.clone()))
                }
                Passing::Error(error) => Err(error.clone()),
            },
        }
    }

    async fn shelved(&self, key: &Key, now_us: i64) -> Option<Kept> {
        let found = match self.shelf()? {
            Shelf::Store(store) => store.cached(*key, now_us).await.map_err(|error| error.to_string()),
            Shelf::Redis(redis) => redis.as_ref().clone().get::<_, Option<String>>(name(key)).await.map_err(|error| error.to_string()),
        };
        let text = self.noted(found)??;
        serde_json::from_str(&text).ok().filter(|kept: &Kept| kept.until_us > now_us)
    }

    async fn shelve(&self, key: &Key, kept: &Kept, ttl: Duration) {
        let Ok(text) = serde_json::to_string(kept) else { return };
        let done = match self.shelf() {
            None => return,
            Some(Shelf::Store(_)) => {
                let full = {
                    let mut unwritten = self.unwritten();
                    unwritten.push(CachedRow { key: *key, expires_us: kept.until_us, reply: text });
                    unwritten.len() >= GATHERED
                };
                if full {
                    self.write_down().await;
                }
                return;
            }
            Some(Shelf::Redis(redis)) => {
                redis.as_ref().clone().set_ex::<_, _, ()>(name(key), text, ttl.as_secs().max(1)).await.map_err(|error| error.to_string())
            }
        };
        self.noted(done);
    }

    /// Writes what was gathered.
    pub(super) async fn write_down(&self) {
        let rows = std::mem::take(&mut *self.unwritten());
        if let Some(Shelf::Store(store)) = self.shelf.as_ref().filter(|_| !rows.is_empty()) {
            self.noted(store.keep_cached(rows).await.map_err(|error| error.to_string()));
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, Vec<CachedRow>> {
        // Nothing under this lock can panic half-way.
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shelf, unless it is left alone after a failure: not every call has to wait for what does not answer. One call finds out
    /// whether it is back.
    fn shelf(&self) -> Option<&Shelf> {
        let shelf = self.shelf.as_ref()?;
        let (mut away, now) = (self.away(), Instant::now());
        match &mut *away {
            Some(until) if now < *until => return None,
            Some(until) => *until = now + COOL_DOWN,
            None => {}
        }
        Some(shelf)
    }

    fn away(&self) -> MutexGuard<'_, Option<Instant>> {
        // Nothing under this lock can panic half-way.
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says once that the shelf is away, and once that it is back.
    fn noted<T>(&self, outcome: Result<T, String>) -> Option<T> {
        match outcome {
            Ok(value) => {
                if self.away().take().is_some() {
                    tracing::info!("the cache answers again");
                }
                Some(value)
            }
            Err(error) => {
                counted("error");
                if self.away().replace(Instant::now() + COOL_DOWN).is_none() {
                    tracing::warn!(%error, "the cache cannot be reached: models are asked instead");
                }
                None
            }
        }
    }
}

fn name(key: &Key) -> String {
    format!("assayd:answer:{}", blake3::Hash::from_bytes(*key).to_hex())
}

fn counted(result: &'static str) {
    metrics::counter!("llm_cache_requests_total", "result" => result).increment(1);
}

fn fit(reply: &Reply, schema: bool) -> bool {
    reply.stop == Stop::End && !reply.text.trim().is_empty() && (!schema || serde_json::from_str::<serde::de::IgnoredAny>(&reply.text).is_ok())
}

/// A reply that somebody else paid for.
fn free(reply: Reply) -> Reply {
    Reply { usage: Usage { cost_usd: Some(0.0), latency_ms: Some(0), ..reply.usage }, cached: true, ..reply }
}

impl Kept {
    fn of(reply: Reply, until_us: i64) -> Self {
        let usage = reply.usage;
        Self {
            text: reply.text,
            provider: usage.provider,
            model: usage.model,
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            id: reply.id,
            until_us,
        }
    }

    fn reply(&self) -> Reply {
        let usage = Usage {
            provider: self.provider.clone(),
            model: self.model.clone(),
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            ..Usage::default()
        };
        free(Reply { text: self.text.clone(), stop: Stop::End, usage, id: self.id.clone(), cached: true })
    }
}

impl Keep {
    pub(super) fn takes(self, request: &ChatRequest) -> bool {
        self.random || request.temperature.is_none_or(|temperature| temperature <= 0.0)
    }
}

/// Of all that decides the answer: where the request goes and what it says.
pub(super) fn key(origin: &str, request: &ChatRequest, sample: u32) -> Key {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        // Length-prefixed, so that no two requests run into one another.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    add("2");
    add(origin);
    add(&request.model);
    add(request.system.as_deref().unwrap_or("\0none"));
    for message in &request.messages {
        add(message.role.as_str());
        add(&message.text);
    }
    add(&format!("{:?} {:?} {:?} {} {sample}", request.temperature, request.top_p, request.stop, request.max_tokens));
    add(&request.schema.as_ref().map(ToString::to_string).unwrap_or_default());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::clock::SystemClock;

    #[tokio::test(start_paused = true)]
    async fn who_has_money_does_not_share_the_refusal_of_who_has_none() {
        let answers = Answers::new(None, 1 << 20, Arc::new(SystemClock));
        let keep = Keep { ttl: Duration::from_mins(1), random: false };
        let poor = answers.get_or([0; 32], keep, false, || async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Err(CallError::OverBudget("nothing left".to_owned()))
        });
        let rich = answers.get_or([0; 32], keep, false, || async {
            Ok(Reply { text: "fine".to_owned(), stop: Stop::End, usage: Usage::default(), id: None, cached: false })
        });
        let (poor, rich) = tokio::join!(poor, rich);
        assert!(matches!(poor, Err(CallError::OverBudget(_))), "{poor:?}");
        assert_eq!(rich.unwrap().text, "fine");
    }
}
