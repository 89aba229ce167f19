//! How a case is judged. A metric turns one case into an [`Outcome`], or into several by name; it is told everything and keeps nothing.
//!
//! To add one: a file with its config struct, an example, the [`Metric`] and an `inventory::submit!`, and one `mod` line.
//! Absent on purpose: retries, limits and prices (those are `gateway`), thresholds and gates (`pipeline`).

mod composite;
mod contains;
mod cost;
mod equals;
pub mod exec;
mod expression;
mod http;
mod json;
mod latency;
mod length;
mod levenshtein;
mod llm_judge;
mod outside;
mod regex;
mod trace;
mod waiting;

use std::{collections::BTreeMap, fmt::Debug, path::Path, sync::Arc};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::util::plugin::BuildError;
use crate::{
    model::{Case, Observation, Outcome, PromptRef, PromptUse, PromptVersion, Usage},
    providers::{CallCx, Models},
    util::{http::Http, plugin::Kind},
};

pub type MetricKind = Kind<dyn MetricConfig>;
inventory::collect!(MetricKind);

/// Settings of one metric, without the keys that all metrics share (`name`, `type`, `when`, `threshold`, `higher_is_better`).
pub trait MetricConfig: Debug + Send + Sync {
    /// Pure, like `SourceConfig::build`.
    ///
    /// # Errors
    /// What is wrong with the settings, and the key it hangs on.
    fn build(&self, cx: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError>;

    /// Whether `build` would succeed, at less cost where building is dear: a thousand monitors are checked at every start.
    ///
    /// # Errors
    /// `build`'s.
    fn check(&self, cx: &MetricBuildCx<'_>) -> Result<(), BuildError> {
        self.build(cx).map(drop)
    }

    /// Free metrics run before dear ones.
    fn price(&self) -> Price {
        Price::Free
    }

    /// Metrics that this one is made of, by name: it is judged after them.
    fn parts(&self) -> Vec<&str> {
        Vec::new()
    }

    /// What the outcomes are called.
    fn gives(&self) -> Gives {
        Gives::One
    }

    /// All that decides the verdict, in a stable form: the metric's revision is a hash of it.
    fn revision(&self, cx: &MetricBuildCx<'_>) -> String;

    /// The prompt kept outside of the settings that the metric judges with.
    fn prompt(&self) -> Option<PromptRef> {
        None
    }

    /// Whether it judges a trace's observations, so that none are a verdict: it needs a source whose traces have them.
    fn needs_steps(&self) -> bool {
        false
    }

    /// The templates and expressions in the settings, so that the loader knows whether they use observations.
    fn templates(&self) -> Vec<&str> {
        Vec::new()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Price {
    Free,
    Paid,
}

pub struct MetricBuildCx<'a> {
    /// Profiles by the name that `model:` gives.
    pub models: &'a dyn Models,
    /// Prompts by what `prompt:` names.
    pub prompts: &'a Arc<dyn Prompts>,
    pub http: &'a Http,
    /// Of metrics that have one.
    pub processes: &'a exec::Processes,
    /// Processes start here: the folder of the settings file.
    pub base_dir: &'a Path,
}

/// Prompts that are kept outside of the settings.
#[async_trait]
pub trait Prompts: Debug + Send + Sync {
    /// Whether the settings say where the prompt is kept. Asks nobody.
    ///
    /// # Errors
    /// A sentence naming the connections there are.
    fn check(&self, prompt: &PromptRef) -> Result<(), String>;

    /// The version to judge with now.
    ///
    /// # Errors
    /// A sentence: there is no such prompt, or nobody who keeps it answers and none was read before.
    async fn current(&self, prompt: &PromptRef) -> Result<Arc<PromptVersion>, String>;
}

/// What a metric is told about the item it judges.
pub struct MetricCx<'a> {
    pub case: &'a Case,
    /// `input`, `output`, `context`, `expected`, `metadata`, `trace` and `scores` as template variables, built once an item.
    pub view: &'a minijinja::Value,
    /// Of the trace itself, where the source knows them.
    pub latency_ms: Option<f64>,
    pub cost_usd: Option<f64>,
    /// The trace's steps in the order they started; empty unless the monitor uses them.
    pub observations: &'a [Observation],
    /// Outcomes of the metrics that ran before, by name (`METRIC` or `METRIC.PART`).
    pub scores: &'a BTreeMap<String, Outcome>,
    /// Who is asking, for the layers below.
    pub call: CallCx<'a>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// At least one. A metric either has an outcome of its own, under its name, or parts.
    pub outcomes: Vec<Named>,
    /// Of all of them together.
    pub usage: Usage,
    /// What a model said where no verdict could be read from it: for people who ask why.
    pub answer: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// The outcome is that of `METRIC.PART`.
    pub part: Option<String>,
    pub outcome: Outcome,
}

impl Judgement {
    #[must_use]
    pub fn new(outcome: Outcome, usage: Usage, answer: Option<String>) -> Self {
        Self { outcomes: vec![Named { part: None, outcome }], usage, answer }
    }
}

impl From<Outcome> for Judgement {
    /// A judgement that cost nothing.
    fn from(outcome: Outcome) -> Self {
        Self::new(outcome, Usage::default(), None)
    }
}

/// The names under which a metric's outcomes are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gives {
    /// Its own.
    One,
    /// `METRIC.PART` for each of these.
    Parts(Vec<String>),
    /// Either: it is found out when it judges.
    Unknown,
}

impl Gives {
    /// Whether `name` may be the name of an outcome of the metric `metric`.
    #[must_use]
    pub fn may_give(&self, metric: &str, name: &str) -> bool {
        let part = name.strip_prefix(metric).and_then(|rest| rest.strip_prefix('.'));
        match self {
            Self::One => name == metric,
            Self::Parts(parts) => part.is_some_and(|part| parts.iter().any(|known| known == part)),
            Self::Unknown => name == metric || part.is_some_and(|part| !part.is_empty()),
        }
    }
}

#[async_trait]
pub trait Metric: Send + Sync {
    /// Never panics on any text; may be cancelled at any await. `Outcome::Scored` has a value in [0, 1], and `passed`
    /// where the metric has a verdict of its own (a threshold, applied by the caller, replaces it).
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement;

    /// What a run judges with, where that stands outside of the settings: asked once, when the run starts, so that all of
    /// the run is judged by the same. `None`: the metric itself.
    async fn pin(&self) -> Option<Pinned> {
        None
    }

    /// What judging the case would cost, roughly, in USD; `None` where that cannot be told. Asks nobody.
    fn guess(&self, _case: &Case, _view: &minijinja::Value) -> Option<f64> {
        None
    }

    /// NUMERIC, BOOLEAN or CATEGORICAL, as Langfuse names them.
    fn data_type(&self) -> DataType {
        DataType::Numeric
    }
}

/// A metric for one run.
pub struct Pinned {
    pub metric: Arc<dyn Metric>,
    /// In place of the settings' own [`MetricConfig::revision`].
    pub revision: String,
    /// `None` where there was nothing to judge with: then the metric defers every item.
    pub prompt: Option<PromptUse>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    Numeric,
    Boolean,
    Categorical,
}

impl DataType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Numeric => "NUMERIC",
            Self::Boolean => "BOOLEAN",
            Self::Categorical => "CATEGORICAL",
        }
    }
}

/// The text of a case that a heuristic looks at: `input`, `output`, `context`, `expected` or `metadata.KEY`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub enum Field {
    Input,
    #[default]
    Output,
    Context,
    Expected,
    Metadata(String),
}

impl TryFrom<String> for Field {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "input" => Ok(Self::Input),
            "output" => Ok(Self::Output),
            "context" => Ok(Self::Context),
            "expected" => Ok(Self::Expected),
            _ => match text.strip_prefix("metadata.") {
                Some(key) if !key.is_empty() => Ok(Self::Metadata(key.to_owned())),
                _ => Err(format!("unknown field `{text}`, expected input, output, context, expected or metadata.KEY")),
            },
        }
    }
}

impl Field {
    /// The text, or `None` where the case has no such metadata.
    #[must_use]
    pub fn of<'a>(&self, case: &'a Case) -> Option<&'a str> {
        match self {
            Self::Input => Some(&case.input),
            Self::Output => Some(&case.output),
            Self::Context => Some(&case.context),
            Self::Expected => Some(&case.expected),
            Self::Metadata(key) => case.metadata.get(key).map(String::as_str),
        }
    }

    /// The text, or the outcome that says it is missing.
    ///
    /// # Errors
    /// `NotApplicable`.
    pub fn require<'a>(&self, case: &'a Case) -> Result<&'a str, Outcome> {
        self.of(case).ok_or_else(|| Outcome::NotApplicable { reason: format!("the case has no {self}") })
    }
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Input => f.write_str("input"),
            Self::Output => f.write_str("output"),
            Self::Context => f.write_str("context"),
            Self::Expected => f.write_str("expected"),
            Self::Metadata(key) => write!(f, "metadata.{key}"),
        }
    }
}

/// A verdict that is yes or no: value 1 or 0.
#[must_use]
pub fn verdict(passed: bool, reason: impl Into<String>) -> Outcome {
    Outcome::Scored { value: f64::from(u8::from(passed)), raw: None, label: None, passed: Some(passed), reason: reason.into() }
}

/// For metrics that compare with `expected`.
fn no_expected() -> Outcome {
    Outcome::NotApplicable { reason: "the case has no expected text".to_owned() }
}

/// A metric's settings in a form that stays the same from build to build.
fn revision(kind: &str, config: &impl Serialize) -> String {
    // Settings are plain data; were one ever not to serialise, its kind alone would still be stable.
    format!("{kind}:{}", serde_json::to_string(config).unwrap_or_default())
}
