//! One call to Slack, its time limit and what its errors mean.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use slack_morphism::{
    ClientResult, SlackApiToken, SlackChannelId, SlackMessageContent, SlackTs,
    api::{SlackApiChatPostMessageRequest, SlackApiChatUpdateRequest, SlackApiPostWebhookMessageRequest},
    errors::SlackClientError,
    hyper_tokio::SlackHyperClient,
};
use url::Url;

use super::pages::EVENT_TYPE;
use crate::{
    connections::{SlackConnection, slack_cause, slack_client},
    sinks::NotifyError,
    util::{secret::ExposeSecret, text::one_line},
};

/// Of one call; slack-morphism has no limit of its own.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What only a person can mend (a token, an invitation) is tried again this often: nothing is lost, nothing is hammered.
const PERSON: Duration = Duration::from_mins(10);

/// Seconds that Slack's clock and ours may lie apart.
const CLOCKS: i64 = 120;
/// Of channels, when one is looked for by its name.
const PAGES: usize = 20;

pub(super) struct Client {
    slack: SlackHyperClient,
    way: Way,
}

enum Way {
    Bot(SlackApiToken),
    Webhook(Url),
}

/// Where a message went.
#[derive(Debug, Deserialize)]
pub(super) struct Posted {
    pub channel: String,
    pub ts: String,
}

/// Where a reply goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thread<'a> {
    /// Of its first message.
    pub ts: &'a str,
    /// It is shown in the channel, too.
    pub loud: bool,
}

#[derive(Deserialize)]
struct Messages {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    ts: String,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    event_type: String,
    #[serde(default)]
    event_payload: Value,
}

#[derive(Deserialize)]
struct Channels {
    channels: Vec<Channel>,
    response_metadata: Option<Cursor>,
}

#[derive(Deserialize)]
struct Channel {
    id: String,
    name: String,
}

#[derive(Default, Deserialize)]
struct Cursor {
    #[serde(default)]
    next_cursor: String,
}

#[derive(Deserialize)]
struct AuthTest {
    team: String,
    user: String,
}

impl Client {
    pub(super) fn new(connection: &SlackConnection) -> Result<Self, String> {
        let base = connection.base()?;
        let (tls, way) = match (connection.bot_token()?, &connection.webhook_url) {
            (Some(token), _) => (base.starts_with("https:"), Way::Bot(token)),
            (None, Some(webhook)) => {
                let url = address(webhook.expose_secret().trim()).ok_or("webhook_url is not an http(s) address")?;
                (url.scheme() == "https", Way::Webhook(url))
            }
            (None, None) => return Err("the Slack connection has neither token nor webhook_url".to_owned()),
        };
        Ok(Self { slack: slack_client(&base, tls)?, way })
    }

    /// Whether messages can be found again.
    pub(super) fn keeps_threads(&self) -> bool {
        matches!(self.way, Way::Bot(_))
    }

    /// Posts to a channel or into a thread of it; a webhook has its own channel and knows no threads. `None` where Slack
    /// does not say where the message went.
    pub(super) async fn post(&self, channel: &str, thread: Option<Thread<'_>>, content: SlackMessageContent) -> Result<Option<Posted>, Failure> {
        let token = match &self.way {
            Way::Bot(token) => token,
            Way::Webhook(url) => {
                let request = SlackApiPostWebhookMessageRequest::new(content);
                return match within(self.slack.post_webhook_message(url, &request)).await {
                    // A bare `ok` without a content type is taken for broken JSON, and is a success.
                    Err(Unanswered::Refused(SlackClientError::ProtocolError(error))) if error.json_body.as_deref().is_some_and(|body| body.trim() == "ok") => {
                        Ok(None)
                    }
                    other => other.map(|_| None).map_err(|error| failure(error, "the webhook")),
                };
            }
        };
        let mut request = SlackApiChatPostMessageRequest::new(SlackChannelId(channel.to_owned()), content).with_unfurl_links(false).with_unfurl_media(false);
        request.thread_ts = thread.map(|thread| SlackTs(thread.ts.to_owned()));
        request.reply_broadcast = thread.filter(|thread| thread.loud).map(|_| true);
        self.call(token, "chat.postMessage", &request, channel).await.map(Some)
    }

    /// A message of ours, by the id in its metadata: in a thread, or in a channel. `None` where it is not there, or where the token may
    /// not look.
    pub(super) async fn find(&self, target: &str, parent: Option<(&str, &str)>, since: Timestamp, id: &str) -> Result<Option<Posted>, Failure> {
        let Way::Bot(token) = &self.way else { return Ok(None) };
        let found = match parent {
            Some((channel, ts)) => self.search(token, "conversations.replies", channel, Some(ts), since, id).await,
            None => match self.channel_id(token, target).await {
                Ok(Some(channel)) => self.search(token, "conversations.history", &channel, None, since, id).await,
                Ok(None) => Ok(None),
                Err(failure) => Err(failure),
            },
        };
        match found {
            // What was refused will be next time too: then it is said again rather than never.
            Err(failure) if !failure.code.is_empty() && !failure.passes() => {
                tracing::debug!(code = %failure.code, "a message that may have been taken cannot be looked for");
                Ok(None)
            }
            Err(failure) => Err(failure.unsure()),
            found => found,
        }
    }

    async fn search(
        &self,
        token: &SlackApiToken,
        method: &str,
        channel: &str,
        ts: Option<&str>,
        since: Timestamp,
        id: &str,
    ) -> Result<Option<Posted>, Failure> {
        let oldest = format!("{}.000000", since.as_second().saturating_sub(CLOCKS));
        let mut query = vec![("channel", channel), ("oldest", &oldest), ("limit", "200"), ("include_all_metadata", "true")];
        query.extend(ts.map(|ts| ("ts", ts)));
        let page: Messages = self.get(token, method, &query, channel).await?;
        let ours = page.messages.into_iter().find(|message| {
            let metadata = message.metadata.as_ref().filter(|metadata| metadata.event_type == EVENT_TYPE);
            metadata.is_some_and(|metadata| metadata.event_payload["id"] == id)
        });
        Ok(ours.map(|message| Posted { channel: channel.to_owned(), ts: message.ts }))
    }

    /// Of a channel that the settings name, by the name or the id.
    async fn channel_id(&self, token: &SlackApiToken, target: &str) -> Result<Option<String>, Failure> {
        let Some(name) = target.strip_prefix('#') else { return Ok(Some(target.to_owned())) };
        let mut cursor = String::new();
        for _ in 0..PAGES {
            let query = [("exclude_archived", "true"), ("types", "public_channel,private_channel"), ("limit", "200"), ("cursor", cursor.as_str())];
            let page: Channels = self.get(token, "conversations.list", &query, target).await?;
            if let Some(found) = page.channels.into_iter().find(|channel| channel.name == name) {
                return Ok(Some(found.id));
            }
            cursor = page.response_metadata.unwrap_or_default().next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        Ok(None)
    }

    async fn get<T: DeserializeOwned + Send>(&self, token: &SlackApiToken, method: &str, query: &[(&str, &str)], to: &str) -> Result<T, Failure> {
        let session = self.slack.open_session(token);
        let query: Vec<(&str, Option<&str>)> = query.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (*key, Some(*value))).collect();
        within(session.http_session_api.http_get(method, &query, None)).await.map_err(|error| failure(error, to))
    }

    /// Replaces a message of our own.
    pub(super) async fn update(&self, channel: &str, ts: &str, content: SlackMessageContent) -> Result<(), Failure> {
        let Way::Bot(token) = &self.way else { return Ok(()) };
        let request = SlackApiChatUpdateRequest::new(SlackChannelId(channel.to_owned()), content, SlackTs(ts.to_owned()));
        self.call::<Posted>(token, "chat.update", &request, channel).await.map(drop)
    }

    pub(super) async fn probe(&self) -> Result<String, Failure> {
        let Way::Bot(token) = &self.way else {
            return Ok("an incoming webhook cannot be checked without posting".to_owned());
        };
        let found: AuthTest = self.call(token, "auth.test", &serde_json::json!({}), "the workspace").await?;
        Ok(format!("Slack: {} in {}", one_line(&found.user, 80), one_line(&found.team, 80)))
    }

    /// Not `session.chat_post_message` and kin: they decode the whole message from the answer, so that a field Slack
    /// adds or leaves out would make a delivered message look like a failed one, and it would be sent again.
    async fn call<T: DeserializeOwned + Send>(
        &self,
        token: &SlackApiToken,
        method: &str,
        request: &(impl serde::Serialize + Send + Sync),
        to: &str,
    ) -> Result<T, Failure> {
        let session = self.slack.open_session(token);
        within(session.http_session_api.http_post(method, request, None)).await.map_err(|error| failure(error, to))
    }
}

fn address(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// Why there is no answer to read.
enum Unanswered {
    TimedOut,
    Refused(SlackClientError),
}

async fn within<T>(call: impl Future<Output = ClientResult<T>>) -> Result<T, Unanswered> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(answer) => answer.map_err(Unanswered::Refused),
        Err(_) => Err(Unanswered::TimedOut),
    }
}

/// A call that failed: Slack's word for it, and what the outbox is to do.
#[derive(Debug)]
pub(super) struct Failure {
    code: String,
    pub error: NotifyError,
}

impl Failure {
    /// The message, its thread or the channel in which it stands was deleted or archived.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.code.as_str(), "message_not_found" | "thread_not_found" | "channel_not_found" | "is_archived" | "channel_is_archived")
    }

    /// The message is there and stays as it is.
    pub(super) fn cannot_edit(&self) -> bool {
        matches!(self.code.as_str(), "cant_update_message" | "edit_window_closed")
    }

    /// Slack was busy, and is asked again.
    fn passes(&self) -> bool {
        matches!(&self.error, NotifyError::Retry { retry_after, .. } if *retry_after != Some(PERSON))
    }

    /// Whatever was said last: an earlier attempt may have been taken.
    pub(super) fn unsure(mut self) -> Self {
        if let NotifyError::Retry { unsure, .. } = &mut self.error {
            *unsure = true;
        }
        self
    }
}

impl From<NotifyError> for Failure {
    fn from(error: NotifyError) -> Self {
        Self { code: String::new(), error }
    }
}

fn failure(error: Unanswered, to: &str) -> Failure {
    // Without an answer of Slack's own nobody knows whether it took the message.
    let retry = |message: String, retry_after, unsure| Failure::from(NotifyError::Retry { message, retry_after, unsure });
    let error = match error {
        Unanswered::TimedOut => return retry(format!("no answer from Slack within {TIMEOUT:?}"), None, true),
        Unanswered::Refused(error) => error,
    };
    match error {
        SlackClientError::ApiError(error) => Failure { error: refused(&error.code, &details(error.http_response_body.as_deref()), to), code: error.code },
        SlackClientError::RateLimitError(error) => retry("Slack asks to slow down".to_owned(), error.retry_after, false),
        SlackClientError::HttpError(error) => {
            let (status, body) = (error.status_code.as_u16(), one_line(error.http_response_body.as_deref().unwrap_or_default(), 200));
            if status >= 500 || status == 408 {
                return retry(format!("Slack answered HTTP {status}"), None, true);
            }
            // A webhook's errors are a status and a word.
            Failure { error: refused(&body, &format!(" (HTTP {status})"), to), code: body }
        }
        SlackClientError::ProtocolError(error) => retry(format!("Slack's answer is not what was expected: {}", error.json_error), None, true),
        other => retry(format!("Slack cannot be reached: {}", slack_cause(&other)), None, true),
    }
}

/// What Slack's word means for the event. `code` and `details` are the server's text.
///
/// Dead is only what would be refused for ever, whoever does what: the message itself. An unknown word is for a person.
fn refused(code: &str, details: &str, to: &str) -> NotifyError {
    let code = one_line(code, 200);
    let retry = |hint: &str, retry_after| NotifyError::Retry { message: format!("Slack refused: {code}{details}{hint}"), retry_after, unsure: false };
    match code.as_str() {
        "invalid_blocks"
        | "invalid_blocks_format"
        | "msg_too_long"
        | "msg_blocks_too_long"
        | "no_text"
        | "invalid_attachments"
        | "too_many_attachments"
        | "invalid_arguments"
        | "invalid_json"
        | "json_not_object"
        | "invalid_payload"
        | "invalid_metadata_format"
        | "invalid_metadata_schema"
        | "metadata_too_large" => NotifyError::Dead(format!("Slack cannot read the message: {code}{details}")),
        "internal_error" | "fatal_error" | "request_timeout" | "service_unavailable" | "rollup_error" | "ratelimited" | "rate_limited" => retry("", None),
        "not_in_channel" | "channel_not_found" | "channel_is_archived" | "is_archived" => {
            retry(&format!("; check that {to} exists and invite the app to it"), Some(PERSON))
        }
        "invalid_auth" | "not_authed" | "account_inactive" | "token_revoked" | "token_expired" => retry("; the token needs to be replaced", Some(PERSON)),
        "missing_scope" => retry("; the app needs chat:write", Some(PERSON)),
        "no_service" | "no_active_hooks" | "invalid_token" | "no_team" => retry("; the webhook was removed, make a new one", Some(PERSON)),
        _ => retry("", Some(PERSON)),
    }
}

/// Slack's explanations (`[ERROR] must be less than 151 characters [json-pointer:/blocks/0/text/text]`).
fn details(body: Option<&str>) -> String {
    let body: Value = body.and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
    let messages = body["response_metadata"]["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let joined = messages.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ");
    if joined.is_empty() { String::new() } else { format!(" ({})", one_line(&joined, 300)) }
}
