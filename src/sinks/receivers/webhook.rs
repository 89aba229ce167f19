use async_trait::async_trait;
use serde_json::{Value, json};

use super::{annotations, label_name, labels, post, shared, status};
use crate::{
    connections::WebhookConnection,
    model::{AlertEvent, AlertEventKind, News},
    sinks::{Notifier, NotifyError, SoFar},
    util::{http::Http, secret::ExposeSecret},
};

/// Posts what Alertmanager's webhook receivers are posted (version 4), a group a message.
pub struct WebhookNotifier {
    http: Http,
    connection: WebhookConnection,
    /// Where this daemon is for people; empty where that is not known.
    external_url: String,
}

impl WebhookNotifier {
    #[must_use]
    pub fn new(connection: &WebhookConnection, http: Http, external_url: &str) -> Self {
        Self { http, connection: connection.clone(), external_url: external_url.to_owned() }
    }
}

#[async_trait]
impl Notifier for WebhookNotifier {
    async fn notify(&self, news: &News, target: &str, _: &mut SoFar) -> Result<(), NotifyError> {
        let body = body(news, target, &self.external_url);
        post(&self.http, self.connection.url.expose_secret().trim(), &self.connection.headers, &body, "webhook").await
    }
}

/// All alerts of the group, as they stand; of a notice: the notice.
fn body(news: &News, receiver: &str, external_url: &str) -> Value {
    let told = if news.members.is_empty() { &news.changes } else { &news.members };
    let firing = told.iter().any(|event| status(event) == "firing");
    json!({
        "version": "4",
        "groupKey": news.key,
        "status": if firing { "firing" } else { "resolved" },
        "receiver": receiver,
        "groupLabels": news.labels.iter().map(|(name, value)| (label_name(name), value)).collect::<std::collections::BTreeMap<_, _>>(),
        "commonLabels": shared(told.iter().map(labels)),
        "commonAnnotations": shared(told.iter().map(annotations)),
        "externalURL": external_url,
        "truncatedAlerts": 0,
        "alerts": told.iter().map(alert).collect::<Vec<_>>(),
    })
}

fn alert(event: &AlertEvent) -> Value {
    // Go's zero time: not over.
    let ends = if event.kind == AlertEventKind::Resolved { event.at.to_string() } else { "0001-01-01T00:00:00Z".to_owned() };
    json!({
        "status": status(event),
        "labels": labels(event),
        "annotations": annotations(event),
        "startsAt": event.since.to_string(),
        "endsAt": ends,
        "generatorURL": "",
        "fingerprint": event.fingerprint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::receivers::{example, news};

    #[test]
    fn a_message_is_that_of_alertmanagers_webhooks() {
        let labels = json!({ "alertname": "low", "monitor": "support", "metric": "helpful", "severity": "critical", "team_name": "support", "_2nd": "x" });
        let annotations = json!({ "summary": "helpful: mean is below 0.8 <script>", "condition": "mean < 0.8", "value": "0.71", "samples": "130", "window": "24h", "run": "r-1", "worst": "t-1 0.1 https://lf/t-1 rude" });
        let firing = example(AlertEventKind::Firing);
        assert_eq!(
            body(&news(vec![firing.clone()]), "ops", "https://assayd.test"),
            json!({
                "version": "4", "groupKey": "key", "status": "firing", "receiver": "ops",
                "groupLabels": { "monitor": "support" }, "commonLabels": labels, "commonAnnotations": annotations,
                "externalURL": "https://assayd.test", "truncatedAlerts": 0,
                "alerts": [{
                    "status": "firing", "labels": labels, "annotations": annotations, "startsAt": "2026-01-01T00:00:00Z",
                    "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": "support/low/1-1",
                }],
            })
        );
        let over = AlertEvent { alert: "very-low".to_owned(), ..example(AlertEventKind::Resolved) };
        let both = body(&news(vec![firing, over.clone()]), "ops", "");
        assert_eq!(
            (&both["status"], &both["alerts"][1]["status"], &both["alerts"][1]["endsAt"]),
            (&json!("firing"), &json!("resolved"), &json!("2026-01-01T01:00:00Z"))
        );
        assert!(both["commonLabels"]["alertname"].is_null() && both["commonLabels"]["monitor"] == "support", "{both}");
        assert_eq!(body(&news(vec![over]), "ops", "")["status"], "resolved");
    }
}
