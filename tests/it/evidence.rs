//! Alerts with a `confidence`: they fire on evidence, say what they promise, and forget nothing between runs.

use serde_json::{Value, json};

use crate::{build::with, site::Site};

/// Answers of a file that are good or bad; one line an answer.
struct Answers {
    lines: String,
    n: u32,
}

impl Answers {
    fn new() -> Self {
        Self { lines: String::new(), n: 0 }
    }

    /// More answers, a share of them good, and a run over them.
    async fn judged(&mut self, site: &Site, n: u32, good: f64) -> Value {
        self.add(site, n, good, &json!({}));
        site.once("m").await
    }

    fn add(&mut self, site: &Site, n: u32, good: f64, more: &Value) {
        for at in 0..n {
            let output = if f64::from(at) < f64::from(n) * good { "good" } else { "bad" };
            let line = json!({ "id": format!("a{}", self.n), "timestamp": "2026-11-01T00:00:00Z", "input": "q", "output": output });
            self.lines.push_str(&format!("{}\n", with(line, more.clone())));
            self.n += 1;
        }
        site.write("answers.jsonl", &self.lines);
    }
}

fn monitor(alert: &Value) -> Value {
    json!({
        "schedule": { "every": "1h" },
        "source": { "type": "file", "path": "answers.jsonl", "settle": "0s", "lookback": "3650d", "overlap": "3650d" },
        "metrics": [{ "name": "good", "type": "contains", "field": "output", "any": ["good"] }],
        "alerts": [with(json!({ "name": "worse", "metric": "good", "when": "mean < 0.8", "confidence": 0.99, "notify": [{ "slack": "#llm-alerts" }] }), alert.clone())],
    })
}

fn alert(report: &Value) -> (String, String) {
    let alerts = report["alerts"].as_array().unwrap();
    let alert = alerts.iter().find(|alert| alert["name"] == "worse").unwrap();
    (alert["state"].as_str().unwrap().to_owned(), alert["reason"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn it_fires_on_evidence_and_ends_on_evidence() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({})));
    let mut answers = Answers::new();
    // One bad sample of ten below a mean that is fine is luck, and nobody is told.
    for good in [0.9, 0.7, 0.9, 0.8, 1.0] {
        let (state, reason) = alert(&answers.judged(&site, 10, good).await);
        assert_eq!(state, "inactive", "{reason}");
        assert!(reason.contains("evidence against it:"), "{reason}");
    }
    assert!(site.world.slack.messages().is_empty());
    let mut runs = 0;
    let reason = loop {
        runs += 1;
        assert!(runs < 12, "half of the answers are bad, and nobody is told");
        let (state, reason) = alert(&answers.judged(&site, 10, 0.5).await);
        if state == "firing" {
            break reason;
        }
    };
    assert!(runs > 1, "one run is no evidence");
    for part in ["good: mean is below 0.8: mean 0.", "answers judged since", "at most once in 100 days"] {
        assert!(reason.contains(part), "no `{part}` in {reason}");
    }
    assert_eq!(site.world.slack.messages().len(), 1);
    assert!(site.world.slack.messages()[0].to_string().contains("at most once in 100 days"));

    let mut runs = 0;
    let reason = loop {
        runs += 1;
        assert!(runs < 20, "all is well again, and nobody is told");
        let (state, reason) = alert(&answers.judged(&site, 10, 1.0).await);
        if state == "resolved" {
            break reason;
        }
        assert_eq!(state, "firing");
        assert!(reason.contains("evidence that it is over:"), "{reason}");
    };
    assert!(reason.contains("good: mean is back above 0.8: mean 1 over the"), "{reason}");
    assert_eq!(site.world.slack.messages().len(), 1, "the message itself says that it is over");
}

#[tokio::test]
async fn a_run_without_scores_says_nothing_and_keeps_a_firing() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({})));
    let mut answers = Answers::new();
    answers.add(&site, 60, 0.0, &json!({}));
    assert_eq!(alert(&site.once("m").await).0, "firing", "sixty bad answers are evidence enough");
    let (state, reason) = alert(&site.once("m").await);
    assert_eq!(state, "firing", "{reason}");
    assert!(reason.contains("no data"), "{reason}");
}

#[tokio::test]
async fn items_that_chance_did_not_draw_are_no_evidence() {
    let site = Site::new().await;
    let spec = with(monitor(&json!({})), json!({ "sampling": { "strategy": "random", "n": 20, "always": "trace.vip" } }));
    site.monitor("m", &spec);
    let mut answers = Answers::new();
    // What goes wrong for a chosen few says nothing about all.
    answers.add(&site, 400, 1.0, &json!({}));
    answers.add(&site, 40, 0.0, &json!({ "vip": true }));
    let report = site.once("m").await;
    assert!(report["counts"]["scored"].as_u64().unwrap() > 20, "{report}");
    let (state, reason) = alert(&report);
    assert_eq!(state, "inactive", "{reason}");
}

#[tokio::test]
async fn in_doubt_the_next_run_looks_closer() {
    let site = Site::new().await;
    // All answers are the same, so that every draw is.
    let metrics = json!([{ "name": "good", "type": "expression", "value": "trace.score" }]);
    let spec = |boost: u32| with(monitor(&json!({ "boost": boost })), json!({ "sampling": { "strategy": "random", "n": 10 }, "metrics": metrics }));
    for (boost, most) in [(5, 50), (1, 10)] {
        site.monitor("m", &spec(boost));
        std::fs::remove_dir_all(site.path("state")).ok();
        let mut answers = Answers::new();
        let mut drawn = Vec::new();
        while drawn.len() < 8 {
            answers.add(&site, 100, 1.0, &json!({ "score": 0.7 }));
            let report = site.once("m").await;
            drawn.push(report["counts"]["scored"].as_u64().unwrap());
            if alert(&report).0 == "firing" {
                break;
            }
        }
        assert_eq!(drawn.first(), Some(&10), "nothing is known yet: {drawn:?}");
        assert_eq!(drawn.iter().max(), Some(&most), "boost: {boost}, {drawn:?}");
    }
}

#[tokio::test]
async fn a_level_is_learned_before_anything_is_compared_with_it() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({ "when": "mean < baseline - 0.05", "baseline": "1d" })));
    let mut answers = Answers::new();
    let (state, reason) = alert(&answers.judged(&site, 50, 0.0).await);
    assert_eq!(state, "learning");
    assert!(reason.contains("1 of at least 24 runs, 50 of at least 200 scores"), "{reason}");
    let (state, reason) = alert(&answers.judged(&site, 50, 0.0).await);
    assert_eq!(state, "learning");
    assert!(reason.contains("2 of at least 24 runs"), "{reason}");
}

#[tokio::test]
async fn an_alert_that_is_taken_out_ends_its_firing() {
    let site = Site::new().await;
    let spec = monitor(&json!({}));
    site.monitor("m", &spec);
    let mut answers = Answers::new();
    assert_eq!(alert(&answers.judged(&site, 60, 0.0).await).0, "firing");
    site.monitor("m", &with(spec, json!({ "alerts": [] })));
    site.once("m").await;
    let updates = site.world.slack.updates();
    assert!(updates.last().is_some_and(|update| update.to_string().contains("taken out of the monitor")), "{updates:?}");
    assert!(!site.run(&["status"]).await.said().contains("worse"), "nothing is left of it");
}

#[tokio::test]
async fn a_monitor_that_is_removed_ends_what_fires_of_it() {
    let site = Site::new().await;
    let mut answers = Answers::new();
    answers.add(&site, 60, 0.0, &json!({}));
    site.monitor("m", &with(monitor(&json!({})), json!({ "schedule": { "every": "1s" } })));
    let _daemon = site.daemon().await;
    site.until("a message", |world| !world.slack.messages().is_empty()).await;
    std::fs::remove_file(site.path("monitors/m.yaml")).unwrap();
    site.until("the message to say that it is over", |world| world.slack.updates().iter().any(|update| update.to_string().contains("the monitor was removed")))
        .await;
    assert_eq!(site.world.slack.messages().len(), 1);
}

#[tokio::test]
async fn an_edited_threshold_keeps_the_firing_and_asks_anew() {
    let site = Site::new().await;
    site.monitor("m", &monitor(&json!({})));
    let mut answers = Answers::new();
    assert_eq!(alert(&answers.judged(&site, 60, 0.0).await).0, "firing");
    site.monitor("m", &monitor(&json!({ "when": "mean < 0.5" })));
    assert_eq!(alert(&answers.judged(&site, 10, 0.7).await).0, "firing", "ten answers are no evidence that it is over");
    assert_eq!(alert(&answers.judged(&site, 60, 1.0).await).0, "resolved");
    assert_eq!(site.world.slack.messages().len(), 1);
}

#[tokio::test]
async fn a_plain_threshold_may_ask_for_more_before_it_ends() {
    let site = Site::new().await;
    let mut spec = monitor(&json!({ "resolve_when": "mean >= 0.9", "over": "runs: 1" }));
    spec["alerts"][0].as_object_mut().unwrap().remove("confidence");
    site.monitor("m", &spec);
    let mut answers = Answers::new();
    assert_eq!(alert(&answers.judged(&site, 10, 0.7).await).0, "firing");
    assert_eq!(alert(&answers.judged(&site, 10, 0.8).await).0, "firing", "not below 0.8, and not at 0.9 either");
    assert_eq!(alert(&answers.judged(&site, 10, 0.9).await).0, "resolved");
}
