//! The outbox in people's hands: what waits, what is dead, and what becomes of it.

use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use crate::{
    build::{langfuse, short, with},
    site::Site,
    world::Fault,
};

/// Free, and refused of one trace.
async fn with_a_dead_row() -> Site {
    let site = Site::new().await;
    site.world.langfuse.add_some(4);
    site.world.langfuse.refuse_scores_of("t0002");
    site.monitor("m", &with(langfuse(), json!({ "metrics": [short()] })));
    site.once("m").await;
    site
}

async fn listed(site: &Site) -> Vec<Value> {
    site.run(&["outbox", "list", "--format", "json"]).await.expect(0).json().as_array().unwrap().clone()
}

#[tokio::test]
async fn dead_rows_are_listed_and_sent_again_or_forgotten_without_a_daemon() {
    let site = with_a_dead_row().await;
    let queue = listed(&site).await[0].clone();
    assert_eq!((&queue["queue"], &queue["waiting"], &queue["dead"], &queue["served"]), (&json!("langfuse"), &json!(0), &json!(1), &json!(true)), "{queue}");
    assert!(queue["error"].as_str().unwrap().contains("HTTP 400") && queue["oldest"].as_str().unwrap().starts_with("20"), "{queue}");
    let shown = site.run(&["outbox", "list"]).await.expect(0).stdout;
    assert!(shown.contains("langfuse") && shown.contains("HTTP 400"), "{shown}");
    let said = site.run(&["outbox", "retry", "langfuze"]).await.expect(2).stderr;
    assert!(said.contains("did you mean `langfuse`?"), "{said}");

    site.world.langfuse.accept_scores();
    let said = site.run(&["outbox", "retry"]).await.expect(0).stdout;
    assert!(said.contains("1 dead rows are due again"), "{said}");
    site.once("m").await;
    assert_eq!((site.world.langfuse.scored("short"), &listed(&site).await[0]["dead"]), (4, &json!(0)));

    let site = with_a_dead_row().await;
    site.run(&["outbox", "drop"]).await.expect(2);
    let said = site.run(&["outbox", "drop", "langfuse", "--waiting"]).await.expect(2).stderr;
    assert!(said.contains("a monitor publishes to `langfuse`"), "{said}");
    let said = site.run(&["outbox", "drop", "langfuse"]).await.expect(0).stdout;
    assert!(said.contains("1 dead rows of `langfuse` are forgotten"), "{said}");
    assert_eq!((&listed(&site).await[0]["dead"], site.export(&[]).await.len()), (&json!(0), 4), "the scores stay");
}

#[tokio::test]
async fn beside_a_daemon_the_daemon_changes_the_outbox() {
    let mut site = with_a_dead_row().await;
    site.settings["auth"] = json!({ "token": "let-me-in" });
    site.save();
    let _daemon = site.daemon().await;
    site.world.langfuse.accept_scores();
    let said = site.run(&["outbox", "retry", "langfuse"]).await.expect(0).stdout;
    assert!(said.contains("1 dead rows of `langfuse` are due again"), "{said}");
    site.until("the row, at once", |world| world.langfuse.scored("short") == 4).await;
    let said = site.run(&["outbox", "drop", "langfuse", "--waiting"]).await.expect(1).stderr;
    assert!(said.contains("monitor `m` publishes to `langfuse`"), "{said}");
    let said = site.run(&["outbox", "drop", "langfuse"]).await.expect(0).stdout;
    assert!(said.contains("0 dead rows"), "{said}");
}

#[tokio::test]
async fn rows_that_wait_for_a_sink_that_nobody_names_any_more_are_told_and_can_be_forgotten() {
    let site = Site::new().await;
    site.world.langfuse.add_some(4);
    site.world.langfuse.writes.always(Some(Fault::Status(500)));
    site.monitor("m", &with(langfuse(), json!({ "metrics": [short()] })));
    site.once("m").await;
    site.world.langfuse.writes.always(None);
    site.monitor("m", &with(langfuse(), json!({ "metrics": [short()], "publish": [{ "type": "jsonl", "path": "scores.jsonl" }] })));
    let daemon = site.daemon().await;
    site.says("rows wait for a sink that no monitor publishes to.*").await;
    assert!(daemon.log().contains("queue=langfuse waiting=4") || daemon.log().contains("\"waiting\":4"), "{}", daemon.log());
    let status = site.run(&["status"]).await.expect(0).stdout;
    assert!(status.contains("outbox langfuse: 4 waiting, 0 dead, and no monitor publishes there"), "{status}");
    assert_eq!(listed(&site).await.iter().find(|queue| queue["queue"] == "langfuse").unwrap()["served"], json!(false));
    let said = site.run(&["outbox", "drop", "langfuse"]).await.expect(0).stdout;
    assert!(said.contains("0 dead rows"), "{said}");
    let said = site.run(&["outbox", "drop", "langfuse", "--waiting"]).await.expect(0).stdout;
    assert!(said.contains("4 rows of `langfuse` are forgotten"), "{said}");
    assert_eq!(daemon.stop().await, Some(0));
    let status = site.run(&["status"]).await.expect(0).stdout;
    assert!(status.contains("outbox langfuse: 0 waiting, 0 dead\n"), "{status}");
}

#[tokio::test]
async fn however_old_a_score_is_an_outage_of_its_sink_kills_no_row() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.monitor("m", &with(langfuse(), json!({ "metrics": [short()] })));
    site.world.langfuse.writes.always(Some(Fault::Status(503)));
    site.once("m").await;
    // As if assayd had been off for a month.
    let mut store = SqliteConnection::connect(&format!("sqlite://{}", site.path("state/assayd.db").display())).await.unwrap();
    sqlx::raw_sql("UPDATE scores SET created_us = created_us - 30 * 86400000000; UPDATE outbox SET next_us = 0").execute(&mut store).await.unwrap();
    store.close().await.unwrap();
    let _daemon = site.daemon().await;
    site.says("a sink could not be served").await;
    let queue = listed(&site).await[0].clone();
    assert_eq!((&queue["waiting"], &queue["dead"]), (&json!(3), &json!(0)), "{queue}");
    site.world.langfuse.writes.always(None);
    site.until("all scores at the server", |world| world.langfuse.scored("short") == 3).await;
}
