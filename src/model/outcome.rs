use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What came of judging one case by one metric. A failed judgement is never a score.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Scored {
        /// Normalised to [0, 1]; never NaN.
        value: f64,
        /// The value on the metric's own scale, where that differs.
        raw: Option<f64>,
        /// The category, for metrics that choose one.
        label: Option<String>,
        /// `None` when the metric has no threshold.
        passed: Option<bool>,
        reason: String,
    },
    /// The metric does not apply to this case (its gate was closed, a field it needs is empty).
    NotApplicable { reason: String },
    /// The judgement could not be made. Tried again by a later run.
    Failed { reason: String },
    /// The judgement could not be tried (blocked judge, spent budget): costs no attempt and comes back.
    Deferred { reason: String, wait: Wait },
}

/// What a judgement waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The judge: its key, its billing, its model, its pause.
    Judge,
    /// The next period of a budget, or its price.
    Budget,
    /// Another metric of the same item, which its gate looks at.
    Gate,
}

impl Outcome {
    /// The word used in exports, labels and the store.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Scored { .. } => "scored",
            Self::NotApplicable { .. } => "not_applicable",
            Self::Failed { .. } => "failed",
            Self::Deferred { .. } => "deferred",
        }
    }

    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Scored { reason, .. } | Self::NotApplicable { reason } | Self::Failed { reason } | Self::Deferred { reason, .. } => reason,
        }
    }

    #[must_use]
    pub fn passed(&self) -> Option<bool> {
        match self {
            Self::Scored { passed, .. } => *passed,
            _ => None,
        }
    }
}

/// What a judgement used. Unknown stays unknown: `None`, never 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub provider: Option<String>,
    pub model: Option<String>,
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cost_usd: Option<f64>,
    /// Of the whole judgement, retries included, in milliseconds.
    pub latency_ms: Option<u64>,
}

/// One metric's outcome for one item, as it is stored, exported and published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub score_id: String,
    pub run_id: String,
    pub monitor: String,
    pub metric: String,
    pub metric_revision: String,
    pub item_id: String,
    pub trace_id: Option<String>,
    pub item_timestamp: Timestamp,
    /// scored | not_applicable | failed
    pub outcome: String,
    pub value: Option<f64>,
    pub raw: Option<f64>,
    pub label: Option<String>,
    pub passed: Option<bool>,
    pub reason: String,
    pub provider: Option<String>,
    pub model: Option<String>,
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cost_usd: Option<f64>,
    pub latency_ms: Option<u64>,
    pub created_at: Timestamp,
}

/// What was decided about an item: every fetched item ends in exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Filtered,
    Duplicate,
    SampledOut,
    /// Drawn, but its judgement has to wait; comes back.
    Deferred,
    NotApplicable,
    Failed,
    Scored,
    /// Drawn and not judged yet: only while a run is under way or was interrupted.
    Drawn,
}

impl Decision {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filtered => "filtered",
            Self::Duplicate => "duplicate",
            Self::SampledOut => "sampled_out",
            Self::Deferred => "deferred",
            Self::NotApplicable => "not_applicable",
            Self::Failed => "failed",
            Self::Scored => "scored",
            Self::Drawn => "drawn",
        }
    }
}

/// Counts of items, as in `assayd once --format json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemCounts {
    pub fetched: u64,
    pub filtered: u64,
    pub duplicate: u64,
    pub sampled_out: u64,
    pub deferred: u64,
    pub not_applicable: u64,
    pub scored: u64,
    pub failed: u64,
}

impl ItemCounts {
    pub fn add(&mut self, decision: Decision, n: u64) {
        match decision {
            Decision::Filtered => self.filtered += n,
            Decision::Duplicate => self.duplicate += n,
            Decision::SampledOut => self.sampled_out += n,
            Decision::Deferred => self.deferred += n,
            Decision::NotApplicable => self.not_applicable += n,
            Decision::Failed => self.failed += n,
            Decision::Scored => self.scored += n,
            Decision::Drawn => {}
        }
    }
}
