//! Commands: what they print, what they exit with. And the monitors that we ship.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{
    build::{demo, langfuse, quick, short, with},
    site::Site,
    world::Fault,
};

#[tokio::test]
async fn every_fault_of_every_file_is_told_in_one_go() {
    let site = Site::new().await;
    let sound = "source: { type: file, path: x.jsonl }\nmetrics: [{ name: a, type: length, field: output, max: 10 }]\n";
    site.write("monitors/key.yaml", format!("schedule:\n  intervall_minutes: 5\n{sound}"));
    site.write("monitors/zone.yaml", format!("schedule:\n  cron: '0 * * * *'\n  timezone: Europe/Berlinn\n{sound}"));
    site.write("monitors/syntax.yaml", "schedule: [\n");
    site.write("monitors/sub/two.yaml", "schedule: { every: 5x }\nsource: { type: fil, path: x.jsonl }\nmetrics: [{ name: a, type: regexx, field: output }]\n");
    site.write("monitors/good.yaml", format!("schedule: {{ every: 5m }}\n{sound}"));
    let output = site.run(&["validate"]).await.expect(1);
    let said = output.said();
    for (file, position, words) in [
        ("monitors/key.yaml", ":2:3:", vec!["intervall_minutes", "interval_minutes"]),
        ("monitors/zone.yaml", ":3:", vec!["Berlinn"]),
        ("monitors/syntax.yaml", ":", vec![]),
        ("monitors/sub/two.yaml", ":2:", vec!["fil", "file"]),
        ("monitors/sub/two.yaml", ":3:", vec!["regexx", "regex"]),
        ("monitors/sub/two.yaml", ":1:", vec!["5x"]),
    ] {
        let told = said.lines().any(|line| line.contains(&format!("{file}{position}")) && words.iter().all(|word| line.contains(word)));
        assert!(told, "nothing about {file}{position} {words:?} in\n{said}");
    }
    assert!(!said.contains("monitors/good.yaml:"), "{said}");
}

#[tokio::test]
async fn a_fault_is_told_with_what_was_probably_meant() {
    let site = Site::new().await;
    let place = regex::Regex::new(r"monitors/m\.yaml:\d+:\d+: ").unwrap();
    let alert = |rest: &str| format!("metrics: [{{ name: a, type: length, max: 1 }}]\nalerts: [{{ name: x, metric: a, {rest} }}]");
    for (text, wanted) in [
        ("metrics: [{ name: a, type: lenght, max: 1 }]", "length"),
        ("metrics: [{ name: a, type: length, maxx: 1 }]", "max"),
        ("metrics: [{ name: a, type: length, max: 1 }]\nsamplin: {}", "sampling"),
        ("metrics: [{ name: a, type: length, max: 1 }]\nsampling: { strategy: randm, n: 3 }", "random"),
        ("metrics: [{ name: a, type: judge, rubric: faithfulnes, model: judge }]", "faithfulness"),
        ("metrics: [{ name: a, type: judge, rubric: faithfulness, model: juge }]", "judge"),
        ("metrics: [{ name: a, type: length, max: 1 }]\nalerts: [{ name: x, metric: aa, when: 'mean < 1' }]", "aa"),
        ("metrics: [{ name: a, type: length, max: 1 }]\nalerts: [{ name: x, metric: a, when: 'meen < 1' }]", "mean"),
        (&alert("when: mean < 0.8, confidence: 99"), "0.99"),
        (&alert("when: n < 8, confidence: 0.99"), "leave `confidence` out"),
        (&alert("when: mean < 1, confidence: 0.99"), "0.999"),
        (&alert("when: mean < 0.8, boost: 5"), "goes with `confidence`"),
        (&alert("when: mean < 0.8, baseline: 7d"), "baseline - 0.02"),
        (&alert("when: p10 < baseline - 0.02, confidence: 0.99"), "only mean, pass_rate and failed_rate"),
        (&alert("when: mean < 0.8, resolve_when: mean > 0.7"), "may hold at the same time"),
        (&alert("when: mean < 0.8, resolve_when: p10 > 0.9"), "as `when` does"),
        (&alert("when: mean < 0.8, confidence: 0.99, resolve_when: mean > 0.9"), "leave `resolve_when` out"),
    ] {
        site.write("monitors/m.yaml", format!("schedule: {{ every: 5m }}\nsource: {{ type: file, path: x.jsonl }}\n{text}\n"));
        let output = site.run(&["validate"]).await.expect(1);
        assert!(output.said().contains(wanted), "{text}: {output:?}");
        assert!(place.is_match(&output.said()), "{output:?}");
    }
}

#[tokio::test]
async fn a_path_narrows_what_is_told() {
    let site = Site::new().await;
    site.write("monitors/a/bad.yaml", "schedule: [\n");
    site.write("monitors/b/bad.yaml", "schedule: [\n");
    let said = site.run(&["validate", "monitors/a"]).await.expect(1).said();
    assert!(said.contains("monitors/a/bad.yaml") && !said.contains("monitors/b/bad.yaml:"), "{said}");
}

#[tokio::test]
async fn validate_live_reaches_what_the_settings_name() {
    let site = Site::new().await;
    site.monitor("m", &langfuse());
    site.run(&["validate"]).await.expect(0);
    site.run(&["validate", "--live"]).await.expect(0);
    site.world.langfuse.revoke_keys(true);
    site.run(&["validate"]).await.expect(0);
    let output = site.run(&["validate", "--live"]).await.expect(1);
    assert!(output.said().contains("401") || output.said().contains("Invalid credentials"), "{output:?}");
}

#[tokio::test]
async fn exit_codes_tell_problems_from_wrong_usage() {
    let site = Site::new().await;
    site.monitor("m", &demo(&site));
    site.run(&["--version"]).await.expect(0);
    site.run(&["--help"]).await.expect(0);
    site.run(&["nonsense"]).await.expect(2);
    site.run(&["once"]).await.expect(2);
    let output = site.run(&["once", "absent"]).await.expect(2);
    assert!(output.stderr.contains("absent"), "{output:?}");
    let output = site.run(&["run", "--config", "absent.yaml"]).await.expect(2);
    assert!(output.stderr.contains("absent.yaml"), "{output:?}");
    site.write("broken.yaml", "listen: [\n");
    let output = site.run(&["run", "--config", "broken.yaml"]).await.expect(2);
    assert!(output.stderr.contains("broken.yaml:"), "{output:?}");
    site.write("typo.yaml", "liisten: off\n");
    let output = site.run(&["status", "--config", "typo.yaml"]).await.expect(2);
    assert!(output.said().contains("liisten") && output.said().contains("listen"), "{output:?}");
}

#[tokio::test]
async fn without_settings_there_are_defaults() {
    let site = Site::new().await;
    std::fs::remove_file(site.path("assayd.yaml")).unwrap();
    site.monitor("m", &demo(&site));
    site.run(&["validate"]).await.expect(0);
    assert_eq!(site.once("m").await["counts"]["scored"], 100);
    assert!(site.path("state/assayd.db").exists());
}

#[tokio::test]
async fn scores_are_exported_as_lines_and_as_a_table() {
    let site = Site::new().await;
    site.monitor("answers", &demo(&site));
    site.monitor("other", &with(demo(&site), json!({ "sampling": { "n": 5 } })));
    site.once("answers").await;
    site.once("other").await;
    let rows = site.export(&["--monitor", "answers"]).await;
    assert_eq!((rows.len(), site.export(&[]).await.len()), (200, 210));
    for key in [
        "score_id",
        "run_id",
        "monitor",
        "metric",
        "metric_revision",
        "item_id",
        "trace_id",
        "item_timestamp",
        "outcome",
        "value",
        "raw",
        "label",
        "passed",
        "reason",
        "provider",
        "model",
        "input_tokens",
        "output_tokens",
        "cost_usd",
        "latency_ms",
        "created_at",
    ] {
        assert!(rows.iter().all(|row| row.get(key).is_some()), "no {key} in {}", rows[0]);
    }
    let table = site.run(&["export", "--monitor", "answers", "--format", "csv"]).await.expect(0).stdout;
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let header = reader.headers().unwrap().clone();
    assert!(header.iter().any(|name| name == "score_id") && header.iter().any(|name| name == "reason"));
    let at = header.iter().position(|name| name == "score_id").unwrap();
    let ids: Vec<String> = reader.records().map(|record| record.unwrap()[at].to_owned()).collect();
    assert_eq!(ids, rows.iter().map(|row| row["score_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>());
    assert!(site.export(&["--since", "2999-01-01T00:00:00Z"]).await.is_empty());
    assert_eq!(site.export(&["--since", "2020-01-01T00:00:00Z"]).await.len(), 210);
}

#[tokio::test]
async fn an_items_life_is_explained() {
    let site = Site::new().await;
    site.world.langfuse.add_some(9);
    site.monitor("m", &with(langfuse(), json!({ "sampling": { "strategy": "random", "n": 3, "seed": 1 } })));
    site.once("m").await;
    let judged = site.scored_items("m", "helpful").await;
    let life = site.run(&["explain", "m", &judged[0]]).await.expect(0).stdout;
    for word in ["scored", "helpful", "0.8", "because of the evidence"] {
        assert!(life.contains(word), "no `{word}` in {life}");
    }
    let left = (0..9).map(|i| format!("t{i:04}")).find(|item| !judged.contains(item)).unwrap();
    let life = site.run(&["explain", "m", &left]).await.expect(0).stdout;
    assert!(life.contains("sampled_out") || life.contains("sampled out"), "{life}");
    let unknown = site.run(&["explain", "m", "no-such-item"]).await;
    assert_ne!(unknown.code, Some(0));
    assert!(unknown.said().contains("no-such-item"), "{unknown:?}");
}

#[tokio::test]
async fn a_line_about_an_item_says_whose_it_is() {
    let mut site = Site::new().await;
    site.settings["log"] = json!({ "level": "assayd=debug" });
    site.save();
    site.world.langfuse.add_some(1);
    site.world.llm.faults.queue([Fault::Status(500)]);
    site.monitor("m", &quick());
    let _daemon = site.daemon().await;
    site.until("the score", |world| world.langfuse.scored("helpful") == 1).await;
    let log = site.log();
    let line = log.lines().find(|line| line.contains("trying again")).unwrap_or_else(|| panic!("{log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    let spans = line["spans"].as_array().unwrap();
    let field = |name: &str| spans.iter().find_map(|span| span[name].as_str());
    assert_eq!((field("monitor"), field("item")), (Some("m"), Some("t0000")), "{line}");
    assert!(field("run").is_some_and(|run| !run.is_empty()), "{line}");
}

#[tokio::test]
async fn validate_checks_the_files_that_it_is_given() {
    let site = Site::new().await;
    let sound = "schedule: { every: 1h }\nsource: { type: file, path: x }\nmetrics: [{ name: a, type: length, max: 1 }]\n";
    site.write("monitors/good.yaml", sound);
    site.write("monitors/bad.yaml", "schedule: { evry: 1h }\n");
    site.write("drafts/draft.yaml", "schedule: { every: soon }\n");
    site.write("drafts/notes.txt", "no monitor");
    let absolute = |path: &str| site.path(path).display().to_string();
    for (path, code, words) in [
        ("monitors/good.yaml", 0, "all sound"),
        ("./monitors/good.yaml", 0, "all sound"),
        (&absolute("monitors/good.yaml"), 0, "all sound"),
        ("monitors/bad.yaml", 1, "monitors/bad.yaml:1:13"),
        (&absolute("monitors/bad.yaml"), 1, "monitors/bad.yaml:1:13"),
        ("monitors", 1, "monitors/bad.yaml:1:13"),
        ("drafts/draft.yaml", 1, "drafts/draft.yaml:1:20"),
        ("drafts", 1, "drafts/draft.yaml:1:20"),
        ("drafts/notes.txt", 1, "holds no monitor"),
        ("nowhere.yaml", 1, "nowhere.yaml"),
        ("assayd.yaml", 0, "all sound"),
    ] {
        let said = site.run(&["validate", path]).await.expect(code).said();
        assert!(said.contains(words), "{path}: no `{words}` in {said}");
    }
}

#[tokio::test]
async fn status_tells_what_each_monitor_does() {
    let site = Site::new().await;
    site.monitor("answers", &demo(&site));
    site.monitor("idle", &with(langfuse(), json!({ "enabled": false })));
    let before = site.run(&["status"]).await.expect(0).stdout;
    assert!(before.contains("answers") && before.contains("idle"), "{before}");
    site.once("answers").await;
    let after = site.run(&["status"]).await.expect(0).stdout;
    assert!(after.contains("succeeded") && after.contains("daemon: not running"), "{after}");

    std::fs::remove_file(site.path("answers.jsonl")).unwrap();
    site.once_with("answers", &[], 1).await;
    let failed = site.run(&["status"]).await.expect(0).stdout;
    assert!(failed.contains("answers: ") && failed.contains("answers.jsonl"), "why it failed: {failed}");
    let daemon = site.daemon().await;
    let running = site.run(&["status"]).await.expect(0).stdout;
    assert!(running.contains(&format!("daemon: process {}", daemon.pid())), "{running}");
    let json = site.run(&["status", "--format", "json"]).await.expect(0).json();
    assert_eq!(json["daemon"]["pid"], daemon.pid());
}

#[tokio::test]
async fn a_disabled_monitor_does_not_run() {
    let site = Site::new().await;
    site.world.langfuse.add_some(2);
    site.monitor("off", &with(quick(), json!({ "enabled": false, "metrics": [with(short(), json!({ "name": "never" }))] })));
    site.monitor("on", &with(quick(), json!({ "metrics": [short()] })));
    let _daemon = site.daemon().await;
    site.more_runs("on", 3).await;
    assert_eq!((site.world.langfuse.scored("short"), site.world.langfuse.scored("never")), (2, 0));
}

#[tokio::test]
async fn results_and_diagnostics_go_their_own_ways() {
    let site = Site::new().await;
    site.monitor("answers", &demo(&site));
    let output = site.run(&["once", "answers", "--format", "json"]).await.expect(0);
    let report = output.json();
    for key in ["run_id", "monitor", "slot", "trigger", "status", "counts", "metrics", "published", "alerts", "cost_usd", "duration_ms"] {
        assert!(report.get(key).is_some(), "no {key} in {report}");
    }
    for key in ["n", "mean", "pass_rate", "failed", "low", "high"] {
        assert!(report["metrics"]["short"].get(key).is_some(), "no {key} in {report}");
    }
    assert!(!output.said().contains('\u{1b}'), "no colour without a terminal");
    let table = site.run(&["once", "answers", "--format", "table"]).await.expect(0).stdout;
    assert!(table.contains("short") || table.contains("answers"), "{table}");
}

#[tokio::test]
async fn completions_and_a_manual_come_with_the_binary() {
    let site = Site::new().await;
    for shell in ["bash", "zsh", "fish"] {
        assert!(site.run(&["completions", shell]).await.expect(0).stdout.contains("assayd"));
    }
    assert!(site.run(&["man"]).await.expect(0).stdout.contains(".TH"));
}

#[tokio::test]
async fn variables_are_filled_in_after_parsing() {
    let mut site = Site::new().await;
    demo(&site);
    site.env.push(("TRICKY".to_owned(), "x: [1, {".to_owned()));
    site.env.push(("N".to_owned(), "3".to_owned()));
    site.write(
        "monitors/m.yaml",
        r#"
name: m
description: "${TRICKY}"
labels: { price: "$$5", team: "${TEAM:-support}" }
schedule: { every: 1h }
source: { type: file, path: answers.jsonl, lookback: 3650d, settle: 0s }
sampling: { strategy: oldest, n: "${N}" }
metrics:
  - name: asked
    type: judge
    model: judge
    output: { kind: boolean }
    prompt: "Costs ${N}: {{ input }}"
"#,
    );
    site.run(&["validate"]).await.expect(0);
    assert_eq!(site.once("m").await["counts"]["scored"], 3);
    assert!(site.world.llm.prompts().iter().all(|prompt| prompt.contains("${N}")), "nothing is filled into a prompt");
}

/// monitors/ of the project.
fn shipped() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                walk(&path, found);
            } else if name.ends_with(".yaml") && !name.ends_with(".test.yaml") && !name.starts_with(['_', '.']) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("monitors"), &mut found);
    assert!(!found.is_empty(), "no monitors are shipped");
    found
}

#[tokio::test]
async fn every_shipped_monitor_is_sound() {
    let site = Site::new().await;
    let root = env!("CARGO_MANIFEST_DIR");
    let folder = format!("{root}/monitors");
    let args = if Path::new(root).join("assayd.yaml").exists() { vec!["validate", "--config"] } else { vec!["validate"] };
    let config = format!("{root}/assayd.yaml");
    let mut args: Vec<&str> = args;
    if args.len() == 2 {
        args.push(&config);
    }
    args.extend(["--monitors", &folder, "--state", "state"]);
    site.run(&args).await.expect(0);
}

#[tokio::test]
async fn every_shipped_monitor_fits_the_schema_for_editors() {
    let site = Site::new().await;
    let schema = site.run(&["schema", "monitor"]).await.expect(0).json();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for path in shipped() {
        let text = std::fs::read_to_string(&path).unwrap();
        for document in assayd::util::yaml::parse(&path.display().to_string(), text.as_bytes()).unwrap() {
            let value: Value = assayd::util::yaml::read(&document, &mut Vec::new()).unwrap_or_else(|| panic!("{}", path.display()));
            let faults: Vec<String> = validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
            assert!(faults.is_empty(), "{}: {faults:?}", path.display());
        }
    }
    let typo = json!({ "schedule": { "every": "5m" }, "source": { "type": "file", "path": "x" }, "metrics": [], "samplin": {} });
    assert!(!validator.is_valid(&typo), "the schema refuses what the loader refuses");
    let settings = site.run(&["schema", "config"]).await.expect(0).json();
    assert!(jsonschema::validator_for(&settings).unwrap().is_valid(&site.settings), "the settings of these tests");
}
