//! Rows on their way in and out. Times are microseconds since the epoch.

use std::sync::Arc;

use crate::model::{AlertEvent, AlertState, BodyKey, Decision, GivenHash, Group, ItemKey, Outcome, RunReport, Usage};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    pub id: String,
    pub monitor: String,
    pub slot_us: i64,
    pub trigger: crate::model::Trigger,
    pub seed: i64,
    /// False for `--no-publish`.
    pub publish: bool,
    pub started_us: i64,
    /// Overrides the watermark; such a run moves none.
    pub since_us: Option<i64>,
    /// No further than this; such a run moves no watermark either.
    pub until_us: Option<i64>,
    /// The whole draw is stored.
    pub drawn: bool,
}

/// One batch of new items.
#[derive(Debug, Clone)]
pub struct DrawBatch {
    pub monitor: String,
    pub run_id: String,
    pub at_us: i64,
    pub items: Vec<NewItem>,
    /// Items that were known without their content's hash: what a change is seen against from now on.
    pub baseline: Vec<Baseline>,
    /// (source_key, the newest timestamp up to which everything is decided).
    pub watermark: Option<(String, i64)>,
    /// This was the last batch of the run's draw.
    pub complete: bool,
    /// Items that were decided are drawn again; what is under way is left alone.
    pub again: bool,
}

/// What an item was when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Baseline {
    pub key: ItemKey,
    pub given: GivenHash,
    pub item_us: i64,
}

/// What the ledger has of an item that a source gives once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Of what the source gave, where it is kept.
    pub given: Option<GivenHash>,
    pub item_us: i64,
}

/// How far an item has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub decision: String,
    /// A run will take it up again.
    pub waits: bool,
    /// It was judged, or waited for that.
    pub was_drawn: bool,
}

#[derive(Debug, Clone)]
pub struct NewItem {
    pub key: ItemKey,
    pub item_id: String,
    pub item_us: i64,
    pub decision: Decision,
    pub reason: Arc<str>,
    /// The trace as JSON, for an item that waits: drawn, or failed before it could be and to be tried again.
    pub trace: Option<String>,
    /// Of what the source gave, where a change of it matters. An item that is known by another is drawn anew.
    pub given: Option<GivenHash>,
    /// Drawn because it was asked for, not by chance.
    pub chosen: bool,
    /// It has waited since an earlier run, in which it failed before the draw.
    pub undrawn: bool,
}

/// What came of judging one item by some of its metrics.
#[derive(Debug, Clone)]
pub struct ItemOutcome {
    pub monitor: String,
    pub run_id: String,
    pub key: ItemKey,
    pub item_id: String,
    pub item_us: i64,
    pub trace_id: Option<String>,
    pub observation_id: Option<String>,
    pub environment: Option<String>,
    pub url: Option<String>,
    pub at_us: i64,
    pub scores: Vec<NewScore>,
    /// What the item is told by: expressions, and what they gave.
    pub values: Vec<(Arc<str>, String)>,
    /// Ids of failed or inapplicable judgements that these scores take the place of, under other names.
    pub stale: Vec<String>,
    /// Queues that get the scored outcomes of the metrics that they want.
    pub queues: Arc<[Queue]>,
    /// The item as JSON, where one of the queues wants it.
    pub body: Option<(BodyKey, String)>,
    pub end: Option<ItemEnd>,
}

/// A queue of the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    pub name: String,
    /// Its rows carry the item.
    pub wants_item: bool,
    /// The metrics whose scores it gets, as settings name them; empty for all.
    pub metrics: Vec<String>,
}

impl Queue {
    /// Whether a judgement becomes a row. What is not wanted is never queued, so that what counts as delivered was sent.
    pub(super) fn wants(&self, score: &NewScore) -> bool {
        matches!(score.outcome, Outcome::Scored { .. }) && crate::sinks::wanted(&self.metrics, &score.metric)
    }
}

#[derive(Debug, Clone)]
pub struct NewScore {
    pub score_id: String,
    pub metric: Arc<str>,
    pub revision: Arc<str>,
    pub data_type: &'static str,
    pub outcome: Outcome,
    pub usage: Usage,
    /// What a model said where no verdict could be read from it.
    pub answer: Option<String>,
}

#[derive(Debug, Clone)]
pub struct ItemEnd {
    pub decision: Decision,
    pub reason: String,
    /// Whether the item comes back in a later run.
    pub comes_back: bool,
    /// Whether this used up one of the item's attempts.
    pub counts: bool,
}

/// How far an item that waits has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It failed before the draw.
    Undrawn,
    /// Drawn and not judged yet.
    Drawn,
    /// Judged, without a final decision: it failed or was deferred.
    Judged,
}

/// An item that was not finally decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub key: ItemKey,
    pub item_id: String,
    pub item_us: i64,
    /// When the item was drawn, or failed before that.
    pub first_us: i64,
    pub attempts: u32,
    /// undrawn | drawn | deferred | failed
    pub state: String,
    pub trace: String,
}

#[derive(Debug, Clone)]
pub struct AlertRow {
    pub monitor: String,
    pub name: String,
    pub state: AlertState,
    pub reason: String,
    /// The alert's memory, as JSON.
    pub memory: String,
}

/// A run that ended, with what it made of its monitor's alerts.
#[derive(Debug, Clone)]
pub struct FinishedRun {
    pub new_items: u64,
    pub report: RunReport,
    pub at_us: i64,
    pub alerts: Vec<AlertRow>,
    /// Alerts that the monitor no longer has.
    pub removed_alerts: Vec<String>,
    pub notices: Vec<NewNotice>,
    /// The settings that it ran by: a hash of all, and JSON of hashes by key.
    pub version: Option<(String, String)>,
}

/// Alerts of one monitor that moved while no run of it ended.
#[derive(Debug, Clone, Default)]
pub struct MovedAlerts {
    pub monitor: String,
    pub at_us: i64,
    pub rows: Vec<AlertRow>,
    /// Alerts that are forgotten.
    pub removed: Vec<String>,
    pub notices: Vec<NewNotice>,
    /// No file has the monitor any more.
    pub gone: bool,
}

#[derive(Debug, Clone)]
pub struct NewNotice {
    pub group: Group,
    pub event: AlertEvent,
}

/// A row of the outbox that may be sent now.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    pub outbox_id: i64,
    /// Those included in which the sink as a whole could not be served.
    pub attempts: u32,
    /// Attempts in which the sink refused this very row for now, and when it first did.
    pub failures: u32,
    pub failed_us: Option<i64>,
    pub delivery: crate::sinks::Delivery,
}

#[derive(Debug, Clone)]
pub struct SentBatch {
    pub at_us: i64,
    pub fates: Vec<(i64, Fate)>,
    /// Some of the rows carried their item.
    pub with_items: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    Dead(String),
    /// The sink refused the row for now.
    Again(Failure),
    /// The sink could not be served, whatever the row.
    Held(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub next_us: i64,
    pub error: String,
}

/// A group of which people may be told something now.
#[derive(Debug, Clone, PartialEq)]
pub struct DueGroup {
    pub id: i64,
    pub group: Group,
    /// As people know them.
    pub members: Vec<AlertEvent>,
    /// What waits, oldest first, by id; `None` is one that no longer reads. Of a message that was begun: what it is about.
    pub waiting: Vec<(i64, Option<AlertEvent>)>,
    pub told: Told,
    pub attempts: u32,
}

/// How far telling has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Where the group's message stands, in the service's words.
    pub thread: Option<String>,
    /// Pages of this message that were taken.
    pub pages: u32,
    /// Since when the next page may have been taken without our knowing.
    pub unsure_us: Option<i64>,
}

/// What came of telling a group.
#[derive(Debug, Clone)]
pub struct GroupTold {
    pub group: i64,
    pub at_us: i64,
    /// What it was about, by id.
    pub notices: Vec<i64>,
    pub end: TellingEnd,
}

#[derive(Debug, Clone)]
pub enum TellingEnd {
    /// Before the service is asked, so that a crash leaves a trace.
    Begun,
    Delivered {
        thread: Option<String>,
        members: Vec<AlertEvent>,
    },
    Dead {
        error: String,
        members: Vec<AlertEvent>,
    },
    Again {
        failure: Failure,
        told: Told,
    },
}
