use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One unit of production work as a source saw it: a Langfuse trace, a line of a file.
///
/// Everything in here is untrusted text. `input`, `output` and `metadata` are JSON of any shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The item id: stable for the life of the item at its source.
    pub id: String,
    /// When the work happened (not when it was stored).
    pub timestamp: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub input: Value,
    #[serde(default)]
    pub output: Value,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub metadata: Value,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Wall time of the whole trace in milliseconds, where the source knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// What the trace cost its own product in USD, where the source knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Where a person can look at the trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Children in the order they started. Empty unless the monitor uses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub observations: Vec<Observation>,
    /// Fields of the source's own (a line's other fields); reachable as `trace.FIELD`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Trace {
    /// Of an observation that is an item of its own: its trace's id and its own. Believed only where the item's id is made
    /// of both, as fields of a source's own may bear the same names.
    #[must_use]
    pub fn observation_place(&self) -> Option<(&str, &str)> {
        let id = |key: &str| self.extra.get(key)?.get("id")?.as_str();
        let (trace, observation) = (id("parent")?, id("observation")?);
        (self.id.strip_prefix(trace)?.strip_prefix('/')? == observation).then_some((trace, observation))
    }

    /// The trace that a score of the item belongs to: its own, an observation's trace, a session's last.
    #[must_use]
    pub fn scored_trace(&self) -> &str {
        let of_session = || {
            let last = self.extra.get("traces")?.as_array()?.last().filter(|_| self.session_id.as_ref() == Some(&self.id))?;
            (last.get("session_id")?.as_str()? == self.id).then(|| last.get("id")?.as_str())?
        };
        self.observation_place().map(|(trace, _)| trace).or_else(of_session).unwrap_or(&self.id)
    }
}

/// A step inside a trace: an LLM generation, a retrieval, a tool call, a plain span.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
    #[serde(default)]
    pub name: String,
    /// The source's own word: SPAN, GENERATION, RETRIEVER, TOOL ...
    #[serde(default, rename = "type")]
    pub kind: String,
    pub start: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Timestamp>,
    #[serde(default)]
    pub input: Value,
    #[serde(default)]
    pub output: Value,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub metadata: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// That a model read and wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
}

/// What the metrics of a monitor judge: the texts that `extract` drew out of a trace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Case {
    pub input: String,
    pub output: String,
    /// Empty when the monitor has none.
    #[serde(default)]
    pub context: String,
    /// Empty when the monitor has none.
    #[serde(default)]
    pub expected: String,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// What else the monitor extracts, by its key in `extract:` (`conversation`, `tools_called` ...): JSON of any shape.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, Value>,
}
