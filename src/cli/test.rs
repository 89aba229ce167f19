//! `assayd test`: users' own tests of their monitors.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use serde::Serialize;

use super::{Failure, Format, Overrides, block_on, monitors, print, settings_without_keys};
use crate::{
    config::{Expected, UserTest, load_tests},
    daemon::{Rehearsed, rehearse},
    util::text::{figure, one_line},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A file of tests, or a folder of them [default: the monitors' folder]
    path: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// What became of one test.
#[derive(Debug, Serialize)]
struct Tested {
    file: String,
    monitor: String,
    name: String,
    ok: bool,
    mismatches: Vec<Mismatch>,
    /// Why it could not be run to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Mismatch {
    /// Which run of the test, from 1, and when.
    run: usize,
    at: String,
    /// `alert low`, `item t1`, `score t1 faithfulness`, `status`
    what: String,
    expected: String,
    found: String,
    /// Why it is as it was found; untrusted text.
    reason: String,
}

pub(super) fn test(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let loaded = monitors(&settings);
    let (tests, faults) = load_tests(arguments.path.as_ref().unwrap_or(&settings.monitors), &loaded);
    let mut tested = Vec::with_capacity(tests.len());
    block_on(async {
        for test in &tests {
            let lived = rehearse(&settings, test).await;
            tested.push(judged(test, lived));
        }
        Ok(())
    })?;
    let failed = tested.iter().filter(|test| !test.ok).count();
    if arguments.format == Format::Json {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        print(&format!("{:#}\n", serde_json::json!({ "tests": tested, "failed": failed, "faults": faults })))?;
    } else {
        print(&table(&tested))?;
        // A monitor that does not load is why its tests do not.
        loaded.faults.iter().chain(&faults).for_each(|fault| eprintln!("{fault}"));
        eprintln!("{} tests, {failed} failed{}", tested.len(), if faults.is_empty() { String::new() } else { format!("; {} faults in files", faults.len()) });
    }
    if failed > 0 || !faults.is_empty() { Err(Failure::Problems) } else { Ok(()) }
}

fn judged(test: &UserTest, lived: anyhow::Result<Vec<Rehearsed>>) -> Tested {
    let (mismatches, error) = match lived {
        Ok(lived) => (test.runs.iter().zip(&lived).flat_map(|(entry, found)| mismatches(&entry.expect, found)).collect(), None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let ok = mismatches.is_empty() && error.is_none();
    Tested { file: test.file.clone(), monitor: test.monitor.name.clone(), name: test.name.clone(), ok, mismatches, error }
}

/// What is not as it is expected.
fn mismatches(expect: &Expected, lived: &Rehearsed) -> Vec<Mismatch> {
    let mut all = Vec::new();
    let mut differ = |what: String, expected: String, (found, reason): (String, &str)| {
        if expected != found {
            all.push(Mismatch { run: lived.run, at: lived.at.to_string(), what, expected, found, reason: one_line(reason, 300) });
        }
    };
    let report = &lived.report;
    let error = report.error.as_deref().unwrap_or_default();
    if let Some(status) = expect.status {
        differ("status".to_owned(), status.as_str().to_owned(), (report.status.as_str().to_owned(), error));
    }
    for (item, decision) in &expect.decisions {
        let life = lived.items.get(item).and_then(Option::as_ref);
        let found = life.map_or_else(|| ("not fetched".to_owned(), error), |life| (life.decision.clone(), life.reason.as_str()));
        differ(format!("item {item}"), decision.as_str().to_owned(), found);
    }
    for (item, metric, value) in expect.scores.iter().flat_map(|(item, scores)| scores.iter().map(move |(metric, value)| (item, metric, value))) {
        let scores = lived.items.get(item).and_then(Option::as_ref).map(|life| &life.scores);
        let found = match scores.and_then(|scores| scores.iter().find(|score| score.metric == *metric)) {
            // Near enough is as expected.
            Some(score) => match score.value {
                Some(found) if (found - value).abs() < 1e-4 => continue,
                Some(found) => (figure(found), score.reason.as_str()),
                None => (score.outcome.clone(), score.reason.as_str()),
            },
            None => ("no score".to_owned(), ""),
        };
        differ(format!("score {item} {metric}"), figure(*value), found);
    }
    let states: BTreeMap<&str, _> = report.alerts.iter().map(|line| (line.name.as_str(), line)).collect();
    for (alert, state) in &expect.alerts {
        let found = states.get(alert.as_str()).map_or_else(|| ("not evaluated".to_owned(), ""), |line| (line.state.as_str().to_owned(), line.reason.as_str()));
        differ(format!("alert {alert}"), state.as_str().to_owned(), found);
    }
    all
}

fn table(tested: &[Tested]) -> String {
    let mut out = String::new();
    let mut file = "";
    for test in tested {
        if test.file != file {
            file = &test.file;
            let _ = writeln!(out, "{file}");
        }
        let _ = writeln!(out, "  {:<6}  {}", if test.ok { "ok" } else { "FAILED" }, one_line(&test.name, 200));
        for Mismatch { run, at, what, expected, found, reason } in &test.mismatches {
            let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
            let _ = writeln!(out, "          run {run} at {at}: {}: expected {expected}, found {found}{why}", one_line(what, 200));
        }
        if let Some(error) = &test.error {
            let _ = writeln!(out, "          {}", one_line(error, 500));
        }
    }
    out
}
