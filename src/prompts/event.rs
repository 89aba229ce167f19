//! What a webhook tells, and how people are told of it. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    model::{AlertEvent, AlertEventKind, Severity},
    util::text::one_line,
};

/// What every event has; other keys are its kind's.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope {
    pub id: Option<String>,
    #[serde(rename = "type")]
    pub kind: String,
}

/// The one kind that prompts are about.
pub(super) const PROMPT: &str = "prompt-version";

/// Untrusted text throughout, signed as it is: whoever writes prompts chose it.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    /// created | updated | deleted
    pub action: String,
    #[serde(default)]
    user: Option<User>,
    pub prompt: Prompt,
}

#[derive(Debug, Deserialize)]
struct User {
    name: Option<String>,
    email: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Prompt {
    pub name: String,
    pub version: u32,
    #[serde(default)]
    pub labels: Vec<String>,
}

impl Event {
    fn who(&self) -> Option<&str> {
        let user = self.user.as_ref()?;
        user.name.as_deref().or(user.email.as_deref()).filter(|who| !who.trim().is_empty())
    }

    fn labels(&self) -> String {
        if self.prompt.labels.is_empty() { "none".to_owned() } else { self.prompt.labels.join(", ") }
    }

    /// What people read. `monitors` judge with the prompt.
    pub(super) fn notice(&self, connection: &str, id: &str, monitors: &[String], at: Timestamp) -> AlertEvent {
        let name = one_line(&self.prompt.name, 100);
        let who = self.who().map(|who| format!(" by {}", one_line(who, 100))).unwrap_or_default();
        let judges = match monitors {
            [] => "No monitor judges with it.".to_owned(),
            monitors => format!("Judged with by {}.", one_line(&monitors.join(", "), 500)),
        };
        let summary =
            format!("prompt {name} v{} was {}{who}; labels: {}. {judges}", self.prompt.version, one_line(&self.action, 40), one_line(&self.labels(), 200));
        AlertEvent {
            fingerprint: format!("prompt/{connection}/{}", one_line(id, 100)),
            kind: AlertEventKind::Notice,
            monitor: connection.to_owned(),
            alert: format!("prompt {name}"),
            severity: Severity::Info,
            condition: "prompt-changed".to_owned(),
            summary,
            metric: None,
            value: None,
            interval: None,
            threshold: None,
            n: None,
            window: None,
            since: at,
            at,
            run_id: String::new(),
            labels: BTreeMap::from([("langfuse".to_owned(), connection.to_owned())]),
            worst: Vec::new(),
            history: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// What `notify_url` is sent.
    pub(super) fn body(&self, connection: &str, id: &str, monitors: &[String]) -> Value {
        json!({
            "event": "prompt-changed", "id": id, "connection": connection, "action": self.action, "prompt": self.prompt.name,
            "version": self.prompt.version, "labels": self.prompt.labels, "user": self.who(), "monitors": monitors,
        })
    }
}
