//! Items through a Python process by the metric `exec`, beside the same function in a bare loop over the same lines.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{
    Size, process,
    report::{Report, median, shown},
    site::Site,
};

/// Where the metric is, and the bridge that it is served by.
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/exec");
const REAL: &str = include_str!("../../tests/fixtures/answers.jsonl");

/// What a script of one's own would do.
const LOOP: &str = r#"
import json, sys
from brevity import brevity
judged = 0
with open(sys.argv[1]) as lines, open(sys.argv[2], "w") as out:
    for line in lines:
        print(json.dumps(brevity(json.loads(line))), file=out)
        judged += 1
print(judged)
"#;

fn monitor(items: usize) -> String {
    format!(
        r#"
name: brevity
schedule: {{ every: 1h }}
source: {{ type: file, path: items.jsonl, settle: 0s, lookback: 24h, limit: {items} }}
metrics:
  - {{ name: brevity, type: exec, command: [python3, "{EXAMPLES}/brevity.py"], concurrency: 8 }}
evaluation: {{ concurrency: 16 }}
"#
    )
}

/// Real questions and answers, again and again under ids of their own.
fn lines(items: usize) -> anyhow::Result<String> {
    let real: Vec<Value> = REAL.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let first = Timestamp::now() - SignedDuration::from_hours(12);
    let mut lines = String::new();
    for (number, mut item) in real.into_iter().cycle().take(items).enumerate() {
        item["id"] = format!("answer-{number:06}").into();
        item["timestamp"] = (first + SignedDuration::from_secs(i64::try_from(number)?)).to_string().into();
        lines.push_str(&format!("{item}\n"));
    }
    Ok(lines)
}

pub fn figures(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let items = size.pick(10_000, 1_000);
    let lines = lines(items)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(3, 1) {
        // A new state each time: what was judged is not judged again.
        let site = Site::of("")?;
        let file = site.path().join("items.jsonl");
        fs::write(&file, &lines)?;
        site.monitor("brevity", &monitor(items))?;
        let (used, run) = site.once("brevity")?;
        ensure!(run.counts.scored == items as u64, "{} of {items} items are scored", run.counts.scored);
        ours.push(items as f64 / used.wall.as_secs_f64());
        theirs.push(items as f64 / bare(&file, items)?);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let reference = format!("the same function in a bare Python loop, keeps nothing: {}, {} times as fast", shown(theirs, "items/s"), shown(theirs / ours, ""));
    report.figure(&format!("{items} items through exec, start, ledger and records included"), ours, "items/s", None, &reference);
    Ok(())
}

/// Seconds, the interpreter's start included.
fn bare(file: &Path, items: usize) -> anyhow::Result<f64> {
    let mut command = Command::new("python3");
    let used = process::run(command.args(["-c", LOOP]).arg(file).arg(file.with_extension("out")).current_dir(EXAMPLES).env("PYTHONDONTWRITEBYTECODE", "1"))?;
    let judged: usize = used.stdout.trim().parse().context("what the bare loop says")?;
    ensure!(judged == items, "the bare loop judged {judged} of {items} items");
    Ok(used.wall.as_secs_f64())
}
