//! When runs happen: slots, restarts, one run of a monitor at a time, the end of the process, one process a folder.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, quick, short, with},
    site::Site,
    world::Fault,
};

fn free(schedule: Value) -> Value {
    json!({ "schedule": schedule, "source": { "type": "file", "path": "x.jsonl" }, "metrics": [short()] })
}

async fn next(site: &Site, monitor: &str, count: &str, from: &str) -> Vec<String> {
    let slots = site.run(&["next", monitor, "--count", count, "--from", from, "--format", "json"]).await.expect(0).json();
    slots.as_array().unwrap().iter().map(|slot| slot["utc"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_coming_slots_follow_cron_intervals_and_daylight_saving() {
    let site = Site::new().await;
    let berlin = |cron: &str| free(json!({ "cron": cron, "timezone": "Europe/Berlin" }));
    site.monitor("night", &berlin("30 2 * * *"));
    // 2026-10-25: 02:30 comes twice, and fires at the first.
    assert_eq!(next(&site, "night", "3", "2026-10-24T12:00:00Z").await, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z", "2026-10-27T01:30:00Z"]);
    // 2027-03-28: there is no 02:30, and the slot is not lost.
    let spring = next(&site, "night", "3", "2027-03-27T12:00:00Z").await;
    assert_eq!(spring.len(), 3);
    assert!(spring[0].starts_with("2027-03-28T01:") && spring[1] == "2027-03-29T00:30:00Z" && spring[2] == "2027-03-30T00:30:00Z", "{spring:?}");
    site.monitor("six", &free(json!({ "cron": "15 */20 * * * *" })));
    assert_eq!(next(&site, "six", "2", "2026-11-01T00:00:00Z").await, ["2026-11-01T00:00:15Z", "2026-11-01T00:20:15Z"]);
    site.monitor("named", &free(json!({ "cron": "@daily" })));
    assert_eq!(next(&site, "named", "1", "2026-11-01T10:00:00Z").await, ["2026-11-02T00:00:00Z"]);
    site.monitor("every", &free(json!({ "every": "15m" })));
    assert_eq!(next(&site, "every", "2", "2026-11-01T10:01:00Z").await, ["2026-11-01T10:15:00Z", "2026-11-01T10:30:00Z"]);
    site.monitor("minutes", &free(json!({ "interval_minutes": 30 })));
    assert_eq!(next(&site, "minutes", "2", "2026-11-01T10:01:00Z").await, ["2026-11-01T10:30:00Z", "2026-11-01T11:00:00Z"]);
}

#[tokio::test]
async fn a_slot_is_told_in_utc_and_in_the_monitors_zone() {
    let site = Site::new().await;
    site.monitor("m", &free(json!({ "cron": "0 9 * * *", "timezone": "Europe/Berlin" })));
    let slots = site.run(&["next", "m", "--count", "1", "--from", "2026-07-01T00:00:00Z", "--format", "json"]).await.expect(0).json();
    assert_eq!(slots[0]["utc"], "2026-07-01T07:00:00Z");
    assert!(slots[0]["local"].as_str().unwrap().starts_with("2026-07-01T09:00:00+02:00"), "{slots}");
    let table = site.run(&["next", "m", "--count", "2", "--from", "2026-07-01T00:00:00Z"]).await.expect(0).stdout;
    assert!(table.contains("2026-07-02") && table.contains("07:00"), "{table}");
}

#[tokio::test]
async fn jitter_is_steady_and_differs_by_monitor() {
    let site = Site::new().await;
    for name in ["one", "two", "three"] {
        site.monitor(name, &free(json!({ "every": "1h", "jitter": "10m" })));
    }
    let mut slots = Vec::new();
    for name in ["one", "two", "three"] {
        let first = next(&site, name, "1", "2026-11-01T10:59:59Z").await;
        assert_eq!(first, next(&site, name, "1", "2026-11-01T10:59:59Z").await);
        assert!(
            "2026-11-01T11:00:00Z" <= first[0].as_str() && first[0].as_str() < "2026-11-01T11:10:00Z" || first[0].as_str() < "2026-11-01T11:00:00Z",
            "{first:?}"
        );
        slots.extend(first);
    }
    slots.sort();
    slots.dedup();
    assert_eq!(slots.len(), 3);
}

fn epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// Waits for the moment `into` after a multiple of `every`; time is the subject here.
async fn moment(every: u64, into: f64) {
    let now = epoch().as_secs_f64();
    let target = ((now - into) / every as f64).ceil() * every as f64 + into;
    tokio::time::sleep(Duration::from_secs_f64(target - now)).await;
}

#[tokio::test]
async fn a_slot_runs_once_across_restarts() {
    let slot = || epoch().as_secs() / 12;
    let site = Site::new().await;
    site.monitor("m", &with(langfuse(), json!({ "schedule": { "every": "12s" }, "metrics": [short()] })));
    moment(12, 10.5).await;
    let daemon = site.daemon().await;
    site.until("the slot's run", |world| world.langfuse.listings() > 0).await;
    let began = slot();
    site.wait("the run to end", async || site.runs("m").await >= 1.0).await;
    daemon.kill9().await;
    let listings = site.world.langfuse.listings();
    assert_eq!(site.daemon().await.stop().await, Some(0));
    let _daemon = site.daemon().await;
    moment(12, 11.5).await;
    // On a machine too busy to come back within the slot, the next one has run, as it should.
    if slot() == began {
        assert_eq!(site.world.langfuse.listings(), listings, "the slot ran again after a restart:\n{}", site.log());
    }
    site.until("the next slot's run", |world| world.langfuse.listings() > listings).await;
}

#[tokio::test]
async fn the_latest_missed_slot_is_caught_up_once_or_not_at_all() {
    let site = Site::new().await;
    let every = |catch_up: &str, score: &str| {
        with(
            langfuse(),
            json!({
                "schedule": { "every": "12s", "catch_up": catch_up }, "source": { "name": score }, "metrics": [with(short(), json!({ "name": score }))],
            }),
        )
    };
    site.monitor("once", &every("once", "caught"));
    site.monitor("none", &every("none", "skipped"));
    moment(12, 10.5).await;
    let daemon = site.daemon().await;
    site.wait("the first slot", async || site.runs("once").await >= 1.0 && site.runs("none").await >= 1.0).await;
    assert_eq!(daemon.stop().await, Some(0));
    site.world.langfuse.add_some(3);
    // A slot passes by while nobody is there: well past the first one, to the next.
    moment(12, 3.0).await;
    moment(12, 0.3).await;
    let daemon = site.daemon().await;
    site.until("the missed slot's run", |world| world.langfuse.scored("caught") == 3).await;
    if epoch().as_secs_f64() % 12.0 < 9.0 {
        assert_eq!(site.world.langfuse.scored("skipped"), 0);
        assert_eq!(site.runs("once").await, 1.0);
    }
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test]
async fn a_run_on_start_does_not_wait_for_a_slot() {
    let site = Site::new().await;
    site.world.langfuse.add_some(2);
    site.monitor("m", &with(langfuse(), json!({ "schedule": { "every": "24h", "on_start": true }, "metrics": [short()] })));
    let _daemon = site.daemon().await;
    site.until("the run at the start", |world| world.langfuse.scored("short") == 2).await;
}

#[tokio::test]
async fn a_monitor_never_overlaps_itself() {
    let site = Site::new().await;
    site.world.langfuse.add_some(12);
    site.world.llm.faults.latency(Duration::from_millis(600));
    site.monitor("m", &with(quick(), json!({ "evaluation": { "concurrency": 2 } })));
    let _daemon = site.daemon().await;
    site.until("all scores", |world| world.langfuse.scored("helpful") == 12).await;
    assert_eq!((site.world.llm.peak(), site.world.llm.most_calls()), (2, 1));
}

#[tokio::test]
async fn a_slow_monitor_delays_no_other() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.world.llm.faults.always(Some(Fault::Hang));
    site.monitor("slow", &quick());
    site.monitor("swift", &with(quick(), json!({ "source": { "name": "swift" }, "metrics": [short()] })));
    let _daemon = site.daemon().await;
    site.until("the slow monitor in its judge", |world| world.llm.in_flight() == 3).await;
    for i in 0..3 {
        site.world.langfuse.add_many(&format!("n{i}x"), 1, SignedDuration::from_secs(1), SignedDuration::ZERO);
        site.until("the swift monitor's next score", |world| world.langfuse.scored("short") == 4 + i).await;
    }
    assert!(site.world.llm.in_flight() >= 3, "and the slow one is still at it");
}

#[tokio::test]
async fn a_run_that_takes_too_long_is_ended() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.world.llm.faults.always(Some(Fault::Hang));
    site.monitor("m", &with(quick(), json!({ "schedule": { "every": "1s", "timeout": "2s" } })));
    let _daemon = site.daemon().await;
    site.wait("a run that was ended", async || site.runs("m").await >= 1.0).await;
    site.world.llm.faults.always(None);
    site.until("its items to be judged by a later run", |world| world.langfuse.scored("helpful") == 3).await;
}

#[tokio::test]
async fn a_signal_drains_what_is_under_way() {
    let site = Site::new().await;
    site.world.langfuse.add_some(40);
    site.world.llm.faults.latency(Duration::from_millis(300));
    site.monitor("m", &with(quick(), json!({ "evaluation": { "concurrency": 4 } })));
    let daemon = site.daemon().await;
    site.until("a run at work", |world| world.llm.answered() >= 4).await;
    assert_eq!(daemon.stop().await, Some(0));
    let answered = site.world.llm.answered();
    let stored = site.export(&[]).await.len();
    assert_eq!((stored, site.world.langfuse.scored("helpful")), (answered, answered), "every paid answer is stored and delivered");
    let _daemon = site.daemon().await;
    site.until("the rest", |world| world.langfuse.scored("helpful") == 40).await;
    assert_eq!(site.world.llm.most_calls(), 1);
}

#[tokio::test]
async fn a_daemon_with_nothing_to_do_ends_at_once() {
    let site = Site::new().await;
    site.monitor("m", &with(langfuse(), json!({ "metrics": [short()] })));
    let daemon = site.daemon().await;
    let asked = std::time::Instant::now();
    assert_eq!(daemon.stop().await, Some(0));
    // The grace for what is under way is 30 s: none of it is waited out.
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_is_left_resumable() {
    let mut site = Site::new().await;
    site.settings["shutdown_grace"] = json!("1s");
    site.save();
    site.world.langfuse.add_some(5);
    site.world.llm.faults.always(Some(Fault::Hang));
    site.monitor("m", &quick());
    let daemon = site.daemon().await;
    site.until("calls that hang", |world| world.llm.in_flight() == 5).await;
    assert_eq!(daemon.stop().await, Some(0));
    site.world.llm.faults.always(None);
    let _daemon = site.daemon().await;
    site.until("all scores", |world| world.langfuse.scored("helpful") == 5).await;
    let rows = site.export(&[]).await;
    assert!(rows.iter().all(|row| row["run_id"] == rows[0]["run_id"]), "the interrupted run was finished as what it was: {rows:?}");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let site = Site::new().await;
    site.world.langfuse.add_some(5);
    site.world.llm.faults.always(Some(Fault::Hang));
    site.monitor("m", &quick());
    let daemon = site.daemon().await;
    site.until("calls that hang", |world| world.llm.in_flight() == 5).await;
    daemon.signal("TERM");
    site.wait("the daemon to be no longer ready", async || site.get("/readyz").await.is_none()).await;
    let asked = std::time::Instant::now();
    daemon.signal("INT");
    daemon.end().await;
    assert!(asked.elapsed() < Duration::from_secs(10), "the grace is 30 s: {:?}", asked.elapsed());
}

#[tokio::test]
async fn a_state_folder_has_one_daemon_and_a_second_one_says_who_holds_it() {
    let mut site = Site::new().await;
    let first = site.daemon().await;
    site.settings["listen"] = json!("off");
    site.save();
    let second = site.run(&["run"]).await.expect(2);
    assert!(second.stderr.contains(&first.pid().to_string()), "{second:?}");
    assert_eq!(first.stop().await, Some(0));
}

#[tokio::test]
async fn a_run_by_hand_beside_a_daemon_is_done_by_the_daemon() {
    let site = Site::new().await;
    site.world.langfuse.add_some(7);
    site.monitor("m", &langfuse());
    let daemon = site.daemon().await;
    let report = site.once("m").await;
    assert_eq!((&report["counts"]["scored"], &report["trigger"]), (&json!(7), &json!("manual")), "{report}");
    assert_eq!(site.runs("m").await, 1.0, "the daemon counted it");
    let status = site.run(&["status"]).await.expect(0).stdout;
    assert!(status.contains('m'), "{status}");
    site.run(&["explain", "m", "t0001"]).await.expect(0);
    assert_eq!(site.export(&[]).await.len(), 7);
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test]
async fn health_is_told_to_containers() {
    let site = Site::new().await;
    site.run(&["healthcheck"]).await.expect(1);
    let daemon = site.daemon().await;
    site.run(&["healthcheck"]).await.expect(0);
    assert!(site.get("/healthz").await.is_some());
    assert_eq!(daemon.stop().await, Some(0));
    site.run(&["healthcheck"]).await.expect(1);
}

#[tokio::test]
async fn what_it_does_is_counted_under_documented_names() {
    let site = Site::new().await;
    site.world.langfuse.add_some(4);
    site.monitor("m", &with(quick(), json!({ "metrics": [judge(), short()] })));
    let _daemon = site.daemon().await;
    site.until("all scores", |world| world.langfuse.scored("helpful") == 4).await;
    site.wait("the first run to be counted", async || site.runs("m").await >= 1.0).await;
    for name in [
        "assayd_runs_total",
        "assayd_run_duration_seconds",
        "assayd_schedule_lateness_seconds",
        "assayd_items_total",
        "assayd_scores_total",
        "assayd_watermark_lag_seconds",
        "assayd_last_success_timestamp_seconds",
        "assayd_outbox_pending",
        "assayd_alerts",
        "assayd_monitors",
        "llm_requests_total",
        "llm_latency_seconds",
        "llm_tokens_total",
        "llm_cost_usd_total",
    ] {
        let text = site.get("/metrics").await.unwrap();
        assert!(text.lines().any(|line| line.starts_with(name)), "no {name} in\n{text}");
    }
    assert_eq!(site.metric("assayd_items_total", &[("monitor", "m"), ("decision", "scored")]).await, 4.0);
    assert_eq!(site.metric("assayd_scores_total", &[("monitor", "m"), ("metric", "helpful"), ("outcome", "scored")]).await, 4.0);
    assert_eq!(site.metric("llm_requests_total", &[("provider", "openai"), ("model", "gpt-4o-mini")]).await, 4.0);
    assert!(site.metric("llm_tokens_total", &[]).await >= 80.0 && site.metric("llm_cost_usd_total", &[]).await > 0.0);
}

#[tokio::test]
async fn with_a_token_only_those_who_have_it_are_served() {
    let mut site = Site::new().await;
    site.settings["auth"] = json!({ "token": "${ASSAYD_TOKEN}" });
    site.env.push(("ASSAYD_TOKEN".to_owned(), "s3cret-token".to_owned()));
    site.save();
    let daemon = site.spawn(&["run"]);
    site.wait("an answer", async || site.request(reqwest::Method::GET, "/readyz").await.is_some()).await;
    let (status, _) = site.request(reqwest::Method::POST, "/-/reload").await.unwrap();
    assert!(matches!(status, 401 | 403), "{status}");
    let url = format!("http://127.0.0.1:{}/-/reload", site.port);
    let answer = reqwest::Client::new().post(url).bearer_auth("s3cret-token").send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    site.run(&["healthcheck"]).await.expect(0);
    assert_eq!(daemon.stop().await, Some(0));
    assert!(!site.log().contains("s3cret-token"));
}
