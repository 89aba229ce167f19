//! What an item is: a trace, an observation, a session; and when one that is known is judged again.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, short, with},
    site::Site,
    world::{Child, Mode, NewTrace, history::ts},
};

fn count(report: &Value, key: &str) -> u64 {
    report["counts"][key].as_u64().unwrap_or_else(|| panic!("no count `{key}` in {report}"))
}

fn ago(minutes: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_mins(minutes)
}

/// A trace with a retrieval and as many answers.
fn with_answers(id: &str, minutes: i64, answers: usize) -> NewTrace {
    let child = |name: &str, kind, said: String| Child { name: name.to_owned(), kind, input: json!(format!("[[item:{id}]] asked")), output: json!(said) };
    let answers = (1..=answers).map(|n| child("answer", "GENERATION", format!("answer {n} of {id}")));
    let children = std::iter::once(child("retrieve", "RETRIEVER", "a document".to_owned())).chain(answers).collect();
    NewTrace { children, tags: vec!["prod".to_owned()], user: Some("jane".to_owned()), ..NewTrace::new(id, ago(minutes)) }
}

fn by_observation(changes: Value) -> Value {
    let source = json!({ "scope": "observation", "where": "observation.name == 'answer'" });
    with(with(langfuse(), json!({ "source": source, "metrics": [short()] })), changes)
}

#[tokio::test]
async fn scores_of_observations_land_on_them() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        site.world.langfuse.add(with_answers("t1", 30, 2));
        site.world.langfuse.add(with_answers("t2", 20, 1));
        site.world.langfuse.add(with_answers("none", 10, 0));
        let context = "{{ trace.output }} / {{ trace.name }} {{ trace.tags[0] }} {{ trace.user_id }} / {{ trace.observation.type }} / {{ trace.parent.input }} / {{ trace.parent.observations | length }}";
        let metrics = json!([short(), with(judge(), json!({ "prompt": "{{ context }}" }))]);
        site.monitor("m", &by_observation(json!({ "schedule": { "every": "1s" }, "extract": { "context": context }, "metrics": metrics })));
        let daemon = site.daemon().await;
        site.until("the scores of three observations", |world| world.langfuse.posts().len() >= 6).await;
        site.more_runs("m", 2).await;
        assert_eq!(daemon.stop().await, Some(0));

        let places = |metric: &str| {
            let posts = site.world.langfuse.posts().into_iter().filter(|post| post.name == metric);
            let mut places: Vec<(String, Option<String>)> = posts.map(|post| (post.trace_id, post.observation_id)).collect();
            places.sort();
            places
        };
        let place = |trace: &str, observation: &str| (trace.to_owned(), Some(observation.to_owned()));
        let expected = [place("t1", "o-t1-1"), place("t1", "o-t1-2"), place("t2", "o-t2-1")];
        assert_eq!((places("short"), places("helpful")), (expected.to_vec(), expected.to_vec()), "{mode:?}: each once, on its observation");
        let prompts = site.world.llm.prompts();
        let told = "answer 2 of t1 / answer prod jane / GENERATION / [[item:t1]] How do I reset my password? / ";
        assert!(prompts.iter().any(|prompt| prompt.contains(told)), "{mode:?}: {prompts:?}");
        assert_eq!(site.scored_items("m", "short").await, ["t1/o-t1-1", "t1/o-t1-2", "t2/o-t2-1"]);
        assert!(site.export(&[]).await.iter().all(|row| row["item_id"].as_str().unwrap().starts_with(&format!("{}/", row["trace_id"].as_str().unwrap()))));
        let explained = site.run(&["explain", "m", "none"]).await.expect(0).stdout;
        assert!(explained.contains("filtered") && explained.contains("no observation with"), "{explained}");
    }
}

#[tokio::test]
async fn a_limit_between_two_observations_of_a_trace_loses_none() {
    let site = Site::new().await;
    for n in 0..4 {
        site.world.langfuse.add(with_answers(&format!("t{n}"), 50 - n, 3));
    }
    site.monitor("m", &by_observation(json!({ "source": { "limit": 2, "overlap": "0s" } })));
    for run in 1..=6_usize {
        assert_eq!(count(&site.once("m").await, "scored"), 2, "run {run}");
        let scored = site.scored_items("m", "short").await;
        assert_eq!(scored.len(), 2 * run);
        // Oldest first: what is judged is whole but for the newest trace.
        assert!(scored.last().unwrap().starts_with(&format!("t{}/", (2 * run - 1) / 3)), "{scored:?}");
    }
    let report = site.once("m").await;
    assert_eq!(count(&report, "scored"), 0, "{report}");
}

#[tokio::test]
async fn traces_without_a_matching_observation_move_the_watermark_on() {
    let site = Site::new().await;
    for n in 0..5 {
        site.world.langfuse.add(with_answers(&format!("t{n}"), 50 - n, 0));
    }
    site.monitor("m", &by_observation(json!({ "source": { "overlap": "0s" } })));
    assert_eq!(count(&site.once("m").await, "filtered"), 5);
    let report = site.once("m").await;
    assert_eq!((count(&report, "fetched"), count(&report, "duplicate")), (1, 1), "only the newest is looked at again: {report}");
}

fn turn(id: &str, session: &str, minutes: i64) -> NewTrace {
    NewTrace {
        session: Some(session.to_owned()),
        input: json!(format!("[[item:{session}]] ask {id}")),
        output: json!(format!("say {id}")),
        ..NewTrace::new(id, ago(minutes))
    }
}

fn by_session(changes: Value) -> Value {
    let source = json!({ "scope": "session", "settle": "10m" });
    let context = "{% for turn in trace.conversation %}{{ turn.role }}: {{ turn.text }}\n{% endfor %}in={{ trace.input }} out={{ trace.output }} traces={{ trace.traces | length }}";
    with(
        with(
            langfuse(),
            json!({ "source": source, "extract": { "context": context }, "metrics": [short(), with(judge(), json!({ "prompt": "{{ context }}" }))] }),
        ),
        changes,
    )
}

#[tokio::test]
async fn a_session_is_judged_once_when_it_is_idle() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        let langfuse = &site.world.langfuse;
        // Begun before the window that the first run reads.
        langfuse.add(turn("a1", "s-a", 80));
        langfuse.add(turn("a2", "s-a", 40));
        langfuse.add(turn("b1", "s-b", 50));
        langfuse.add(turn("b2", "s-b", 5));
        langfuse.add(NewTrace::new("alone", ago(30)));
        site.monitor("m", &by_session(json!({ "source": { "lookback": "1h" } })));
        let report = site.once("m").await;
        assert_eq!((count(&report, "fetched"), count(&report, "scored")), (1, 1), "{mode:?}: {report}");
        let prompt = site.world.llm.prompts().concat();
        let said = "user: [[item:s-a]] ask a1\nassistant: say a1\nuser: [[item:s-a]] ask a2\nassistant: say a2\nin=[[item:s-a]] ask a1 out=say a2 traces=2";
        assert!(prompt.contains(said), "{mode:?}: {prompt}");
        assert_eq!(langfuse.posts().iter().map(|post| (post.trace_id.as_str(), post.observation_id.as_deref())).collect::<Vec<_>>(), [("a2", None); 2]);

        site.monitor("m", &by_session(json!({ "source": { "settle": "1m" } })));
        let report = site.once("m").await;
        assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (1, 1), "{mode:?}: the other is idle by now: {report}");
        assert_eq!(site.scored_items("m", "short").await, ["s-a", "s-b"]);
        // It goes on: judged is judged.
        langfuse.add(turn("a3", "s-a", 2));
        let report = site.once("m").await;
        assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (0, 2), "{mode:?}: {report}");
    }
}

#[tokio::test]
async fn a_session_that_goes_on_is_judged_again_with_on_change_and_only_then() {
    let site = Site::new().await;
    let langfuse = &site.world.langfuse;
    langfuse.add(turn("a1", "s-a", 40));
    langfuse.add(turn("b1", "s-b", 35));
    let monitor = by_session(json!({ "source": { "rejudge": "on_change", "overlap": "2h" } }));
    site.monitor("m", &monitor);
    assert_eq!(count(&site.once("m").await, "scored"), 2);
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (0, 2), "nothing changed: {report}");
    langfuse.add(turn("a2", "s-a", 15));
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (1, 1), "{report}");
    let scored = site.export(&["--monitor", "m"]).await;
    let of_a: Vec<&Value> = scored.iter().filter(|row| row["item_id"] == "s-a" && row["metric"] == "helpful").collect();
    assert_eq!(of_a.iter().map(|row| row["trace_id"].as_str().unwrap()).collect::<Vec<_>>(), ["a1", "a2"], "the old score stays");
    assert_ne!(of_a[0]["score_id"], of_a[1]["score_id"]);
    assert_eq!(site.world.llm.prompts().len(), 3);
}

const BOT: &str = "B1:Support Bot";

fn threads(rejudge: &str) -> Value {
    json!({
        "schedule": { "every": "1h" },
        "source": { "type": "slack", "channels": ["C1"], "bot_names": ["Support Bot"], "settle": "1m", "rejudge": rejudge },
        "metrics": [short(), with(judge(), json!({ "prompt": "[[item:thread]] {{ conversation }}" }))],
        "publish": [{ "type": "jsonl", "path": "scores.jsonl" }],
    })
}

#[tokio::test]
async fn a_slack_thread_that_goes_on_is_judged_again_and_its_old_score_stays() {
    for rejudge in ["never", "on_change"] {
        let site = Site::new().await;
        let history = &site.world.slack.history;
        let parent = history.thread("C1", ago(60), &[("U1", 0, "does it work?"), (BOT, 5, "no")]);
        let other = history.thread("C1", ago(58), &[("U1", 0, "another"), (BOT, 5, "fine")]);
        site.monitor("m", &threads(rejudge));
        assert_eq!(count(&site.once("m").await, "scored"), 2);
        let answer = json!({ "ts": ts(ago(30), 0), "thread_ts": parent, "bot_id": "B1", "bot_profile": { "name": "Support Bot" }, "text": "now it does" });
        history.say("C1", answer);
        let again = u64::from(rejudge == "on_change");
        let report = site.once("m").await;
        assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (again, 2 - again), "{rejudge}: {report}");
        let report = site.once("m").await;
        assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (0, 2), "{rejudge}: equal content: {report}");

        let id = format!("slack-C1-{parent}");
        let scores = site.export(&["--monitor", "m"]).await;
        let of = |id: &str| scores.iter().filter(|row| row["item_id"] == id && row["metric"] == "helpful").count() as u64;
        assert_eq!((of(&id), of(&format!("slack-C1-{other}"))), (1 + again, 1), "{rejudge}");
        assert_eq!(site.world.llm.prompts().len() as u64, 2 + again, "{rejudge}");
        let explained = site.run(&["explain", "m", &id]).await.expect(0).stdout;
        assert_eq!(explained.matches("metric helpful: scored").count() as u64, 1 + again, "{rejudge}: {explained}");
        assert_eq!(explained.matches("2 of 2 metrics gave a score").count() as u64, 1 + again, "{rejudge}: how it was decided before is told: {explained}");
        assert!(explained.contains("attempts 1"), "{rejudge}: attempts start anew: {explained}");
        let delivered = std::fs::read_to_string(site.path("scores.jsonl")).unwrap();
        assert_eq!(delivered.lines().count() as u64, 2 * (2 + again), "{rejudge}: {delivered}");
    }
}

#[tokio::test]
async fn a_failed_item_that_changes_has_all_its_attempts_again() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let parent = history.thread("C1", ago(60), &[("U1", 0, "first"), (BOT, 5, "broken")]);
    let gate = json!({ "name": "gate", "type": "expression", "value": "1 if trace.conversation | length > 2 else 7" });
    site.monitor("m", &with(threads("on_change"), json!({ "metrics": [gate], "evaluation": { "max_attempts": 2 } })));
    for _ in 0..2 {
        site.once_with("m", &[], 1).await;
    }
    let id = format!("slack-C1-{parent}");
    let explained = site.run(&["explain", "m", &id]).await.expect(0).stdout;
    assert!(explained.contains("attempts 2"), "{explained}");
    history.say("C1", json!({ "ts": ts(ago(30), 0), "thread_ts": parent, "user": "U1", "text": "and now?" }));
    let report = site.once("m").await;
    assert_eq!(count(&report, "scored"), 1, "{report}");
    let explained = site.run(&["explain", "m", &id]).await.expect(0).stdout;
    assert!(explained.contains("attempts 1") && explained.matches("failed").count() >= 2, "{explained}");
}

#[tokio::test]
async fn a_change_in_nothing_that_is_judged_is_not_paid_for() {
    let site = Site::new().await;
    let line =
        |extra: &str| json!({ "id": "a", "timestamp": ago(30).to_string(), "input": "[[item:a]] q", "output": "fine", "note": extra }).to_string() + "\n";
    let file = |rejudge: &str| {
        json!({
            "schedule": { "every": "1h" },
            "source": { "type": "file", "path": "items.jsonl", "settle": "0s", "rejudge": rejudge },
            "metrics": [judge()],
        })
    };
    // Known from before changes mattered: from then on they do.
    site.write("items.jsonl", line("one"));
    site.monitor("m", &file("never"));
    assert_eq!(count(&site.once("m").await, "scored"), 1);
    site.monitor("m", &file("on_change"));
    assert_eq!(count(&site.once("m").await, "duplicate"), 1);
    site.write("items.jsonl", line("two"));
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (1, 0), "{report}");
    assert_eq!((site.world.llm.prompts().len(), site.export(&[]).await.len()), (1, 1), "what is judged is what it was");
    assert_eq!(count(&site.once("m").await, "duplicate"), 1);
}

fn changing(metrics: Value) -> Value {
    json!({
        "schedule": { "every": "1h" },
        "source": { "type": "file", "path": "items.jsonl", "settle": "0s", "overlap": "2h", "rejudge": "on_change" },
        "metrics": metrics,
        "publish": [{ "type": "jsonl", "path": "scores.jsonl" }],
    })
}

fn line(id: &str, minutes: i64, note: &str) -> String {
    json!({ "id": id, "timestamp": ago(minutes).to_string(), "input": format!("[[item:{id}]] q"), "output": "fine", "note": note }).to_string() + "\n"
}

#[tokio::test]
async fn of_what_comes_twice_under_one_id_the_newest_counts() {
    let site = Site::new().await;
    let second = json!({ "name": "second", "type": "expression", "value": "trace.note in ['second', 'fourth']" });
    let values = async || site.export(&[]).await.iter().filter(|row| row["item_id"] == "a").map(|row| row["value"].as_f64().unwrap()).collect::<Vec<_>>();
    // On one page.
    site.write("items.jsonl", line("a", 40, "first") + &line("a", 30, "second"));
    site.monitor("m", &changing(json!([second])));
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (1, 1), "{report}");
    assert_eq!(values().await, [1.0]);
    assert_eq!(count(&site.once("m").await, "scored"), 0);
    // Pages apart: judged as both, and then no more.
    let between: String = (0..600).map(|n| line(&format!("b{n}"), 20, "")).collect();
    site.write("items.jsonl", line("a", 25, "third") + &between + &line("a", 10, "fourth"));
    for scored in [601, 1, 0, 0] {
        let report = site.once("m").await;
        assert_eq!(count(&report, "scored"), scored, "{report}");
    }
    assert_eq!(values().await, [1.0, 0.0, 1.0]);
}

#[tokio::test]
async fn a_metric_that_reads_more_than_the_case_judges_what_changed_there() {
    let site = Site::new().await;
    let reads = with(judge(), json!({ "name": "reads", "prompt": "[[item:reads]] {{ output }} {{ trace.note }}" }));
    let metrics = json!([judge(), reads, { "name": "both", "type": "composite", "parts": { "helpful": 1, "reads": 1 } }]);
    site.monitor("m", &changing(metrics));
    site.world.llm.verdict(|prompt| f64::from(u8::from(prompt.contains("good note"))));
    for (note, prompts, reads, both) in [("bad note", 2, 0.0, 0.0), ("good note", 3, 1.0, 0.5), ("good note", 3, 1.0, 0.5), ("bad note", 3, 1.0, 0.5)] {
        site.write("items.jsonl", line("a", 30, note));
        site.once("m").await;
        assert_eq!(site.world.llm.prompts().len(), prompts, "{note}: what is known of the same content is not paid again");
        let rows = site.export(&[]).await;
        let last = |metric: &str| rows.iter().rfind(|row| row["metric"] == metric).unwrap()["value"].as_f64().unwrap();
        assert_eq!((last("helpful"), last("reads"), last("both")), (0.0, reads, both), "{note}: the newest verdicts");
    }
    let delivered = std::fs::read_to_string(site.path("scores.jsonl")).unwrap();
    assert_eq!(delivered.lines().count(), 3 + 2, "{delivered}");
}

#[tokio::test]
async fn a_scope_that_a_source_has_no_items_for_is_told_with_its_place() {
    let site = Site::new().await;
    let where_ = "\n  where: observation.name == 'a'";
    for (source, words) in [
        ("slack\n  scope: session\n  channels: [C1]".to_owned(), "type `slack` gives no sessions"),
        (format!("slack\n  scope: observation\n  channels: [C1]{where_}"), "type `slack` gives no observations"),
        (format!("file\n  scope: observation\n  path: a.jsonl{where_}"), "type `file` gives no observations"),
        (format!("sql\n  scope: observation\n  path: a.db\n  query: SELECT 1 WHERE :since < :until{where_}"), "type `sql` gives no observations"),
        (
            "join\n  scope: session\n  left: { type: slack, channels: [C1] }\n  right: { type: file, path: b }\n  on: { left: [trace.id], right: [trace.id] }"
                .to_owned(),
            "type `join` gives no sessions",
        ),
    ] {
        site.write("monitors/m.yaml", format!("schedule: {{ every: 1h }}\nsource:\n  type: {source}\nmetrics: [{{ name: short, type: length, max: 9 }}]\n"));
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(words) && said.contains("m.yaml:4:"), "{source}: {said}");
    }
    site.monitor("m", &changing(json!([short()])));
    site.run(&["validate"]).await.expect(0);
}

#[tokio::test]
async fn scopes_that_cannot_work_are_told_with_their_place() {
    let site = Site::new().await;
    for (source, line, words) in [
        ("  scope: observation", 5, "`scope: observation` needs `where`"),
        ("  scope: observation\n  where: 'observation.name =='", 6, "`where` is no expression"),
        ("  where: observation.name", 5, "`where` needs `scope: observation`"),
        ("  session_window: 2h", 5, "`session_window` needs `scope: session`"),
        ("  scope: sessions", 5, "session"),
        ("  rejudge: always", 5, "on_change"),
    ] {
        let monitor =
            format!("schedule: {{ every: 1h }}\nsource:\n  type: langfuse\n  name: bot\n{source}\nmetrics: [{{ name: short, type: length, max: 9 }}]\n");
        site.write("monitors/m.yaml", monitor);
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(words) && said.contains(&format!("m.yaml:{line}:")), "{source}: {said}");
    }
}
