//! Alerts: they fire once, survive restarts and outages of Slack, resolve, and are on by default where it matters.

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, quick, short, with},
    site::Site,
    world::{Fault, Style, World},
};

fn alerting() -> Value {
    with(
        quick(),
        json!({
            "alerts": [{ "name": "helpful-low", "metric": "helpful", "when": "mean < 0.8", "over": "24h", "min_samples": 10, "severity": "critical",
                         "notify": [{ "slack": "#llm-alerts" }] }],
        }),
    )
}

/// Low scores for twenty traces, high ones for all that come later.
async fn bad_day() -> Site {
    let site = Site::new().await;
    site.world.langfuse.add_many("bad", 20, SignedDuration::from_mins(60), SignedDuration::from_mins(20));
    site.world.llm.verdict(|prompt| if prompt.contains("[[item:bad") { 0.25 } else { 1.0 });
    site.monitor("m", &alerting());
    site
}

fn get_better(world: &World) {
    world.langfuse.add_many("good", 100, SignedDuration::from_mins(20), SignedDuration::from_mins(10));
}

#[tokio::test]
async fn an_alert_fires_once_and_resolves_in_its_thread() {
    let site = bad_day().await;
    let _daemon = site.daemon().await;
    site.until("a message", |world| !world.slack.messages().is_empty()).await;
    site.more_runs("m", 4).await;
    let messages = site.world.slack.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    let (message, text) = (&messages[0], messages[0].to_string());
    assert_eq!(message["channel"], "#llm-alerts");
    for part in ["helpful-low", "0.25", "0.8", "20"] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert!(text.contains("/traces/bad"), "a way to the worst traces: {text}");
    assert_eq!(site.metric("assayd_alerts", &[("monitor", "m"), ("state", "firing")]).await, 1.0);

    get_better(&site.world);
    site.until("the message to be edited and answered", |world| !world.slack.updates().is_empty() && !world.slack.replies().is_empty()).await;
    site.more_runs("m", 2).await;
    let (updates, replies) = (site.world.slack.updates(), site.world.slack.replies());
    assert!(
        updates.iter().all(|update| update["ts"] == message["ts"]) && updates.last().unwrap().to_string().to_lowercase().contains("resolved"),
        "{updates:?}"
    );
    assert_eq!((replies.len(), &replies[0]["thread_ts"]), (1, &message["ts"]), "{replies:?}");
    assert_eq!(site.world.slack.messages().len(), 1);
}

#[tokio::test]
async fn an_alert_is_not_said_again_after_a_kill() {
    let site = bad_day().await;
    let daemon = site.daemon().await;
    site.until("a message", |world| !world.slack.messages().is_empty()).await;
    site.more_runs("m", 1).await;
    daemon.kill9().await;
    let daemon = site.daemon().await;
    site.more_runs("m", 3).await;
    assert_eq!(site.world.slack.messages().len(), 1);
    assert_eq!(daemon.stop().await, Some(0));
    get_better(&site.world);
    let _daemon = site.daemon().await;
    site.until("the alert of the first process to be resolved by the third", |world| !world.slack.updates().is_empty()).await;
    assert_eq!(site.world.slack.messages().len(), 1);
}

#[tokio::test]
async fn an_alert_outlasts_an_outage_of_slack_and_a_kill() {
    let site = bad_day().await;
    site.world.slack.faults.always(Some(Fault::Status(503)));
    let daemon = site.daemon().await;
    site.until("all scores", |world| world.langfuse.scored("helpful") == 20).await;
    site.more_runs("m", 2).await;
    daemon.kill9().await;
    let _daemon = site.daemon().await;
    site.more_runs("m", 1).await;
    assert!(site.world.slack.messages().is_empty());
    site.world.slack.faults.always(None);
    site.until("the message", |world| !world.slack.messages().is_empty()).await;
    site.more_runs("m", 3).await;
    assert_eq!(site.world.slack.messages().len(), 1);
    assert_eq!(site.world.langfuse.scored("helpful"), 20, "Slack's outage is no other sink's");
}

#[tokio::test]
async fn an_alert_waits_for_enough_samples_and_for_runs_in_a_row() {
    let site = Site::new().await;
    site.world.langfuse.add_many("bad", 5, SignedDuration::from_mins(60), SignedDuration::from_mins(20));
    site.world.llm.verdict(|_| 0.25);
    let spec = with(langfuse(), json!({ "alerts": [{ "name": "low", "metric": "helpful", "when": "mean < 0.8", "min_samples": 10, "for": 2 }] }));
    site.monitor("m", &spec);
    let state =
        |report: &Value| report["alerts"].as_array().unwrap().iter().find(|alert| alert["name"] == "low").unwrap()["state"].as_str().unwrap().to_owned();
    assert_eq!(state(&site.once("m").await), "insufficient");
    site.world.langfuse.add_many("more", 10, SignedDuration::from_mins(30), SignedDuration::from_mins(20));
    assert_eq!(state(&site.once("m").await), "pending");
    assert_eq!(state(&site.once("m").await), "firing");
    let status = site.run(&["status"]).await.expect(0).said();
    assert!(status.contains("firing"), "{status}");
}

#[tokio::test]
async fn a_webhook_is_told_where_there_is_no_token() {
    let mut site = bad_day().await;
    site.settings["connections"]["slack"] = json!({ "default": { "webhook_url": format!("{}/hook", site.world.slack.url) } });
    site.save();
    let _daemon = site.daemon().await;
    site.until("a message by the webhook", |world| !world.slack.hooks().is_empty()).await;
    site.more_runs("m", 3).await;
    assert_eq!(site.world.slack.hooks().len(), 1);
    assert!(site.world.slack.hooks()[0].to_string().contains("helpful-low"));
    get_better(&site.world);
    site.until("a second message that says it is over", |world| world.slack.hooks().len() == 2).await;
    assert!(site.world.slack.hooks()[1].to_string().to_lowercase().contains("resolved"));
}

#[tokio::test]
async fn without_slack_an_alert_goes_to_the_log() {
    let mut site = bad_day().await;
    site.settings["connections"].as_object_mut().unwrap().remove("slack");
    site.save();
    site.monitor("m", &with(alerting(), json!({ "alerts": [{ "name": "helpful-low", "metric": "helpful", "when": "mean < 0.8", "min_samples": 10 }] })));
    let _daemon = site.daemon().await;
    site.says("helpful-low").await;
    assert!(site.world.slack.messages().is_empty());
}

#[tokio::test]
async fn a_trace_cannot_ring_a_channel() {
    let site = bad_day().await;
    site.world.llm.reason("<!channel> see <https://evil.example|here> & *run* `rm`");
    let _daemon = site.daemon().await;
    site.until("a message", |world| !world.slack.messages().is_empty()).await;
    let text = site.world.slack.messages()[0].to_string();
    assert!(!text.contains("<!channel>") && !text.contains("<https://evil.example"), "{text}");
    assert!(text.contains("&lt;!channel&gt;") && text.contains("&amp;"), "what came is shown, escaped: {text}");
}

#[tokio::test]
async fn what_is_never_delivered_to_slack_is_given_up_and_shown() {
    let mut site = bad_day().await;
    site.settings["connections"]["slack"]["default"]["token"] = json!("xoxb-revoked");
    site.save();
    let mut daemon = site.daemon().await;
    site.more_runs("m", 2).await;
    site.says("invalid_auth").await;
    assert!(daemon.runs() && site.world.langfuse.scored("helpful") == 20);
}

/// The settings' `notify`, for the built-in alerts.
fn told(site: &mut Site) {
    site.settings["notify"] = json!([{ "slack": "#llm-ops" }]);
    site.settings["retry"] = json!({ "attempts": 1, "max_elapsed": "5s" });
    site.save();
}

#[tokio::test]
async fn failing_runs_are_told_without_being_asked_to() {
    let mut site = Site::new().await;
    told(&mut site);
    site.monitor("m", &quick());
    site.world.langfuse.reads.always(Some(Fault::Status(500)));
    let _daemon = site.daemon().await;
    site.until("a message about failing runs", |world| !world.slack.messages().is_empty()).await;
    let message = site.world.slack.messages()[0].clone();
    assert_eq!(message["channel"], "#llm-ops");
    site.world.langfuse.reads.always(None);
    site.until("the message to be resolved", |world| !world.slack.updates().is_empty()).await;
    assert_eq!(site.world.slack.messages().len(), 1);
}

#[tokio::test]
async fn failed_judgements_are_told_without_being_asked_to() {
    let mut site = Site::new().await;
    told(&mut site);
    site.world.langfuse.add_some(40);
    site.world.llm.style_by(|prompt| if prompt.contains("0]]") || prompt.contains("5]]") || prompt.contains("7]]") { Style::Garbage } else { Style::Plain });
    site.monitor("m", &with(quick(), json!({ "metrics": [judge(), short()] })));
    let _daemon = site.daemon().await;
    site.until("a message about failed judgements", |world| !world.slack.messages().is_empty()).await;
    assert!(site.world.slack.messages()[0].to_string().contains("fail"), "{:?}", site.world.slack.messages());
}

#[tokio::test]
async fn dead_rows_are_told_without_being_asked_to() {
    let mut site = Site::new().await;
    told(&mut site);
    site.world.langfuse.add_some(10);
    site.world.langfuse.refuse_scores_of("t0003");
    site.monitor("m", &quick());
    let _daemon = site.daemon().await;
    site.until("a message about refused rows", |world| !world.slack.messages().is_empty()).await;
}

#[tokio::test]
async fn an_alert_of_a_monitor_that_went_while_nobody_was_here_ends() {
    let site = bad_day().await;
    let daemon = site.daemon().await;
    site.until("a message", |world| !world.slack.messages().is_empty()).await;
    assert_eq!(daemon.stop().await, Some(0));
    std::fs::rename(site.path("monitors/m.yaml"), site.path("m.yaml")).unwrap();
    // What a refused file holds is not known.
    site.write("monitors/n.yaml", "name: [");
    let daemon = site.daemon().await;
    site.says("n.yaml").await;
    assert_eq!(daemon.stop().await, Some(0));
    assert!(site.world.slack.updates().is_empty());
    std::fs::remove_file(site.path("monitors/n.yaml")).unwrap();
    let _daemon = site.daemon().await;
    site.until("its end", |world| !world.slack.updates().is_empty()).await;
    assert!(site.world.slack.updates()[0].to_string().contains("the monitor was removed"));
}
