//! record and publish: what is kept, what is sent, and that a sink in trouble loses and doubles nothing.

use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, quick, short, with},
    site::Site,
    world::{Fault, NewTrace},
};

fn count(report: &Value, key: &str) -> u64 {
    report["counts"][key].as_u64().unwrap()
}

#[tokio::test]
async fn a_dry_run_judges_nothing_and_writes_nothing() {
    let site = Site::new().await;
    site.world.langfuse.add_some(9);
    site.monitor("m", &langfuse());
    site.run(&["once", "m", "--dry-run"]).await.expect(0);
    assert_eq!(site.world.llm.requests(), 0);
    assert!(site.world.langfuse.posts().is_empty());
    assert_eq!(count(&site.once("m").await, "scored"), 9, "a dry run leaves the items undecided");
}

#[tokio::test]
async fn without_publishing_scores_are_kept_and_never_sent_later() {
    let site = Site::new().await;
    site.world.langfuse.add_some(9);
    site.monitor("m", &langfuse());
    let report = site.once_with("m", &["--no-publish"], 0).await;
    assert_eq!(count(&report, "scored"), 9);
    assert_eq!(site.export(&[]).await.len(), 9);
    site.world.langfuse.add_many("later", 2, jiff::SignedDuration::from_mins(20), jiff::SignedDuration::from_mins(5));
    site.once("m").await;
    assert_eq!(site.world.langfuse.posts().len(), 2);
}

#[tokio::test]
async fn what_waits_is_published_as_its_own_run_was_asked_to() {
    for (first, between, posts) in [(&[][..], &["--no-publish"][..], 4), (&["--no-publish"], &[], 0)] {
        let site = Site::new().await;
        site.world.langfuse.add_some(4);
        site.world.llm.faults.always(Some(Fault::Status(401)));
        site.monitor("m", &langfuse());
        assert_eq!(count(&site.once_with("m", first, 1).await, "deferred"), 4);
        site.world.llm.faults.always(None);
        let report = site.once_with("m", between, 0).await;
        assert_eq!(count(&report, "scored"), 4 - posts, "a run that publishes nothing leaves alone what is to be published: {report}");
        site.once("m").await;
        assert_eq!((site.export(&[]).await.len(), site.world.langfuse.posts().len() as u64), (4, posts), "{first:?}");
    }
}

#[tokio::test]
async fn an_interrupted_run_goes_on_with_its_own_window_and_publishes_as_it_was_asked_to() {
    let site = Site::new().await;
    let minutes = jiff::SignedDuration::from_mins;
    let middle = (jiff::Timestamp::now() - minutes(60)).to_string();
    // More than are drawn ahead of the judges.
    site.world.langfuse.add_many("old", 450, minutes(120), minutes(59));
    site.world.langfuse.add_many("new", 5, minutes(50), minutes(40));
    site.world.llm.faults.latency(std::time::Duration::from_secs(60));
    site.monitor("m", &langfuse());
    let once = site.spawn(&["once", "m", "--until", &middle, "--no-publish"]);
    site.until("a call", |world| world.llm.in_flight() > 0).await;
    once.kill9().await;
    site.world.llm.faults.latency(std::time::Duration::ZERO);
    site.once("m").await;
    let mut posts: Vec<String> = site.world.langfuse.posts().into_iter().map(|post| post.trace_id).collect();
    posts.sort();
    assert_eq!(posts, (0..5).map(|n| format!("new{n:04}")).collect::<Vec<_>>());
    assert_eq!(site.scored_items("m", "helpful").await.len(), 455);
}

#[tokio::test]
async fn no_end_that_is_asked_for_reaches_what_has_not_settled() {
    let site = Site::new().await;
    site.world.langfuse.add(NewTrace::new("old", jiff::Timestamp::now() - jiff::SignedDuration::from_mins(9)));
    site.world.langfuse.add(NewTrace::new("young", jiff::Timestamp::now() - jiff::SignedDuration::from_secs(9)));
    site.monitor("m", &with(langfuse(), json!({ "source": { "settle": "5m" }, "metrics": [short()] })));
    let until = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string();
    site.once_with("m", &["--until", &until], 0).await;
    assert_eq!(site.scored_items("m", "short").await, ["old"]);
}

#[tokio::test]
async fn a_line_for_each_score_is_appended() {
    let site = Site::new().await;
    site.world.langfuse.add_some(6);
    site.monitor("m", &with(langfuse(), json!({ "metrics": [short(), judge()], "publish": [{ "type": "jsonl", "path": "out/scores.jsonl" }] })));
    site.once("m").await;
    site.once("m").await;
    let text = std::fs::read_to_string(site.path("out/scores.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 12);
    let ids: std::collections::BTreeSet<_> = rows.iter().map(|row| row["score_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 12);
    assert!(site.world.langfuse.posts().is_empty());
}

#[tokio::test]
async fn a_file_that_is_moved_away_is_made_anew() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.monitor("m", &with(quick(), json!({ "metrics": [short()], "publish": [{ "type": "jsonl", "path": "out/scores.jsonl" }] })));
    let lines = |path: &str| std::fs::read_to_string(site.path(path)).map_or(0, |text| text.lines().count());
    let _daemon = site.daemon().await;
    site.wait("the first scores", async || lines("out/scores.jsonl") == 3).await;
    std::fs::rename(site.path("out/scores.jsonl"), site.path("out/scores.jsonl.1")).unwrap();
    site.world.langfuse.add(NewTrace::new("late", jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1)));
    site.wait("a score in a new file", async || lines("out/scores.jsonl") == 1).await;
    assert_eq!(lines("out/scores.jsonl.1"), 3);
}

#[tokio::test]
async fn a_sink_that_is_down_gets_everything_once_it_is_up() {
    let site = Site::new().await;
    site.world.langfuse.add_some(12);
    site.world.langfuse.writes.always(Some(Fault::Status(500)));
    site.monitor("m", &with(langfuse(), json!({ "publish": [{ "type": "langfuse", "scores": true }, { "type": "jsonl", "path": "scores.jsonl" }] })));
    let report = site.once("m").await;
    assert_eq!(count(&report, "scored"), 12, "{report}");
    assert_eq!(report["published"]["langfuse"], json!({ "delivered": 0, "pending": 12 }), "{report}");
    assert_eq!(std::fs::read_to_string(site.path("scores.jsonl")).unwrap().lines().count(), 12, "a sink in trouble holds no other one up");
    let status = site.run(&["status"]).await.expect(0).said();
    assert!(status.contains("langfuse") && status.contains("12"), "{status}");
    site.world.langfuse.writes.always(None);
    let _daemon = site.daemon().await;
    site.until("all scores at the server", |world| world.langfuse.scored("helpful") == 12).await;
    assert!(site.world.langfuse.scores().values().all(|rows| rows.len() == 1));
    assert_eq!(site.world.llm.most_calls(), 1);
}

#[tokio::test]
async fn an_answer_that_is_lost_makes_no_second_score() {
    let site = Site::new().await;
    site.world.langfuse.add_some(20);
    site.monitor("m", &quick());
    // The server is not reached, or breaks off its answer.
    site.world.langfuse.writes.queue([Fault::Cut, Fault::Drop, Fault::Html, Fault::Status(503), Fault::Cut]);
    let _daemon = site.daemon().await;
    site.until("all scores at the server", |world| world.langfuse.scored("helpful") == 20).await;
    assert!(site.world.langfuse.scores().values().all(|rows| rows.len() == 1));
}

#[tokio::test]
async fn a_row_that_is_refused_is_dead_with_its_reason_and_the_others_go_out() {
    let site = Site::new().await;
    site.world.langfuse.add_some(8);
    site.world.langfuse.refuse_scores_of("t0003");
    site.monitor("m", &langfuse());
    let report = site.once("m").await;
    assert_eq!(report["published"]["langfuse"]["delivered"], 7, "{report}");
    assert_eq!(site.world.langfuse.scored("helpful"), 7);
    let status = site.run(&["status"]).await.expect(0).said();
    assert!(status.contains("dead"), "{status}");
    let explained = site.run(&["explain", "m", "t0003"]).await.expect(0).stdout;
    assert!(explained.contains("made-up refusal") || explained.contains("dead") || explained.contains("400"), "{explained}");
    let again = site.once("m").await;
    assert_eq!(again["published"]["langfuse"]["pending"].as_u64().unwrap_or(0), 0, "a dead row is not tried again: {again}");
}

#[tokio::test]
async fn the_same_score_has_the_same_id_wherever_it_is_made() {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let site = Site::new().await;
        let at = "2026-01-05T10:00:00Z".parse().unwrap();
        site.world.langfuse.add(crate::world::NewTrace::new("a", at));
        site.monitor("m", &with(langfuse(), json!({ "source": { "lookback": "3650d" } })));
        site.once("m").await;
        let rows = site.export(&[]).await;
        let sent = site.world.langfuse.posts();
        assert_eq!((rows.len(), sent.len()), (1, 1));
        assert!(sent[0].id.contains(rows[0]["score_id"].as_str().unwrap()), "{sent:?} {rows:?}");
        assert_eq!(sent[0].trace_id, "a");
        assert!(sent[0].metadata.is_object() || sent[0].metadata.is_null());
        assert!(sent[0].environment.as_deref().is_none_or(|environment| environment == "production"));
        assert!(sent[0].observation_id.as_deref().is_none_or(|id| id == "o-a"));
        ids.push(sent[0].id.clone());
    }
    assert_eq!(ids[0], ids[1]);
}
