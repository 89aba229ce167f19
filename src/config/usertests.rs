//! Users' own tests: `*.test.yaml` and `*_test.yaml` beside the monitors, for `assayd test`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::{Loaded, MonitorSpec, load::shown};
use crate::{
    alerting::of_monitors,
    metrics::Price,
    model::{AlertState, Decision, Outcome, RunStatus, Wait},
    util::{
        text,
        yaml::{self, Fault, Node, Section, Span, Value},
    },
};

/// One test of one monitor.
#[derive(Debug)]
pub struct UserTest {
    /// As the user would name it.
    pub file: String,
    pub name: String,
    pub monitor: Arc<MonitorSpec>,
    pub runs: Vec<UserRun>,
}

/// A run, or several that are alike.
#[derive(Debug, Clone, Default)]
pub struct UserRun {
    /// Of the first of them; without it the monitor's next slot. The others follow by the schedule.
    pub at: Option<Timestamp>,
    /// How many. From the second on, and where the traces are those of the runs before, each has ids of its own.
    pub times: u32,
    /// The traces are those of the entry above.
    pub again: bool,
    /// Fields of each; `id` is there.
    pub traces: Vec<Map<String, Json>>,
    /// By item (`*` for all others) and metric (`METRIC` or `METRIC.PART`).
    pub verdicts: BTreeMap<String, BTreeMap<String, Outcome>>,
    pub expect: Expected,
}

/// What is expected after the last of the runs. What is not named is not looked at.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expected {
    pub status: Option<RunStatus>,
    /// By item.
    pub decisions: BTreeMap<String, Decision>,
    /// By item and metric; within 0.0001.
    pub scores: BTreeMap<String, BTreeMap<String, f64>>,
    pub alerts: BTreeMap<String, AlertState>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    monitor: Section<String>,
    tests: Vec<Section<TestFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestFile {
    name: String,
    runs: Vec<Section<RunFile>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RunFile {
    at: Option<Timestamp>,
    #[serde(default = "once")]
    repeat: u32,
    traces: Option<Vec<Node>>,
    #[serde(default)]
    verdicts: BTreeMap<String, BTreeMap<String, Node>>,
    expect: Option<Section<Expected>>,
}

fn once() -> u32 {
    1
}

/// More is a slip of the finger.
const MOST_RUNS: u32 = 10_000;

/// Whether a file holds tests, which makes it no monitor.
pub(super) fn is_test(name: &str) -> bool {
    [".test.yaml", ".test.yml", "_test.yaml", "_test.yml"].iter().any(|end| name.ends_with(end))
}

/// The tests of a file, or of all files below a folder, with every fault of theirs.
#[must_use]
pub fn load_tests(path: &Path, loaded: &Loaded) -> (Vec<UserTest>, Vec<Fault>) {
    let (mut files, mut tests, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    find(path, 0, &mut files, &mut faults);
    files.sort();
    for file in files {
        match std::fs::read(&file).map_err(|error| unread(&file, &error)).and_then(|bytes| yaml::parse(&shown(&file), &bytes)) {
            Ok(documents) => documents.iter().for_each(|tree| read_file(tree, &file, loaded, &mut tests, &mut faults)),
            Err(fault) => faults.push(fault),
        }
    }
    (tests, faults)
}

fn unread(path: &Path, error: &std::io::Error) -> Fault {
    Fault { at: Span { file: shown(path).into(), line: 1, column: 1 }, message: format!("cannot be read: {error}") }
}

/// Folders below each other at most: a symlink that leads upwards goes round.
const MAX_DEPTH: usize = 16;

fn find(path: &Path, depth: usize, files: &mut Vec<PathBuf>, faults: &mut Vec<Fault>) {
    if !path.is_dir() {
        files.push(path.to_owned());
        return;
    }
    let entries = match std::fs::read_dir(path) {
        Ok(entries) if depth < MAX_DEPTH => entries,
        Ok(_) => return,
        Err(error) => return faults.push(unread(path, &error)),
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        // As for monitors.
        let hidden = name.starts_with(['_', '.']) || name.ends_with('~');
        if !hidden && (path.is_dir() || is_test(&name)) {
            find(&path, depth + 1, files, faults);
        }
    }
}

fn read_file(tree: &Node, path: &Path, loaded: &Loaded, tests: &mut Vec<UserTest>, faults: &mut Vec<Fault>) {
    let Some(file) = yaml::read::<File>(tree, faults) else { return };
    let Some(name) = file.monitor.read(faults) else { return };
    let Some(monitor) = loaded.monitors.get(&name) else {
        let hint = near(&name, loaded.monitors.keys().map(String::as_str));
        return faults.push(Fault::new(&file.monitor.node.at, format!("there is no valid monitor `{}`{hint}", text::one_line(&name, 80))));
    };
    for section in &file.tests {
        let before = faults.len();
        let Some(test) = section.read(faults) else { continue };
        let runs: Vec<UserRun> = test.runs.iter().filter_map(|section| run(section, monitor, faults)).collect();
        if runs.first().is_none_or(|first| first.again) {
            faults.push(Fault::new(&section.node.at, "the first run of a test has `traces`"));
        }
        if faults.len() == before {
            tests.push(UserTest { file: shown(path), name: test.name, monitor: Arc::clone(monitor), runs });
        }
    }
}

fn near<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    text::nearest(word, known).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default()
}

fn run(section: &Section<RunFile>, monitor: &MonitorSpec, faults: &mut Vec<Fault>) -> Option<UserRun> {
    let file = section.read(faults)?;
    let place = |key: &str| section.node.get(key).map_or(&section.node.at, |node| &node.at);
    if !(1..=MOST_RUNS).contains(&file.repeat) {
        faults.push(Fault::new(place("repeat"), format!("`repeat` is between 1 and {MOST_RUNS}")));
    }
    let mut traces = Vec::new();
    for node in file.traces.iter().flatten() {
        traces.extend(trace(node, faults));
    }
    let mut verdicts = BTreeMap::new();
    for (item, given) in &file.verdicts {
        let given = given.iter().filter_map(|(metric, node)| Some((metric.clone(), verdict(metric, node, monitor, faults)?)));
        verdicts.insert(item.clone(), given.collect());
    }
    let expect = file.expect.as_ref().and_then(|section| expected(section, monitor, faults)).unwrap_or_default();
    Some(UserRun { at: file.at, times: file.repeat, again: file.traces.is_none(), traces, verdicts, expect })
}

fn trace(node: &Node, faults: &mut Vec<Fault>) -> Option<Map<String, Json>> {
    let mut fields: Map<String, Json> = yaml::read(node, faults)?;
    // An id that looks like a number is the text that was written.
    match node.get("id").map(|id| (id, yaml::read::<String>(id, faults))) {
        Some((_, Some(id))) if !id.is_empty() => {
            fields.insert("id".to_owned(), Json::String(id));
            Some(fields)
        }
        Some((id, _)) => {
            faults.push(Fault::new(&id.at, "an id is text that is not empty"));
            None
        }
        None => {
            faults.push(Fault::new(&node.at, "a trace needs an `id`"));
            None
        }
    }
}

fn expected(section: &Section<Expected>, monitor: &MonitorSpec, faults: &mut Vec<Fault>) -> Option<Expected> {
    let expected = section.read(faults)?;
    let mut known: BTreeSet<&str> = monitor.alerts.iter().map(|alert| alert.name.as_str()).collect();
    for name in of_monitors() {
        known.insert(name);
    }
    let alerts = section.node.get("alerts").and_then(Node::as_map).into_iter().flatten();
    for (name, at, _) in alerts.filter(|(name, ..)| !known.contains(name.as_str())) {
        faults.push(Fault::new(at, format!("the monitor has no alert `{}`{}", text::one_line(name, 80), near(name, known.iter().copied()))));
    }
    Some(expected)
}

/// A value in [0, 1], true or false, or what became of the question.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerdictFile {
    value: Option<f64>,
    label: Option<String>,
    passed: Option<bool>,
    #[serde(default)]
    reason: String,
    failed: Option<String>,
    not_applicable: Option<String>,
    deferred: Option<String>,
}

fn verdict(metric: &str, node: &Node, monitor: &MonitorSpec, faults: &mut Vec<Fault>) -> Option<Outcome> {
    let spec = monitor.metrics.iter().find(|spec| spec.config.gives().may_give(&spec.name, metric));
    let wrong = |message: String, faults: &mut Vec<Fault>| {
        faults.push(Fault::new(&node.at, message));
        None
    };
    let Some(spec) = spec else {
        return wrong(
            format!("the monitor has no metric `{}`{}", text::one_line(metric, 80), near(metric, monitor.metrics.iter().map(|spec| spec.name.as_str()))),
            faults,
        );
    };
    if spec.config.price() == Price::Free {
        return wrong(format!("`{}` is computed, so it takes no verdict; what it gives is expected under `scores`", spec.name), faults);
    }
    let scored = |value: f64, passed, label, reason| Outcome::Scored { value, raw: None, label, passed, reason };
    let given = match &node.value {
        Value::Bool(passed) => scored(f64::from(u8::from(*passed)), Some(*passed), None, String::new()),
        Value::Int(_) | Value::Float(_) => scored(yaml::read(node, faults)?, None, None, String::new()),
        _ => {
            let file: VerdictFile = yaml::read(node, faults)?;
            match (file.value, file.failed, file.not_applicable, file.deferred) {
                (Some(value), None, None, None) => scored(value, file.passed, file.label, file.reason),
                (None, Some(reason), None, None) => Outcome::Failed { reason },
                (None, None, Some(reason), None) => Outcome::NotApplicable { reason },
                (None, None, None, Some(reason)) => Outcome::Deferred { reason, wait: Wait::Judge },
                _ => return wrong("a verdict has one of `value`, `failed`, `not_applicable` and `deferred`".to_owned(), faults),
            }
        }
    };
    match given {
        Outcome::Scored { value, .. } if !(0.0..=1.0).contains(&value) => wrong("a value lies in [0, 1]".to_owned(), faults),
        given => Some(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tests_are_told_from_those_of_monitors() {
        for name in ["a.test.yaml", "a_test.yml", "_test.yaml", "a.b.test.yml"] {
            assert!(is_test(name), "{name}");
        }
        for name in ["test.yaml", "a-test.yaml", "atest.yaml", "a.test.json", "a.test.yaml.bak"] {
            assert!(!is_test(name), "{name}");
        }
    }
}
