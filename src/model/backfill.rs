//! Items of the past, judged by a monitor as it is now.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a backfill is asked to do; the window is the run's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backfill {
    /// Names of metrics; empty for all.
    pub metrics: Vec<String>,
    /// Items a minute; above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<f64>,
    /// For all of it, however often it is begun again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_usd: Option<f64>,
    /// Items that were left out before are drawn anew.
    pub rejudge: bool,
}

/// What a backfill did, beside what every run tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BackfillReport {
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// Items whose scores by the monitor as it is now were there already.
    pub already_scored: u64,
    /// Items that stay left out, as they were decided before.
    pub left_out: u64,
    /// Items that the monitor's own runs will take, or are about to try again.
    pub left_to_runs: u64,
    /// Spent by the backfill so far, those begun before included; known where it has a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent_usd: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_usd: Option<f64>,
    /// Why it ended before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Begun again, it goes on with items from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goes_on_at: Option<Timestamp>,
}

/// What a dry run would have judged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WouldJudge {
    pub items: u64,
    /// Judgements by metric.
    pub judgements: BTreeMap<String, u64>,
    /// What they would cost, roughly; absent where nothing is known of the price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd: Option<f64>,
    /// Where the cost is known from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_by: Option<CostBy>,
}

/// Where a cost is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostBy {
    /// What the metrics cost before, on average.
    History,
    /// The size of the questions and the price list.
    Prices,
    /// Each for some of the metrics.
    Both,
}
