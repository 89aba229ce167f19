use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    alerting::Condition,
    metrics::MetricConfig,
    model::Severity,
    schedule::plan::ScheduleSpec,
    sinks::SinkConfig,
    sources::SourceConfig,
    util::duration::Human,
};

/// One monitor, checked.
#[derive(Debug)]
pub struct MonitorSpec {
    pub name: String,
    pub description: String,
    pub enabled: bool,
    pub environment: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub schedule: ScheduleSpec,
    pub source: SourceSpec,
    pub extract: ExtractSpec,
    pub sampling: SamplingSpec,
    /// In the order written; the pipeline puts free ones first.
    pub metrics: Vec<MetricSpec>,
    pub evaluation: EvaluationSpec,
    pub publish: Vec<Arc<dyn SinkConfig>>,
    pub alerts: Vec<AlertSpec>,
    /// The file it came from, as the user would name it.
    pub file: PathBuf,
    /// Hash of all that makes up the monitor after merging and filling in: equal fingerprints, equal behaviour.
    pub fingerprint: String,
}

/// `source:`, the keys that all sources share and the block of its own kind.
#[derive(Debug)]
pub struct SourceSpec {
    /// `langfuse`, `file` ...
    pub kind: String,
    /// In the source_key of the dedup key; default: the monitor's name.
    pub name: String,
    /// Younger traces are left until the next run. Default 5m.
    pub settle: Human,
    /// How far the first run reaches. Default 24h.
    pub lookback: Human,
    /// How far behind the watermark a run looks again. Default 30m.
    pub overlap: Human,
    /// Most new items a run takes. Default 1000.
    pub limit: u64,
    /// Expression over `trace`; items for which it is false are filtered.
    pub filter: Option<String>,
    pub config: Arc<dyn SourceConfig>,
}

impl SourceSpec {
    /// `source.type:source.name` (SPEC 6).
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}", self.kind, self.name)
    }
}

/// `extract:`, minijinja templates over `trace`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExtractSpec {
    /// What the user asked. Default `{{ trace.input }}`.
    pub input: String,
    /// What the product answered. Default `{{ trace.output }}`.
    pub output: String,
    /// What the answer should rest on. Default: none.
    pub context: String,
    /// The right answer, where it is known. Default: none.
    pub expected: String,
    pub metadata: BTreeMap<String, String>,
    /// Regex with named groups over a step's input (key `input`, the default) or output (key `output`):
    /// step name -> key -> regex. A group becomes `trace.steps.NAME.variables.GROUP`.
    pub patterns: BTreeMap<String, StepPatterns>,
    /// What a missing variable makes of the item: `skip` (not applicable, the default) or `fail`.
    pub on_missing: OnMissing,
}

impl Default for ExtractSpec {
    fn default() -> Self {
        Self {
            input: "{{ trace.input }}".to_owned(),
            output: "{{ trace.output }}".to_owned(),
            context: String::new(),
            expected: String::new(),
            metadata: BTreeMap::new(),
            patterns: BTreeMap::new(),
            on_missing: OnMissing::Skip,
        }
    }
}

/// Regexes of one step, by the step's text they are matched against: `input` or `output`.
pub type StepPatterns = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnMissing {
    #[default]
    Skip,
    Fail,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingSpec {
    /// all | random | most_recent | oldest | rate. Default: all.
    pub strategy: Strategy,
    /// How many items a run draws; for random, most_recent and oldest.
    pub n: Option<u64>,
    /// Share of the items, in (0, 1]; for rate.
    pub rate: Option<f64>,
    /// Makes a random draw repeatable. Default: the run's id.
    pub seed: Option<u64>,
    /// Expression over `trace`: items for which it is true are drawn in addition.
    pub always: Option<String>,
}

impl Default for SamplingSpec {
    fn default() -> Self {
        Self { strategy: Strategy::All, n: None, rate: None, seed: None, always: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    All,
    Random,
    MostRecent,
    Oldest,
    Rate,
}

/// An entry of `metrics:`: the keys that all metrics share and the block of its own kind.
#[derive(Debug)]
pub struct MetricSpec {
    pub name: String,
    /// `regex`, `judge` ...
    pub kind: String,
    /// Expression over `scores`, `trace` and the case; the metric does not apply where it is false.
    pub when: Option<String>,
    /// `passed = value >= threshold` (`<=` where lower is better); value in [0, 1].
    pub threshold: Option<f64>,
    /// Default true.
    pub higher_is_better: bool,
    pub config: Arc<dyn MetricConfig>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSpec {
    /// Items of a run judged at the same time. Default 8.
    pub concurrency: usize,
    /// Attempts of a failed item in all, over several runs. Default 3.
    pub max_attempts: u32,
    /// A deferred item older than this ends as failed. Default 7d.
    pub max_age: Human,
    /// Most that judging may cost.
    pub budget: Option<Budget>,
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self { concurrency: 8, max_attempts: 3, max_age: Human::days(7), budget: None }
    }
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub usd: f64,
    /// run | day | week | month, by the UTC calendar. Default: day.
    #[serde(default)]
    pub per: Period,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    Run,
    #[default]
    Day,
    Week,
    Month,
}

/// An entry of `alerts:`.
#[derive(Debug, Clone)]
pub struct AlertSpec {
    pub name: String,
    /// Needed unless `when` is about the run (`cost_usd`).
    pub metric: Option<String>,
    /// `mean < 0.8`
    pub when: Condition,
    pub over: Over,
    pub min_samples: u64,
    pub hold: For,
    pub severity: Severity,
    /// Empty: the settings' `notify`.
    pub notify: Vec<NotifyTarget>,
    /// Said again this often while it fires. Default 4h.
    pub repeat: Human,
}

/// The scores a condition looks at, by the time of scoring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Last(Human),
    Runs(u32),
}

/// How long a condition has to hold before the alert fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Runs in a row; 1 fires at once.
    Runs(u32),
    Time(Human),
}

/// An entry of `notify:`, one key: the kind of sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotifyTarget {
    /// Channel, `#llm-alerts` or an id.
    pub slack: String,
    /// Slack connection. Default: `default`.
    #[serde(default = "default_connection")]
    pub connection: String,
}

fn default_connection() -> String {
    crate::connections::DEFAULT.to_owned()
}
