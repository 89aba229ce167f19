use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{AlertState, BackfillReport, ItemCounts, PromptUse, WouldJudge};

/// Who asked for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    Schedule,
    /// The latest slot missed during downtime.
    CatchUp,
    /// `schedule.on_start`
    Start,
    Manual,
    /// A release check: its items are chosen to know soon, so no alert looks at them.
    Gate,
    /// Items of the past, judged by the monitor as it is now: they say nothing of today.
    Backfill,
}

impl Trigger {
    /// Whether the run speaks for how the monitor and its product are doing: only then do alerts look at it. SQL that asks the same
    /// names the others.
    #[must_use]
    pub fn speaks(self) -> bool {
        !matches!(self, Self::Gate | Self::Backfill)
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::CatchUp => "catch_up",
            Self::Start => "start",
            Self::Manual => "manual",
            Self::Gate => "gate",
            Self::Backfill => "backfill",
        }
    }

    /// The trigger of a stored run; what a newer assayd may have written counts as manual.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        [Self::Schedule, Self::CatchUp, Self::Start, Self::Gate, Self::Backfill].into_iter().find(|trigger| trigger.name() == name).unwrap_or(Self::Manual)
    }

    /// What tells runs of the same instant apart. A slot runs once whoever fires it, so a caught-up slot is the
    /// scheduled one.
    #[must_use]
    pub fn identity(self) -> &'static str {
        match self {
            Self::Schedule | Self::CatchUp => "schedule",
            other => other.name(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    Running,
    Succeeded,
    /// Some judgements failed or were deferred.
    Partial,
    /// The run could not do its work.
    Failed,
}

impl RunStatus {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }
}

/// What a run did: printed by `assayd once --format json`, kept with the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    pub run_id: String,
    pub monitor: String,
    pub slot: Timestamp,
    pub trigger: Trigger,
    pub status: RunStatus,
    /// Why the run failed or is partial; absent when it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub counts: ItemCounts,
    pub metrics: BTreeMap<String, MetricSummary>,
    pub published: BTreeMap<String, PublishedCounts>,
    pub alerts: Vec<AlertLine>,
    pub cost_usd: f64,
    /// Why judgements wait for a blocked judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge_blocked: Option<String>,
    /// Why judgements wait for money.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_budget: Option<String>,
    pub duration_ms: u64,
    /// Of a run that took as many new items as it may (`source.limit`) and left others: how far behind now it came, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog_seconds: Option<u64>,
    /// The prompts from Langfuse that metrics judged with, by metric.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<String, PromptUse>,
    /// Of a release check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateReport>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<BackfillReport>,
    /// Of a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would: Option<WouldJudge>,
}

impl RunReport {
    /// Of a run that did nothing yet.
    #[must_use]
    pub fn empty(run_id: String, monitor: String, slot: Timestamp, trigger: Trigger, status: RunStatus) -> Self {
        Self {
            backlog_seconds: None,
            run_id,
            monitor,
            slot,
            trigger,
            status,
            error: None,
            counts: ItemCounts::default(),
            metrics: BTreeMap::new(),
            published: BTreeMap::new(),
            alerts: Vec::new(),
            cost_usd: 0.0,
            judge_blocked: None,
            over_budget: None,
            duration_ms: 0,
            prompts: BTreeMap::new(),
            gate: None,
            backfill: None,
            would: None,
        }
    }
}

/// Whether the mean of a metric over a window's items is at a threshold or better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    pub metric: String,
    /// In [0.001, 0.999].
    pub threshold: f64,
    /// In [0.5, 1).
    pub confidence: f64,
}

/// What a release check found: whether the mean of a window's items is at the threshold or better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    pub metric: String,
    /// In [0, 1].
    pub threshold: f64,
    /// A wrong pass and a wrong fail each have at most the probability 1 - confidence.
    pub confidence: f64,
    pub answer: GateAnswer,
    /// Whatever the items not judged were, the answer would be the same.
    pub certain: bool,
    /// Items that speak, and how many there are.
    pub n: u64,
    pub population: u64,
    /// Of those items; `None` of none.
    pub mean: Option<f64>,
    /// Where the mean of all lies, with the same confidence.
    pub low: f64,
    pub high: f64,
    /// Items whose judgement failed or that the metric does not apply to: left out.
    pub left_out: u64,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateAnswer {
    Pass,
    Fail,
    Undecided,
}

impl GateAnswer {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Undecided => "undecided",
        }
    }
}

/// A metric over one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricSummary {
    /// Scored items.
    pub n: u64,
    pub mean: Option<f64>,
    /// Share of `passed`, where the metric has a threshold.
    pub pass_rate: Option<f64>,
    pub failed: u64,
    /// 95 % Wilson interval of the mean.
    pub low: Option<f64>,
    pub high: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedCounts {
    pub delivered: u64,
    pub pending: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertLine {
    pub name: String,
    pub state: AlertState,
    pub reason: String,
}

/// The answer of `POST /-/reload`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    /// Their file is broken: the last good version goes on.
    pub kept: Vec<String>,
    pub unchanged: usize,
    /// What is wrong, as `assayd validate` says it.
    pub faults: Vec<String>,
}
