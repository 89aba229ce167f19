//! `POST /webhooks/langfuse`: Langfuse says that a prompt has changed.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    Prompts, Use,
    event::{Envelope, Event, PROMPT},
    keeper::Errand,
    lock,
    signature::{Verdict, verify},
};
use crate::{
    model::Group,
    store::{Closed, NewNotice},
    util::{
        secret::{ExposeSecret, SecretString},
        text::one_line,
    },
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

/// An event on its way into the store. It outlives the request that brought it: a store that is busy for longer than
/// Langfuse waits takes it later, and who is told of it is told then.
pub(super) struct Taking {
    /// Whose secrets signed it; the first one stands for all.
    connections: Vec<String>,
    id: String,
    event: Event,
    monitors: Vec<String>,
    at: Timestamp,
    reply: oneshot::Sender<Result<(), Refusal>>,
}

impl Prompts {
    /// Takes an event. When this returns, whoever asks for a prompt gets a fresh one, and the event is remembered and what
    /// people are told of it is queued, or will be as soon as the store takes writes.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn hear(&self, signature: Option<&str>, body: &[u8]) -> Result<Taken, Refusal> {
        let connections = self.senders(signature.unwrap_or_default(), body)?;
        let envelope: Envelope = serde_json::from_slice(body).map_err(|error| Refusal::Malformed(one_line(&error.to_string(), 200)))?;
        if envelope.kind != PROMPT {
            return Ok(Taken::Ignored);
        }
        let event: Event = serde_json::from_slice(body).map_err(|error| Refusal::Malformed(one_line(&error.to_string(), 200)))?;
        let id = envelope.id.filter(|id| (1..=200).contains(&id.len())).ok_or_else(|| Refusal::Malformed("it has no id".to_owned()))?;
        let monitors = self.monitors(&connections, &event.prompt.name);
        // Whatever becomes of the event: at worst this is one look too many.
        self.expire();
        let (reply, kept) = oneshot::channel();
        let taking = Taking { connections, id, event, monitors, at: self.0.clock.now(), reply };
        self.0.errands.send(Errand::Take(Box::new(taking))).map_err(|_| Refusal::Busy)?;
        match tokio::time::timeout(PATIENCE, kept).await {
            Ok(Ok(kept)) => kept.map(|()| Taken::Prompt),
            Ok(Err(_)) => Err(Refusal::Busy),
            // Were it refused, Langfuse would send it again, and be told that it was taken.
            Err(_) => Ok(Taken::Prompt),
        }
    }

    /// Remembers an event and has people told of it; returns what is to be called about it.
    pub(super) async fn take(&self, taking: Taking) -> Vec<(SecretString, Value)> {
        let Taking { connections, id, event, monitors, at, reply } = taking;
        let sender = connections.first().map(String::as_str).unwrap_or_default();
        let told = event.notice(&connections.join(", "), &id, &monitors, at);
        let notices = self.0.routes.iter().map(|route| NewNotice { group: Group::alone(route.clone(), &told.fingerprint), event: told.clone() }).collect();
        let kept = match &self.0.store {
            Some(store) => store.take_event(sender, &id, at.as_microsecond(), notices).await,
            None => Err(Closed),
        };
        let kept = match kept {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::Replayed),
            Err(Closed) => Err(Refusal::Busy),
        };
        let new = kept.is_ok();
        // Who asked may have been told already.
        let _ = reply.send(kept);
        if !new {
            return Vec::new();
        }
        self.0.outbox.send_replace(());
        tracing::info!(
            ?connections,
            prompt = one_line(&event.prompt.name, 255),
            version = event.prompt.version,
            action = one_line(&event.action, 40),
            ?monitors,
            "a prompt has changed in Langfuse"
        );
        let url = |name: &String| Some((name.clone(), self.0.projects.get(name)?.connection.notify_url.clone()?));
        connections.iter().filter_map(url).map(|(name, url)| (url, event.body(&name, &id, &monitors))).collect()
    }

    /// The connections whose secret signed the body: one project may be known by several.
    fn senders(&self, signature: &str, body: &[u8]) -> Result<Vec<String>, Refusal> {
        let now = self.0.clock.now().as_second();
        let (mut worst, mut genuine) = (Refusal::NoSecret, Vec::new());
        for (name, project) in &self.0.projects {
            let Some(secret) = &project.connection.webhook_secret else { continue };
            match verify(secret.expose_secret(), signature, body, now) {
                Verdict::Genuine => genuine.push(name.clone()),
                Verdict::Stale => worst = Refusal::Stale,
                Verdict::Forged if worst == Refusal::NoSecret => worst = Refusal::Forged,
                Verdict::Forged => {}
            }
        }
        if genuine.is_empty() { Err(worst) } else { Ok(genuine) }
    }

    /// Who judges with a prompt, whatever the label or version, or with one that is composed of it.
    fn monitors(&self, connections: &[String], name: &str) -> Vec<String> {
        let uses: Vec<Use> = lock(&self.0.uses).iter().filter(|one| connections.contains(&one.prompt.connection)).cloned().collect();
        let made_of = |one: &Use| lock(&self.entry(&one.prompt).state).kept.as_ref().is_some_and(|kept| kept.made_of.contains(name));
        let monitors = uses.into_iter().filter(|one| one.prompt.name == name || made_of(one)).map(|one| one.monitor);
        monitors.collect::<BTreeSet<_>>().into_iter().collect()
    }
}
