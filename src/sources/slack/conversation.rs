//! Messages of Slack -> a conversation. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{SlackConfig, text};
use crate::model::Trace;

/// As Slack gives it; what is not named here is not looked at.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Message {
    pub ts: Ts,
    pub thread_ts: Option<Ts>,
    subtype: Option<String>,
    user: Option<String>,
    username: Option<String>,
    bot_id: Option<String>,
    bot_profile: Option<BotProfile>,
    text: Option<String>,
    #[serde(default)]
    blocks: Value,
    #[serde(default)]
    attachments: Value,
    #[serde(default)]
    reply_count: u64,
    latest_reply: Option<Ts>,
}

#[derive(Debug, Clone, Deserialize)]
struct BotProfile {
    name: Option<String>,
}

/// A message's id in its channel and its time: microseconds since the epoch, exactly (a float would lose digits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Ts(pub i64);

impl TryFrom<String> for Ts {
    type Error = String;

    /// `1767229100.123456`
    fn try_from(text: String) -> Result<Self, String> {
        let (secs, micros) = text.split_once('.').unwrap_or((&text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let read = || {
            let (secs, micros) = (secs.parse::<i64>().ok()?, format!("{micros:0<6}").parse::<i64>().ok()?);
            secs.checked_mul(1_000_000)?.checked_add(micros).filter(|us| Timestamp::from_microsecond(*us).is_ok())
        };
        if digits(secs) && digits(micros) && micros.len() <= 6 { read().map(Self) } else { None }
            .ok_or_else(|| "a `ts` of Slack is `SECONDS.MICROSECONDS`".to_owned())
    }
}

impl std::fmt::Display for Ts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:06}", self.0.div_euclid(1_000_000), self.0.rem_euclid(1_000_000))
    }
}

impl Ts {
    /// Every `Ts` came from a text or a time that one can be made of.
    pub(super) fn time(self) -> Timestamp {
        Timestamp::from_microsecond(self.0).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

impl Message {
    pub(super) fn is_reply(&self) -> bool {
        self.thread_ts.is_some_and(|parent| parent != self.ts)
    }

    /// When somebody last answered; `None` for a message that nobody did.
    pub(super) fn last_reply(&self) -> Option<Ts> {
        // A message that was answered bears its own time as the thread's.
        (self.reply_count > 0 || self.thread_ts == Some(self.ts)).then(|| self.latest_reply.unwrap_or(self.ts))
    }

    fn is_bot(&self) -> bool {
        self.bot_id.is_some() || self.subtype.as_deref() == Some("bot_message")
    }

    /// What was said, in mrkdwn. Long answers of bots stand in blocks or attachments alone.
    fn said(&self) -> String {
        match &self.text {
            Some(text) if !text.trim().is_empty() => text.clone(),
            _ => {
                let mut found = Vec::new();
                gather(&self.blocks, &mut found);
                gather(&self.attachments, &mut found);
                found.join("\n")
            }
        }
    }
}

/// The texts of blocks and attachments in reading order. Those of one line (`elements` of a rich text) stand together.
fn gather(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(parts) => parts.iter().for_each(|part| gather(part, found)),
        Value::Object(part) => {
            let before = found.len();
            for key in ["pretext", "title", "text", "fields", "blocks"] {
                match part.get(key) {
                    Some(Value::String(text)) if !text.is_empty() => found.push(text.clone()),
                    Some(deeper) => gather(deeper, found),
                    None => {}
                }
            }
            match part.get("elements") {
                Some(Value::Array(elements)) if part.get("type").is_some_and(|kind| kind == "rich_text_section" || kind == "rich_text_preformatted") => {
                    found.push(elements.iter().map(element).collect());
                }
                Some(elements) => gather(elements, found),
                None => {}
            }
            if let (true, Some(Value::String(text))) = (found.len() == before, part.get("fallback")) {
                found.push(text.clone());
            }
        }
        _ => {}
    }
}

/// A piece of a rich text, as mrkdwn.
fn element(element: &Value) -> String {
    let field = |key: &str| element[key].as_str().unwrap_or_default();
    match field("type") {
        "user" => format!("<@{}>", field("user_id")),
        "channel" => format!("<#{}>", field("channel_id")),
        "broadcast" => format!("<!{}>", field("range")),
        "emoji" => format!(":{}:", field("name")),
        "link" if field("text").is_empty() => format!("<{}>", field("url")),
        "link" => format!("<{}|{}>", field("url"), field("text")),
        _ => field("text").to_owned(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    User,
    Assistant,
}

#[derive(Debug)]
pub(super) struct Turn {
    role: Role,
    /// The member's id, where a member wrote it.
    user: Option<String>,
    name: String,
    at: Ts,
    text: String,
}

/// The settings' rules, compiled.
#[derive(Debug)]
pub(super) struct Rules {
    config: SlackConfig,
    drop: Vec<Regex>,
}

impl Rules {
    /// # Errors
    /// The pattern that does not compile.
    pub(super) fn new(config: &SlackConfig) -> Result<Self, String> {
        let drop = config
            .drop_message_regexes
            .iter()
            .map(|pattern| Regex::new(pattern).map_err(|error| format!("no regular expression: {}", crate::util::text::one_line(&error.to_string(), 300))));
        Ok(Self { drop: drop.collect::<Result<_, _>>()?, config: config.clone() })
    }

    /// Whether a thread or message that begins with this one is looked at at all.
    pub(super) fn begins(&self, first: &Message) -> bool {
        self.config.filter_sender.as_ref().is_none_or(|wanted| self.is(first, wanted))
    }

    /// The turns of a thread, or of a message that stands alone; `None` where the settings make no item of it.
    pub(super) fn conversation(&self, messages: &[Message]) -> Option<Vec<Turn>> {
        let assistants: BTreeMap<&str, String> =
            messages.iter().filter(|message| self.is_assistant(message)).filter_map(|message| Some((message.user.as_deref()?, self.name(message)))).collect();
        let turns: Vec<Turn> = messages.iter().filter_map(|message| self.turn(message, &assistants)).collect();
        let first_is_user = turns.first()?.role == Role::User;
        let assistant = turns.iter().any(|turn| turn.role == Role::Assistant);
        let all_ai = turns.iter().all(|turn| turn.role == Role::Assistant);
        let dropped = self.config.drop_if_first_is_user && first_is_user || self.config.drop_if_all_ai && all_ai;
        // A thread becomes an item when both have spoken: judged before that, it would be known when the answer comes.
        (!dropped && (assistant && !all_ai || !self.config.scrape_threads)).then_some(turns)
    }

    fn turn(&self, message: &Message, assistants: &BTreeMap<&str, String>) -> Option<Turn> {
        // Joins, topics, tombstones and the like are nobody's words.
        let said = matches!(message.subtype.as_deref(), None | Some("bot_message" | "file_share" | "thread_broadcast" | "me_message"));
        if !said || self.config.exclude_senders.iter().any(|sender| self.is(message, sender)) {
            return None;
        }
        let mention = |id: &str, label: Option<&str>| match (self.config.member_names.get(id).or_else(|| assistants.get(id)), &self.config.human_mention_token)
        {
            (Some(name), _) => format!("@{name}"),
            (None, Some(token)) => token.clone(),
            (None, None) => format!("@{}", label.unwrap_or(id)),
        };
        let mut text = text::decode(&message.said(), mention);
        if self.config.strip_citations {
            text = text::without_citations(&text);
        }
        let text = text.trim();
        if text.is_empty() || self.drop.iter().any(|pattern| pattern.is_match(text)) {
            return None;
        }
        let role = if self.is_assistant(message) { Role::Assistant } else { Role::User };
        Some(Turn { role, user: message.user.clone(), name: self.name(message), at: message.ts, text: text.to_owned() })
    }

    fn is_assistant(&self, message: &Message) -> bool {
        if self.config.bot_names.is_empty() { message.is_bot() } else { self.config.bot_names.iter().any(|name| self.is(message, name)) }
    }

    /// Whether a sender of the settings wrote it: by id or any of the names, letters' case aside.
    fn is(&self, message: &Message, sender: &str) -> bool {
        let wanted = sender.trim_start_matches('@').to_lowercase();
        let member = message.user.as_ref().and_then(|user| self.config.member_names.get(user));
        let profile = message.bot_profile.as_ref().and_then(|profile| profile.name.as_ref());
        [message.user.as_ref(), member, message.username.as_ref(), profile, message.bot_id.as_ref()]
            .into_iter()
            .flatten()
            .any(|name| name.to_lowercase() == wanted)
    }

    fn name(&self, message: &Message) -> String {
        let member = message.user.as_ref().and_then(|user| self.config.member_names.get(user));
        let profile = message.bot_profile.as_ref().and_then(|profile| profile.name.as_ref());
        let names = [member, message.username.as_ref(), profile, message.user.as_ref(), message.bot_id.as_ref()];
        names.into_iter().flatten().find(|name| !name.is_empty()).cloned().unwrap_or_else(|| "unknown".to_owned())
    }
}

/// A thread (or lone message) as a trace; `last` is the time of its last reply.
pub(super) fn trace(workspace: &str, channel: &str, parent: Ts, last: Ts, turns: Vec<Turn>) -> Trace {
    let said = |turn: Option<&Turn>| turn.map_or(Value::Null, |turn| json!(turn.text));
    let asked = turns.iter().find(|turn| turn.role == Role::User);
    let answered = turns.iter().rfind(|turn| turn.role == Role::Assistant);
    let permalink = format!("{workspace}/archives/{channel}/p{}", parent.to_string().replace('.', ""));
    let (input, output, user_id) = (said(asked), said(answered), asked.and_then(|turn| turn.user.clone()));
    let conversation: Vec<Value> = turns
        .into_iter()
        .map(|turn| {
            let role = if turn.role == Role::User { "user" } else { "assistant" };
            json!({ "role": role, "name": turn.name, "time": turn.at.time().to_string(), "text": turn.text })
        })
        .collect();
    Trace {
        id: format!("slack-{channel}-{parent}"),
        timestamp: last.time(),
        name: None,
        input,
        output,
        metadata: Value::Null,
        tags: Vec::new(),
        user_id,
        session_id: None,
        environment: None,
        release: None,
        version: None,
        latency_ms: None,
        cost_usd: None,
        url: Some(permalink.clone()),
        observations: Vec::new(),
        extra: Map::from_iter([
            ("channel_id".to_owned(), json!(channel)),
            ("thread_ts".to_owned(), json!(parent.to_string())),
            ("conversation".to_owned(), Value::Array(conversation)),
            ("permalink".to_owned(), json!(permalink)),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(settings: Value) -> Rules {
        let mut whole = json!({ "channels": ["C1"] });
        whole.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        Rules::new(&serde_json::from_value(whole).unwrap()).unwrap()
    }

    fn messages(messages: Value) -> Vec<Message> {
        serde_json::from_value(messages).unwrap()
    }

    /// Who said what.
    fn said(rules: &Rules, messages: &[Message]) -> Option<Vec<(String, String)>> {
        let turns = rules.conversation(messages)?;
        Some(turns.into_iter().map(|turn| (format!("{}:{}", if turn.role == Role::User { "user" } else { "assistant" }, turn.name), turn.text)).collect())
    }

    fn pair(who: &str, text: &str) -> (String, String) {
        (who.to_owned(), text.to_owned())
    }

    fn thread() -> Vec<Message> {
        messages(json!([
            { "ts": "1767229100.123456", "thread_ts": "1767229100.123456", "reply_count": 4, "latest_reply": "1767229190.000100", "user": "U1", "text": "<@U9> is it &lt; 3? ask <@U2>" },
            { "ts": "1767229110.000001", "thread_ts": "1767229100.123456", "user": "U9", "bot_id": "B1", "bot_profile": { "name": "Support Bot" }, "text": "", "blocks":
                [{ "type": "rich_text", "elements": [{ "type": "rich_text_section", "elements": [{ "type": "text", "text": "Yes [1], see " }, { "type": "link", "url": "https://a.example" }] }] }] },
            { "ts": "1767229115.000000", "thread_ts": "1767229100.123456", "subtype": "channel_join", "user": "U3", "text": "<@U3> has joined" },
            { "ts": "1767229120.000000", "thread_ts": "1767229100.123456", "subtype": "bot_message", "bot_id": "B2", "username": "Grafana", "text": "CPU is fine" },
            { "ts": "1767229190.000100", "thread_ts": "1767229100.123456", "user": "U1", "text": "thanks" },
        ]))
    }

    #[test]
    fn a_thread_is_a_trace() {
        let rules = rules(
            json!({ "bot_names": ["support bot"], "exclude_senders": ["grafana"], "member_names": { "U1": "Jane" }, "human_mention_token": "@human", "strip_citations": true }),
        );
        let turns = rules.conversation(&thread()).unwrap();
        let trace = trace("https://acme.slack.com", "C1", Ts(1_767_229_100_123_456), Ts(1_767_229_190_000_100), turns);
        insta::assert_json_snapshot!(trace, @r#"
        {
          "id": "slack-C1-1767229100.123456",
          "timestamp": "2026-01-01T00:59:50.0001Z",
          "input": "@Support Bot is it < 3? ask @human",
          "output": "Yes, see https://a.example",
          "user_id": "U1",
          "url": "https://acme.slack.com/archives/C1/p1767229100123456",
          "channel_id": "C1",
          "conversation": [
            {
              "name": "Jane",
              "role": "user",
              "text": "@Support Bot is it < 3? ask @human",
              "time": "2026-01-01T00:58:20.123456Z"
            },
            {
              "name": "Support Bot",
              "role": "assistant",
              "text": "Yes, see https://a.example",
              "time": "2026-01-01T00:58:30.000001Z"
            },
            {
              "name": "Jane",
              "role": "user",
              "text": "thanks",
              "time": "2026-01-01T00:59:50.0001Z"
            }
          ],
          "permalink": "https://acme.slack.com/archives/C1/p1767229100123456",
          "thread_ts": "1767229100.123456"
        }
        "#);
    }

    #[test]
    fn every_bot_is_the_assistant_unless_one_is_named() {
        let turns = |settings| said(&rules(settings), &thread()).unwrap();
        assert_eq!(turns(json!({}))[2], pair("assistant:Grafana", "CPU is fine"));
        for name in ["Support Bot", "@support bot", "B1", "U9"] {
            let turns = turns(json!({ "bot_names": [name] }));
            assert_eq!((turns[1].0.as_str(), turns[2].0.as_str()), ("assistant:Support Bot", "user:Grafana"), "{name}");
        }
        assert_eq!(said(&rules(json!({ "bot_names": ["Other"] })), &thread()), None, "nobody of that name has answered");
    }

    #[test]
    fn filters_make_no_item_of_what_they_drop() {
        let asked = &thread()[..1];
        let answered = &thread()[1..2];
        for (settings, messages, kept) in [
            (json!({}), asked, false),
            (json!({ "scrape_threads": false }), asked, true),
            (json!({}), answered, false),
            (json!({ "scrape_threads": false }), answered, true),
            (json!({ "scrape_threads": false, "drop_if_all_ai": true }), answered, false),
            (json!({ "drop_if_first_is_user": true }), &thread()[1..], true),
            (json!({ "drop_if_first_is_user": true }), &thread()[..], false),
            (json!({ "drop_if_first_is_user": true, "drop_message_regexes": ["^@"] }), &thread()[..], true),
            (json!({ "drop_if_all_ai": true }), &thread()[..], true),
            (json!({ "exclude_senders": ["U1"] }), &thread()[..], false),
            (json!({}), &[][..], false),
        ] {
            assert_eq!(said(&rules(settings.clone()), messages).is_some(), kept, "{settings}");
        }
        let begins = |sender| rules(json!({ "filter_sender": sender, "member_names": { "U1": "Jane" } })).begins(&thread()[0]);
        assert!(begins("U1") && begins("jane") && !begins("U2"));
    }

    #[test]
    fn a_time_that_is_none_is_refused() {
        let read = |text: &str| Ts::try_from(text.to_owned());
        assert_eq!(read("1767229100.123456").unwrap().to_string(), "1767229100.123456");
        for text in ["", "1767229100.1234567", "-1.0", "1e9", "1767229100.", "99999999999999999999.0"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_time_is_written_as_it_was_read(us in 0_i64..4_000_000_000_000_000) {
            prop_assert_eq!(Ts::try_from(Ts(us).to_string()), Ok(Ts(us)));
        }
    }
}
