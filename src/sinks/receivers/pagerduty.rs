use async_trait::async_trait;
use serde_json::{Value, json};

use super::{annotations, labels, post};
use crate::{
    connections::PagerdutyConnection,
    model::{AlertEvent, AlertEventKind, News, Severity},
    sinks::{Notifier, NotifyError, SoFar},
    util::{
        http::Http,
        secret::ExposeSecret,
        text::{clip, one_line},
    },
};

/// Triggers and resolves incidents (Events API v2, `POST /v2/enqueue`).
pub struct PagerdutyNotifier {
    http: Http,
    url: String,
    connection: PagerdutyConnection,
}

impl PagerdutyNotifier {
    #[must_use]
    pub fn new(connection: &PagerdutyConnection, http: Http) -> Self {
        Self { http, url: format!("{}/v2/enqueue", connection.base_url.trim_end_matches('/')), connection: connection.clone() }
    }
}

#[async_trait]
impl Notifier for PagerdutyNotifier {
    async fn notify(&self, news: &News, _: &str, so_far: &mut SoFar) -> Result<(), NotifyError> {
        // Nobody is woken for a notice, and nothing would end it.
        let incidents = news.changes.iter().filter(|event| event.kind != AlertEventKind::Notice);
        for event in incidents.skip(usize::try_from(so_far.pages).unwrap_or(usize::MAX)) {
            let body = body(event, self.connection.routing_key.expose_secret().trim());
            match post(&self.http, &self.url, &std::collections::BTreeMap::new(), &body, "PagerDuty").await {
                // A key is for a person to mend.
                Err(NotifyError::Dead(message)) if message.to_lowercase().contains("routing key") => {
                    return Err(NotifyError::Retry { message, retry_after: Some(PERSON), unsure: false });
                }
                Err(NotifyError::Dead(message)) => tracing::error!(alert = %event.alert, %message, "PagerDuty cannot read an alert, which is given up"),
                other => other?,
            }
            so_far.took_one();
        }
        Ok(())
    }
}

/// What only a person can mend is tried again this often.
const PERSON: std::time::Duration = std::time::Duration::from_mins(10);
// PagerDuty's limits.
const SUMMARY: usize = 1_024;
const DEDUP_KEY: usize = 255;

fn body(event: &AlertEvent, routing_key: &str) -> Value {
    let dedup_key = clip(&event.fingerprint, DEDUP_KEY);
    if event.kind == AlertEventKind::Resolved {
        return json!({ "routing_key": routing_key, "event_action": "resolve", "dedup_key": dedup_key });
    }
    let severity = match event.severity {
        Severity::Critical => "critical",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    let links: Vec<Value> = event.worst.iter().filter_map(|item| Some(json!({ "href": item.url.as_deref()?, "text": one_line(&item.item_id, 100) }))).collect();
    json!({
        "routing_key": routing_key,
        "event_action": "trigger",
        "dedup_key": dedup_key,
        "payload": {
            "summary": one_line(&format!("{} ({}): {}", event.alert, event.monitor, event.summary), SUMMARY),
            "source": event.monitor,
            "severity": severity,
            "timestamp": event.at.to_string(),
            "component": event.metric,
            "class": event.alert,
            "custom_details": { "labels": labels(event), "details": annotations(event) },
        },
        "links": links,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::receivers::example;

    #[test]
    fn an_incident_is_triggered_and_resolved_by_the_same_key() {
        let firing = body(&example(AlertEventKind::Firing), "R0");
        assert_eq!((&firing["event_action"], &firing["dedup_key"], &firing["routing_key"]), (&json!("trigger"), &json!("support/low/1-1"), &json!("R0")));
        assert_eq!(firing["payload"]["summary"], "low (support): helpful: mean is below 0.8 <script>");
        assert_eq!((&firing["payload"]["severity"], &firing["payload"]["source"]), (&json!("critical"), &json!("support")));
        assert_eq!(firing["links"], json!([{ "href": "https://lf/t-1", "text": "t-1" }]));
        let over = body(&example(AlertEventKind::Resolved), "R0");
        assert_eq!(over, json!({ "routing_key": "R0", "event_action": "resolve", "dedup_key": firing["dedup_key"] }));
    }
}
