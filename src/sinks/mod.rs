//! Where results and alerts go. A sink is handed what the outbox holds and says, row by row, what became of it; when to
//! try again, and when to give up, is the outbox's to decide (`pipeline::publish`).
//!
//! To add one: a file with its config struct, an example, the [`Sink`] and an `inventory::submit!`, and one `mod` line.
//! A [`Notifier`] is a sink for people: it renders [`News`].

mod jsonl;
mod langfuse;
pub mod postgres;
pub mod receivers;
pub mod slack;

use std::{collections::BTreeSet, fmt::Debug, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

pub use crate::util::plugin::BuildError;
use crate::{
    connections::Connections,
    model::{Item, News, Score},
    util::{http::Http, plugin::Kind},
};

pub type SinkKind = Kind<dyn SinkConfig>;
inventory::collect!(SinkKind);

/// Settings of one entry of a monitor's `publish:`, without `type`.
pub trait SinkConfig: Debug + Send + Sync {
    /// Pure, like `SourceConfig::build`.
    ///
    /// # Errors
    /// What is wrong with the settings, and the key it hangs on.
    fn build(&self, cx: &SinkCx<'_>) -> Result<Arc<dyn Sink>, BuildError>;

    /// Names the queue in outbox, metrics and reports: the kind, and what tells two of a kind apart (`langfuse`,
    /// `langfuse:connection=eu`, `jsonl:scores.jsonl`). Monitors that publish to the same place share a queue, and its sink:
    /// two settings that do something else with a row never have the same name ([`queue_name`]).
    fn queue(&self) -> String;

    /// The Langfuse connection whose project is told the calls that judges make for the monitor.
    fn trace_calls(&self) -> Option<&str> {
        None
    }

    /// The Langfuse connection on whose traces the scores are put, so that the loader can say that it has no such traces.
    fn scores_traces_of(&self) -> Option<&str> {
        None
    }

    /// The metrics whose scores are queued, as the settings name them; empty for all. See [`wanted`].
    fn metrics(&self) -> &[String] {
        &[]
    }
}

/// Whether a score of the name `score` belongs to `metrics`: the name of a metric stands for all its parts.
#[must_use]
pub fn wanted(metrics: &[String], score: &str) -> bool {
    metrics.is_empty() || metrics.iter().any(|metric| score.strip_prefix(metric.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// `kind:key=value:key=value`. Every part says what it is, and nothing in a value can be taken for another part, so that
/// settings that differ never share a queue.
fn queue_name(kind: &str, parts: &[(&str, String)]) -> String {
    let mut name = kind.to_owned();
    for (key, value) in parts {
        let value = value.replace('%', "%25").replace(':', "%3A");
        name.push_str(&format!(":{key}={value}"));
    }
    name
}

pub struct SinkCx<'a> {
    pub connections: &'a Connections,
    pub http: &'a Http,
    /// Relative paths start here: the folder of the settings file.
    pub base_dir: &'a Path,
    pub runs: &'a Arc<dyn Runs>,
}

/// What a sink may ask about the runs whose scores it delivers.
#[async_trait]
pub trait Runs: Debug + Send + Sync {
    /// When the run was due; `None` where it is no longer known.
    ///
    /// # Errors
    /// A sentence; ask again later.
    async fn slot(&self, run_id: &str) -> Result<Option<Timestamp>, String>;

    /// The mean of every metric over all runs of a group: these, which belong to it from now on, and those that were named
    /// with it before.
    ///
    /// # Errors
    /// A sentence; ask again later.
    async fn means(&self, group: &str, run_ids: &BTreeSet<String>) -> Result<Means, String>;
}

/// Means over a group of runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    /// The slot of its first run.
    pub since: Timestamp,
    /// By metric.
    pub metrics: Vec<Mean>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Mean {
    pub metric: String,
    /// Scores.
    pub n: u64,
    /// In [0, 1].
    pub mean: f64,
}

/// For checking and probing, where nothing is delivered.
#[derive(Debug)]
pub struct NoRuns;

#[async_trait]
impl Runs for NoRuns {
    async fn slot(&self, _: &str) -> Result<Option<Timestamp>, String> {
        Ok(None)
    }

    async fn means(&self, _: &str, _: &BTreeSet<String>) -> Result<Means, String> {
        Ok(Means { since: Timestamp::UNIX_EPOCH, metrics: Vec::new() })
    }
}

/// A score on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    pub score: Score,
    /// NUMERIC | BOOLEAN | CATEGORICAL
    pub data_type: String,
    pub observation_id: Option<String>,
    /// Of the trace.
    pub environment: Option<String>,
    /// For a sink that wants it; scores from before it did come without.
    pub item: Option<Arc<Item>>,
}

#[async_trait]
pub trait Sink: Send + Sync {
    /// Delivers a batch, oldest first, and answers for every row in the batch's order. May be called again with rows
    /// that did arrive (a crash before our record): the same `score_id` must not become a second score. `Err` says that
    /// the sink as a whole could not be served, and no row is held to be delivered. Makes one attempt; no waiting.
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Result<(), RowError>>, SinkError>;

    /// Rows a call of `deliver` takes at most.
    fn batch_size(&self) -> usize {
        100
    }

    /// Whether deliveries carry the item. It is kept until it is delivered, which costs disk.
    fn wants_item(&self) -> bool {
        false
    }

    /// A cheap check for `validate --live`; a sentence on success.
    async fn probe(&self) -> Result<String, SinkError>;
}

/// What became of one row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Refused for good: the row is dead, the reason is kept.
    #[error("{0}")]
    Dead(String),
    /// Try this row again.
    #[error("{0}")]
    Retry(String),
}

/// The sink could not be served: everything stays queued.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    pub message: String,
    pub retry_after: Option<Duration>,
    /// False where another try cannot help without somebody acting (key refused): still queued, tried rarely.
    pub transient: bool,
}

/// Tells people.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// Tells `target` the news of a group of alerts, in as many messages as that takes; `so_far` is what is known of earlier
    /// attempts at these news, and of where the group stands since earlier ones, and is kept whatever comes of it. At least
    /// once: what a service took without our knowing may be sent again, unless it can be found there.
    async fn notify(&self, news: &News, target: &str, so_far: &mut SoFar) -> Result<(), NotifyError>;
}

/// How far telling has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SoFar {
    /// What a later message of the group needs to find this one, if the service has such a thing.
    pub thread: Option<String>,
    /// Messages of these news that were taken.
    pub pages: u32,
    /// Since when the next one may have been taken: somebody was asked, and what they said is not known.
    pub unsure_since: Option<Timestamp>,
}

impl SoFar {
    /// A message was taken, and nothing is unsure any more.
    fn took_one(&mut self) {
        self.pages += 1;
        self.unsure_since = None;
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum NotifyError {
    #[error("{message}")]
    Retry {
        message: String,
        retry_after: Option<Duration>,
        /// It may have been taken.
        unsure: bool,
    },
    /// The message itself would be refused for ever: the event is dead, the reason is kept. What a person can mend (a
    /// token, a channel) is `Retry` with a long `retry_after`, so that an outage of any kind loses nothing.
    #[error("{0}")]
    Dead(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metrics_name_stands_for_its_parts_and_for_no_other_metric() {
        let of = |metrics: &[&str], score| wanted(&metrics.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), score);
        assert!(of(&[], "quality") && of(&["quality"], "quality") && of(&["other", "quality"], "quality.polite"));
        assert!(of(&["quality.polite"], "quality.polite"));
        assert!(!of(&["quality"], "quality2") && !of(&["quality.polite"], "quality") && !of(&["quality.polite"], "quality.useful"));
    }

    #[test]
    fn parts_of_a_queues_name_cannot_be_taken_for_each_other() {
        let part = |key, value: &str| (key, value.to_owned());
        assert_eq!(queue_name("x", &[]), "x");
        assert_eq!(queue_name("x", &[part("a", "b/c#1")]), "x:a=b/c#1");
        assert_ne!(queue_name("x", &[part("a", "1:b=2")]), queue_name("x", &[part("a", "1"), part("b", "2")]));
        assert_ne!(queue_name("x", &[part("a", ":")]), queue_name("x", &[part("a", "%3A")]));
    }
}
