use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{annotations, labels, post};
use crate::{
    connections::AlertmanagerConnection,
    model::{AlertEvent, AlertEventKind, News},
    sinks::{Notifier, NotifyError, SoFar},
    util::http::Http,
};

/// Puts alerts into an Alertmanager (`POST /api/v2/alerts`).
pub struct AlertmanagerNotifier {
    http: Http,
    url: String,
    connection: AlertmanagerConnection,
}

impl AlertmanagerNotifier {
    #[must_use]
    pub fn new(connection: &AlertmanagerConnection, http: Http) -> Self {
        Self { http, url: format!("{}/api/v2/alerts", connection.base_url.trim_end_matches('/')), connection: connection.clone() }
    }
}

#[async_trait]
impl Notifier for AlertmanagerNotifier {
    async fn notify(&self, news: &News, _: &str, _: &mut SoFar) -> Result<(), NotifyError> {
        let alerts: Value = news.changes.iter().map(alert).collect();
        post(&self.http, &self.url, &self.connection.headers, &alerts, "Alertmanager").await
    }
}

/// Without an end Alertmanager forgets an alert after minutes. A firing is said again every `repeat` and resolved when it is over; one
/// that nobody has said for so long has lost its sender.
const FORGOTTEN: Duration = Duration::from_hours(7 * 24);
/// What happened and is over.
const NOTICE: Duration = Duration::from_mins(5);

fn alert(event: &AlertEvent) -> Value {
    let ends = match event.kind {
        AlertEventKind::Resolved => event.at,
        AlertEventKind::Notice => event.at.checked_add(NOTICE).unwrap_or(event.at),
        AlertEventKind::Firing | AlertEventKind::Repeat => event.at.checked_add(FORGOTTEN).unwrap_or(event.at),
    };
    json!({ "labels": labels(event), "annotations": annotations(event), "startsAt": event.since.to_string(), "endsAt": ends.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::receivers::example;

    #[test]
    fn an_alert_keeps_its_labels_to_the_end() {
        let (firing, over) = (alert(&example(AlertEventKind::Firing)), alert(&example(AlertEventKind::Resolved)));
        let labels = json!({ "alertname": "low", "monitor": "support", "metric": "helpful", "severity": "critical", "team_name": "support", "_2nd": "x" });
        assert_eq!((&firing["labels"], &firing["startsAt"], &firing["endsAt"]), (&labels, &json!("2026-01-01T00:00:00Z"), &json!("2026-01-08T01:00:00Z")));
        assert_eq!(firing["labels"], over["labels"]);
        assert_eq!(over["endsAt"], "2026-01-01T01:00:00Z");
    }
}
