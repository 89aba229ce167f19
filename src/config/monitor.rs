use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    NotifyTarget, Switches,
    anchors::{AnchorsFile, AnchorsSpec},
    gateway::budgets,
    maintenance::MaintenanceFile,
};
use crate::{
    alerting::{Condition, Hold, Rule, maintenance::Maintenance},
    metrics::MetricConfig,
    model::{Budget, Severity},
    schedule::plan::ScheduleSpec,
    sinks::SinkConfig,
    sources::{Scope, SourceConfig},
    util::{
        duration::Human,
        yaml::{Fault, Node, Section},
    },
};

/// One monitor, checked.
#[derive(Debug)]
pub struct MonitorSpec {
    pub name: String,
    pub description: String,
    pub enabled: bool,
    pub environment: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// When nobody is told of its alerts.
    pub maintenance: Vec<Maintenance>,
    pub schedule: ScheduleSpec,
    pub source: SourceSpec,
    pub extract: ExtractSpec,
    pub sampling: SamplingSpec,
    /// In the order written; the pipeline puts free ones first.
    pub metrics: Vec<MetricSpec>,
    pub evaluation: EvaluationSpec,
    pub publish: Vec<Arc<dyn SinkConfig>>,
    pub alerts: Vec<AlertSpec>,
    /// Over those of the settings.
    pub watch: Switches,
    /// What its judges are held against.
    pub anchors: Option<AnchorsSpec>,
    /// The file it came from, as the user would name it.
    pub file: PathBuf,
    /// Hash of all that makes up the monitor after merging and filling in: equal fingerprints, equal behaviour.
    pub fingerprint: String,
    /// Hashes of its parts, by key: `metrics.faithfulness.prompt`.
    pub parts: BTreeMap<String, String>,
    /// What is sound and most likely not what was meant.
    pub warnings: Vec<Fault>,
}

impl MonitorSpec {
    /// Whether one of its own alerts has this name, and stands in the place of the one that every monitor has.
    #[must_use]
    pub fn has_alert(&self, name: &str) -> bool {
        self.alerts.iter().any(|alert| alert.name == name)
    }

    /// Whether an alert that every monitor has is evaluated for this one.
    #[must_use]
    pub fn watches(&self, name: &str) -> bool {
        self.watch.is_on(name) && !self.has_alert(name)
    }
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
    pub scope: Scope,
    pub rejudge: Rejudge,
    /// The Langfuse connection whose traces the items are.
    pub langfuse: Option<String>,
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
    // Beside the texts: JSON of any shape (a template that is nothing but one `{{ hole }}` gives the value itself), for
    // metrics and sinks. One that is not there is left out.
    /// Turns in order, each with `role`, and `name`, `time` and `text` where they are known. Default: `trace.conversation`, where there is one.
    pub conversation: Option<String>,
    /// Tools that the product called, in order.
    pub tools_called: Option<String>,
    /// Tools that it should have called.
    pub expected_tools: Option<String>,
    /// What was retrieved for the answer.
    pub retrieved_content: Option<String>,
    /// What an answer has to fulfil.
    pub acceptance_criteria: Option<String>,
    /// Further input, of any shape.
    pub additional_input: Option<String>,
    /// Further output, of any shape.
    pub additional_output: Option<String>,
    /// The document that the question is about.
    pub document_text: Option<String>,
    /// What the answer refers to.
    pub actual_reference: Option<String>,
    /// What it should refer to.
    pub expected_reference: Option<String>,
    /// A person's verdict, where there is one.
    pub judgment: Option<String>,
    /// A person's reasons for it.
    pub critique: Option<String>,
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
            conversation: Some("{{ trace.conversation }}".to_owned()),
            tools_called: None,
            expected_tools: None,
            retrieved_content: None,
            acceptance_criteria: None,
            additional_input: None,
            additional_output: None,
            document_text: None,
            actual_reference: None,
            expected_reference: None,
            judgment: None,
            critique: None,
            patterns: BTreeMap::new(),
            on_missing: OnMissing::Skip,
        }
    }
}

impl ExtractSpec {
    /// The templates of a case's details, by key.
    pub fn details(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("conversation", &self.conversation),
            ("tools_called", &self.tools_called),
            ("expected_tools", &self.expected_tools),
            ("retrieved_content", &self.retrieved_content),
            ("acceptance_criteria", &self.acceptance_criteria),
            ("additional_input", &self.additional_input),
            ("additional_output", &self.additional_output),
            ("document_text", &self.document_text),
            ("actual_reference", &self.actual_reference),
            ("expected_reference", &self.expected_reference),
            ("judgment", &self.judgment),
            ("critique", &self.critique),
        ];
        all.into_iter().filter_map(|(key, template)| Some((key, template.as_deref()?)))
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
    /// What the monitor's judges may spend; one budget, or a list of them.
    #[serde(deserialize_with = "budgets")]
    pub budget: Vec<Budget>,
}

impl Default for EvaluationSpec {
    fn default() -> Self {
        Self { concurrency: 8, max_attempts: 3, max_age: Human::days(7), budget: Vec::new() }
    }
}

/// An entry of `alerts:`.
#[derive(Debug, Clone)]
pub struct AlertSpec {
    pub name: String,
    /// Needed unless `when` is about the run (`cost_usd`).
    pub metric: Option<String>,
    /// One alert for each value of it.
    pub by: Option<BySpec>,
    /// `mean < 0.8`
    pub when: Condition,
    /// Once it fires it ends when this holds; without it when `when` no longer does.
    pub resolve_when: Option<Condition>,
    pub over: Over,
    pub min_samples: u64,
    pub hold: For,
    pub keep_firing_for: Human,
    pub evidence: Option<EvidenceSpec>,
    /// How long the level is learned that `when` compares with.
    pub baseline: Human,
    pub severity: Severity,
    /// Empty: the settings' `notify`.
    pub notify: Vec<NotifyTarget>,
    /// Said again this often while it fires. Default 4h.
    pub repeat: Human,
}

impl AlertSpec {
    /// How it turns what is seen into messages.
    #[must_use]
    pub fn rule(&self) -> Rule {
        let hold = match self.hold {
            For::Runs(runs) => Hold::Runs(runs),
            For::Time(time) => Hold::Time(time),
        };
        Rule { hold, repeat: self.repeat, keep: self.keep_firing_for }
    }
}

/// What makes several alerts of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BySpec {
    /// Expression over `trace` and the case.
    pub value: String,
    /// Name of the label that tells the alerts apart.
    pub label: String,
    /// Values with an alert of their own, at most.
    pub limit: usize,
}

/// What an alert with `confidence` promises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvidenceSpec {
    /// In (0, 1): at most one false alarm in 1 / (1 - confidence) days.
    pub confidence: f64,
    pub scope: ConfidenceScope,
    /// How many times as many items the next run draws while the alert is in doubt; 1 for never more.
    pub boost: u32,
}

/// Who shares the promise of a `confidence`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConfidenceScope {
    /// Each alert keeps it for itself.
    #[default]
    Alert,
    /// All alerts with this scope, of all monitors, together.
    Project,
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

/// A monitor as written; [`MonitorSpec`] is what it means. Parts are read one by one, so that each fault is told; what
/// must stand there is asked for by `check`, beside the other faults.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "assayd monitor")]
pub(super) struct File {
    /// `[a-z0-9][a-z0-9._-]{0,63}`, unique. Default: the file's stem.
    pub name: Option<Section<String>>,
    pub description: Option<String>,
    /// Default true.
    pub enabled: Option<bool>,
    /// Given to scores whose trace names none.
    pub environment: Option<String>,
    /// Go with every alert of the monitor.
    pub labels: Option<BTreeMap<String, String>>,
    /// Times of the week at which nobody is told of its alerts.
    pub maintenance: Option<Vec<Section<MaintenanceFile>>>,
    #[schemars(required)]
    pub schedule: Option<Section<ScheduleSpec>>,
    #[schemars(required, schema_with = "super::schema::source")]
    #[serde(default)]
    pub source: Option<Node>,
    pub extract: Option<Section<ExtractSpec>>,
    pub sampling: Option<Section<SamplingSpec>>,
    #[schemars(required, schema_with = "super::schema::metrics")]
    #[serde(default)]
    pub metrics: Option<Vec<Node>>,
    pub evaluation: Option<Section<EvaluationSpec>>,
    #[serde(default)]
    #[schemars(schema_with = "super::schema::publish")]
    pub publish: Option<Vec<Node>>,
    pub alerts: Option<Vec<Section<AlertFile>>>,
    /// Switches of the alerts that every monitor has, such as `no-data: false`. Default: as in assayd.yaml.
    pub watch: Option<Section<Switches>>,
    /// Labelled items that judges are asked about again and again: they tell a judge that changed from a product that did.
    pub anchors: Option<Section<AnchorsFile>>,
}

/// `source:`, the keys that all kinds share.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SourceCommon {
    /// In the source_key of the dedup key. Default: the monitor's name.
    pub name: Option<String>,
    /// Younger traces are left until the next run. Default 5m.
    pub settle: Human,
    /// How far the first run reaches. Default 24h.
    pub lookback: Human,
    /// How far behind the watermark a run looks again, for late arrivals. Default 30m.
    pub overlap: Human,
    /// Most new items a run takes, oldest first. Default 1000.
    pub limit: u64,
    /// Expression over `trace`; items for which it is false are filtered.
    pub filter: Option<String>,
    /// What an item is: `trace`; `observation`, each observation for which `where` is true (id `TRACE/OBSERVATION`); or
    /// `session`, all traces of a session, once none came for `settle`. Default `trace`.
    pub scope: ScopeName,
    /// With `scope: observation`, and needed there: expression over `observation` and `trace`, such as
    /// `observation.name == "answer"`.
    pub r#where: Option<String>,
    /// With `scope: session`: how far before a session's last trace its first may lie. Default 24h.
    pub session_window: Option<Human>,
    /// `on_change`: a known item whose content changed is judged again, its old scores stay. Default `never`.
    pub rejudge: Rejudge,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ScopeName {
    #[default]
    Trace,
    Observation,
    Session,
}

/// When an item that is known is judged again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rejudge {
    #[default]
    Never,
    OnChange,
}

impl Default for SourceCommon {
    fn default() -> Self {
        Self {
            name: None,
            settle: Human::mins(5),
            lookback: Human::hours(24),
            overlap: Human::mins(30),
            limit: 1000,
            filter: None,
            scope: ScopeName::Trace,
            r#where: None,
            session_window: None,
            rejudge: Rejudge::Never,
        }
    }
}

/// An entry of `metrics:`, the keys that all kinds share.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricCommon {
    /// Unique in the monitor.
    pub name: String,
    /// Expression over `scores`, `trace` and the case: where it is false the metric does not apply.
    pub when: Option<String>,
    /// `passed = value >= threshold`, value in [0, 1].
    pub threshold: Option<f64>,
    /// Default true; false turns the threshold round.
    #[serde(default = "yes")]
    pub higher_is_better: bool,
}

fn yes() -> bool {
    true
}

/// An entry of `alerts:`, as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AlertFile {
    pub name: String,
    /// Needed unless `when` is about the run (`cost_usd`).
    pub metric: Option<String>,
    /// One alert for each value of an expression over `trace` and the case, such as `trace.metadata.prompt_version`; or a map with
    /// `value`, `label` and `limit`.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::by")]
    pub by: Option<Node>,
    /// mean | pass_rate | failed_rate | p10 | p50 | p90 | n | cost_usd | latency_p95, a comparison, and a number (`mean < 0.8`) or a
    /// learned level (`mean < baseline - 0.02`; mean, pass_rate and failed_rate).
    #[schemars(with = "String")]
    pub when: Node,
    /// Once it fires it ends when this holds, such as `mean >= 0.85` beside `when: mean < 0.8`. Default: when `when` no longer
    /// holds. Not with `confidence`, which has evidence of its own for the end.
    #[schemars(with = "Option<String>")]
    #[serde(default)]
    pub resolve_when: Option<Node>,
    /// Fires only when the evidence of all runs so far says so: at most one false alarm in 1 / (1 - confidence) days, 100 days
    /// for 0.99. Without it: a plain threshold, which promises nothing.
    pub confidence: Option<f64>,
    /// `project`: all alerts with this scope, of all monitors, share one promise. Default `alert`.
    pub confidence_scope: Option<ConfidenceScope>,
    /// With `confidence` and a random sample: how many times as many items the next run draws while evidence has gathered that is
    /// not enough yet. Default 5; 1 for never more.
    pub boost: Option<u32>,
    /// How long the level is learned that `when` compares with; at least 24 runs and 200 scores. Default 7d.
    pub baseline: Option<Human>,
    /// The scores looked at, by the time of scoring: a duration, or `{ runs: 5 }`. Default 24h. With `confidence`: those whose
    /// figures are shown.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::over")]
    pub over: Option<Node>,
    /// Fewer scores decide nothing. Default 1.
    pub min_samples: Option<u64>,
    /// How long it has to hold: runs in a row, or a duration. Default 1 run.
    #[serde(rename = "for", default)]
    #[schemars(schema_with = "super::schema::hold")]
    pub hold: Option<Node>,
    /// Goes on firing for this long after `when` was last seen to hold. Default 0s.
    pub keep_firing_for: Option<Human>,
    #[serde(default)]
    pub severity: Severity,
    /// Default: the settings' `notify`.
    #[serde(default)]
    pub notify: Vec<NotifyTarget>,
    /// Said again this often while it fires. Default 4h.
    pub repeat: Option<Human>,
}

/// `by:` with more than its expression.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "By")]
pub(super) struct ByFile {
    /// Expression over `trace` and the case; an item for which it gives nothing has the value `none`.
    #[schemars(with = "String")]
    pub value: Node,
    /// The alerts' label, letters, digits and `_`. Default: the last part of the path, `prompt_version` of
    /// `trace.metadata.prompt_version`.
    pub label: Option<String>,
    /// Values with an alert of their own, 1 to 200; all others are judged together, as the value `others`. Default 20.
    pub limit: Option<usize>,
}
