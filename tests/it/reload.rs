//! A monitor's file is dropped in, changed, broken or deleted: it takes effect, and the other monitors run on untouched.

use std::{os::unix::fs::symlink, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{judge, quick, short, with},
    site::Site,
    world::NewTrace,
};

/// From the write to the effect, well before the next look that no event caused. The promise of a second is measured in benches/.
const SOON: Duration = Duration::from_secs(20);

/// Heuristics each second; its score's name tells which version ran.
fn marked(name: &str) -> Value {
    with(quick(), json!({ "metrics": [with(short(), json!({ "name": name }))] }))
}

async fn shows(site: &Site, score: &str) {
    site.wait_within(SOON, &format!("a score `{score}`"), async || site.world.langfuse.scored(score) > 0).await;
}

/// Does something to the files, and waits for the reload: what is fetched from then on is judged by what is written now.
async fn reloaded_by(site: &Site, change: impl FnOnce()) {
    let reloads = async || site.metric("assayd_config_reloads_total", &[]).await;
    let before = reloads().await;
    change();
    site.wait_within(SOON, "the reload", async || reloads().await > before).await;
}

/// A trace for the next run to score.
fn fresh(site: &Site, id: &str) {
    site.world.langfuse.add(NewTrace::new(id, Timestamp::now() - SignedDuration::from_secs(1)));
}

#[tokio::test]
async fn a_file_dropped_in_starts_and_one_deleted_stops() {
    let site = Site::new().await;
    site.world.langfuse.add_some(5);
    let _daemon = site.daemon().await;
    site.monitor("m", &marked("first"));
    shows(&site, "first").await;
    assert_eq!(site.metric("assayd_monitors", &[]).await, 1.0, "{:?}", site.get("/metrics").await);
    std::fs::remove_file(site.path("monitors/m.yaml")).unwrap();
    site.wait_within(SOON, "the monitor to be gone", async || site.metric("assayd_monitors", &[]).await == 0.0).await;
    let before = site.world.langfuse.listings();
    site.monitor("witness", &with(marked("witness"), json!({ "source": { "type": "langfuse", "name": "w" } })));
    shows(&site, "witness").await;
    site.more_runs("witness", 2).await;
    assert_eq!(site.world.langfuse.scored("first"), 5);
    assert!(site.world.langfuse.listings() > before);
}

#[tokio::test]
async fn a_changed_file_takes_effect_and_carries_its_state_over() {
    let site = Site::new().await;
    site.world.langfuse.add_some(5);
    site.monitor("m", &marked("before"));
    let _daemon = site.daemon().await;
    shows(&site, "before").await;
    reloaded_by(&site, || site.monitor("m", &marked("after"))).await;
    fresh(&site, "new");
    shows(&site, "after").await;
    site.more_runs("m", 1).await;
    assert_eq!((site.world.langfuse.scored("before"), site.world.langfuse.scored("after")), (5, 1), "what was judged stays judged");
}

#[tokio::test]
async fn a_broken_file_keeps_the_last_good_version_and_says_so() {
    let site = Site::new().await;
    site.monitor("m", &marked("good"));
    let _daemon = site.daemon().await;
    fresh(&site, "a");
    shows(&site, "good").await;
    site.write("monitors/m.yaml", "name: m\nschedule:\n  every: 1s\n  intervall: 5\n");
    site.says(r"monitors/m\.yaml:\d+:\d+").await;
    fresh(&site, "b");
    site.until("the last good version to go on", |world| world.langfuse.scored("good") == 2).await;
    let status = site.run(&["status"]).await.said();
    assert!(status.contains("monitors/m.yaml") && status.contains("intervall") && status.contains("file broken"), "{status}");
    let failed: f64 = site
        .get("/metrics")
        .await
        .unwrap()
        .lines()
        .filter(|line| {
            line.starts_with("assayd_config_reloads_total") && !line.contains("\"succeeded\"") && !line.contains("\"success\"") && !line.contains("\"ok\"")
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert!(failed >= 1.0, "a refused reload is counted");
    site.monitor("m", &marked("mended"));
    site.wait_within(SOON, "the fault to be gone", async || site.metric("assayd_monitors", &[("state", "broken")]).await == 0.0).await;
    let status = site.run(&["status"]).await.said();
    assert!(!status.contains("intervall"), "{status}");
    fresh(&site, "c");
    shows(&site, "mended").await;
}

#[tokio::test]
async fn the_others_run_on_untouched() {
    let site = Site::new().await;
    site.world.langfuse.add_some(6);
    site.world.llm.faults.latency(Duration::from_millis(2500));
    site.monitor("steady", &with(quick(), json!({ "metrics": [judge()], "evaluation": { "concurrency": 2 } })));
    let _daemon = site.daemon().await;
    site.until("the steady monitor at work", |world| world.llm.in_flight() > 0).await;
    // One long run; round it, others come, break and go.
    for round in 0..3 {
        site.monitor("other", &with(marked(&format!("other{round}")), json!({ "source": { "name": format!("o{round}") } })));
        shows(&site, &format!("other{round}")).await;
        site.write("monitors/broken.yaml", "schedule: [\n");
        site.reload().await;
    }
    std::fs::remove_file(site.path("monitors/other.yaml")).unwrap();
    site.until("the steady monitor's scores", |world| world.langfuse.scored("helpful") == 6).await;
    assert_eq!(site.world.llm.most_calls(), 1, "no call was cut off and made again");
    assert_eq!((site.world.llm.requests(), site.world.llm.peak()), (6, 2));
    let rows = site.export(&["--monitor", "steady"]).await;
    assert!(rows.iter().all(|row| row["run_id"] == rows[0]["run_id"]), "one run did it all: {rows:?}");
}

#[tokio::test]
async fn a_changed_monitor_finishes_its_run_under_its_old_version() {
    let site = Site::new().await;
    site.world.langfuse.add_some(4);
    site.world.llm.faults.latency(Duration::from_millis(1500));
    site.monitor("m", &with(quick(), json!({ "evaluation": { "concurrency": 2 } })));
    let _daemon = site.daemon().await;
    site.until("calls in flight", |world| world.llm.in_flight() == 2).await;
    site.monitor("m", &marked("after"));
    site.until("the running run to finish", |world| world.langfuse.scored("helpful") == 4).await;
    assert_eq!(site.world.llm.most_calls(), 1);
    fresh(&site, "new");
    shows(&site, "after").await;
}

#[tokio::test]
async fn what_editors_leave_beside_a_file_is_no_monitor() {
    let site = Site::new().await;
    site.monitor("m", &marked("good"));
    let _daemon = site.daemon().await;
    for name in [".m.yaml.swp", "m.yaml~", "#m.yaml#", "4913", ".#m.yaml", "_notes.yaml", "README.md"] {
        site.write(&format!("monitors/{name}"), "\u{0}not: [yaml");
    }
    let answer = site.reload().await;
    assert!(!answer.contains("swp") && !answer.contains("4913") && !answer.contains("README"), "{answer}");
    assert_eq!(site.metric("assayd_monitors", &[]).await, 1.0);
    let output = site.run(&["validate"]).await.expect(0);
    assert!(!output.said().contains("swp"), "{output:?}");
    fresh(&site, "a");
    shows(&site, "good").await;
}

#[tokio::test]
async fn a_config_map_swapped_by_kubernetes_takes_effect() {
    let site = Site::new().await;
    let version = |folder: &str, score: &str| {
        let spec = with(json!({ "name": "m" }), marked(score));
        site.write(&format!("monitors/{folder}/m.yaml"), crate::site::to_yaml(&spec));
    };
    version("..2026_01_01", "before");
    symlink("..2026_01_01", site.path("monitors/..data")).unwrap();
    symlink("..data/m.yaml", site.path("monitors/m.yaml")).unwrap();
    let _daemon = site.daemon().await;
    fresh(&site, "a");
    shows(&site, "before").await;
    version("..2026_01_02", "after");
    symlink("..2026_01_02", site.path("monitors/..data_tmp")).unwrap();
    std::fs::rename(site.path("monitors/..data_tmp"), site.path("monitors/..data")).unwrap();
    std::fs::remove_dir_all(site.path("monitors/..2026_01_01")).unwrap();
    site.wait_within(SOON, "the swap to take effect", async || {
        fresh(&site, &format!("n{}", site.world.langfuse.listings()));
        site.world.langfuse.scored("after") > 0
    })
    .await;
}

#[tokio::test]
async fn a_reload_by_hand_answers_with_what_changed_and_what_was_refused() {
    let site = Site::new().await;
    site.monitor("keep", &marked("keep"));
    let _daemon = site.daemon().await;
    site.monitor("added", &marked("added"));
    site.write("monitors/broken.yaml", "schedule: [\n");
    let answer = site.reload().await;
    // The watcher may have been faster than we were; what is refused is refused each time.
    assert!(answer.contains("broken.yaml"), "{answer}");
    site.wait_within(SOON, "the added monitor", async || site.metric("assayd_monitors", &[]).await >= 2.0).await;
    assert_eq!(site.request(reqwest::Method::GET, "/-/reload").await.unwrap().0, 405);
}

#[tokio::test]
async fn sighup_reloads() {
    let site = Site::new().await;
    site.world.langfuse.add_some(2);
    // A file that lies elsewhere: no watch of the folder sees it change.
    let spec = |score: &str| crate::site::to_yaml(&with(json!({ "name": "m" }), with(marked(score), json!({ "source": { "name": score } }))));
    site.write("elsewhere/m.yaml", spec("before"));
    symlink(site.path("elsewhere/m.yaml"), site.path("monitors/m.yaml")).unwrap();
    let daemon = site.daemon().await;
    shows(&site, "before").await;
    site.write("elsewhere/m.yaml", spec("after"));
    daemon.signal("HUP");
    shows(&site, "after").await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test]
async fn defaults_and_environment_of_a_folder_reach_its_monitors() {
    let site = Site::new().await;
    fresh(&site, "a");
    site.write(
        "monitors/support/_defaults.yaml",
        "schedule: { every: 1s }\nsource: { type: langfuse, settle: 0s }\npublish: [{ type: langfuse, scores: true }]\n",
    );
    site.write("monitors/support/.env", "MOST=5\n");
    site.write("monitors/.env", "MOST=1\n");
    site.write("monitors/support/answers.yaml", "metrics:\n  - { name: long, type: length, field: output, max: \"${MOST}\" }\n");
    let _daemon = site.daemon().await;
    shows(&site, "long").await;
    let row = &site.export(&["--monitor", "answers"]).await[0];
    assert_eq!(row["passed"], false, "{row}");
    // A changed default changes every monitor below it.
    reloaded_by(&site, || site.write("monitors/support/.env", "MOST=5000\n")).await;
    let defaults = "schedule: { every: 1s }\nsource: { type: langfuse, settle: 0s, overlap: 1h }\npublish: [{ type: langfuse, scores: true }]\n";
    reloaded_by(&site, || site.write("monitors/support/_defaults.yaml", defaults)).await;
    fresh(&site, "b");
    site.until("the second trace's score", |world| world.langfuse.scored("long") == 2).await;
    let rows = site.export(&["--monitor", "answers"]).await;
    assert!(rows.iter().any(|row| row["passed"] == true), "{rows:?}");
}

#[tokio::test]
async fn a_network_mount_is_polled() {
    let mut site = Site::new().await;
    site.world.langfuse.add_some(2);
    site.settings["poll"] = json!("1s");
    site.save();
    site.monitor("m", &marked("before"));
    let _daemon = site.daemon().await;
    shows(&site, "before").await;
    reloaded_by(&site, || site.monitor("m", &marked("after"))).await;
    fresh(&site, "late");
    shows(&site, "after").await;
    assert_eq!(site.world.langfuse.scored("before"), 2);
}
