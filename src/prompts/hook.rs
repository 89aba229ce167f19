//! `POST /webhooks/langfuse`: Langfuse says that a prompt has changed.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Prompts,
    event::{Envelope, Event, PROMPT},
    keeper::Errand,
    lock,
    signature::{Verdict, verify},
};
use crate::{
    store::NewNotice,
    util::{secret::ExposeSecret, text::one_line},
};

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// A prompt has changed.
    Prompt,
    /// Of another kind: Langfuse sends those down the same way, and would give up on us if we refused them.
    Ignored,
}

/// Why an event changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no langfuse connection has a webhook_secret, so no webhook is taken")]
    NoSecret,
    #[error("the signature is missing or wrong")]
    Forged,
    #[error("the signature is more than 5 minutes off")]
    Stale,
    #[error("this event was taken before")]
    Replayed,
    #[error("no event of Langfuse: {0}")]
    Malformed(String),
    #[error("the event could not be kept; send it again")]
    Busy,
}

impl Refusal {
    /// Fit for a label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoSecret => "no_secret",
            Self::Forged => "forged",
            Self::Stale => "stale",
            Self::Replayed => "replayed",
            Self::Malformed(_) => "malformed",
            Self::Busy => "busy",
        }
    }
}

/// Langfuse waits ten seconds for an answer.
const PATIENCE: Duration = Duration::from_secs(8);

impl Prompts {
    /// Takes an event. When this returns, it is remembered, what people are told of it is queued, and whoever asks for a
    /// prompt gets a fresh one.
    ///
    /// # Errors
    /// See [`Refusal`]: nothing was changed.
    pub async fn hear(&self, signature: Option<&str>, body: &[u8]) -> Result<Taken, Refusal> {
        let connection = self.sender(signature.unwrap_or_default(), body)?;
        let envelope: Envelope = serde_json::from_slice(body).map_err(|error| Refusal::Malformed(one_line(&error.to_string(), 200)))?;
        if envelope.kind != PROMPT {
            return Ok(Taken::Ignored);
        }
        let event: Event = serde_json::from_slice(body).map_err(|error| Refusal::Malformed(one_line(&error.to_string(), 200)))?;
        let id = envelope.id.filter(|id| (1..=200).contains(&id.len())).ok_or_else(|| Refusal::Malformed("it has no id".to_owned()))?;
        let monitors = self.monitors(connection, &event.prompt.name);
        let at = self.0.clock.now();
        let told = event.notice(connection, &id, &monitors, at);
        let notices = self.0.routes.iter().map(|route| NewNotice { route: route.clone(), event: told.clone() }).collect();
        let store = self.0.store.as_ref().ok_or(Refusal::Busy)?;
        let kept = tokio::time::timeout(PATIENCE, store.take_event(connection, &id, at.as_microsecond(), notices)).await;
        match kept {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err(Refusal::Replayed),
            _ => return Err(Refusal::Busy),
        }
        self.expire();
        self.0.outbox.send_replace(());
        tracing::info!(
            connection,
            prompt = one_line(&event.prompt.name, 255),
            version = event.prompt.version,
            action = one_line(&event.action, 40),
            ?monitors,
            "a prompt has changed in Langfuse"
        );
        if let Some(url) = self.0.projects.get(connection).and_then(|project| project.connection.notify_url.clone()) {
            self.send(Errand::Call { url, body: event.body(connection, &id, &monitors) });
        }
        Ok(Taken::Prompt)
    }

    /// The connection whose secret signed the body.
    fn sender(&self, signature: &str, body: &[u8]) -> Result<&str, Refusal> {
        let now = self.0.clock.now().as_second();
        let mut worst = Refusal::NoSecret;
        for (name, project) in &self.0.projects {
            let Some(secret) = &project.connection.webhook_secret else { continue };
            match verify(secret.expose_secret(), signature, body, now) {
                Verdict::Genuine => return Ok(name),
                Verdict::Stale => worst = Refusal::Stale,
                Verdict::Forged if worst == Refusal::NoSecret => worst = Refusal::Forged,
                Verdict::Forged => {}
            }
        }
        Err(worst)
    }

    /// Who judges with a prompt, whatever the label or version.
    fn monitors(&self, connection: &str, name: &str) -> Vec<String> {
        let uses = lock(&self.0.uses);
        let monitors = uses.iter().filter(|one| one.prompt.connection == connection && one.prompt.name == name).map(|one| one.monitor.clone());
        monitors.collect::<BTreeSet<_>>().into_iter().collect()
    }
}
