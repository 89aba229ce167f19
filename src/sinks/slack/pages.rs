//! The news of a group as messages. One message in the channel says how the group stands and is edited as that changes; what
//! happened goes into its thread. What is too long for one message goes on in the next. Pure.

use std::{collections::HashMap, fmt::Write as _};

use slack_morphism::{SlackMessageContent, SlackMessageMetadata, blocks::SlackBlock};
use url::Url;

use super::render::{escape, heading, line, link, message, reply, section, sign, small, text};
use crate::{
    model::{AlertEvent, AlertEventKind, News, Severity},
    util::text::clip,
};

/// The event type of our messages' metadata.
pub(super) const EVENT_TYPE: &str = "assayd_alert";
/// Text of one message over all its blocks; Slack takes about 13 200 characters.
const MESSAGE: usize = 10_000;
/// Slack takes 50 blocks.
const BLOCKS: usize = 40;
/// Of a label or a name in a line.
const NAME: usize = 100;

/// The message in the channel, as the group stands, and what found no place in it.
pub(super) fn standing(news: &News, external_url: Option<&Url>) -> Vec<SlackMessageContent> {
    if let [event] = told(news) {
        let mut blocks = message(event);
        blocks.extend(ways_on(news, event.kind, external_url));
        return vec![content(news, 0, text(event), blocks)];
    }
    let (title, lines) = (title(news), ordered(told(news)).map(line).collect());
    let mut pages = split(lines).into_iter().map(|page| page.into_iter().map(section).collect::<Vec<_>>()).collect::<Vec<_>>();
    if let Some(first) = pages.first_mut() {
        first.insert(0, heading(&title));
        let kind = if news.over() { AlertEventKind::Resolved } else { AlertEventKind::Firing };
        first.extend(ways_on(news, kind, external_url));
    }
    (0..).zip(pages).map(|(page, blocks)| content(news, page, escape(&title, MESSAGE), blocks)).collect()
}

/// What happened, for the thread of a message that people have.
pub(super) fn replies(news: &News) -> Vec<SlackMessageContent> {
    if let [event] = news.changes.as_slice() {
        return vec![content(news, 0, text(event), reply(event))];
    }
    let pages = split(news.changes.iter().map(line).collect());
    (0..).zip(pages).map(|(page, lines)| content(news, page, escape(&title(news), MESSAGE), lines.into_iter().map(section).collect())).collect()
}

/// The alerts of which the message in the channel speaks.
fn told(news: &News) -> &[AlertEvent] {
    if news.members.is_empty() { &news.changes } else { &news.members }
}

/// What fires comes first, and the worst of that.
fn ordered(events: &[AlertEvent]) -> impl Iterator<Item = &AlertEvent> {
    let mut events: Vec<&AlertEvent> = events.iter().collect();
    events.sort_by_key(|event| {
        let severity = match event.severity {
            Severity::Critical => 0,
            Severity::Warning => 1,
            Severity::Info => 2,
        };
        (event.kind == AlertEventKind::Resolved, severity)
    });
    events.into_iter()
}

fn title(news: &News) -> String {
    let told = told(news);
    let firing = told.iter().filter(|event| event.kind != AlertEventKind::Resolved).count();
    let sign = ordered(told).next().map_or("", sign);
    let alerts = |n: usize| if n == 1 { "1 alert".to_owned() } else { format!("{n} alerts") };
    let count = match (firing, told.len() - firing) {
        (0, over) => format!("Resolved: {}", alerts(over)),
        (firing, 0) => format!("Firing: {}", alerts(firing)),
        (firing, over) => format!("Firing: {}, resolved: {over}", alerts(firing)),
    };
    let mut title = format!("{sign} {count}");
    for (name, value) in news.labels.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = if name == "monitor" { write!(title, " · {}", clip(value, NAME)) } else { write!(title, " · {}={}", clip(name, NAME), clip(value, NAME)) };
    }
    title
}

/// Texts on pages that Slack takes.
fn split(lines: Vec<String>) -> Vec<Vec<String>> {
    let (mut pages, mut page, mut size) = (Vec::new(), Vec::new(), 0);
    for line in lines {
        let length = line.chars().count();
        if !page.is_empty() && (size + length > MESSAGE || page.len() == BLOCKS) {
            pages.push(std::mem::take(&mut page));
            size = 0;
        }
        size += length;
        page.push(line);
    }
    pages.push(page);
    pages
}

/// Where a reader goes from here: to the daemon, and how to have quiet while somebody mends it.
fn ways_on(news: &News, kind: AlertEventKind, external_url: Option<&Url>) -> Option<SlackBlock> {
    let fires = matches!(kind, AlertEventKind::Firing | AlertEventKind::Repeat);
    let matchers = matchers(news);
    let Some(base) = external_url else {
        let words = matchers.iter().map(|(name, value)| format!("{name}={}", quoted(value))).collect::<Vec<_>>().join(" ");
        return (fires && !words.is_empty())
            .then(|| small(format!("To silence: {}", escape(&format!("assayd silence add --for 2h --comment WHY {words}"), 1_000))));
    };
    let base = &directory(base);
    let daemon = link(base.as_str()).map(|url| format!("<{url}|assayd>"));
    let silence = fires.then(|| silence_url(base, &matchers)).and_then(|url| link(url.as_str())).map(|url| format!("<{url}|Silence>"));
    let links: Vec<String> = daemon.into_iter().chain(silence).collect();
    (!links.is_empty()).then(|| small(links.join(" · ")))
}

/// What a silence of these news would be made of.
fn matchers(news: &News) -> Vec<(&str, &str)> {
    match told(news) {
        [event] => {
            let by = event.by().and_then(|label| event.labels.get_key_value(label)).map(|(label, value)| (label.as_str(), value.as_str()));
            [("alertname", event.alertname()), ("monitor", event.monitor.as_str())].into_iter().chain(by).collect()
        }
        _ => news.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
    }
}

/// With a slash at its end: what the pages there link to lies below it.
fn directory(base: &Url) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().push("");
    }
    url
}

fn silence_url(base: &Url, matchers: &[(&str, &str)]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["silences", "new"]);
    }
    for (name, value) in matchers {
        url.query_pairs_mut().append_pair("matcher", &format!("{name}={value}"));
    }
    url
}

/// As a shell takes it for one word.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':');
    if !value.is_empty() && value.chars().all(plain) { value.to_owned() } else { format!("'{}'", value.replace('\'', "'\\''")) }
}

fn content(news: &News, page: usize, text: String, blocks: Vec<SlackBlock>) -> SlackMessageContent {
    let state = match told(news) {
        [event] if event.kind == AlertEventKind::Notice => "notice",
        _ if news.over() => "resolved",
        _ => "firing",
    };
    let fingerprint = news.changes.first().map(|event| clip(&event.fingerprint, 300)).unwrap_or_default();
    let payload = [("fingerprint", fingerprint), ("state", state.to_owned()), ("id", page_id(news, page))];
    let payload: HashMap<String, String> = payload.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let metadata = SlackMessageMetadata { event_type: EVENT_TYPE.to_owned(), event_payload: Some(payload) };
    SlackMessageContent { text: Some(text), blocks: Some(blocks), metadata: Some(metadata), ..SlackMessageContent::new() }
}

/// Tells a message from all others, by the metadata that it carries.
pub(super) fn page_id(news: &News, page: usize) -> String {
    format!("{}.{page}", news.id)
}
