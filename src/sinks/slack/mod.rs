//! Alerts as Slack messages.
//!
//! With a bot token one firing is one message: it is posted, repeats go into its thread, and when it is over the message
//! itself is edited to say so, with a reply in the thread for those who follow it. With an incoming webhook, which tells
//! no message id, each event is a message of its own.
//!
//! One attempt a call: trying again is the outbox's. Absent on purpose: slack-morphism's rate control, which counts
//! `chat.postMessage` by workspace although Slack counts it by channel, and waits without a bound.

mod client;
mod lines;
mod pace;
mod render;

use async_trait::async_trait;
pub use render::plain;

use self::{
    client::{Client, Failure},
    pace::Pace,
};
use super::{Notifier, NotifyError};
use crate::{
    connections::SlackConnection,
    model::{AlertEvent, AlertEventKind},
};

/// Tells people in Slack. A message's reference is `CHANNEL_ID:TS`.
pub struct SlackNotifier {
    client: Client,
    pace: Pace,
}

impl SlackNotifier {
    /// Touches no network.
    ///
    /// # Errors
    /// A sentence: the connection has neither token nor webhook, an address is none, no root certificates are installed.
    pub fn new(connection: &SlackConnection) -> Result<Self, String> {
        Ok(Self { client: Client::new(connection)?, pace: Pace::default() })
    }

    /// A cheap check for `validate --live`; a sentence on success.
    ///
    /// # Errors
    /// What Slack refused.
    pub async fn probe(&self) -> Result<String, String> {
        self.client.probe().await.map_err(|failure| failure.error.to_string())
    }

    /// A message of its own in the channel.
    async fn fresh(&self, event: &AlertEvent, target: &str) -> Result<Option<String>, Failure> {
        // A webhook is one channel, whatever the target says.
        self.pace.turn(if self.client.keeps_threads() { target } else { "" }).await?;
        let posted = self.client.post(target, None, render::message(event)).await?;
        Ok(posted.map(|posted| format!("{}:{}", posted.channel, posted.ts)))
    }

    async fn reply(&self, event: &AlertEvent, target: &str, (channel, ts): (&str, &str)) -> Result<(), Failure> {
        // By the name the channel goes by in the settings, so that messages and replies share its pace.
        self.pace.turn(target).await?;
        self.client.post(channel, Some(ts), render::reply(event)).await.map(drop)
    }

    async fn tell(&self, event: &AlertEvent, target: &str, thread: Option<&str>) -> Result<Option<String>, Failure> {
        let parent = thread.filter(|_| self.client.keeps_threads()).and_then(|thread| thread.split_once(':'));
        let Some(parent) = parent.filter(|_| event.kind != AlertEventKind::Firing) else {
            return self.fresh(event, target).await;
        };
        if event.kind == AlertEventKind::Resolved {
            match self.client.update(parent.0, parent.1, render::message(event)).await {
                Err(failure) if failure.is_gone() => return self.fresh(event, target).await,
                // Too old to be edited, by the workspace's rules: the reply has to do.
                Err(failure) if failure.cannot_edit() => {}
                other => other?,
            }
        }
        match self.reply(event, target, parent).await {
            Err(failure) if failure.is_gone() => self.fresh(event, target).await,
            other => other.map(|()| thread.map(str::to_owned)),
        }
    }
}

#[async_trait]
impl Notifier for SlackNotifier {
    async fn notify(&self, event: &AlertEvent, target: &str, thread: Option<&str>) -> Result<Option<String>, NotifyError> {
        self.tell(event, target, thread).await.map_err(|failure| failure.error)
    }
}

#[cfg(test)]
mod tests;
