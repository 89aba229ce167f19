use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The state of one alert of one monitor (SPEC 3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    #[default]
    Inactive,
    /// The condition holds, but not yet for as long as `for` asks.
    Pending,
    Firing,
    /// Was firing; the condition no longer holds.
    Resolved,
    Learning,
    NoData,
    /// Fewer than `min_samples`.
    Insufficient,
    Error,
}

impl AlertState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Resolved => "resolved",
            Self::Learning => "learning",
            Self::NoData => "no_data",
            Self::Insufficient => "insufficient",
            Self::Error => "error",
        }
    }
}

/// In order: the worst is the least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Critical,
    #[default]
    Warning,
    Info,
}

impl Severity {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// Where a message goes: a kind of sink (`slack`, `log`) and its target (a channel).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Name of the sink kind: `slack`; `log` when nothing is configured.
    pub sink: String,
    /// Name of the connection used.
    pub connection: String,
    /// `#llm-alerts`; empty for `log`.
    pub target: String,
}

/// Events that people are told together: those that go to one receiver and share some labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub route: Route,
    /// Of route and labels: the same for all events of the group, whatever else the settings say.
    pub key: String,
    /// What the events share.
    pub labels: BTreeMap<String, String>,
    /// How long its first event waits for others; microseconds.
    pub wait_us: i64,
    /// At least so long between two messages while it is not over; microseconds.
    pub interval_us: i64,
}

impl Group {
    #[must_use]
    pub fn new(route: Route, labels: BTreeMap<String, String>, wait_us: i64, interval_us: i64) -> Self {
        let mut hash = blake3::Hasher::new();
        let parts = [&route.sink, &route.connection, &route.target].into_iter().chain(labels.iter().flat_map(|(name, value)| [name, value]));
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Self { route, key: hash.finalize().to_hex()[..24].to_owned(), labels, wait_us, interval_us }
    }

    /// A message that stands by itself.
    #[must_use]
    pub fn alone(route: Route, fingerprint: &str) -> Self {
        Self::new(route, BTreeMap::from([("fingerprint".to_owned(), fingerprint.to_owned())]), 0, 0)
    }
}

/// What people are told at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// Tells this message from all others, however often it is tried.
    pub id: String,
    /// Of the group.
    pub key: String,
    pub labels: BTreeMap<String, String>,
    /// What happened since they were last told, in order; never empty.
    pub changes: Vec<AlertEvent>,
    /// How each alert of the group stands: its newest event since the group was last quiet. Empty where nothing fires or fired.
    pub members: Vec<AlertEvent>,
    /// People know of nothing in this group yet.
    pub first: bool,
    /// Something begins that is worse than all that they know to fire.
    pub louder: bool,
}

impl News {
    /// Nothing fires any more.
    #[must_use]
    pub fn over(&self) -> bool {
        self.members.iter().all(|member| member.kind == AlertEventKind::Resolved)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertEventKind {
    Firing,
    /// Still firing, said again after `repeat`.
    Repeat,
    Resolved,
    /// Something that is not over or under way: it happened.
    Notice,
}

/// What a person is told: everything a message needs, nothing rendered yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlertEvent {
    /// Same for every event of one firing: (monitor, alert, when it began). Threads hang on it.
    pub fingerprint: String,
    pub kind: AlertEventKind,
    pub monitor: String,
    /// With its value, where it is one of several: `low{prompt_version="v7"}`.
    pub alert: String,
    pub severity: Severity,
    /// `mean < 0.8`, or the name of a built-in rule.
    pub condition: String,
    /// One sentence with the figures: "helpful: mean 0.71 over 130 answers, below 0.8".
    pub summary: String,
    pub metric: Option<String>,
    /// The measured statistic, where there is one.
    pub value: Option<f64>,
    /// Where it most likely lies (95 %), for a share or a mean.
    #[serde(default)]
    pub interval: Option<(f64, f64)>,
    pub threshold: Option<f64>,
    /// How many scores the figure rests on.
    pub n: Option<u64>,
    /// `24h`, `5 runs`
    pub window: Option<String>,
    pub since: Timestamp,
    pub at: Timestamp,
    pub run_id: String,
    pub labels: BTreeMap<String, String>,
    /// At most three, worst first.
    pub worst: Vec<WorstItem>,
    /// Of a notice that is more than a sentence: its parts, each of several lines. Untrusted text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
    /// What the last runs gave, oldest first; in [0, 1].
    #[serde(default)]
    pub history: Vec<f64>,
}

impl AlertEvent {
    /// The alert's name in the settings, which it shares with those of other values.
    #[must_use]
    pub fn alertname(&self) -> &str {
        alertname(&self.alert)
    }

    /// The label by whose value it is told from others of its name.
    #[must_use]
    pub fn by(&self) -> Option<&str> {
        self.alert.split_once('{')?.1.split_once('=').map(|(label, _)| label)
    }
}

/// The name of one of the alerts that `by` makes of one, as Prometheus writes it: `low{prompt_version="v7"}`.
#[must_use]
pub fn alert_of_value(alert: &str, label: &str, value: &str) -> String {
    format!("{alert}{{{label}=\"{}\"}}", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The other way round: a name in the settings has no `{`.
#[must_use]
pub fn alertname(name: &str) -> &str {
    name.split_once('{').map_or(name, |(alert, _)| alert)
}

/// An example in a message. `reason` is untrusted text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorstItem {
    pub item_id: String,
    pub value: f64,
    pub reason: String,
    pub url: Option<String>,
}

/// What lies in an alert's window, as the store hands it out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Scores in [0, 1], in any order.
    pub values: Vec<f64>,
    /// Of the scored ones: those with a verdict (the metric has a threshold or one of its own), and those that passed.
    pub with_verdict: u64,
    pub passed: u64,
    /// Judgements that failed: never among `values`.
    pub failed: u64,
    /// Of all judgements; `None` where no price is known.
    pub cost_usd: Option<f64>,
    /// Of the judgements, in milliseconds, in any order.
    pub latencies_ms: Vec<f64>,
}

/// One judgement of a run, as far as an alert looks at it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Judged {
    /// In [0, 1]; `None` where the judgement failed.
    pub value: Option<f64>,
    /// `None` where there is no verdict.
    pub passed: Option<bool>,
    pub latency_ms: Option<f64>,
}

/// Of what a run's mean is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeanOf {
    Values,
    /// 1 for passed, 0 for not.
    Passed,
    /// 1 for a judgement that failed, 0 for one that did not.
    Failed,
}

/// What a run's judgements gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunMean {
    /// Its slot; microseconds.
    pub slot_us: i64,
    pub mean: f64,
    /// Judgements.
    pub n: u64,
}

/// One judgement of a run that is over.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PastJudgement {
    pub judged: Judged,
    /// Its item was judged because it was asked for, not by chance.
    pub chosen: bool,
    pub cost_usd: Option<f64>,
}

/// A run that is over, with what it judged by one metric, or by all.
#[derive(Debug, Clone, PartialEq)]
pub struct PastRun {
    pub id: String,
    pub slot: Timestamp,
    pub ended: Timestamp,
    pub judged: Vec<PastJudgement>,
}

/// Items drawn in the last 24 h, by what has become of them. An item whose judgement waits for less than two slots counts
/// nowhere: that is the usual delay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Finally decided: scored or not applicable.
    pub judged: u64,
    /// Given up.
    pub failed: u64,
    /// They wait for their judge or for money.
    pub deferred: u64,
    /// They wait for a run, the first one or another try.
    pub waiting: u64,
}

/// What was scored in a day.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DayTally {
    /// Scores.
    pub n: u64,
    /// Of scores in [0, 1].
    pub sum: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_break_out_of_a_name() {
        assert_eq!(alert_of_value("low", "version", "v\"7\\"), r#"low{version="v\"7\\"}"#);
        for value in ["v7", "{", "\"}", ""] {
            assert_eq!(alertname(&alert_of_value("low", "version", value)), "low");
        }
        assert_eq!(alertname("low"), "low");
    }
}
