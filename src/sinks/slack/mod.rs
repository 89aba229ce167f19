//! Alerts as Slack messages.
//!
//! With a bot token a group of alerts is one message: it is posted when the first of them fires, edited as that changes and when
//! all is over, and what happens meanwhile goes into its thread. With an incoming webhook, which tells no message id, all news are
//! a message of their own.
//!
//! One attempt a call: trying again is the outbox's. A message of which it is not known whether Slack took it is looked for by
//! its metadata before it is posted again, where the token may read the channel. Absent on purpose: slack-morphism's rate
//! control, which counts `chat.postMessage` by workspace although Slack counts it by channel, and waits without a bound.

mod client;
mod lines;
mod pace;
mod pages;
mod render;

use async_trait::async_trait;
pub use render::plain;
use slack_morphism::SlackMessageContent;
use url::Url;

use self::{
    client::{Client, Failure, Posted, Thread},
    pace::Pace,
};
use super::{Notifier, NotifyError, SoFar};
use crate::{connections::SlackConnection, model::News};

/// Tells people in Slack. Where a group stands is kept as `CHANNEL_ID:TS`.
pub struct SlackNotifier {
    client: Client,
    pace: Pace,
    /// Where this daemon is for people.
    external_url: Option<Url>,
}

impl SlackNotifier {
    /// Touches no network.
    ///
    /// # Errors
    /// A sentence: the connection has neither token nor webhook, an address is none, no root certificates are installed.
    pub fn new(connection: &SlackConnection, external_url: Option<&Url>) -> Result<Self, String> {
        Ok(Self { client: Client::new(connection)?, pace: Pace::default(), external_url: external_url.cloned() })
    }

    /// A cheap check for `validate --live`; a sentence on success.
    ///
    /// # Errors
    /// What Slack refused.
    pub async fn probe(&self) -> Result<String, String> {
        self.client.probe().await.map_err(|failure| failure.error.to_string())
    }

    async fn tell(&self, news: &News, target: &str, so_far: &mut SoFar) -> Result<(), Failure> {
        if !self.client.keeps_threads() {
            return self.hook(news, so_far).await;
        }
        if let Some(thread) = so_far.thread.clone().filter(|_| !news.first) {
            match self.go_on(news, target, &thread, so_far).await {
                Err(failure) if failure.is_gone() => *so_far = SoFar::default(),
                other => return other,
            }
        }
        self.begin(news, target, so_far).await
    }

    /// The group's message, and after it what is too long for it.
    async fn begin(&self, news: &News, target: &str, so_far: &mut SoFar) -> Result<(), Failure> {
        for (at, page) in (0..).zip(pages::standing(news, self.external_url.as_ref())).skip(taken(so_far)) {
            let thread = so_far.thread.clone();
            let parent = thread.as_deref().and_then(|thread| thread.split_once(':')).map(|(channel, ts)| (channel, Thread { ts, loud: false }));
            let posted = self.once(page, &pages::page_id(news, at), target, parent, so_far).await?;
            if at == 0 {
                so_far.thread = posted.map(|posted| format!("{}:{}", posted.channel, posted.ts));
            }
        }
        Ok(())
    }

    /// The group's message is edited, and what happened is said in its thread; what is worse than all that fired is shown in the channel.
    async fn go_on(&self, news: &News, target: &str, thread: &str, so_far: &mut SoFar) -> Result<(), Failure> {
        let Some((channel, ts)) = thread.split_once(':') else { return Ok(()) };
        let edited = pages::standing(news, self.external_url.as_ref()).into_iter().next();
        if let Some(edited) = edited {
            match self.client.update(channel, ts, edited).await {
                // Too old to be edited, by the workspace's rules: the reply has to do.
                Err(failure) if failure.cannot_edit() => {}
                // Whether the reply was taken before is as unsure as it was.
                Err(failure) if so_far.unsure_since.is_some() && !failure.is_gone() => return Err(failure.unsure()),
                other => other?,
            }
        }
        for (at, page) in (0..).zip(pages::replies(news)).skip(taken(so_far)) {
            let parent = Some((channel, Thread { ts, loud: news.louder && at == 0 }));
            self.once(page, &pages::page_id(news, at), target, parent, so_far).await?;
        }
        Ok(())
    }

    /// Posts a page, unless it is there.
    async fn once(
        &self,
        page: SlackMessageContent,
        id: &str,
        target: &str,
        parent: Option<(&str, Thread<'_>)>,
        so_far: &mut SoFar,
    ) -> Result<Option<Posted>, Failure> {
        if let Some(since) = so_far.unsure_since
            && let Some(found) = self.client.find(target, parent.map(|(channel, thread)| (channel, thread.ts)), since, id).await?
        {
            // The next page may be there as well.
            so_far.pages += 1;
            return Ok(Some(found));
        }
        // By the name that the channel goes by in the settings, so that messages and replies share its pace.
        self.pace.turn(target).await?;
        let posted = match parent {
            Some((channel, thread)) => self.client.post(channel, Some(thread), page).await?,
            None => self.client.post(target, None, page).await?,
        };
        so_far.took_one();
        Ok(posted)
    }

    /// A webhook is one channel, whatever the target says.
    async fn hook(&self, news: &News, so_far: &mut SoFar) -> Result<(), Failure> {
        for page in pages::standing(news, self.external_url.as_ref()).into_iter().skip(taken(so_far)) {
            self.pace.turn("").await?;
            self.client.post("", None, page).await?;
            so_far.took_one();
        }
        Ok(())
    }
}

fn taken(so_far: &SoFar) -> usize {
    usize::try_from(so_far.pages).unwrap_or(usize::MAX)
}

#[async_trait]
impl Notifier for SlackNotifier {
    async fn notify(&self, news: &News, target: &str, so_far: &mut SoFar) -> Result<(), NotifyError> {
        self.tell(news, target, so_far).await.map_err(|failure| failure.error)
    }
}

#[cfg(test)]
mod tests;
