//! Langfuse in trouble, in both dialects: a run fails or succeeds as a whole, nothing is lost, and it says why.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{langfuse, quick, short, with},
    site::Site,
    world::{Fault, Mode, NewTrace, langfuse::Quirk},
};

const MODES: [Mode; 2] = [Mode::V4, Mode::V3];

fn free() -> Value {
    with(langfuse(), json!({ "metrics": [short()] }))
}

async fn site(mode: Mode) -> Site {
    let site = Site::with(mode).await;
    site.world.langfuse.add_some(250);
    site.monitor("m", &with(free(), json!({ "source": { "overlap": "12h" } })));
    site
}

async fn all_scored_once(site: &Site) {
    assert_eq!(site.scored_items("m", "short").await.len(), 250);
    assert_eq!(site.world.langfuse.scored("short"), 250);
    assert!(site.world.langfuse.scores().values().all(|rows| rows.len() == 1));
}

/// The fault for good: the run fails and says so. Without it: everything is there.
async fn fails_and_recovers(fault: Fault, words: &str) {
    for mode in MODES {
        let site = site(mode).await;
        site.world.langfuse.reads.always(Some(fault));
        let output = site.run(&["once", "m", "--format", "json"]).await.expect(1);
        assert_eq!(output.json()["status"], "failed", "{mode:?}");
        assert!(regex::Regex::new(&format!("(?i){words}")).unwrap().is_match(&output.said()), "{mode:?}: no `{words}` in {}", output.said());
        let status = site.run(&["status"]).await.expect(0).stdout;
        assert!(status.contains("failed"), "{status}");
        site.world.langfuse.reads.always(None);
        assert_eq!(site.once("m").await["status"], "succeeded", "{mode:?}");
        all_scored_once(&site).await;
    }
}

/// The fault now and then: the run succeeds all the same.
async fn is_outlasted(faults: &[Fault]) {
    for mode in MODES {
        let site = site(mode).await;
        site.world.langfuse.reads.queue(faults.iter().copied());
        let report = site.once("m").await;
        assert_eq!(report["counts"]["scored"], 250, "{mode:?}: {report}");
        assert_eq!(site.world.langfuse.reads.queued(), 0);
        all_scored_once(&site).await;
    }
}

#[tokio::test]
async fn refused_keys_fail_the_run_and_are_told() {
    for mode in MODES {
        let site = site(mode).await;
        site.world.langfuse.revoke_keys(true);
        let output = site.run(&["once", "m", "--format", "json"]).await.expect(1);
        assert!(output.said().contains("401") || output.said().contains("credentials"), "{output:?}");
        site.world.langfuse.revoke_keys(false);
        site.once("m").await;
        all_scored_once(&site).await;
    }
}

#[tokio::test]
async fn a_path_that_is_not_there_fails_the_run() {
    fails_and_recovers(Fault::Status(404), "404|not found|neither").await;
}

#[tokio::test]
async fn a_server_error_fails_the_run_when_it_lasts() {
    fails_and_recovers(Fault::Status(500), "500").await;
}

#[tokio::test]
async fn a_page_of_a_proxy_fails_the_run_when_it_lasts() {
    fails_and_recovers(Fault::Html, "json|html|doctype").await;
}

#[tokio::test]
async fn connections_cut_half_way_fail_the_run_when_it_lasts() {
    fails_and_recovers(Fault::Cut, "connection|cut|incomplete|body|end of file|eof|decod").await;
}

#[tokio::test]
async fn a_rate_limit_is_waited_for() {
    is_outlasted(&[Fault::Status(429)]).await;
}

#[tokio::test]
async fn a_server_error_is_outlasted() {
    is_outlasted(&[Fault::Status(500), Fault::Status(502)]).await;
}

#[tokio::test]
async fn a_page_of_a_proxy_is_outlasted() {
    is_outlasted(&[Fault::Html]).await;
}

#[tokio::test]
async fn a_connection_cut_half_way_is_outlasted() {
    is_outlasted(&[Fault::Cut, Fault::Drop]).await;
}

#[tokio::test]
async fn a_page_that_repeats_ends_the_run_and_not_the_daemon() {
    for mode in MODES {
        let mut site = site(mode).await;
        site.world.langfuse.quirk(Some(Quirk::RepeatPage));
        site.settings["retry"] = json!({ "attempts": 1, "max_elapsed": "5s" });
        site.save();
        let output = site.run(&["once", "m", "--format", "json"]).await;
        assert!(matches!(output.code, Some(0 | 1)), "{output:?}");
        site.world.langfuse.quirk(None);
        for _ in 0..2 {
            site.once("m").await;
        }
        all_scored_once(&site).await;
    }
}

#[tokio::test]
async fn a_cursor_that_ends_early_loses_nothing_within_the_overlap() {
    for mode in MODES {
        let site = site(mode).await;
        site.world.langfuse.quirk(Some(Quirk::EarlyEnd));
        let output = site.run(&["once", "m", "--format", "json"]).await;
        assert!(matches!(output.code, Some(0 | 1)), "{output:?}");
        site.world.langfuse.quirk(None);
        site.once("m").await;
        all_scored_once(&site).await;
    }
}

#[tokio::test]
async fn a_trace_of_30_mb_holds_up_no_other() {
    for mode in MODES {
        let site = Site::with(mode).await;
        site.world.langfuse.add_some(20);
        let giant = json!(format!("[[item:giant]] {}", "word ".repeat(6 << 20)));
        site.world.langfuse.add(NewTrace { output: giant, ..NewTrace::new("giant", Timestamp::now() - SignedDuration::from_mins(45)) });
        site.monitor("m", &langfuse());
        let output = site.run(&["once", "m", "--format", "json"]).await.expect(0);
        let report = output.json();
        assert!(report["counts"]["scored"].as_u64().unwrap() >= 20, "{mode:?}: {report}");
        assert_eq!(report["counts"]["fetched"], 21, "{mode:?}: {report}");
        assert!(output.said().len() < 200_000, "what a trace holds is not poured into the log");
    }
}

#[tokio::test]
async fn an_input_that_is_null_is_never_judged_as_an_empty_string() {
    for mode in MODES {
        let site = Site::with(mode).await;
        site.world.langfuse.add_some(3);
        let at = Timestamp::now() - SignedDuration::from_mins(45);
        site.world.langfuse.add(NewTrace { input: Value::Null, output: json!("[[item:null]]"), ..NewTrace::new("null", at) });
        site.monitor("m", &langfuse());
        let report = site.once("m").await;
        assert_eq!((&report["counts"]["scored"], &report["counts"]["not_applicable"]), (&json!(3), &json!(1)), "{mode:?}: {report}");
        assert_eq!(site.world.llm.calls().get("null"), None);
    }
}

#[tokio::test]
async fn a_daemon_outlives_all_of_it() {
    let site = Site::new().await;
    site.world.langfuse.add_some(120);
    let faults = [Fault::Status(500), Fault::Status(429), Fault::Drop, Fault::Html];
    site.world.langfuse.reads.queue(faults);
    site.world.langfuse.writes.queue(faults);
    site.world.llm.faults.queue(faults);
    site.world.llm.faults.share(Fault::Status(503), 0.05);
    site.monitor("m", &quick());
    let daemon = site.daemon().await;
    site.until("a score for every item", |world| world.langfuse.scored("helpful") == 120).await;
    assert_eq!(daemon.stop().await, Some(0));
    assert!(site.world.langfuse.scores().values().all(|rows| rows.len() == 1));
    assert_eq!(site.world.llm.most_calls(), 1);
}
