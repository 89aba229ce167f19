//! Threads of Slack channels as conversations; or, with `scrape_threads: false`, their messages one by one.
//!
//! Slack lists a channel's messages newest first, and by when they were begun; items go out by their last reply, oldest
//! first. So a fetch goes over the channels' history once and keeps of each thread whose last reply lies in the window
//! two times and a number, sorts these, and reads the threads in that order, a few at a time. Replies to a thread that
//! began before `thread_window` are not seen: Slack does not list them.

mod conversation;
mod text;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::{
    future::BoxFuture,
    stream::{self, StreamExt, TryStreamExt},
};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::OnceCell;

use self::conversation::{Message, Rules, Ts};
use super::{BuildError, Fetched, Pages, Source, SourceConfig, SourceCx, SourceError, SourceKind, Window};
use crate::{
    connections::{self, Slack, SlackError},
    util::{duration::Human, plugin, text::one_line},
};

/// Threads of Slack channels: `trace.conversation` has the turns (`role`, `name`, `time`, `text`), `trace.input` is the
/// first turn of a person, `trace.output` the last of the assistant. The item id is `slack-CHANNEL-THREAD_TS`, its time
/// that of the last reply.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "switches that a user sets one by one")]
pub struct SlackConfig {
    /// Slack connection with a token. Default `default`.
    #[serde(default = "connection")]
    connection: String,
    /// Ids of channels (`C0123456789`; in Slack at the end of a channel's details). The app has to be a member of them.
    channels: Vec<String>,
    /// Who is the assistant: names (of a member in `member_names`, a bot's user name or profile), member ids or bot ids;
    /// letters' case does not count. Default: every bot.
    #[serde(default)]
    bot_names: Vec<String>,
    /// An item is a thread with its replies; a thread in which not both a person and the assistant have spoken yet is none.
    /// `false`: each message of the channel is an item of its own, without replies. Default true.
    #[serde(default = "yes")]
    scrape_threads: bool,
    /// Only what this sender began. A name or id, as in `bot_names`.
    filter_sender: Option<String>,
    /// Messages of these senders are left out of the conversations. Names or ids, as in `bot_names`.
    #[serde(default)]
    exclude_senders: Vec<String>,
    /// Messages whose text one of these matches are left out of the conversations.
    #[serde(default)]
    drop_message_regexes: Vec<String>,
    /// A conversation that a person began is no item. Default false.
    #[serde(default)]
    drop_if_first_is_user: bool,
    /// A message of the assistant is no item where `scrape_threads` is false; otherwise a thread in which only the assistant
    /// speaks is none anyway. Default false.
    #[serde(default)]
    drop_if_all_ai: bool,
    /// Takes marks such as `[1]` and `【4:0†source】`, and a list of sources at the end, out of the texts; not in code.
    /// Default false.
    #[serde(default)]
    strip_citations: bool,
    /// Member id -> name, for turns and mentions.
    #[serde(default)]
    member_names: HashMap<String, String>,
    /// What a mention of a member who is not in `member_names` becomes, such as `@human`. Default: `@` and the id.
    human_mention_token: Option<String>,
    /// `acme` or `acme.slack.com`, for links to threads. Default: asked of Slack.
    workspace_domain: Option<String>,
    /// How long before its last reply a thread may have begun: the history is read this much further back than the
    /// window. Default 7d.
    #[serde(default = "thread_window")]
    thread_window: Human,
    /// Channels listed and threads read at the same time, 1 to 32. Slack's limits are obeyed at any number. Default 4.
    #[serde(default = "concurrency")]
    concurrency: usize,
}

fn connection() -> String {
    connections::DEFAULT.to_owned()
}

fn yes() -> bool {
    true
}

fn thread_window() -> Human {
    Human::days(7)
}

fn concurrency() -> usize {
    4
}

inventory::submit! {
    SourceKind {
        name: "slack",
        example: "connection: default\nchannels: [C0123456789]\nbot_names: [Support Bot]\nthread_window: 7d\n",
        schema: plugin::schema::<SlackConfig>,
        parse: |node, faults| plugin::parse::<SlackConfig>(node, faults).map(|config| Box::new(config) as Box<dyn SourceConfig>),
    }
}

impl SourceConfig for SlackConfig {
    fn build(&self, cx: &SourceCx<'_>) -> Result<Arc<dyn Source>, BuildError> {
        let connection = connections::find("slack", &cx.connections.slack, &self.connection).map_err(|message| BuildError::at("connection", message))?;
        let api = Slack::new(connection, cx.http.retry).map_err(|message| BuildError::at("connection", message))?;
        if self.channels.is_empty() {
            return Err(BuildError::at("channels", "at least one channel's id, such as C0123456789"));
        }
        if let Some(wrong) = self.channels.iter().find(|channel| !is_id(channel)) {
            let wrong = one_line(wrong, 80);
            return Err(BuildError::at(
                "channels",
                format!("`{wrong}` is no channel's id, expected one such as C0123456789 (at the end of the channel's details)"),
            ));
        }
        if !(1..=32).contains(&self.concurrency) {
            return Err(BuildError::at("concurrency", "between 1 and 32"));
        }
        let workspace = match self.workspace_domain.as_deref().map(workspace) {
            None => OnceCell::new(),
            Some(Some(url)) => OnceCell::new_with(Some(url)),
            Some(None) => return Err(BuildError::at("workspace_domain", "the name of a workspace, such as `acme` or `acme.slack.com`")),
        };
        let rules = Rules::new(self).map_err(|message| BuildError::at("drop_message_regexes", message))?;
        // Twice in the list would be twice the calls.
        let mut seen = HashSet::new();
        let channels = self.channels.iter().filter(|channel| seen.insert(channel.as_str())).cloned().collect();
        Ok(Arc::new(Threads { api, channels, rules, workspace, config: self.clone() }))
    }

    /// A thread is the whole of what was said together.
    fn gives_sessions(&self) -> bool {
        false
    }
}

/// Of a channel, a private one or a direct message.
fn is_id(text: &str) -> bool {
    text.len() >= 2 && text.starts_with(['C', 'G', 'D']) && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

/// `https://acme.slack.com` of what a user may write.
fn workspace(domain: &str) -> Option<String> {
    let host = domain.trim().trim_start_matches("https://").trim_end_matches('/');
    let sound = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    sound.then(|| if host.contains('.') { format!("https://{host}") } else { format!("https://{host}.slack.com") })
}

struct Threads {
    api: Slack,
    channels: Vec<String>,
    rules: Rules,
    /// Where links to threads begin.
    workspace: OnceCell<String>,
    config: SlackConfig,
}

/// Messages a call asks for; Slack may give fewer.
const PAGE: &str = "200";
/// Items read and sent together.
const CHUNK: usize = 50;
/// A cursor that Slack has forgotten is no reason to give up: the list is read again, this often.
const RESTARTS: usize = 2;

/// What is kept of an item until its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    last: Ts,
    /// Index into the channels.
    channel: usize,
    parent: Ts,
    /// Without replies, or read without them.
    alone: bool,
}

#[derive(Deserialize)]
struct Listing {
    // Asked for, so that a proxy's page is not taken for an empty list.
    messages: Vec<Message>,
    #[serde(default)]
    response_metadata: Option<Metadata>,
}

#[derive(Deserialize, Default)]
struct Metadata {
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct AuthTest {
    url: String,
    team: Option<String>,
    user: Option<String>,
}

#[async_trait]
impl Source for Threads {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        // Boxed, here and below, so that the proof that a fetch may move between threads is made here.
        let lists = (0..self.channels.len()).map(|channel| -> BoxFuture<'_, _> { Box::pin(self.index(channel, window)) });
        let lists: Vec<BoxFuture<'_, Result<Vec<Entry>, SourceError>>> = lists.collect();
        let mut entries = stream::iter(lists).buffered(self.config.concurrency).try_concat().await?;
        entries.sort_unstable();
        for chunk in entries.chunks(CHUNK) {
            let page = self.read(chunk, window).await?;
            if !page.is_empty() && pages.send(page).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn probe(&self) -> Result<String, SourceError> {
        let who: AuthTest = self.api.get("auth.test", &[]).await.map_err(|error| self.error(error, None))?;
        for channel in &self.channels {
            let query = [("channel", channel.clone()), ("limit", "1".to_owned())];
            let _: Listing = self.api.get("conversations.history", &query).await.map_err(|error| self.error(error, Some(channel)))?;
        }
        let name = |name: Option<String>| one_line(&name.unwrap_or_default(), 80);
        Ok(format!("Slack: {} in {} reads {} channels", name(who.user), name(who.team), self.channels.len()))
    }
}

impl Threads {
    /// What a channel has in the window.
    async fn index(&self, channel: usize, window: Window) -> Result<Vec<Entry>, SourceError> {
        let back = if self.config.scrape_threads { self.config.thread_window.millis() } else { 0 };
        let from = window.from.checked_sub(SignedDuration::from_millis(back)).unwrap_or(Timestamp::MIN);
        let query = history(&self.channels[channel], ceil(from), ceil(window.to));
        self.list("conversations.history", &self.channels[channel], &query, |message| self.entry(channel, window, &message)).await
    }

    fn entry(&self, channel: usize, window: Window, message: &Message) -> Option<Entry> {
        let reply = if self.config.scrape_threads {
            // A reply that was also sent to the channel belongs to its thread.
            if message.is_reply() {
                return None;
            }
            message.last_reply()
        } else {
            None
        };
        let (last, alone) = (reply.unwrap_or(message.ts), reply.is_none());
        let inside = ceil(window.from) <= last && last < ceil(window.to);
        // Of a lone message all is known here: none is read again in vain.
        let wanted = inside && self.rules.begins(message) && (!alone || self.rules.conversation(std::slice::from_ref(message)).is_some());
        wanted.then_some(Entry { last, channel, parent: message.ts, alone })
    }

    async fn read(&self, entries: &[Entry], window: Window) -> Result<Vec<Fetched>, SourceError> {
        let workspace = self.workspace.get_or_try_init(|| self.ask_workspace()).await?;
        let mut alone = self.lone(entries).await?;
        let reads = entries.iter().map(|entry| -> BoxFuture<'_, Result<(&Entry, Vec<Message>), SourceError>> {
            let lone = alone.remove(&(entry.channel, entry.parent));
            Box::pin(async move { Ok((entry, if entry.alone { lone.into_iter().collect() } else { self.replies(entry, window).await? })) })
        });
        let reads: Vec<_> = reads.collect();
        let read: Vec<(&Entry, Vec<Message>)> = stream::iter(reads).buffered(self.config.concurrency).try_collect().await?;
        let items = read.into_iter().filter_map(|(entry, messages)| {
            let turns = self.rules.conversation(&messages)?;
            let trace = conversation::trace(workspace, &self.channels[entry.channel], entry.parent, entry.last, turns);
            Some(Fetched { id: trace.id.clone(), timestamp: trace.timestamp, dated: true, body: Ok(Arc::new(trace)) })
        });
        Ok(items.collect())
    }

    /// The messages of those entries that have no replies, read by the span of time they lie in.
    async fn lone(&self, entries: &[Entry]) -> Result<HashMap<(usize, Ts), Message>, SourceError> {
        let mut found = HashMap::new();
        for (channel, id) in self.channels.iter().enumerate() {
            let wanted: HashSet<Ts> = entries.iter().filter(|entry| entry.alone && entry.channel == channel).map(|entry| entry.parent).collect();
            let (Some(first), Some(last)) = (wanted.iter().min(), wanted.iter().max()) else { continue };
            let pick = |message: Message| {
                // Answered since: it comes as a thread, when that has settled.
                let grown = self.config.scrape_threads && message.last_reply().is_some();
                (wanted.contains(&message.ts) && !grown).then_some(((channel, message.ts), message))
            };
            found.extend(self.list("conversations.history", id, &history(id, *first, *last), pick).await?);
        }
        Ok(found)
    }

    /// A thread whole, oldest first; empty where it is gone, or goes on past the window.
    async fn replies(&self, entry: &Entry, window: Window) -> Result<Vec<Message>, SourceError> {
        let channel = &self.channels[entry.channel];
        let query = vec![("channel", channel.clone()), ("ts", entry.parent.to_string()), ("limit", PAGE.to_owned())];
        let mut messages = self.list("conversations.replies", channel, &query, Some).await?;
        // A long thread's pages may repeat the parent.
        messages.sort_by_key(|message| message.ts);
        messages.dedup_by_key(|message| message.ts);
        if messages.last().is_some_and(|last| last.ts >= ceil(window.to)) {
            messages.clear();
        }
        Ok(messages)
    }

    /// All pages of a method that lists messages, of which only what is picked is kept.
    async fn list<T>(
        &self,
        method: &'static str,
        channel: &str,
        query: &[(&'static str, String)],
        pick: impl Fn(Message) -> Option<T> + Send,
    ) -> Result<Vec<T>, SourceError>
    where
        T: Send,
    {
        let (mut found, mut cursor, mut restarts): (Vec<T>, Option<String>, usize) = (Vec::new(), None, 0);
        loop {
            let mut query = query.to_vec();
            query.extend(cursor.iter().map(|cursor| ("cursor", cursor.clone())));
            let page: Listing = match self.api.get(method, &query).await {
                Ok(page) => page,
                Err(SlackError::Refused { code, .. }) if code == "invalid_cursor" && cursor.is_some() && restarts < RESTARTS => {
                    (found, cursor, restarts) = (Vec::new(), None, restarts + 1);
                    continue;
                }
                // Deleted since it was listed.
                Err(SlackError::Refused { code, .. }) if method == "conversations.replies" && code == "thread_not_found" => return Ok(Vec::new()),
                Err(error) => return Err(self.error(error, Some(channel))),
            };
            found.extend(page.messages.into_iter().filter_map(&pick));
            let next = page.response_metadata.unwrap_or_default().next_cursor.filter(|next| !next.is_empty());
            if next.is_none() {
                return Ok(found);
            }
            if next == cursor {
                return Err(SourceError::Protocol(format!("Slack's {method} gave a cursor a second time")));
            }
            cursor = next;
        }
    }

    async fn ask_workspace(&self) -> Result<String, SourceError> {
        let who: AuthTest = self.api.get("auth.test", &[]).await.map_err(|error| self.error(error, None))?;
        Ok(who.url.trim_end_matches('/').to_owned())
    }

    /// What an error means, and what a person can do about it.
    fn error(&self, error: SlackError, channel: Option<&str>) -> SourceError {
        let SlackError::Refused { code, .. } = &error else { return SourceError::Unavailable(error.to_string()) };
        let (connection, channel) = (&self.config.connection, channel.unwrap_or("the workspace"));
        let hint = match code.as_str() {
            "not_in_channel" => format!("; invite the app to {channel}"),
            "channel_not_found" | "is_archived" => format!("; check that {channel} is there, and invite the app to it"),
            "missing_scope" => format!("; give the app of connection `{connection}` that scope and install it again"),
            "invalid_auth" | "not_authed" | "account_inactive" | "token_revoked" | "token_expired" => {
                format!("; the token of connection `{connection}` needs to be replaced")
            }
            _ => format!(" (channel {channel})"),
        };
        SourceError::Refused(format!("{error}{hint}"))
    }
}

/// Arguments of `conversations.history`, both ends included.
fn history(channel: &str, oldest: Ts, latest: Ts) -> Vec<(&'static str, String)> {
    vec![
        ("channel", channel.to_owned()),
        ("oldest", oldest.to_string()),
        ("latest", latest.to_string()),
        ("inclusive", "true".to_owned()),
        ("limit", PAGE.to_owned()),
    ]
}

/// The first `ts` that is not before a time; Slack knows none before 1970.
fn ceil(at: Timestamp) -> Ts {
    let us = at.as_nanosecond().div_euclid(1000) + i128::from(at.as_nanosecond().rem_euclid(1000) > 0);
    Ts(i64::try_from(us.max(0)).unwrap_or(i64::MAX))
}
