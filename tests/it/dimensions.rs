//! Alerts with `by`: one for each value, each with a state of its own.

use serde_json::{Value, json};

use crate::{build::with, site::Site};

/// Answers of a file, each with the version of the prompt that it came of.
#[derive(Default)]
struct Answers {
    lines: String,
    n: u32,
}

impl Answers {
    /// (version, answers, how many of them are good), and a run over them.
    async fn judged(&mut self, site: &Site, parts: &[(&str, u32, u32)]) -> Value {
        for (version, n, good) in parts {
            for at in 0..*n {
                let output = if at < *good { "good" } else { "bad" };
                let metadata = if version.is_empty() { json!({}) } else { json!({ "prompt_version": version }) };
                let line =
                    json!({ "id": format!("{version}-{}", self.n), "timestamp": "2026-11-01T00:00:00Z", "input": "q", "output": output, "metadata": metadata });
                self.lines.push_str(&format!("{line}\n"));
                self.n += 1;
            }
        }
        site.write("answers.jsonl", &self.lines);
        site.once("m").await
    }
}

fn monitor(alert: &Value) -> Value {
    let low = json!({ "name": "low", "metric": "good", "when": "mean < 0.8", "by": "trace.metadata.prompt_version", "notify": [{ "slack": "#llm-alerts" }] });
    json!({
        "schedule": { "every": "1h" },
        "source": { "type": "file", "path": "answers.jsonl", "settle": "0s", "lookback": "3650d", "overlap": "3650d" },
        "metrics": [{ "name": "good", "type": "contains", "field": "output", "any": ["good"] }],
        "alerts": [with(low, alert.clone())],
    })
}

fn named(value: &str) -> String {
    format!("low{{prompt_version=\"{value}\"}}")
}

/// (name, state) of the alerts that are not built in.
fn states(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let alerts = report["alerts"].as_array().unwrap().iter().map(|alert| (text(&alert["name"]), text(&alert["state"])));
    alerts.filter(|(name, _)| name.starts_with("low")).collect()
}

fn reason(report: &Value, name: &str) -> String {
    let alerts = report["alerts"].as_array().unwrap();
    alerts.iter().find(|alert| alert["name"] == name).unwrap_or_else(|| panic!("no {name} in {alerts:?}"))["reason"].as_str().unwrap().to_owned()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(value, state)| (if value.is_empty() { "low".to_owned() } else { named(value) }, (*state).to_owned())).collect()
}

#[tokio::test]
async fn only_the_alert_of_the_bad_version_fires_and_says_which_it_is() {
    let site = Site::new().await;
    for confidence in [Value::Null, json!(0.99)] {
        std::fs::remove_dir_all(site.path("state")).ok();
        site.monitor("m", &monitor(&json!({ "confidence": confidence })));
        let before = site.world.slack.messages().len();
        let report = Answers::default().judged(&site, &[("v7", 60, 60), ("v8", 60, 6)]).await;
        assert_eq!(states(&report), pairs(&[("v7", "inactive"), ("v8", "firing")]), "{report}");
        for part in ["good{prompt_version=\"v8\"}: mean", "0.1", "60"] {
            assert!(reason(&report, &named("v8")).contains(part), "no `{part}` in {}", reason(&report, &named("v8")));
        }
        let messages = site.world.slack.messages();
        assert_eq!(messages.len(), before + 1, "{messages:?}");
        let text = messages.last().unwrap().to_string();
        assert!(text.contains("v8") && !text.contains("v7"), "{text}");
        let status = site.run(&["status"]).await.expect(0).said();
        assert!(status.contains("low{prompt_version=\"v8\"}: firing"), "{status}");
        let explained = site.run(&["explain", "m", "v8-60"]).await.expect(0).said();
        assert!(explained.contains("trace.metadata.prompt_version = v8"), "{explained}");
    }
}

#[tokio::test]
async fn a_silence_mutes_one_value_and_leaves_the_others() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({})));
    let mut answers = Answers::default();
    answers.judged(&site, &[("v7", 5, 5), ("v8", 5, 5)]).await;
    site.run(&["silence", "add", "--for", "2h", "--comment", "known", "alertname=low", "prompt_version=v8"]).await.expect(0);
    let report = answers.judged(&site, &[("v7", 20, 0), ("v8", 20, 0)]).await;
    assert_eq!(states(&report), pairs(&[("v7", "firing"), ("v8", "firing")]));
    assert!(reason(&report, &named("v8")).contains("muted: silence"), "{report}");
    let messages = site.world.slack.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert!(messages[0].to_string().contains("v7"));
}

#[tokio::test]
async fn what_is_beyond_the_limit_is_judged_together() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({ "by": { "value": "trace.metadata.prompt_version", "limit": 2 }, "over": { "runs": 1 } })));
    let mut answers = Answers::default();
    let report = answers.judged(&site, &[("v1", 9, 9), ("v2", 8, 8), ("v3", 3, 0), ("", 2, 0), ("v5", 1, 1)]).await;
    assert_eq!(states(&report), pairs(&[("v1", "inactive"), ("v2", "inactive"), ("others", "firing")]), "{report}");
    assert!(reason(&report, &named("others")).contains("over 6 answers"), "of three values together: {report}");
    // A little more is not enough for a place; clearly more is.
    let report = answers.judged(&site, &[("v1", 9, 9), ("v2", 8, 8), ("v3", 12, 12)]).await;
    assert_eq!(states(&report), pairs(&[("v1", "inactive"), ("v2", "inactive"), ("others", "resolved")]), "{report}");
    let report = answers.judged(&site, &[("v1", 9, 9), ("v2", 8, 8), ("v3", 17, 17)]).await;
    assert_eq!(states(&report), pairs(&[("v1", "inactive"), ("v3", "inactive"), ("others", "inactive")]), "{report}");
}

#[tokio::test]
async fn an_item_without_a_value_is_none() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({ "by": { "value": "trace.metadata.prompt_version | upper", "label": "version" } })));
    let report = Answers::default().judged(&site, &[("", 3, 3), ("v\"7\n", 3, 3)]).await;
    let names: Vec<String> = states(&report).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["low{version=\"V\\\"7\"}", "low{version=\"none\"}"], "{report}");
}

#[tokio::test]
async fn a_value_that_vanishes_ends_its_firing_and_says_that_it_did_not_get_better() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({ "over": { "runs": 1 } })));
    let mut answers = Answers::default();
    answers.judged(&site, &[("v7", 5, 5), ("v8", 5, 0)]).await;
    for run in 0..2 {
        let report = answers.judged(&site, &[("v7", 5, 5)]).await;
        assert_eq!(states(&report), pairs(&[("v7", "inactive"), ("v8", "firing")]), "run {run}");
    }
    let report = answers.judged(&site, &[("v7", 5, 5)]).await;
    assert_eq!(states(&report), pairs(&[("v7", "inactive"), ("v8", "resolved")]));
    assert!(reason(&report, &named("v8")).contains("vanished"), "{report}");
    let updates = site.world.slack.updates();
    assert!(updates.last().is_some_and(|update| update.to_string().contains("prompt_version v8 vanished")), "{updates:?}");
    answers.judged(&site, &[("v7", 5, 5)]).await;
    let status = site.run(&["status", "--format", "json"]).await.expect(0).said();
    assert!(!status.contains("v8"), "nothing is left of it: {status}");
    // Nothing at all says nothing of any value: the source may be quiet.
    for run in 0..4 {
        assert_eq!(states(&answers.judged(&site, &[]).await), pairs(&[("v7", "no_data")]), "the source is quiet, run {run}");
    }
}

#[tokio::test]
async fn each_value_keeps_its_evidence_between_processes() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({ "confidence": 0.99, "confidence_scope": "project" })));
    let mut answers = Answers::default();
    let mut runs = 0;
    loop {
        runs += 1;
        assert!(runs < 20, "half of the answers of one version are bad, and nobody is told");
        // Each a process of its own.
        let report = answers.judged(&site, &[("v7", 10, 10), ("v8", 10, 5)]).await;
        let states = states(&report);
        assert_eq!(states[0].1, "inactive", "{report}");
        if states[1].1 == "firing" {
            assert!(reason(&report, &named("v8")).contains("shared by 2 alerts"), "{report}");
            break;
        }
    }
    assert!(runs > 1, "one run is no evidence");
    let report = answers.judged(&site, &[("v7", 10, 10)]).await;
    assert_eq!(states(&report), pairs(&[("v7", "inactive"), ("v8", "firing")]));
    assert_eq!(site.world.slack.messages().len(), 1);
}

#[tokio::test]
async fn an_alert_that_is_edited_leaves_nothing_behind() {
    let site = Site::new().await;
    let spec = monitor(&json!({}));
    let plain = with(spec.clone(), json!({ "alerts": [{ "name": "low", "metric": "good", "when": "mean < 0.8", "notify": [{ "slack": "#llm-alerts" }] }] }));
    let taken_out = || site.world.slack.updates().iter().filter(|update| update.to_string().contains("taken out of the monitor")).count();
    site.monitor("m", &plain);
    let mut answers = Answers::default();
    assert_eq!(states(&answers.judged(&site, &[("v7", 5, 0)]).await), pairs(&[("", "firing")]));
    // Nothing is known of what was judged before.
    site.monitor("m", &spec);
    assert_eq!(states(&answers.judged(&site, &[]).await), pairs(&[("", "no_data")]));
    assert_eq!(taken_out(), 1);
    assert_eq!(states(&answers.judged(&site, &[("v7", 5, 0)]).await), pairs(&[("v7", "firing")]));
    // Another expression under the same label: the same value is another.
    site.monitor("m", &monitor(&json!({ "by": { "value": "trace.metadata.prompt_version or 'x'", "label": "prompt_version" } })));
    assert_eq!(states(&answers.judged(&site, &[("v7", 5, 5)]).await), pairs(&[("v7", "inactive")]));
    assert_eq!(taken_out(), 2);
    site.monitor("m", &plain);
    assert_eq!(states(&answers.judged(&site, &[("v7", 40, 40)]).await), pairs(&[("", "inactive")]));
    let status = site.run(&["status", "--format", "json"]).await.expect(0).said();
    assert!(!status.contains("prompt_version"), "{status}");
}

#[tokio::test]
async fn a_wrong_expression_is_told_with_its_place() {
    let site = Site::new().await;
    for (by, message) in [
        (json!("trace.metadata. =="), "`by` is no expression"),
        (json!("trace.tags[0]"), "needs a `label`"),
        (json!({ "value": "trace.name", "label": "severity" }), "no label of an alert"),
        (json!({ "value": "trace.name", "limit": 0 }), "`limit` is between 1 and 200"),
        (json!({ "value": "trace.name", "limits": 3 }), "did you mean `limit`"),
    ] {
        site.monitor("m", &monitor(&json!({ "by": by })));
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(message) && said.contains("monitors/m.yaml:"), "{by}: {said}");
    }
    site.monitor("m", &monitor(&json!({})));
    site.run(&["validate"]).await.expect(0);
}
