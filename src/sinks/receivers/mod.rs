//! Alerts to services: news become JSON, posted once a call. What the bodies share is here: labels tell alerts
//! apart, annotations tell people about them, and no figure is ever a label.
//!
//! A repeat is the same alert again, so all of these may be told twice and nobody notices.

mod alertmanager;
mod email;
mod pagerduty;
mod webhook;

use std::collections::BTreeMap;

pub use self::{alertmanager::AlertmanagerNotifier, email::EmailNotifier, pagerduty::PagerdutyNotifier, webhook::WebhookNotifier};
use super::NotifyError;
use crate::{
    model::{AlertEvent, AlertEventKind},
    util::{
        http::{Http, HttpError},
        secret::{ExposeSecret, SecretString},
        text::{figure, one_line},
    },
};

/// Of a text for people. Whole sentences fit; a trace that tries to fill a screen does not.
const TEXT: usize = 1_000;

/// What tells the alert from others: the same from its beginning to its end.
fn labels(event: &AlertEvent) -> BTreeMap<String, String> {
    let own = [("alertname", Some(event.alertname())), ("monitor", Some(event.monitor.as_str())), ("metric", event.metric.as_deref())];
    let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let given = event.labels.iter().map(|(name, value)| (label_name(name), one_line(value, TEXT)));
    // An empty label is none.
    let mut labels: BTreeMap<String, String> = given.chain(own).filter(|(_, value)| !value.is_empty()).collect();
    labels.insert("severity".to_owned(), event.severity.as_str().to_owned());
    labels
}

/// Prometheus' names of labels have letters, digits and `_`.
fn label_name(name: &str) -> String {
    let sound: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if sound.starts_with(|c: char| c.is_ascii_digit()) { format!("_{sound}") } else { sound }
}

/// What people are told.
fn annotations(event: &AlertEvent) -> BTreeMap<String, String> {
    let worst = event.worst.iter().map(|item| {
        let url = item.url.as_deref().unwrap_or_default();
        one_line(&format!("{} {} {url} {}", item.item_id, figure(item.value), item.reason), TEXT)
    });
    let worst = worst.collect::<Vec<_>>().join("\n");
    let all = [
        ("summary", one_line(&event.summary, TEXT)),
        ("condition", event.condition.clone()),
        ("value", event.value.map(figure).unwrap_or_default()),
        ("samples", event.n.map(|n| n.to_string()).unwrap_or_default()),
        ("window", event.window.clone().unwrap_or_default()),
        ("run", event.run_id.clone()),
        ("worst", worst),
        ("details", event.lines.iter().map(|part| one_line(part, TEXT)).collect::<Vec<_>>().join("\n")),
    ];
    all.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name.to_owned(), text)).collect()
}

/// What all of them say alike.
fn shared(all: impl Iterator<Item = BTreeMap<String, String>>) -> BTreeMap<String, String> {
    all.reduce(|mut shared, other| {
        shared.retain(|name, value| other.get(name) == Some(value));
        shared
    })
    .unwrap_or_default()
}

fn status(event: &AlertEvent) -> &'static str {
    if event.kind == AlertEventKind::Resolved { "resolved" } else { "firing" }
}

/// Posts a body. What the service finds wrong with it would be wrong for ever; all else is tried again.
async fn post(http: &Http, url: &str, headers: &BTreeMap<String, SecretString>, body: &serde_json::Value, whom: &str) -> Result<(), NotifyError> {
    let mut request = http.client.post(url).json(body);
    for (name, value) in headers {
        request = request.header(name, value.expose_secret());
    }
    match http.attempt(request).await {
        Ok(_) => Ok(()),
        Err(error @ HttpError::Status { status: 400 | 413 | 422, .. }) => Err(NotifyError::Dead(format!("{whom}: {error}"))),
        // What is told twice here is the same alert once.
        Err(error) => Err(NotifyError::Retry { message: format!("{whom}: {error}"), retry_after: error.retry_after(), unsure: false }),
    }
}

#[cfg(test)]
fn news(events: Vec<AlertEvent>) -> crate::model::News {
    let labels = BTreeMap::from([("monitor".to_owned(), "support".to_owned())]);
    crate::model::News { id: "key-1".to_owned(), key: "key".to_owned(), labels, members: events.clone(), changes: events, first: true, louder: true }
}

#[cfg(test)]
fn example(kind: AlertEventKind) -> AlertEvent {
    use jiff::Timestamp;

    use crate::model::{Severity, WorstItem};
    AlertEvent {
        fingerprint: "support/low/1-1".to_owned(),
        kind,
        monitor: "support".to_owned(),
        alert: "low".to_owned(),
        severity: Severity::Critical,
        condition: "mean < 0.8".to_owned(),
        summary: "helpful: mean is below 0.8\n<script>".to_owned(),
        metric: Some("helpful".to_owned()),
        value: Some(0.71),
        interval: Some((0.63, 0.78)),
        threshold: Some(0.8),
        n: Some(130),
        window: Some("24h".to_owned()),
        since: Timestamp::from_second(1_767_225_600).unwrap(),
        at: Timestamp::from_second(1_767_229_200).unwrap(),
        run_id: "r-1".to_owned(),
        labels: BTreeMap::from([("team-name".to_owned(), "support".to_owned()), ("2nd".to_owned(), "x".to_owned()), ("none".to_owned(), String::new())]),
        worst: vec![WorstItem { item_id: "t-1".to_owned(), value: 0.1, reason: "rude".to_owned(), url: Some("https://lf/t-1".to_owned()) }],
        history: vec![0.9, 0.8, 0.6],
        lines: Vec::new(),
    }
}
