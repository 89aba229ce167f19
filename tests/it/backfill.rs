//! Items of the past, judged by a monitor as it is now: each once, whatever is killed, and no alert hears of it.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, with},
    site::Site,
};

const PER_TOKEN: f64 = 1e-5;

/// The last so many hours until half an hour ago, as arguments.
fn hours(from: i64) -> [String; 4] {
    let ago = |minutes: i64| (Timestamp::now() - SignedDuration::from_mins(minutes)).to_string();
    ["--from".to_owned(), ago(from * 60), "--to".to_owned(), ago(30)]
}

/// The arguments of a backfill of monitor `m`.
fn asked<'a>(window: &'a [String; 4], more: &[&'a str]) -> Vec<&'a str> {
    [&["backfill", "m", "--format", "json"], window.each_ref().map(String::as_str).as_slice(), more].concat()
}

async fn backfill(site: &Site, window: &[String; 4], more: &[&str]) -> Value {
    site.run(&asked(window, more)).await.expect(0).json()
}

/// Answers that are between one and three hours old.
fn answers(site: &Site, n: usize) {
    site.world.langfuse.add_many("t", n, SignedDuration::from_mins(180), SignedDuration::from_mins(60));
}

fn asks(question: &str) -> Value {
    json!({ "metrics": [with(judge(), json!({ "prompt": format!("{question}\nQuestion: {{{{ input }}}}\nAnswer: {{{{ output }}}}") }))] })
}

/// Scores by item, each a revision; more than one of a revision would be one too many.
async fn revisions(site: &Site) -> Vec<(String, usize)> {
    let rows = site.export(&[]).await;
    let ids: BTreeSet<&str> = rows.iter().filter_map(|row| row["score_id"].as_str()).collect();
    assert_eq!(ids.len(), rows.len(), "a score twice");
    let mut of = std::collections::BTreeMap::<String, usize>::new();
    for row in rows.iter().filter(|row| row["outcome"] == "scored") {
        *of.entry(row["metric_revision"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    of.into_iter().collect()
}

#[tokio::test]
async fn a_changed_prompt_judges_old_items_once_and_every_sink_has_it() {
    let site = Site::new().await;
    answers(&site, 40);
    let sinks = json!({ "publish": [{ "type": "langfuse", "scores": true }, { "type": "jsonl", "path": "scores.jsonl" }] });
    site.monitor("m", &with(langfuse(), sinks.clone()));
    site.once("m").await;
    site.monitor("m", &with(with(langfuse(), sinks), asks("Is it any good?")));
    assert_eq!(site.once("m").await["counts"]["scored"], 0, "a changed revision judges new items");

    let window = hours(4);
    let plan = backfill(&site, &window, &["--dry-run"]).await;
    assert_eq!((&plan["would"]["items"], &plan["would"]["judgements"]["helpful"], site.world.llm.requests()), (&json!(40), &json!(40), 40), "{plan}");
    assert!(plan["would"]["usd"].as_f64().unwrap() > 0.0, "{plan}");
    let done = backfill(&site, &window, &[]).await;
    assert_eq!((&done["status"], &done["trigger"], &done["counts"]["scored"]), (&json!("succeeded"), &json!("backfill"), &json!(40)), "{done}");
    assert_eq!((site.world.llm.requests(), done["published"]["jsonl:scores.jsonl"]["delivered"].as_u64()), (80, Some(40)));
    assert!(site.world.langfuse.scores().values().all(|rows| rows.len() == 2), "of each revision one");
    let file = std::fs::read_to_string(site.path("scores.jsonl")).unwrap();
    assert_eq!((file.lines().count(), file.lines().collect::<BTreeSet<_>>().len()), (80, 80));
    assert_eq!(revisions(&site).await.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [40, 40]);

    let again = backfill(&site, &window, &[]).await;
    assert_eq!((&again["backfill"]["already_scored"], &again["counts"]["duplicate"]), (&json!(40), &json!(40)), "{again}");
    assert_eq!(site.world.llm.requests(), 80, "nothing is paid for twice");
    assert_eq!(site.once("m").await["counts"]["scored"], 0, "nothing of it waits for a run");
}

#[tokio::test]
async fn only_the_metrics_that_are_asked_for_and_those_they_need_are_judged() {
    let site = Site::new().await;
    answers(&site, 6);
    site.monitor("m", &with(langfuse(), json!({ "metrics": [judge()] })));
    site.once("m").await;
    let gated = with(judge(), json!({ "name": "polite", "when": "scores.brief.passed" }));
    let brief = json!({ "name": "brief", "type": "length", "field": "output", "max": 2000 });
    let changed = with(judge(), json!({ "prompt": "Again: {{ output }}" }));
    site.monitor("m", &with(langfuse(), json!({ "metrics": [changed, gated, brief] })));
    let done = backfill(&site, &hours(4), &["--metric", "polite"]).await;
    let named: Vec<&str> = done["metrics"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((named, &done["metrics"]["polite"]["n"]), (vec!["brief", "polite"], &json!(6)), "{done}");
    let said = site.run(&asked(&hours(4), &["--metric", "polit"])).await.expect(2).said();
    assert!(said.contains("no metric `polit` (helpful, polite, brief)"), "{said}");
}

#[tokio::test]
async fn alerts_evidence_and_the_watermark_hear_nothing_of_it() {
    let site = Site::new().await;
    answers(&site, 30);
    site.world.llm.verdict(|prompt| f64::from(u8::from(prompt.contains("Rate how helpful"))));
    let alerts = json!([
        { "name": "low", "metric": "helpful", "when": "mean < 0.9", "over": "24h", "notify": [{ "slack": "#x" }] },
        { "name": "runs", "metric": "helpful", "when": "mean < 0.9", "over": { "runs": 1 }, "notify": [{ "slack": "#x" }] },
        { "name": "sure", "metric": "helpful", "when": "mean < 0.9", "confidence": 0.99, "notify": [{ "slack": "#x" }] },
    ]);
    let monitor = with(langfuse(), json!({ "alerts": alerts, "source": { "overlap": "0s" } }));
    site.monitor("m", &monitor);
    site.once("m").await;
    site.monitor("m", &with(monitor, asks("How bad is it?")));
    site.once("m").await;
    let status = async || {
        let all = site.run(&["status", "--format", "json"]).await.expect(0).json();
        let of = &all["monitors"][0];
        json!([of["alerts"], of["last_run"], of["waiting"]])
    };
    let before = status().await;
    assert_eq!(backfill(&site, &hours(4), &[]).await["metrics"]["helpful"]["mean"], 0.0);
    assert_eq!(status().await, before);
    // The next run looks back over all of it.
    site.world.langfuse.add_many("new", 1, SignedDuration::from_mins(20), SignedDuration::from_mins(19));
    site.world.llm.verdict(|_| 1.0);
    let report = site.once("m").await;
    assert_eq!((&report["counts"]["scored"], &report["counts"]["fetched"]), (&json!(1), &json!(2)), "the watermark stands where it stood: {report}");
    let states: Vec<_> = report["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == "firing").collect();
    assert!(states.is_empty() && site.world.slack.messages().is_empty(), "{states:?}");
}

#[tokio::test]
async fn no_kill_loses_doubles_or_pays_for_a_score_again() {
    const ITEMS: usize = 300;
    const KILLS: usize = 12;
    const IN_FLIGHT: usize = 4;
    let site = Site::new().await;
    answers(&site, ITEMS);
    let monitor = with(langfuse(), json!({ "evaluation": { "concurrency": IN_FLIGHT } }));
    site.monitor("m", &monitor);
    site.once("m").await;
    site.monitor("m", &with(monitor, asks("Is it any good?")));
    site.world.llm.faults.latency(Duration::from_millis(35));
    let window = hours(4);
    let mut chance: u64 = 0x9e37_79b9_7f4a_7c15;
    for kill in 0..KILLS {
        let mut running = site.spawn(&asked(&window, &[]));
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        tokio::time::sleep(Duration::from_millis(60 + chance % 250)).await;
        assert!(running.runs(), "kill {kill}: it ended by itself:\n{}", running.log());
        running.kill9().await;
    }
    assert_eq!(backfill(&site, &window, &[]).await["status"], "succeeded");
    // What the killed ones had not sent is sent by whoever comes next.
    site.once("m").await;
    let shown = site.world.langfuse.scores();
    assert_eq!((shown.len(), shown.values().filter(|rows| rows.len() != 2).count()), (ITEMS, 0));
    assert_eq!(revisions(&site).await.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [ITEMS, ITEMS]);
    let paid = site.world.llm.answered() - ITEMS;
    assert!(paid <= ITEMS + KILLS * IN_FLIGHT, "{paid} calls were answered");
    assert!(site.world.llm.requests() > ITEMS + paid, "no kill fell on a call in flight");
}

#[tokio::test]
async fn its_money_lasts_for_all_of_it_however_often_it_is_begun_again() {
    let mut site = Site::new().await;
    answers(&site, 40);
    site.settings["prices"] = json!({ "gpt-4o-mini": { "input_cost_per_token": PER_TOKEN, "output_cost_per_token": PER_TOKEN } });
    site.save();
    let cheap = with(judge(), json!({ "max_tokens": 40 }));
    site.monitor("m", &with(langfuse(), json!({ "metrics": [cheap] })));
    site.once("m").await;
    let before = site.world.llm.bill(PER_TOKEN);
    site.monitor("m", &with(langfuse(), json!({ "metrics": [with(cheap_asks(), json!({}))] })));
    let window = hours(4);
    let most = before / 2.0;
    let limit = most.to_string();
    let mut scored = 0;
    for _ in 0..3 {
        let output = site.run(&asked(&window, &["--max-usd", &limit])).await.expect(0);
        assert!(output.stderr.contains("begun again with the same arguments it goes on"), "{}", output.stderr);
        let done = output.json();
        assert_eq!(done["status"], "partial");
        assert!(done["backfill"]["stopped"].as_str().unwrap().contains("over the backfill's limit"), "{done}");
        assert!(done["backfill"]["goes_on_at"].is_string(), "{done}");
        scored += done["counts"]["scored"].as_u64().unwrap();
        let billed = site.world.llm.bill(PER_TOKEN) - before;
        assert!(billed <= most, "{billed} of {most} USD were spent");
        assert!((done["backfill"]["spent_usd"].as_f64().unwrap() - billed).abs() < 1e-9, "{done}");
    }
    assert!((1..40).contains(&scored), "{scored}");
    let done = backfill(&site, &window, &["--max-usd", "100"]).await;
    assert_eq!((&done["status"], done["counts"]["scored"].as_u64()), (&json!("succeeded"), Some(40 - scored)), "{done}");
}

fn cheap_asks() -> Value {
    with(judge(), json!({ "max_tokens": 40, "prompt": "Is it good? {{ output }}" }))
}

#[tokio::test]
async fn a_live_run_is_served_while_the_daemon_judges_the_past() {
    const OLD: usize = 250;
    let mut site = Site::new().await;
    site.settings["concurrency"] = json!({ "judge_calls": 1 });
    site.save();
    answers(&site, OLD);
    let seldom = with(langfuse(), json!({ "schedule": { "every": "1000h" }, "source": { "settle": "0s" } }));
    site.monitor("m", &seldom);
    site.once("m").await;
    site.monitor("m", &with(seldom, asks("Is it any good?")));
    site.world.llm.faults.latency(Duration::from_millis(25));
    let daemon = site.daemon().await;
    let window = hours(4);
    let mut behind = site.spawn(&asked(&window, &[]));
    site.until("the past to be judged", |world| world.llm.answered() > OLD + 10).await;
    let refused = site.run(&asked(&window, &[])).await.expect(1).said();
    assert!(refused.contains("has a backfill under way"), "{refused}");
    site.world.langfuse.add_many("new", 15, SignedDuration::from_secs(20), SignedDuration::from_secs(10));
    assert_eq!(site.once("m").await["counts"]["scored"], 15);
    assert!(behind.runs() && site.world.llm.answered() < 2 * OLD, "the past was done before the present");
    let asked_for: Vec<bool> = site.world.llm.prompts().iter().map(|prompt| prompt.contains("new0")).collect();
    let first = asked_for.iter().position(|new| *new).unwrap();
    let last = asked_for.iter().rposition(|new| *new).unwrap();
    let old = asked_for[first..last].iter().filter(|new| !**new).count();
    assert!(old <= 6, "{old} answers of the past were judged before 15 of today");
    // Whoever waits for it no longer ends it; begun again it goes on.
    behind.kill9().await;
    site.wait("the backfill to end", || async { site.log().contains("begun again") || site.metric("assayd_runs_total", &[("status", "partial")]).await > 0.0 })
        .await;
    let done = backfill(&site, &window, &[]).await;
    assert_eq!(done["status"], "succeeded", "{done}");
    let (scored, already) = (done["counts"]["scored"].as_u64().unwrap(), done["backfill"]["already_scored"].as_u64().unwrap());
    assert!(scored > 0 && already > 10 && scored + already == OLD as u64, "{done}");
    assert_eq!(daemon.stop().await, Some(0));
    assert!(site.world.langfuse.scores().iter().filter(|((trace, _), _)| !trace.starts_with("new")).all(|(_, rows)| rows.len() == 2));
}

/// Six answers in each slot of six hours, for two days, ten days ago.
async fn a_time_before_the_monitor() -> (Site, [String; 4]) {
    let site = Site::new().await;
    let slot = SignedDuration::from_hours(6).as_secs();
    let begin = (Timestamp::now().as_second() / slot) * slot - 10 * 86_400;
    let at = |hour: i64| Timestamp::from_second(begin + hour * 3600 + 60).unwrap();
    let lines: String = (0..48)
        .map(|hour| format!("{}\n", json!({ "id": format!("i{hour}"), "timestamp": at(hour).to_string(), "input": "q", "output": "good" })))
        .chain([format!(
            "{}\n",
            json!({ "id": "fresh", "timestamp": (Timestamp::now() - SignedDuration::from_hours(1)).to_string(), "input": "q", "output": "good" })
        )])
        .collect();
    site.write("s.jsonl", lines);
    site.monitor(
        "m",
        &json!({
            "schedule": { "every": "6h" },
            "source": { "type": "file", "path": "s.jsonl", "settle": "0s", "limit": 7 },
            "sampling": { "strategy": "random", "n": 2 },
            "metrics": [{ "name": "good", "type": "contains", "field": "output", "any": ["good"] }],
        }),
    );
    (site, ["--from".to_owned(), at(0).to_string(), "--to".to_owned(), Timestamp::now().to_string()])
}

#[tokio::test]
async fn what_no_run_has_seen_is_drawn_as_the_runs_of_its_time_would_have() {
    let (site, window) = a_time_before_the_monitor().await;
    let done = backfill(&site, &window, &[]).await;
    let counts = |done: &Value| ["fetched", "scored", "sampled_out"].map(|name| done["counts"][name].as_u64().unwrap());
    assert_eq!(counts(&done), [49, 16, 32], "two of each slot: {done}");
    assert_eq!(done["backfill"]["left_to_runs"], 1, "what the monitor's next run takes is its own: {done}");
    let again = backfill(&site, &window, &[]).await;
    assert_eq!(counts(&again), [49, 0, 0], "{again}");
    assert_eq!((&again["backfill"]["already_scored"], &again["backfill"]["left_out"]), (&json!(16), &json!(32)));
    let anew = backfill(&site, &window, &["--rejudge"]).await;
    assert_eq!(counts(&anew)[1], 0, "what was drawn has its place, and the draw is the same: {anew}");
    let path = site.path("monitors/m.yaml");
    let wider = std::fs::read_to_string(&path).unwrap().replace("n: 2", "n: 4");
    std::fs::write(&path, wider).unwrap();
    for more in [16, 0] {
        let anew = backfill(&site, &window, &["--rejudge"]).await;
        assert_eq!(counts(&anew)[1], more, "two more of each slot, once: {anew}");
    }
    assert_eq!(site.once("m").await["counts"]["scored"], 1);
    let far = ["--from".to_owned(), "2020-01-01T00:00:00Z".to_owned(), window[2].clone(), window[3].clone()];
    let said = site.run(&asked(&far, &[])).await.expect(1).said();
    assert!(said.contains("--rejudge"), "{said}");
    assert_eq!(backfill(&site, &far, &["--rejudge"]).await["status"], "succeeded");
}

#[tokio::test]
async fn a_rate_is_kept_and_a_signal_ends_it_in_order() {
    let (site, window) = a_time_before_the_monitor().await;
    let running = site.spawn(&asked(&window, &["--rate", "1/h", "--log-level", "info"]));
    site.wait("the first item", || async { site.root().join("state/assayd.db").exists() && site.scored_items("m", "good").await.len() == 1 }).await;
    assert_eq!(running.stop().await, Some(0));
    assert!(site.log().contains("it was asked to stop"), "{}", site.log());
    assert_eq!(site.scored_items("m", "good").await.len(), 1);
    assert_eq!(backfill(&site, &window, &[]).await["counts"]["scored"], 15);
}
