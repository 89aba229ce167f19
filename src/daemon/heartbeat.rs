//! Tells a watcher outside that assayd works: a ping after a run that did its work and whose scores leave. A watcher that hears
//! nothing, or `/fail`, rings. Sent from the end of the pipeline, since a ping from a timer proves a timer.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    model::{RunReport, RunStatus},
    pipeline::Services,
    util::{
        http::Http,
        secret::{ExposeSecret, SecretString},
    },
};

/// Between two pings of the same kind, so that a thousand monitors are one heart.
const GAP: Duration = Duration::from_secs(30);
/// Scores that a sink has not taken for so long are stuck.
const STUCK: Duration = Duration::from_mins(15);

pub struct Heartbeat {
    url: SecretString,
    http: Http,
    /// The last ping: when, and whether all was well.
    last: Mutex<Option<(Timestamp, bool)>>,
}

impl std::fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heartbeat").finish_non_exhaustive()
    }
}

impl Heartbeat {
    #[must_use]
    pub fn new(url: SecretString, http: &Http) -> Self {
        // A watcher that hangs holds up no run for long.
        Self { url, http: Http { timeout: Duration::from_secs(10), ..http.clone() }, last: Mutex::new(None) }
    }

    /// The daemon has begun to work.
    pub async fn start(&self) {
        self.ping("/start").await;
    }

    /// A run is over.
    pub async fn after(&self, report: &RunReport, services: &Services) {
        let now = services.clock.now();
        let patience = i64::try_from(STUCK.as_micros()).unwrap_or(i64::MAX);
        // A store that cannot be read is no sign of life.
        let stuck = services.store.waiting_since().await.map_or(true, |since| since.is_some_and(|us| now.as_microsecond().saturating_sub(us) > patience));
        let well = report.status != RunStatus::Failed && !stuck;
        {
            // Whole after every statement.
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|(at, was)| was == well && now.duration_since(at).unsigned_abs() < GAP) {
                return;
            }
            *last = Some((now, well));
        }
        self.ping(if well { "" } else { "/fail" }).await;
    }

    async fn ping(&self, path: &str) {
        let url = format!("{}{path}", self.url.expose_secret().trim().trim_end_matches('/'));
        if let Err(error) = self.http.attempt(self.http.client.get(url)).await {
            // The address is a secret: whoever knows it can pretend to be alive.
            tracing::warn!(reason = error.kind(), "the heartbeat could not be told");
        }
    }
}
