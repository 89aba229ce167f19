//! Anchors: labelled items that tell a judge that changed from a product that did.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::{
    build::{judge, with},
    site::Site,
};

const CHANGED: &str = "judge-changed{metric=\"helpful\"}";

/// Ten of them, half of them good.
fn anchors() -> String {
    let mut lines = String::new();
    for at in 0..10 {
        let (output, label) = if at % 2 == 0 { ("excellent", json!("pass")) } else { ("dreadful", json!(0.1)) };
        let anchor =
            json!({ "id": format!("a{at}"), "input": format!("anchor [[item:a{at}]]"), "output": output, "labels": { "helpful": label, "of-nobody": 1 } });
        writeln!(lines, "{anchor}").unwrap();
    }
    lines
}

fn monitor(changes: &Value) -> Value {
    let alert = json!({ "name": "low", "metric": "helpful", "when": "mean < 0.8", "over": { "runs": 1 }, "notify": [{ "slack": "#quality" }] });
    with(
        json!({
            "schedule": { "every": "1h" },
            "source": { "type": "file", "path": "answers.jsonl", "settle": "0s", "lookback": "3650d", "overlap": "3650d" },
            "metrics": [judge()],
            "alerts": [alert],
            "anchors": { "file": "anchors.jsonl", "n": 4 },
        }),
        changes.clone(),
    )
}

/// A site whose judge knows an excellent answer from a dreadful one.
async fn site(changes: &Value) -> Site {
    let mut site = Site::new().await;
    site.settings["notify"] = json!([{ "slack": "#ops" }]);
    // What is kept of old answers says nothing of the judge as it is now.
    site.settings["profiles"]["judge"]["cache"] = json!({ "ttl": "24h" });
    site.settings["prices"] = json!({ "gpt-4o-mini": { "input_cost_per_token": 1e-5, "output_cost_per_token": 1e-5 } });
    site.save();
    site.write("monitors/anchors.jsonl", anchors());
    site.monitor("m", &monitor(changes));
    sound_judge(&site);
    site
}

fn sound_judge(site: &Site) {
    site.world.llm.verdict(|prompt| if prompt.contains("excellent") { 0.9 } else { 0.1 });
}

/// So many more answers, and a run over them.
async fn judged(site: &Site, n: usize, output: &str) -> Value {
    let path = site.path("answers.jsonl");
    let mut lines = std::fs::read_to_string(&path).unwrap_or_default();
    let known = lines.lines().count();
    for at in known..known + n {
        writeln!(lines, "{}", json!({ "id": format!("i{at}"), "timestamp": "2026-11-01T00:00:00Z", "input": format!("[[item:i{at}]]"), "output": output }))
            .unwrap();
    }
    std::fs::write(&path, lines).unwrap();
    site.once("m").await
}

fn alert<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let alerts = report["alerts"].as_array().unwrap();
    let alert = alerts.iter().find(|alert| alert["name"] == name).unwrap_or_else(|| panic!("no {name} in {alerts:?}"));
    (alert["state"].as_str().unwrap(), alert["reason"].as_str().unwrap())
}

/// Calls about anchors that were answered.
fn asked(site: &Site) -> usize {
    site.world.llm.calls().into_iter().filter(|(mark, _)| mark.starts_with('a')).map(|(_, n)| n).sum()
}

fn messages(site: &Site, channel: &str) -> Vec<String> {
    site.world.slack.messages().iter().filter(|message| message["channel"] == channel).map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_judge_that_changes_its_mind_is_told_in_place_of_the_product() {
    let site = site(&json!({})).await;
    let report = judged(&site, 5, "excellent").await;
    assert!(alert(&report, CHANGED).1.contains("it agreed with 100 % of 10 at the start"), "{report}");
    assert_eq!(asked(&site), 10, "each once");
    let report = judged(&site, 5, "excellent").await;
    assert_eq!((alert(&report, CHANGED).0, alert(&report, "low").0), ("inactive", "inactive"), "{report}");
    assert!(alert(&report, CHANGED).1.contains("agrees with 4 of the 4 anchors of this run"), "{report}");
    assert_eq!(asked(&site), 14, "asked anew, whatever is kept of their answers");
    // Anchors are no items, and what is said of them is no score.
    assert_eq!((&report["counts"]["scored"], &report["metrics"]["helpful"]["n"]), (&json!(5), &json!(5)), "{report}");
    assert!(site.export(&[]).await.iter().all(|row| row["item_id"].as_str().unwrap().starts_with('i')));

    site.world.llm.verdict(|prompt| if prompt.contains("excellent") { 0.3 } else { 0.1 });
    let report = judged(&site, 5, "excellent").await;
    let (mut report, mut runs) = (report, 1);
    while alert(&report, CHANGED).0 != "firing" {
        runs += 1;
        assert!(runs < 10, "half of the verdicts changed, and nobody is told: {report}");
        report = judged(&site, 5, "dreadful").await;
    }
    for part in ["the judge changed: helpful agrees with", "it agreed with 100 % of 10 at the start", "at most once in 100 days"] {
        assert!(alert(&report, CHANGED).1.contains(part), "no `{part}` in {report}");
    }
    assert!(messages(&site, "#ops").iter().any(|message| message.contains("the judge changed")), "{:?}", messages(&site, "#ops"));
    let status = site.run(&["status"]).await.expect(0).said();
    assert!(status.contains("judge-changed{metric=\"helpful\"}: firing"), "{status}");

    sound_judge(&site);
    // Evidence that a judge is nearly always right again takes more of it.
    site.monitor("m", &monitor(&json!({ "anchors": { "n": 10, "confidence": 0.5 } })));
    let mut runs = 0;
    while alert(&report, CHANGED).0 != "resolved" {
        runs += 1;
        assert!(runs < 60, "the judge is as it was, and nobody is told: {report}");
        report = judged(&site, 1, "excellent").await;
    }
    assert!(alert(&report, CHANGED).1.contains("the judge is as it was"), "{report}");
}

#[tokio::test]
async fn while_the_judge_is_another_its_quality_alerts_are_not_told() {
    let all = json!({ "anchors": { "n": 10 } });
    let site = site(&all).await;
    judged(&site, 1, "excellent").await;
    judged(&site, 1, "excellent").await;
    site.world.llm.verdict(|prompt| if prompt.contains("excellent") { 0.1 } else { 0.9 });
    let report = judged(&site, 5, "excellent").await;
    assert_eq!((alert(&report, CHANGED).0, alert(&report, "low").0), ("firing", "firing"), "{report}");
    assert!(alert(&report, "low").1.contains("muted: judge-changed{metric=\"helpful\"} fires and explains it"), "{report}");
    assert!(messages(&site, "#quality").is_empty());
    assert_eq!(messages(&site, "#ops").len(), 1);

    // A prompt that is mended is another judge: what it agrees with is learned anew, and what is low now is the product.
    sound_judge(&site);
    let metrics = json!([with(judge(), json!({ "prompt": "Rate the answer anew.\nQuestion: {{ input }}\nAnswer: {{ output }}" }))]);
    site.monitor("m", &with(monitor(&all), json!({ "metrics": metrics })));
    let before = asked(&site);
    let report = judged(&site, 5, "dreadful").await;
    assert_eq!(asked(&site), before + 10, "{report}");
    assert!(alert(&report, CHANGED).1.contains("it agreed with 100 % of 10 at the start"), "{report}");
    assert_eq!((alert(&report, CHANGED).0, alert(&report, "low").0), ("no_data", "firing"), "{report}");
    assert!(site.world.slack.updates().iter().any(|update| update.to_string().contains("were edited")), "{:?}", site.world.slack.updates());
    assert_eq!(messages(&site, "#quality").len(), 1, "nothing explains it any more");
}

#[tokio::test]
async fn a_product_that_gets_worse_is_no_judge_that_changed() {
    let site = site(&json!({})).await;
    judged(&site, 5, "excellent").await;
    judged(&site, 5, "excellent").await;
    for _ in 0..4 {
        let report = judged(&site, 5, "dreadful").await;
        assert_eq!((alert(&report, CHANGED).0, alert(&report, "low").0), ("inactive", "firing"), "{report}");
    }
    assert_eq!((messages(&site, "#quality").len(), messages(&site, "#ops").len()), (1, 0));
}

#[tokio::test]
async fn the_budget_is_the_items_first_and_the_start_takes_as_many_runs_as_it_makes_it() {
    let evaluation = json!({ "concurrency": 1, "budget": { "usd": 0.02, "per": "run" } });
    let site = site(&json!({ "evaluation": evaluation, "metrics": [with(judge(), json!({ "max_tokens": 20 }))] })).await;
    let (mut known, mut runs) = (0, 0);
    loop {
        runs += 1;
        let bill = site.world.llm.bill(1e-5);
        let report = judged(&site, 2, "excellent").await;
        assert_eq!((&report["status"], &report["counts"]["scored"]), (&json!("succeeded"), &json!(2)), "{report}");
        assert!((report["cost_usd"].as_f64().unwrap() - (site.world.llm.bill(1e-5) - bill)).abs() < 1e-9, "{report}");
        assert_eq!(alert(&report, "budget-spent").0, "inactive", "no judgement of an item waits");
        let (state, reason) = alert(&report, CHANGED);
        if state != "learning" {
            break;
        }
        assert!(asked(&site) > known && reason.contains(&format!("helpful: {} of 10 anchors judged", asked(&site))), "{report}");
        known = asked(&site);
    }
    assert!(runs > 1, "a budget that is enough for all shows nothing");
    assert_eq!(asked(&site), 10, "none is paid for twice");
    let usage = site.run(&["usage", "--format", "json"]).await.expect(0).json();
    assert_eq!(usage[0]["calls"].as_u64(), Some(site.world.llm.answered() as u64), "{usage}");
}

#[tokio::test]
async fn a_run_that_was_killed_pays_for_no_anchor_twice() {
    let changes = |on_start: bool| json!({ "evaluation": { "concurrency": 1 }, "schedule": { "every": "1h", "on_start": on_start }, "anchors": { "n": 8 } });
    let site = site(&changes(true)).await;
    site.write("answers.jsonl", "");
    site.world.llm.faults.latency(Duration::from_millis(100));
    let mut before = 0;
    // In the middle of the start, and of a draw; each is finished under its own slot, and nothing else runs.
    for (kill_at, anchors) in [(4, 10), (4, 8)] {
        site.monitor("m", &monitor(&changes(true)));
        let daemon = site.daemon().await;
        site.until("a few anchors to be judged", |world| world.llm.answered() >= before + kill_at).await;
        daemon.kill9().await;
        site.monitor("m", &monitor(&changes(false)));
        let daemon = site.daemon().await;
        site.wait("the run to be finished", || async { site.runs("m").await >= 1.0 }).await;
        assert_eq!(daemon.stop().await, Some(0));
        let mut asked = site.world.llm.prompts().split_off(before);
        before += asked.len();
        let calls = asked.len();
        asked.sort();
        asked.dedup();
        assert!(asked.len() == anchors && calls <= anchors + 1, "{calls} calls about {} anchors, of {anchors}", asked.len());
    }
}

#[tokio::test]
async fn what_is_wrong_with_anchors_is_told() {
    let site = site(&json!({})).await;
    judged(&site, 1, "excellent").await;
    let label = |label: &str| format!("{}\n", json!({ "id": "a", "input": "q", "output": "a", "labels": { "helpful": label } }));
    for (lines, message) in [
        (label("good"), "line 1: a label is `pass`, `fail` or a number between 0 and 1"),
        (label("pass").replace("helpful", "helpfull"), "no anchor has a label of a judge of this monitor"),
    ] {
        site.write("monitors/anchors.jsonl", lines);
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(message) && said.contains("monitors/m.yaml:"), "{said}");
    }
    for (changes, message) in [
        (json!({ "anchors": { "file": "nowhere.jsonl" } }), "monitors/nowhere.jsonl: "),
        (json!({ "anchors": { "n": 0 } }), "`n` is between 1 and"),
        (json!({ "anchors": { "confidence": 1 } }), "`confidence` is at least 0.5 and below 1"),
    ] {
        site.write("monitors/anchors.jsonl", anchors());
        site.monitor("m", &monitor(&changes));
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(message), "{said}");
    }
}

#[tokio::test]
async fn a_file_that_goes_away_is_told_and_stops_no_monitor() {
    let site = site(&json!({ "schedule": { "every": "1s" } })).await;
    site.write("answers.jsonl", "");
    let _daemon = site.daemon().await;
    site.until("the start", |world| world.llm.answered() >= 10).await;
    std::fs::remove_file(site.path("monitors/anchors.jsonl")).unwrap();
    site.says("the anchors cannot be read").await;
    site.more_runs("m", 2).await;
    let shows = async |word: &str| site.run(&["status"]).await.expect(0).said().contains(&format!("judge-changed{{metric=\"helpful\"}}: {word}"));
    site.wait("the alert to say so", async || shows("error").await).await;
    site.write("monitors/anchors.jsonl", anchors());
    site.wait("the anchors to be judged again", async || !shows("error").await).await;
    assert_eq!(site.metric("assayd_runs_total", &[("status", "failed")]).await, 0.0);
}
