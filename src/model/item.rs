use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Case, Trace};

/// What was judged: goes with a score to the sinks that want it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub trace: Arc<Trace>,
    pub case: Case,
    /// [`super::content_hash`] of the case.
    pub content_hash: String,
    pub about: Arc<About>,
}

/// What of a monitor concerns those who read its scores.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub monitor: String,
    pub description: String,
    pub labels: BTreeMap<String, String>,
    pub environment: Option<String>,
    /// `langfuse`, `file` ...
    pub source_kind: String,
    pub source_name: String,
    /// The Langfuse connection that the items were read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub langfuse: Option<String>,
    /// By name.
    pub metrics: BTreeMap<String, MetricAbout>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricAbout {
    /// `judge`, `regex` ...
    pub kind: String,
    pub threshold: Option<f64>,
    pub higher_is_better: bool,
}
