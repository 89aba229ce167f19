//! `anchors:`, and the labelled items that it names. The file is read when the monitor is checked, and again in each run.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MetricSpec, check::place};
use crate::{
    alerting::anchors::Label,
    metrics::Price,
    statistics::evidence::Promise,
    util::{
        text::one_line,
        yaml::{Fault, Section},
    },
};

/// What judges are held against.
#[derive(Debug, Clone, PartialEq)]
pub struct AnchorsSpec {
    pub file: PathBuf,
    /// Drawn in each run.
    pub n: usize,
    /// In (0, 1).
    pub confidence: f64,
}

/// `anchors:`, as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AnchorsFile {
    /// JSON lines, relative to the monitor's file: `id`, `input`, `output`, `context`, `expected`, and `labels`, which gives a metric
    /// `pass`, `fail` or a value between 0 and 1.
    pub file: PathBuf,
    /// How many are drawn at random in each run and judged again by each paid metric that has labels. Default 5.
    pub n: Option<usize>,
    /// Of `judge-changed`: at most one false alarm in 1 / (1 - confidence) days. Default 0.99.
    pub confidence: Option<f64>,
}

/// An item whose verdicts are known. All texts are untrusted.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// Unique in the file.
    pub id: String,
    pub input: String,
    pub output: String,
    #[serde(default)]
    pub context: String,
    #[serde(default)]
    pub expected: String,
    /// By `METRIC` or `METRIC.PART`.
    pub labels: BTreeMap<String, Label>,
}

impl Anchor {
    /// Tells an anchor and its label for a metric from what it was before an edit.
    #[must_use]
    pub fn key(&self, metric: &str) -> String {
        #[derive(Serialize)]
        struct Parts<'a>(&'a str, &'a str, &'a str, &'a str, &'a str, String);
        let label = format!("{:?}", self.labels.get(metric));
        let mut hasher = blake3::Hasher::new();
        // Plain data into a hasher: it always serialises.
        let _ = serde_json::to_writer(&mut hasher, &Parts(&self.id, &self.input, &self.output, &self.context, &self.expected, label));
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// Of a run.
const N: usize = 5;
const CONFIDENCE: f64 = 0.99;
/// More is a benchmark: each is paid for at the start.
const MOST: usize = 5_000;

/// The anchors of a file.
///
/// # Errors
/// The first fault, with its line.
pub fn anchors(bytes: &[u8]) -> Result<Vec<Anchor>, String> {
    let (mut anchors, mut seen) = (Vec::new(), HashSet::new());
    for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let wrong = |what: &str| format!("line {}: {what}", at + 1);
        let anchor: Anchor = serde_json::from_slice(line).map_err(|error| wrong(&one_line(&error.to_string(), 200)))?;
        if !seen.insert(anchor.id.clone()) {
            return Err(wrong(&format!("the anchor `{}` stands here a second time", one_line(&anchor.id, 80))));
        }
        anchors.push(anchor);
        if anchors.len() > MOST {
            return Err(format!("more than {MOST} anchors"));
        }
    }
    Ok(anchors)
}

/// `interval`: seconds between two runs, if that is known.
pub(super) fn check(
    section: &Section<AnchorsFile>,
    metrics: &[MetricSpec],
    interval: Option<f64>,
    monitor: &Path,
    faults: &mut Vec<Fault>,
) -> Option<AnchorsSpec> {
    let (node, file) = (&section.node, section.read(faults)?);
    let mut wrong = |key: &str, message: String| faults.push(Fault::new(place(node, key), message));
    let (n, confidence) = (file.n.unwrap_or(N), file.confidence.unwrap_or(CONFIDENCE));
    if !(1..=MOST).contains(&n) {
        wrong("n", format!("`n` is between 1 and {MOST}"));
    }
    if !(0.5..1.0).contains(&confidence) {
        wrong("confidence", "`confidence` is at least 0.5 and below 1, such as 0.99 for at most one false alarm in 100 days".to_owned());
    } else if interval.is_some_and(|interval| (Promise { confidence, interval }).stake().is_none()) {
        wrong("confidence", "too few runs for this confidence; raise it, or run more often".to_owned());
    }
    let path = monitor.parent().unwrap_or(Path::new("")).join(&file.file);
    match std::fs::read(&path).map_err(|error| error.to_string()).and_then(|bytes| anchors(&bytes)) {
        Err(message) => wrong("file", format!("{}: {message}", path.display())),
        Ok(set) => {
            let paid = |name: &String| metrics.iter().any(|metric| metric.config.price() == Price::Paid && metric.config.gives().may_give(&metric.name, name));
            if !set.iter().any(|anchor| anchor.labels.keys().any(paid)) {
                wrong("file", format!("{}: no anchor has a label of a judge of this monitor", path.display()));
            }
        }
    }
    Some(AnchorsSpec { file: path, n, confidence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_line() {
        let line = |id: &str, label: &str| format!(r#"{{"id": "{id}", "input": "q", "output": "a", "labels": {{"helpful": {label}}}}}"#);
        let read = |lines: &[String]| anchors(lines.join("\n").as_bytes());
        let good = read(&[line("a", "\"pass\""), String::new(), line("b", "0.5")]).unwrap();
        assert_eq!((good.len(), good[1].labels["helpful"]), (2, Label::Value(0.5)));
        for (lines, fault) in [
            (vec![line("a", "1"), line("a", "1")], "line 2: the anchor `a` stands here a second time"),
            (vec![line("a", "1"), String::new(), line("b", "\"good\"")], "line 3: a label is `pass`, `fail` or a number between 0 and 1"),
            (vec!["{}".to_owned()], "line 1: missing field `id`"),
        ] {
            let message = read(&lines).unwrap_err();
            assert!(message.starts_with(fault), "{message}");
        }
    }

    #[test]
    fn an_edit_makes_another_anchor_for_the_metric_whose_label_it_changes() {
        let anchor =
            |label: &str| anchors(format!(r#"{{"id": "a", "input": "q", "output": "a", "labels": {{"x": {label}, "y": 1}}}}"#).as_bytes()).unwrap().remove(0);
        assert_ne!(anchor("0").key("x"), anchor("1").key("x"));
        assert_eq!(anchor("0").key("y"), anchor("1").key("y"));
    }
}
