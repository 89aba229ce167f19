//! assayd watches itself: runs that do not come, items that nobody judges, a source that runs away, a file that is refused.

use jiff::SignedDuration;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use crate::{
    build::{langfuse, quick, short, with},
    outside::{exec, items},
    site::Site,
    world::{Fault, Style, World},
};

/// Where all that is not a monitor's own is told.
async fn site() -> Site {
    let mut site = Site::new().await;
    site.settings["notify"] = json!([{ "slack": "#llm-ops" }]);
    // Each alert by itself.
    site.settings["group_by"] = json!(["..."]);
    site.settings["retry"] = json!({ "attempts": 1, "max_elapsed": "5s" });
    site.save();
    site
}

/// Whether a message is about an alert of a monitor.
fn about(message: &Value, alert: &str, monitor: &str) -> bool {
    message["text"].as_str().is_some_and(|text| text.contains(&format!("{alert} ({monitor})")))
}

fn messages(world: &World, alert: &str, monitor: &str) -> Vec<String> {
    world.slack.messages().iter().filter(|message| about(message, alert, monitor)).map(ToString::to_string).collect()
}

fn resolved(world: &World, alert: &str, monitor: &str) -> bool {
    world.slack.updates().iter().any(|update| about(update, alert, monitor) && update["text"].as_str().unwrap().starts_with("Resolved"))
}

/// Free, and every second.
fn free() -> Value {
    with(quick(), json!({ "metrics": [short()] }))
}

/// A judge that is done once the file `go` is there.
const PATIENT: &str = r#"
import json, os, sys, time
print(json.dumps({"hello": {"name": "patient", "version": "1"}}), flush=True)
for line in sys.stdin:
    open("busy", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.05)
    print(json.dumps({"id": json.loads(line)["id"], "outcomes": [{"score": 1}]}), flush=True)
"#;

#[tokio::test]
async fn a_monitor_that_finds_no_place_is_stalled_though_no_run_of_it_ends() {
    let mut site = site().await;
    site.settings["concurrency"] = json!({ "runs": 1 });
    site.save();
    site.write("patient.py", PATIENT);
    site.world.langfuse.add_some(3);
    let hog = json!({ "schedule": { "every": "1s" }, "metrics": [exec("patient.py", json!({ "timeout": "10m" }))] });
    site.monitor("hog", &with(items(&site, &["x"]), hog));
    let _daemon = site.daemon().await;
    site.wait("the only place to be taken", async || site.path("busy").exists()).await;
    site.monitor("m", &with(free(), json!({ "schedule": { "timeout": "2s" } })));
    site.until("a message", |world| !world.slack.messages().is_empty()).await;
    let told = messages(&site.world, "stalled", "m");
    assert!(matches!(&told[..], [message] if message.contains("critical") && message.contains("none is under way")), "{told:?}");
    assert_eq!(site.runs("m").await, 0.0, "no run ended");
    assert_eq!(site.metric("assayd_alerts", &[("monitor", "m"), ("state", "firing")]).await, 1.0);
    assert!(site.run(&["status"]).await.said().contains("stalled: firing"));

    site.write("go", "");
    site.until("the end of it", |world| resolved(world, "stalled", "m")).await;
    site.wait("the count to follow", async || site.metric("assayd_alerts", &[("monitor", "m"), ("state", "firing")]).await == 0.0).await;
    assert_eq!(site.world.slack.messages().len(), 1, "{:?}", site.world.slack.messages());
}

#[tokio::test]
async fn a_source_that_hangs_stalls_its_monitor_until_a_run_succeeds() {
    let site = site().await;
    site.world.langfuse.add_some(3);
    site.world.langfuse.reads.always(Some(Fault::Hang));
    site.write("monitors/_defaults.yaml", "watch: { runs-failing: false, no-data: false }\n");
    site.monitor("m", &with(free(), json!({ "schedule": { "timeout": "2s" }, "watch": { "no-data": true } })));
    let daemon = site.daemon().await;
    site.until("a message", |world| !world.slack.messages().is_empty()).await;
    let told = messages(&site.world, "stalled", "m");
    assert!(told.len() == 1, "what is switched off is not told: {:?}", site.world.slack.messages());
    site.more_runs("m", 1).await;
    // It has not ended because another process looks.
    daemon.kill9().await;
    let _daemon = site.daemon().await;
    site.more_runs("m", 2).await;
    assert!(site.world.slack.updates().is_empty(), "{:?}", site.world.slack.updates());
    site.world.langfuse.reads.always(None);
    site.until("the end of it", |world| resolved(world, "stalled", "m")).await;
    assert_eq!(site.world.slack.messages().len(), 1, "{:?}", site.world.slack.messages());
}

#[tokio::test]
async fn an_alert_that_is_switched_off_ends() {
    let site = site().await;
    site.world.langfuse.reads.always(Some(Fault::Status(500)));
    let monitor = |watch: Value| site.monitor("m", &with(free(), json!({ "schedule": { "timeout": "1s" }, "watch": watch })));
    monitor(json!({}));
    let _daemon = site.daemon().await;
    site.until("both alerts", |world| messages(world, "stalled", "m").len() == 1 && messages(world, "runs-failing", "m").len() == 1).await;
    monitor(json!({ "stalled": false, "runs-failing": false }));
    site.until("their end", |world| resolved(world, "stalled", "m") && resolved(world, "runs-failing", "m")).await;
    assert!(site.world.slack.updates().iter().all(|update| update.to_string().contains("the alert was switched off")), "{:?}", site.world.slack.updates());
}

#[tokio::test]
async fn items_that_nobody_judges_are_told_by_their_share() {
    let site = site().await;
    site.world.langfuse.add_many("bad", 25, SignedDuration::from_mins(60), SignedDuration::from_mins(20));
    site.world.llm.style_by(|prompt| if prompt.contains("[[item:bad") { Style::Garbage } else { Style::Plain });
    let lenient = json!({ "evaluation": { "max_attempts": 1 }, "watch": { "judgements-failed": false, "runs-failing": false, "stalled": false } });
    site.monitor("m", &with(quick(), lenient));
    let _daemon = site.daemon().await;
    site.until("a message", |world| !world.slack.messages().is_empty()).await;
    let told = messages(&site.world, "coverage-low", "m");
    assert!(matches!(&told[..], [message] if message.contains("0 of 25 items") && message.contains("25 failed")), "{:?}", site.world.slack.messages());
    site.world.langfuse.add_many("good", 300, SignedDuration::from_mins(20), SignedDuration::from_mins(10));
    site.until("the end of it", |world| resolved(world, "coverage-low", "m")).await;
    assert_eq!(site.world.slack.messages().len(), 1);
}

/// The state of an alert, and why.
fn line(report: &Value, alert: &str) -> (String, String) {
    let line = report["alerts"].as_array().unwrap().iter().find(|line| line["name"] == alert).unwrap_or_else(|| panic!("no {alert} in {report}"));
    (line["state"].as_str().unwrap().to_owned(), line["reason"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn an_item_that_waits_for_long_is_named() {
    let site = site().await;
    site.world.langfuse.add_some(30);
    site.world.llm.faults.always(Some(Fault::Status(401)));
    site.monitor("m", &langfuse());
    let report = site.once_with("m", &[], 1).await;
    assert_eq!((line(&report, "items-waiting").0, line(&report, "coverage-low").0), ("inactive".into(), "no_data".into()), "a usual delay: {report}");

    let mut store = SqliteConnection::connect(&format!("sqlite://{}", site.path("state/assayd.db").display())).await.unwrap();
    sqlx::raw_sql("UPDATE pending SET first_us = first_us - 7 * 3600000000").execute(&mut store).await.unwrap();
    let report = site.once_with("m", &[], 1).await;
    let (state, reason) = line(&report, "items-waiting");
    assert!(state == "firing" && reason.contains("has waited 7h") && reason.contains("30 wait"), "{reason}");
    let (state, reason) = line(&report, "coverage-low");
    assert!(state == "firing" && reason.contains("0 of 30 items") && reason.contains("30 deferred"), "{reason}");

    site.world.llm.faults.always(None);
    let report = site.once("m").await;
    assert_eq!((line(&report, "items-waiting").0, line(&report, "coverage-low").0), ("resolved".into(), "resolved".into()), "{report}");
}

#[tokio::test]
async fn a_source_that_is_faster_than_its_runs_is_told() {
    let site = site().await;
    // All of the same moment, so that no run comes closer.
    site.world.langfuse.add_many("t", 30, SignedDuration::from_hours(20), SignedDuration::from_millis(30));
    let monitor = |limit: u64| site.monitor("m", &with(langfuse(), json!({ "source": { "limit": limit }, "metrics": [short()] })));
    monitor(5);
    let (state, reason) = line(&site.once("m").await, "watermark-lag");
    assert!(state == "inactive" && reason.contains("not known yet"), "a first run begins that far behind: {reason}");
    let (state, reason) = line(&site.once("m").await, "watermark-lag");
    assert!(state == "firing" && reason.contains("20h"), "{state} {reason}");
    monitor(1000);
    let report = site.once("m").await;
    assert_eq!((line(&report, "watermark-lag").0.as_str(), report["counts"]["scored"].as_u64()), ("resolved", Some(20)), "{report}");
    let (state, reason) = line(&site.once("m").await, "watermark-lag");
    assert_eq!(state, "inactive", "a source that has no more is no-data's: {reason}");
}

#[tokio::test]
async fn a_refused_file_is_told_until_it_is_good_or_gone() {
    let site = site().await;
    site.monitor("m", &free());
    // Refused from the start, and never good.
    site.write("monitors/half-done.yaml", "schedule: [\n");
    let _daemon = site.daemon().await;
    site.until("a message by the file's stem", |world| messages(world, "file-refused", "half-done").len() == 1).await;
    site.write("monitors/m.yaml", "name: m\nschedule:\n  every: 1s\n  intervall: 5\n");
    site.until("a message by the monitor's name", |world| messages(world, "file-refused", "m").len() == 1).await;
    assert!(messages(&site.world, "file-refused", "m")[0].contains("monitors/m.yaml:"), "{:?}", site.world.slack.messages());
    site.more_runs("m", 2).await;
    assert!(site.world.slack.updates().is_empty(), "the runs of the last good version end nothing");

    // Not even its name reads any more: it is still the same file.
    site.write("monitors/m.yaml", "schedule: [\n");
    site.says(r"monitors/m\.yaml:\d+:\d+: not valid YAML").await;
    site.monitor("m", &free());
    std::fs::remove_file(site.path("monitors/half-done.yaml")).unwrap();
    site.until("the end of both", |world| resolved(world, "file-refused", "m") && resolved(world, "file-refused", "half-done")).await;
    assert_eq!((site.world.slack.messages().len(), site.world.slack.updates().len()), (2, 2), "{:?}", site.world.slack.messages());
}

#[tokio::test]
async fn a_wrong_switch_is_a_fault_and_a_silence_mutes_what_no_run_ends() {
    let mut site = site().await;
    site.settings["watch"] = json!({ "file-refused": true, "no-data": false });
    site.save();
    site.monitor("m", &with(free(), json!({ "watch": { "stallled": false } })));
    let said = site.run(&["validate"]).await.expect(1).said();
    assert!(said.contains("monitors/m.yaml:") && said.contains("did you mean `stalled`?"), "{said}");
    site.run(&["silence", "add", "--for", "1h", "--comment", "known", "alertname=file-refused"]).await.expect(0);
    let _daemon = site.daemon().await;
    site.wait("the alert", async || site.metric("assayd_alerts", &[("monitor", "m"), ("state", "firing")]).await == 1.0).await;
    assert!(site.world.slack.messages().is_empty());
}
