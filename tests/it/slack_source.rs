//! Slack's threads as a source: which become items, and when.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{judge, short, with},
    site::Site,
    world::{Fault, history::ts},
};

fn count(report: &Value, key: &str) -> u64 {
    report["counts"][key].as_u64().unwrap_or_else(|| panic!("no count `{key}` in {report}"))
}

fn slack(changes: Value) -> Value {
    let base = json!({
        "schedule": { "every": "1h" },
        "source": { "type": "slack", "channels": ["C1"], "bot_names": ["Support Bot"], "settle": "1m" },
        "metrics": [short()],
    });
    with(base, changes)
}

fn ago(minutes: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_mins(minutes)
}

const BOT: &str = "B1:Support Bot";

/// As many threads of three messages, a minute apart, the oldest as many minutes ago.
fn threads(site: &Site, channel: &str, n: i64) -> Vec<String> {
    let said = |i: i64| {
        let (asked, answer) = (format!("question {i}"), format!("answer {i}"));
        let parts = [("U1", 0, asked.as_str()), (BOT, 5, answer.as_str()), ("U1", 20, "thanks")];
        format!("slack-{channel}-{}", site.world.slack.history.thread(channel, ago(n + 5 - i), &parts))
    };
    (0..n).map(said).collect()
}

#[tokio::test]
async fn threads_become_verdicts() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let parent = history.thread(
        "C1",
        ago(60),
        &[("U1", 0, "Is it <https://a.example|safe> &amp; sound?"), (BOT, 5, "Partly"), ("U1", 9, "<@U2> why?"), (BOT, 30, "Because [1]")],
    );
    history.thread("C1", ago(50), &[("U1", 0, "nobody answers this")]);
    history.thread("C1", ago(40), &[("U1", 0, "lunch?"), ("U2", 5, "yes")]);
    site.monitor(
        "m",
        &slack(json!({
            "source": { "strip_citations": true, "human_mention_token": "@human", "workspace_domain": "acme" },
            "extract": { "context": "{% for turn in trace.conversation %}{{ turn.role }}:{{ turn.name }}:{{ turn.text }} {% endfor %}" },
            "metrics": [with(judge(), json!({ "prompt": "{{ input }} {{ output }} {{ context }} {{ conversation }} {{ trace.permalink }} {{ trace.channel_id }} {{ trace.thread_ts }}" }))],
        })),
    );
    let report = site.once("m").await;
    assert_eq!((count(&report, "fetched"), count(&report, "scored")), (1, 1), "{report}");
    assert_eq!(site.scored_items("m", "helpful").await, [format!("slack-C1-{parent}")]);
    let prompt = site.world.llm.prompts().join("\n");
    for words in [
        "Is it safe (https://a.example) & sound?",
        r#"{"name":"U1","role":"user","text":"@human why?","time":""#,
        "assistant:Support Bot:Partly user:U1:@human why? assistant:Support Bot:Because",
        &format!("https://acme.slack.com/archives/C1/p{}", parent.replace('.', "")),
        &parent,
    ] {
        assert!(prompt.contains(words), "no `{words}` in {prompt}");
    }
    assert!(!prompt.contains("[1]"), "{prompt}");
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (0, 1), "{report}");
}

#[tokio::test]
async fn a_thread_that_goes_on_is_left_until_it_has_settled() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let old = history.thread("C1", ago(60), &[("U1", 0, "old"), (BOT, 5, "fine")]);
    // Begun long ago, and the last reply is young.
    let young = history.thread("C1", ago(60 * 30), &[("U1", 0, "young"), (BOT, 60 * 60 * 30 - 20, "fine")]);
    site.monitor("m", &slack(json!({})));
    assert_eq!(count(&site.once("m").await, "scored"), 1);
    assert_eq!(site.scored_items("m", "short").await, [format!("slack-C1-{old}")]);
    site.monitor("m", &slack(json!({ "source": { "settle": "0s" } })));
    assert_eq!(count(&site.once("m").await, "scored"), 1);
    let mut both = [format!("slack-C1-{old}"), format!("slack-C1-{young}")];
    both.sort();
    assert_eq!(site.scored_items("m", "short").await, both);
}

#[tokio::test]
async fn a_thread_that_goes_on_while_it_is_read_is_not_judged_by_half() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let parent = history.thread("C1", ago(60), &[("U1", 0, "?"), (BOT, 5, "!")]);
    history.say_when_read(&parent, json!({ "ts": ts(Timestamp::now(), 0), "thread_ts": parent, "user": "U1", "text": "and?" }));
    site.monitor("m", &slack(json!({})));
    assert_eq!(count(&site.once("m").await, "fetched"), 0);
    site.monitor("m", &slack(json!({ "source": { "settle": "0s" } })));
    assert_eq!(count(&site.once("m").await, "scored"), 1);
}

#[tokio::test]
async fn replies_of_threads_outside_the_window_are_not_read() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    for i in 0..5 {
        history.thread("C1", ago(60 * 24 * 3 + i), &[("U1", 0, "long ago"), (BOT, 5, "fine")]);
    }
    history.thread("C1", ago(60 * 24 * 9), &[("U1", 0, "before the window of threads"), (BOT, 60 * 60 * 24 * 9 - 600, "fine")]);
    history.thread("C1", ago(60 * 24 * 6), &[("U1", 0, "begun days ago"), (BOT, 60 * 60 * 24 * 6 - 600, "answered today")]);
    site.monitor("m", &slack(json!({})));
    assert_eq!(count(&site.once("m").await, "scored"), 1);
    assert_eq!(history.calls("conversations.replies").len(), 1);
    site.monitor("m", &slack(json!({ "source": { "thread_window": "14d" } })));
    assert_eq!(count(&site.once("m").await, "scored"), 1, "the older one is seen with a longer window");
}

#[tokio::test]
async fn many_pages_of_history_and_replies_lose_nothing() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let mut all = threads(&site, "C1", 23);
    all.extend(threads(&site, "C2", 4));
    let long: Vec<String> = (0..17).map(|i| format!("part {i}")).collect();
    let parts: Vec<(&str, i64, &str)> =
        std::iter::once(("U1", 0, "tell me")).chain(long.iter().enumerate().map(|(i, part)| (BOT, i as i64 + 1, part.as_str()))).collect();
    all.push(format!("slack-C1-{}", history.thread("C1", ago(90), &parts)));
    // A bot that nobody answered: no item yet.
    history.thread("C1", ago(80), &[(BOT, 0, "By the way")]);
    history.page(5);
    let whole = json!({ "name": "whole", "type": "expression", "value": "trace.conversation | length == 18 or trace.conversation | length == 3" });
    let source = json!({ "channels": ["C1", "C2", "C1"] });
    site.monitor("m", &slack(json!({ "source": source, "extract": { "input": "{{ trace.conversation[0].text }}" }, "metrics": [short(), whole] })));
    let report = site.once("m").await;
    assert_eq!(count(&report, "scored"), all.len() as u64, "{report}");
    all.sort();
    assert_eq!(site.scored_items("m", "short").await, all);
    let values: f64 = site.export(&[]).await.iter().filter(|row| row["metric"] == "whole").map(|row| row["value"].as_f64().unwrap()).sum();
    assert_eq!(values, all.len() as f64, "all threads came whole");
    assert!(history.calls("conversations.history").len() > 5);
}

#[tokio::test]
async fn a_list_whose_cursor_slack_forgot_is_read_again() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let all = threads(&site, "C1", 8);
    history.page(3);
    history.forget_cursors_at(3);
    site.monitor("m", &slack(json!({})));
    assert_eq!(count(&site.once("m").await, "scored"), all.len() as u64);
    assert_eq!(history.calls("conversations.history").len(), 6, "three until it was forgotten, three from the beginning");
}

#[tokio::test]
async fn a_thread_that_is_deleted_meanwhile_stops_no_other() {
    let site = Site::new().await;
    let mut all = threads(&site, "C1", 3);
    let gone = all.remove(1);
    site.world.slack.history.vanish(gone.strip_prefix("slack-C1-").unwrap());
    site.monitor("m", &slack(json!({})));
    assert_eq!(count(&site.once("m").await, "scored"), 2);
    assert_eq!(site.scored_items("m", "short").await, all);
}

#[tokio::test]
async fn oldest_last_replies_come_first_when_there_is_a_limit() {
    let site = Site::new().await;
    let all = threads(&site, "C1", 6);
    // Begun first, answered last.
    let late = format!("slack-C1-{}", site.world.slack.history.thread("C1", ago(300), &[("U1", 0, "?"), (BOT, 297 * 60, "!")]));
    site.monitor("m", &slack(json!({ "source": { "limit": 3 } })));
    site.once("m").await;
    let mut first = all[..3].to_vec();
    first.sort();
    assert_eq!(site.scored_items("m", "short").await, first);
    site.once("m").await;
    assert!(!site.scored_items("m", "short").await.contains(&late));
    site.once("m").await;
    assert!(site.scored_items("m", "short").await.contains(&late));
}

#[tokio::test]
async fn slack_is_obeyed_when_it_asks_to_slow_down_and_nothing_is_lost() {
    let site = Site::new().await;
    let all = threads(&site, "C1", 12);
    site.world.slack.history.limit(5);
    site.monitor("m", &slack(json!({})));
    let started = std::time::Instant::now();
    let report = site.once("m").await;
    assert_eq!(count(&report, "scored"), all.len() as u64, "{report}");
    assert!(started.elapsed() >= Duration::from_secs(2), "two waits of a second");
}

#[tokio::test]
async fn a_slack_in_trouble_is_asked_again_and_then_fails_the_run() {
    let site = Site::new().await;
    let all = threads(&site, "C1", 3);
    site.monitor("m", &slack(json!({})));
    site.world.slack.faults.queue([Fault::Status(503), Fault::Html, Fault::Drop]);
    site.once_with("m", &[], 1).await;
    site.world.slack.faults.queue([Fault::Status(503), Fault::Drop, Fault::Cut].into_iter().take(2));
    let report = site.once("m").await;
    assert_eq!(count(&report, "scored"), all.len() as u64, "{report}");
}

#[tokio::test]
async fn what_a_person_has_to_mend_is_told() {
    let site = Site::new().await;
    threads(&site, "C1", 1);
    site.monitor("m", &slack(json!({ "source": { "channels": ["C1", "C404"] } })));
    let report = site.once_with("m", &[], 1).await;
    assert!(report["error"].as_str().unwrap().contains("channel_not_found") && report["error"].as_str().unwrap().contains("C404"), "{report}");
    let said = site.run(&["validate", "--live"]).await.expect(1).said();
    assert!(said.contains("check that C404 is there"), "{said}");
    site.world.slack.history.close("C1");
    site.monitor("m", &slack(json!({})));
    let report = site.once_with("m", &[], 1).await;
    assert!(report["error"].as_str().unwrap().contains("invite the app to C1"), "{report}");
}

#[tokio::test]
async fn messages_one_by_one() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let mut all = Vec::new();
    for i in 0..120_i64 {
        let (sender, minute) = if i % 2 == 0 { (BOT, 200 - i) } else { ("U1", 200 - i) };
        all.push(format!("slack-C1-{}", history.thread("C1", ago(minute), &[(sender, 0, "a message"), ("U2", 7, "a reply that does not count")])));
    }
    history.page(15);
    let source = json!({ "scrape_threads": false, "exclude_senders": ["U7"] });
    site.monitor("m", &slack(json!({ "source": source, "extract": { "input": "", "output": "{{ trace.conversation[0].text }}" } })));
    history.say("C1", json!({ "ts": ts(ago(50), 0), "user": "U7", "text": "left out" }));
    let report = site.once("m").await;
    assert_eq!(count(&report, "scored"), 120, "{report}");
    all.sort();
    assert_eq!(site.scored_items("m", "short").await, all);
    assert!(history.calls("conversations.replies").is_empty());
}

#[tokio::test]
async fn filters_decide_which_threads_are_items() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let by_bot = history.thread("C1", ago(60), &[(BOT, 0, "Shall I?"), ("U1", 5, "please"), ("U3", 6, "secret: 42"), ("B7:Prometheus", 8, "alert")]);
    history.thread("C1", ago(55), &[(BOT, 0, "Anybody?"), (BOT, 5, "Hello?")]);
    let by_user = history.thread("C1", ago(50), &[("U1", 0, "Can you?"), (BOT, 5, "I can")]);
    let id = |parent: &str| format!("slack-C1-{parent}");
    for (name, settings, kept) in [
        ("all", json!({}), vec![&by_bot, &by_user]),
        ("first", json!({ "drop_if_first_is_user": true }), vec![&by_bot]),
        ("sender", json!({ "filter_sender": "jane", "member_names": { "U1": "Jane" } }), vec![&by_user]),
        ("excluded", json!({ "exclude_senders": ["U1"] }), vec![&by_bot]),
        ("regex", json!({ "drop_message_regexes": ["^Can", "^secret"] }), vec![&by_bot]),
    ] {
        let turns = json!({ "name": "clean", "type": "expression", "value": "'secret' not in (trace.conversation | string)" });
        site.monitor(name, &slack(json!({ "source": settings, "extract": { "input": "" }, "metrics": [short(), turns] })));
        site.once(name).await;
        let mut kept: Vec<String> = kept.into_iter().map(|parent| id(parent)).collect();
        kept.sort();
        assert_eq!(site.scored_items(name, "short").await, kept, "{name}");
    }
    let clean = site.export(&["--monitor", "regex"]).await;
    assert!(clean.iter().filter(|row| row["metric"] == "clean").all(|row| row["value"] == 1.0), "{clean:?}");
}

#[tokio::test]
async fn the_daemon_judges_a_thread_when_its_answer_comes() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let asked = Timestamp::now();
    let parent = history.thread("C1", asked, &[("U1", 0, "Are you there?")]);
    site.monitor("m", &slack(json!({ "schedule": { "every": "1s" }, "source": { "settle": "0s" } })));
    let daemon = site.daemon().await;
    site.more_runs("m", 1).await;
    assert!(site.scored_items("m", "short").await.is_empty(), "nobody answered yet");
    history.say("C1", json!({ "ts": ts(Timestamp::now(), 0), "thread_ts": parent, "bot_id": "B1", "bot_profile": { "name": "Support Bot" }, "text": "I am" }));
    site.wait("the thread's verdict", async || site.metric("assayd_scores_total", &[("monitor", "m")]).await >= 1.0).await;
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(site.scored_items("m", "short").await, [format!("slack-C1-{parent}")]);
}

#[tokio::test]
async fn a_thread_that_the_assistant_opens_is_judged_when_a_person_has_answered() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let parent = history.thread("C1", ago(60), &[(BOT, 0, "Shall I restart it?"), (BOT, 5, "It is down.")]);
    site.monitor("m", &slack(json!({})));
    assert_eq!(count(&site.once("m").await, "fetched"), 0);
    history.say("C1", json!({ "ts": ts(ago(30), 0), "thread_ts": parent, "user": "U1", "text": "please" }));
    assert_eq!(count(&site.once("m").await, "scored"), 1);
    assert_eq!(site.scored_items("m", "short").await, [format!("slack-C1-{parent}")]);
}

#[tokio::test]
async fn settings_that_cannot_work_are_told_with_their_place() {
    let site = Site::new().await;
    let monitor = |source: &str| format!("schedule: {{ every: 1h }}\nsource:\n  type: slack\n{source}\nmetrics: [{{ name: short, type: length, max: 9 }}]\n");
    for (source, line, words) in [
        ("  channels: ['#support']", 4, "`#support` is no channel's id"),
        ("  channels: []", 4, "at least one channel"),
        ("  channels: [C1]\n  drop_message_regexes: ['(']", 5, "no regular expression"),
        ("  channels: [C1]\n  connection: other", 5, "there is no slack connection `other`"),
        ("  channels: [C1]\n  workspace_domain: a b", 5, "the name of a workspace"),
        ("  channels: [C1]\n  bot_name: X", 5, "did you mean `bot_names`?"),
    ] {
        site.write("monitors/m.yaml", monitor(source));
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(&format!("m.yaml:{line}:")) && said.contains(words), "{source}:\n{said}");
    }
}
