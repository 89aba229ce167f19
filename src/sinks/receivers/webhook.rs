use async_trait::async_trait;
use serde_json::{Value, json};

use super::{annotations, labels, post, status};
use crate::{
    connections::WebhookConnection,
    model::{AlertEvent, AlertEventKind},
    sinks::{Notifier, NotifyError},
    util::{http::Http, secret::ExposeSecret},
};

/// Posts what Alertmanager's webhook receivers are posted (version 4), one alert a message.
pub struct WebhookNotifier {
    http: Http,
    connection: WebhookConnection,
}

impl WebhookNotifier {
    #[must_use]
    pub fn new(connection: &WebhookConnection, http: Http) -> Self {
        Self { http, connection: connection.clone() }
    }
}

#[async_trait]
impl Notifier for WebhookNotifier {
    async fn notify(&self, event: &AlertEvent, target: &str, _: Option<&str>) -> Result<Option<String>, NotifyError> {
        post(&self.http, self.connection.url.expose_secret().trim(), &self.connection.headers, &body(event, target), "webhook").await.map(|()| None)
    }
}

fn body(event: &AlertEvent, receiver: &str) -> Value {
    let (labels, annotations) = (labels(event), annotations(event));
    // Go's zero time: not over.
    let ends = if event.kind == AlertEventKind::Resolved { event.at.to_string() } else { "0001-01-01T00:00:00Z".to_owned() };
    json!({
        "version": "4",
        "groupKey": event.fingerprint,
        "status": status(event),
        "receiver": receiver,
        "groupLabels": { "alertname": event.alertname(), "monitor": event.monitor },
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "truncatedAlerts": 0,
        "alerts": [{
            "status": status(event),
            "labels": labels,
            "annotations": annotations,
            "startsAt": event.since.to_string(),
            "endsAt": ends,
            "generatorURL": "",
            "fingerprint": event.fingerprint,
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::receivers::example;

    #[test]
    fn a_message_is_that_of_alertmanagers_webhooks() {
        let labels = json!({ "alertname": "low", "monitor": "support", "metric": "helpful", "severity": "critical", "team_name": "support", "_2nd": "x" });
        let annotations = json!({ "summary": "helpful: mean is below 0.8 <script>", "condition": "mean < 0.8", "value": "0.71", "samples": "130", "window": "24h", "run": "r-1", "worst": "t-1 0.1 https://lf/t-1 rude" });
        assert_eq!(
            body(&example(AlertEventKind::Firing), "ops"),
            json!({
                "version": "4", "groupKey": "support/low/1-1", "status": "firing", "receiver": "ops",
                "groupLabels": { "alertname": "low", "monitor": "support" }, "commonLabels": labels, "commonAnnotations": annotations,
                "externalURL": "", "truncatedAlerts": 0,
                "alerts": [{
                    "status": "firing", "labels": labels, "annotations": annotations, "startsAt": "2026-01-01T00:00:00Z",
                    "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": "support/low/1-1",
                }],
            })
        );
        let over = body(&example(AlertEventKind::Resolved), "ops");
        assert_eq!((&over["status"], &over["alerts"][0]["endsAt"]), (&json!("resolved"), &json!("2026-01-01T01:00:00Z")));
    }
}
