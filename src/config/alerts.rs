//! `alerts:` -> alerts, with every fault of them.

use jiff::Timestamp;

use super::{
    AlertSpec, BySpec, EvidenceSpec, For, MetricSpec, Over, Settings,
    check::place,
    monitor::{AlertFile, ByFile, ConfidenceScope},
};
use crate::{
    alerting::{Comparison, Condition},
    schedule::plan::{Plan, ScheduleSpec},
    statistics::{
        baseline::{Level, MIN_RUNS},
        evidence::Promise,
        real,
    },
    util::{
        duration::{self, Human},
        template::Expr,
        text::one_line,
        yaml::{self, Fault, Node, Section, Value},
    },
};

/// How long a level is learned.
const BASELINE: Human = Human::days(7);
/// How many times as many items a run draws in doubt.
const BOOST: u32 = 5;
/// More would hardly be sampling.
const MAX_BOOST: u32 = 100;

/// Values with an alert of their own.
const LIMIT: usize = 20;
/// Each is looked at after every run.
const MAX_LIMIT: usize = 200;

/// Seconds between two runs.
pub(super) fn interval(schedule: &ScheduleSpec, monitor: &str) -> Option<f64> {
    Plan::new(schedule, monitor).ok()?.mean_gap(Timestamp::UNIX_EPOCH)
}

/// `interval`: seconds between two runs, if that is known.
pub(super) fn check(
    sections: &[Section<AlertFile>],
    metrics: &[MetricSpec],
    interval: Option<f64>,
    settings: &Settings,
    faults: &mut Vec<Fault>,
) -> Vec<AlertSpec> {
    let mut alerts: Vec<AlertSpec> = Vec::with_capacity(sections.len());
    for section in sections {
        let node = &section.node;
        let Some(file) = section.read(faults) else { continue };
        let when = condition(&file.when, faults);
        match (&file.metric, when) {
            (Some(metric), _) if metrics.iter().all(|known| !known.config.gives().may_give(&known.name, metric)) => {
                let hint = crate::util::text::nearest(metric, metrics.iter().map(|known| known.name.as_str()))
                    .map(|near| format!(", did you mean `{near}`?"))
                    .unwrap_or_default();
                faults.push(Fault::new(place(node, "metric"), format!("the monitor has no metric `{metric}`{hint}")));
            }
            (None, Some(when)) if when.statistic.needs_metric() => faults.push(Fault::new(&node.at, format!("`{}` needs a `metric`", when.statistic))),
            _ => {}
        }
        let over = file.over.as_ref().map_or(Some(Over::Last(Human::hours(24))), |node| over(node, faults));
        let hold = file.hold.as_ref().map_or(Some(For::Runs(1)), |node| hold(node, faults));
        for target in &file.notify {
            if let Err(message) = target.check(&settings.connections) {
                faults.push(Fault::new(place(node, "notify"), message));
            }
        }
        if alerts.iter().any(|known| known.name == file.name) {
            faults.push(Fault::new(place(node, "name"), format!("the alert `{}` stands here a second time", file.name)));
        }
        if file.name.contains('{') {
            faults.push(Fault::new(place(node, "name"), "an alert's name has no `{`: behind it stands the value that `by` tells it by"));
        }
        let by = file.by.as_ref().and_then(|node| by(node, faults));
        let resolve_when = file.resolve_when.as_ref().and_then(|node| condition(node, faults));
        let evidence = evidence(&file, when, interval, node, faults);
        if let Some(when) = when {
            fits_together(&file, when, resolve_when, interval, settings, node, faults);
        }
        let (Some(when), Some(over), Some(hold)) = (when, over, hold) else { continue };
        alerts.push(AlertSpec {
            name: file.name,
            metric: file.metric,
            by,
            when,
            resolve_when,
            over,
            // The evidence needs none; a plain figure of nothing is none.
            min_samples: file.min_samples.unwrap_or(u64::from(evidence.is_none())),
            hold,
            keep_firing_for: file.keep_firing_for.unwrap_or(Human::secs(0)),
            evidence,
            baseline: file.baseline.unwrap_or(BASELINE),
            severity: file.severity,
            notify: file.notify,
            repeat: file.repeat.unwrap_or(Human::hours(4)),
        });
    }
    alerts
}

fn condition(node: &Node, faults: &mut Vec<Fault>) -> Option<Condition> {
    let read = match &node.value {
        Value::String(text) => text.parse::<Condition>(),
        _ => Err(format!("a condition is text such as `mean < 0.8`, found {}", node.describe())),
    };
    read.map_err(|message| faults.push(Fault::new(&node.at, message))).ok()
}

fn by(node: &Node, faults: &mut Vec<Fault>) -> Option<BySpec> {
    let file = match &node.value {
        Value::Null => return None,
        Value::Map(_) => yaml::read::<ByFile>(node, faults)?,
        _ => ByFile { value: node.clone(), label: None, limit: None },
    };
    let before = faults.len();
    let Some(value) = file.value.as_str() else {
        faults.push(Fault::new(&file.value.at, format!("`by` is an expression such as `trace.metadata.prompt_version`, found {}", file.value.describe())));
        return None;
    };
    if let Err(error) = Expr::lenient(value) {
        faults.push(Fault::new(&file.value.at, format!("`by` is no expression: {error}")));
    }
    let label = match &file.label {
        Some(label) => label.clone(),
        None => last_part(value).unwrap_or_default().to_owned(),
    };
    if label.is_empty() && file.label.is_none() {
        faults.push(Fault::new(&file.value.at, "`by` needs a `label` beside the `value`, since the expression is no path whose last part could name it"));
    } else if !sound_label(&label) {
        let known = OWN_LABELS.join(", ");
        let message = format!("`{}` is no label of an alert: letters, digits and `_`, not beginning with a digit, and none of {known}", one_line(&label, 80));
        faults.push(Fault::new(file.label.as_ref().map_or(&file.value.at, |_| place(node, "label")), message));
    }
    let limit = file.limit.unwrap_or(LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        faults.push(Fault::new(place(node, "limit"), format!("`limit` is between 1 and {MAX_LIMIT}")));
    }
    (faults.len() == before).then(|| BySpec { value: value.to_owned(), label, limit })
}

/// Labels that every alert has.
const OWN_LABELS: [&str; 4] = ["alertname", "monitor", "metric", "severity"];

fn sound_label(label: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !label.is_empty() && !label.starts_with(|c: char| c.is_ascii_digit()) && label.chars().all(sound) && !OWN_LABELS.contains(&label)
}

/// `prompt_version` of `trace.metadata.prompt_version`; `None` of what is no path.
fn last_part(expression: &str) -> Option<&str> {
    let path = expression.trim();
    let sound = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    path.split('.').all(sound).then(|| path.rsplit('.').next()).flatten()
}

/// `None` where the alert is a plain threshold, or wrong.
fn evidence(file: &AlertFile, when: Option<Condition>, interval: Option<f64>, node: &Node, faults: &mut Vec<Fault>) -> Option<EvidenceSpec> {
    let Some(confidence) = file.confidence else {
        for (key, there) in [("confidence_scope", file.confidence_scope.is_some()), ("boost", file.boost.is_some())] {
            if there {
                faults.push(Fault::new(place(node, key), format!("`{key}` goes with `confidence`")));
            }
        }
        return None;
    };
    let before = faults.len();
    if !(0.5..1.0).contains(&confidence) {
        faults.push(Fault::new(place(node, "confidence"), "`confidence` is at least 0.5 and below 1, such as 0.99 for at most one false alarm in 100 days"));
    } else if let Some(interval) = interval
        && (Promise { confidence, interval }).stake().is_none()
    {
        let days = crate::util::text::figure((1.0 / (1.0 - confidence) * 10.0).round() / 10.0);
        let message = format!("too few runs for this confidence: one false alarm in {days} days cannot be told from chance; raise it, or run more often");
        faults.push(Fault::new(place(node, "confidence"), message));
    }
    // A learned level lies somewhere in the middle; whether the statistic can be asked about does not hang on where.
    let middle = Level { mean: 0.5, low: 0.5, high: 0.5 };
    if let Some(Err(message)) = when.map(|when| when.against(&middle).question()) {
        faults.push(Fault::new(&file.when.at, message));
    }
    let boost = file.boost.unwrap_or(BOOST);
    if !(1..=MAX_BOOST).contains(&boost) {
        faults.push(Fault::new(place(node, "boost"), format!("`boost` is between 1 and {MAX_BOOST}")));
    }
    let scope = file.confidence_scope.unwrap_or(ConfidenceScope::Alert);
    (faults.len() == before).then_some(EvidenceSpec { confidence, scope, boost })
}

fn fits_together(
    file: &AlertFile,
    when: Condition,
    resolve_when: Option<Condition>,
    interval: Option<f64>,
    settings: &Settings,
    node: &Node,
    faults: &mut Vec<Fault>,
) {
    let mut wrong = |key: &str, message: String| faults.push(Fault::new(place(node, key), message));
    if file.baseline.is_some() && !when.baseline {
        wrong("baseline", "`baseline` goes with a comparison such as `when: mean < baseline - 0.02`".to_owned());
    }
    let window = file.baseline.unwrap_or(BASELINE);
    let needed = interval.map_or(0.0, |interval| interval * real(MIN_RUNS)).max(window.0.as_secs_f64());
    if when.baseline && needed > settings.retention.runs.0.as_secs_f64() {
        let message = format!(
            "a level takes {MIN_RUNS} runs and {window} to learn, and runs are remembered for {}: run more often, or raise `retention.runs`",
            settings.retention.runs
        );
        wrong("when", message);
    }
    if file.baseline.is_some_and(|window| window < Human::hours(1)) {
        wrong("baseline", "`baseline` is at least 1h".to_owned());
    }
    let Some(end) = resolve_when else { return };
    if file.confidence.is_some() {
        wrong("resolve_when", "with `confidence` an alert ends when there is evidence that it is over; leave `resolve_when` out".to_owned());
    } else if end.statistic != when.statistic || end.baseline || when.baseline {
        wrong("resolve_when", format!("`resolve_when` compares {} with a number, as `when` does", when.statistic));
    } else if !apart(when, end) {
        wrong("resolve_when", format!("`when: {when}` and `resolve_when: {end}` may hold at the same time; write it like `mean < 0.8` and `mean >= 0.85`"));
    }
}

/// Whether two comparisons of the same figure can never hold together.
fn apart(when: Condition, end: Condition) -> bool {
    let below = |condition: Condition| matches!(condition.comparison, Comparison::Less | Comparison::AtMost);
    let (low, high) = if below(when) { (when, end) } else { (end, when) };
    below(low) && !below(high) && low.threshold <= high.threshold && !(low.holds(low.threshold) && high.holds(low.threshold))
}

fn runs(node: &Node) -> Option<u32> {
    match node.value {
        Value::Int(n) if n > 0 => u32::try_from(n).ok(),
        _ => None,
    }
}

fn over(node: &Node, faults: &mut Vec<Fault>) -> Option<Over> {
    let found = match &node.value {
        Value::Map(map) if map.len() == 1 && map[0].0 == "runs" => runs(&map[0].2).map(Over::Runs),
        Value::String(text) => match text.trim().strip_prefix("runs:") {
            Some(n) => n.trim().parse().ok().filter(|n| *n > 0).map(Over::Runs),
            None => duration::parse(text).ok().map(|window| Over::Last(Human(window))),
        },
        _ => None,
    };
    if found.is_none() {
        faults.push(Fault::new(&node.at, "`over` is a duration such as `24h`, or `{ runs: 5 }`"));
    }
    found
}

fn hold(node: &Node, faults: &mut Vec<Fault>) -> Option<For> {
    let found = runs(node).map(For::Runs).or_else(|| match &node.value {
        Value::String(text) => duration::parse(text).ok().map(|time| For::Time(Human(time))),
        _ => None,
    });
    if found.is_none() {
        faults.push(Fault::new(&node.at, "`for` is a number of runs such as `2`, or a duration such as `30m`"));
    }
    found
}
