//! Alerts to services: a webhook of one's own, PagerDuty, and a real Alertmanager that groups and resolves what we send.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
};

use axum::{Json, Router, http::StatusCode, routing::post};
use serde_json::{Value, json};

use crate::{
    build::{quick, with},
    site::{Site, free_port},
    world::Fault,
};

/// Takes what is posted to it, after refusing so many.
struct Taker {
    taken: Arc<Mutex<Vec<Value>>>,
    url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Taker {
    async fn start(mut refuse: usize) -> Self {
        let taken: Arc<Mutex<Vec<Value>>> = Arc::default();
        let (keep, listener) = (Arc::clone(&taken), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (calls, mut called) = tokio::sync::mpsc::unbounded_channel::<(Value, tokio::sync::oneshot::Sender<bool>)>();
        tokio::spawn(async move {
            while let Some((body, answer)) = called.recv().await {
                let refused = refuse > 0;
                refuse = refuse.saturating_sub(1);
                if !refused {
                    keep.lock().unwrap().push(body);
                }
                let _ = answer.send(refused);
            }
        });
        let take = async move |Json(body): Json<Value>| {
            let (answer, refused) = tokio::sync::oneshot::channel();
            calls.send((body, answer)).unwrap();
            if refused.await.unwrap() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::ACCEPTED }
        };
        let router = Router::new().fallback(post(take));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { taken, url, server }
    }

    fn taken(&self) -> Vec<Value> {
        self.taken.lock().unwrap().clone()
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A monitor over answers of a file, with two plain alerts.
fn monitor(notify: &Value) -> Value {
    let alert =
        |name: &str, threshold: f64| json!({ "name": name, "metric": "good", "when": format!("mean < {threshold}"), "over": "runs: 1", "notify": [notify] });
    json!({
        "labels": { "team-name": "support" },
        "schedule": { "every": "1h" },
        "source": { "type": "file", "path": "answers.jsonl", "settle": "0s", "lookback": "3650d", "overlap": "3650d" },
        "metrics": [{ "name": "good", "type": "contains", "field": "output", "any": ["good"] }],
        "alerts": [alert("low", 0.8), alert("very-low", 0.5)],
    })
}

/// Ten more answers, all of them good or bad, and a run over them.
async fn answers(site: &Site, good: bool) {
    let path = site.path("answers.jsonl");
    let mut lines = std::fs::read_to_string(&path).unwrap_or_default();
    let from = lines.lines().count();
    for n in from..from + 10 {
        let output = if good { "good" } else { "bad <!channel> \u{7}" };
        lines.push_str(&format!("{}\n", json!({ "id": format!("a{n}"), "timestamp": "2026-11-01T00:00:00Z", "input": "q", "output": output })));
    }
    std::fs::write(path, lines).unwrap();
    site.once("m").await;
}

#[tokio::test]
async fn a_webhook_is_told_of_the_beginning_and_the_end_whatever_it_refuses_first() {
    let taker = Taker::start(1).await;
    let mut site = Site::new().await;
    site.settings["connections"]["webhook"] =
        json!({ "ops": { "url": format!("{}/hook", taker.url), "headers": { "authorization": "Bearer key-of-the-hook" } } });
    site.save();
    site.monitor("m", &monitor(&json!({ "webhook": "ops" })));
    answers(&site, false).await;
    answers(&site, true).await;
    let taken = taker.taken();
    assert_eq!(taken.len(), 2, "one a transition of the group: {taken:?}");
    let (firing, over) = (&taken[0], &taken[1]);
    assert_eq!((&firing["version"], &firing["status"], &over["status"]), (&json!("4"), &json!("firing"), &json!("resolved")));
    assert_eq!((&firing["groupLabels"], &firing["groupKey"]), (&json!({ "monitor": "m" }), &over["groupKey"]));
    assert_eq!((&firing["commonLabels"]["team_name"], &firing["commonLabels"]["alertname"]), (&json!("support"), &Value::Null));
    let fingerprints = |body: &Value| body["alerts"].as_array().unwrap().iter().map(|alert| alert["fingerprint"].clone()).collect::<Vec<_>>();
    assert_eq!((fingerprints(firing).len(), fingerprints(firing)), (2, fingerprints(over)));
    assert!(!site.log().contains("key-of-the-hook"));
}

#[tokio::test]
async fn an_incident_is_triggered_once_and_resolved() {
    let taker = Taker::start(0).await;
    let mut site = Site::new().await;
    site.settings["connections"]["pagerduty"] = json!({ "default": { "routing_key": "R0UT1NG", "base_url": taker.url } });
    site.save();
    site.monitor("m", &monitor(&json!({ "pagerduty": "default" })));
    answers(&site, false).await;
    answers(&site, false).await;
    assert_eq!(taker.taken().len(), 2, "one an alert, and no more while it goes on");
    answers(&site, true).await;
    let taken = taker.taken();
    let keys = |action: &str| {
        let mut keys: Vec<String> = taken.iter().filter(|body| body["event_action"] == action).map(|body| body["dedup_key"].to_string()).collect();
        keys.sort();
        keys
    };
    assert_eq!((keys("trigger").len(), keys("trigger")), (2, keys("resolve")));
    assert!(taken.iter().all(|body| body["routing_key"] == "R0UT1NG"));
}

#[tokio::test]
async fn a_receiver_that_does_not_exist_is_a_fault() {
    let site = Site::new().await;
    for (notify, wanted) in [
        (json!({ "webhook": "ops" }), "connections.webhook.ops"),
        (json!({ "alertmanager": "a", "pagerduty": "b" }), "one of `slack`, `email`, `webhook`, `alertmanager` and `pagerduty`"),
        (json!({ "pagerduty": "b", "connection": "c" }), "`connection` goes with `slack`"),
        (json!({ "webhok": "ops" }), "webhook"),
    ] {
        site.monitor("m", &monitor(&notify));
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(wanted), "{notify}: {said}");
    }
}

#[tokio::test]
async fn a_heart_beats_at_the_end_of_runs_and_says_when_they_fail() {
    let beats: Arc<Mutex<Vec<String>>> = Arc::default();
    let (keep, listener) = (Arc::clone(&beats), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let mut site = Site::new().await;
    site.settings["heartbeat"] = json!(format!("http://{}/ping/secret-of-the-watcher", listener.local_addr().unwrap()));
    site.save();
    let router = Router::new().fallback(async move |uri: axum::http::Uri| keep.lock().unwrap().push(uri.path().to_owned()));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    site.world.langfuse.add_some(3);
    site.monitor("m", &quick());
    let _daemon = site.daemon().await;
    let heard = |path: &str| beats.lock().unwrap().iter().any(|beat| beat == path);
    site.wait("a beat at the start and one at the end of a run", async || heard("/ping/secret-of-the-watcher/start") && heard("/ping/secret-of-the-watcher"))
        .await;
    assert!(!heard("/ping/secret-of-the-watcher/fail"));
    site.world.langfuse.reads.always(Some(Fault::Status(500)));
    site.wait("a beat that says that a run failed", async || heard("/ping/secret-of-the-watcher/fail")).await;
    assert!(!site.log().contains("secret-of-the-watcher"));
    server.abort();
}

/// A real Alertmanager with a webhook of ours behind it.
struct Alertmanager {
    url: String,
    _process: tokio::process::Child,
    _folder: tempfile::TempDir,
}

impl Alertmanager {
    /// `None` where it is not installed, which CI does not put up with.
    async fn start(site: &Site, behind: &str) -> Option<Self> {
        let binary = std::env::var("ASSAYD_TEST_ALERTMANAGER").unwrap_or_else(|_| "prometheus-alertmanager".to_owned());
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let config = json!({
            "route": { "receiver": "r", "group_by": ["monitor"], "group_wait": "200ms", "group_interval": "1s", "repeat_interval": "1h" },
            "receivers": [{ "name": "r", "webhook_configs": [{ "url": behind, "send_resolved": true }] }],
        });
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let started = tokio::process::Command::new(binary)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .args([format!("--web.listen-address=127.0.0.1:{port}"), "--cluster.listen-address=".to_owned()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let process = match started {
            Ok(process) => process,
            Err(error) => {
                assert!(std::env::var("ASSAYD_TEST_REQUIRE_ALERTMANAGER").is_err(), "{error}");
                eprintln!("NOT TESTED: there is no Alertmanager here ({error})");
                return None;
            }
        };
        let url = format!("http://127.0.0.1:{port}");
        let ready = format!("{url}/-/ready");
        site.wait("Alertmanager to be ready", async || reqwest::get(&ready).await.is_ok_and(|answer| answer.status().is_success())).await;
        Some(Self { url, _process: process, _folder: folder })
    }

    /// What it holds that is not over, by name.
    async fn alerts(&self) -> Vec<Value> {
        let all: Vec<Value> = reqwest::get(format!("{}/api/v2/alerts", self.url)).await.unwrap().json().await.unwrap();
        all
    }
}

#[tokio::test]
async fn a_real_alertmanager_receives_groups_and_resolves_our_alerts() {
    let taker = Taker::start(0).await;
    let mut site = Site::new().await;
    let Some(alertmanager) = Alertmanager::start(&site, &taker.url).await else { return };
    site.settings["connections"]["alertmanager"] = json!({ "default": { "base_url": alertmanager.url } });
    site.save();
    site.monitor("m", &with(monitor(&json!({ "alertmanager": "default" })), json!({ "labels": { "team-name": "support" } })));
    answers(&site, false).await;
    let held = alertmanager.alerts().await;
    assert_eq!(held.len(), 2, "{held:?}");
    assert!(
        held.iter().all(|alert| alert["labels"]["monitor"] == "m" && alert["labels"]["team_name"] == "support" && alert["status"]["state"] != "suppressed")
    );
    assert!(held.iter().any(|alert| alert["annotations"]["summary"].as_str().unwrap().starts_with("good: mean 0")), "{held:?}");
    site.wait("one message for both", async || !taker.taken().is_empty()).await;
    let first = &taker.taken()[0];
    assert_eq!((&first["status"], first["alerts"].as_array().unwrap().len()), (&json!("firing"), 2), "{first}");

    answers(&site, true).await;
    assert!(alertmanager.alerts().await.is_empty(), "they are over");
    site.wait("a message that both are resolved", async || taker.taken().iter().any(|body| body["status"] == "resolved")).await;
}
