//! An alert as Block Kit, as one line for a log. Pure.
//!
//! Reasons, item ids, urls and errors come from traces and judges and are untrusted. Slack obeys `<...>` (mentions, links)
//! in any text, and outside `verbatim` objects also turns bare words into links and mentions; so everything is escaped,
//! kept on one line and put into verbatim objects. Lengths stay under Slack's limits, in its own count after escaping.

use std::fmt::Write as _;

use jiff::Timestamp;
use slack_morphism::blocks::{
    SlackBlock, SlackBlockMarkDownText, SlackBlockPlainText, SlackBlockText, SlackContextBlock, SlackContextBlockElement, SlackHeaderBlock, SlackSectionBlock,
};
use url::Url;

use crate::{
    model::{AlertEvent, AlertEventKind, Severity, WorstItem},
    util::{
        duration::Human,
        text::{bound, clip, figure, one_line},
    },
};

// Slack's limits: header 150, section 3000, field 2000, context element 3000, 10 fields, 50 blocks, about 13 200 characters
// over all blocks. The sizes below add up to less than 9 000 for three examples.
const HEADER: usize = 140;
const SENTENCE: usize = 1_000;
const FIELD: usize = 200;
const REASON: usize = 300;
const ITEM_ID: usize = 100;
const LINK: usize = 1_000;
const CONTEXT: usize = 1_000;
const WORST: usize = 3;

/// An event that stands by itself: what is posted to the channel, and what an edit turns it into.
pub(super) fn message(event: &AlertEvent) -> Vec<SlackBlock> {
    if event.kind == AlertEventKind::Notice {
        let parts = super::lines::parts(&event.lines);
        return [header(event), section(sentence(event))].into_iter().chain(parts).chain([context(event)]).collect();
    }
    let mut blocks = vec![header(event), section(sentence(event)), fields(event)];
    blocks.extend(spark(&event.history).map(section));
    if !event.worst.is_empty() {
        blocks.push(section("*Worst answers*".to_owned()));
        blocks.extend(event.worst.iter().take(WORST).map(|item| section(worst(item))));
    }
    blocks.push(context(event));
    blocks
}

/// What goes into the thread of the first message: short, since the figures' names stand above.
pub(super) fn reply(event: &AlertEvent) -> Vec<SlackBlock> {
    let mut blocks = vec![section(format!("{} *{}*\n{}", sign(event), word(event), sentence(event)))];
    if event.kind == AlertEventKind::Repeat {
        blocks.extend(event.worst.iter().take(WORST).map(|item| section(worst(item))));
    }
    blocks.push(context(event));
    blocks
}

/// One of several alerts in a message: what it is, how it stands, its last runs and its worst answer.
pub(super) fn line(event: &AlertEvent) -> String {
    let name = escape(&format!("{} · {}", event.alert, event.monitor), HEADER);
    let mut text = format!("{} *{name}* {}\n{}", sign(event), word(event).to_lowercase(), sentence(event));
    if event.kind != AlertEventKind::Resolved {
        for line in spark(&event.history).into_iter().chain(event.worst.first().map(worst)) {
            text.push('\n');
            text.push_str(&line);
        }
    }
    text
}

/// One line without markup, for logs: what is said when no Slack is configured.
#[must_use]
pub fn plain(event: &AlertEvent) -> String {
    if event.kind == AlertEventKind::Notice {
        return one_line(&[&event.summary].into_iter().chain(&event.lines).map(String::as_str).collect::<Vec<_>>().join("; "), 4_000);
    }
    let mut line = format!("{} {}/{} ({}): {}", word(event).to_lowercase(), event.monitor, event.alert, event.severity.as_str(), event.summary);
    if event.kind == AlertEventKind::Resolved {
        let _ = write!(line, "; after {}", lasted(event));
    } else {
        let _ = write!(line, "; since {}", event.since);
    }
    let _ = write!(line, "; run {}", event.run_id);
    let worst = if event.kind == AlertEventKind::Resolved { &[] } else { event.worst.as_slice() };
    for item in worst.iter().take(WORST) {
        let _ = write!(line, "; {} {}", item.item_id, figure(item.value));
        if let Some(url) = &item.url {
            let _ = write!(line, " {url}");
        }
        if !item.reason.is_empty() {
            let _ = write!(line, " ({})", clip(&item.reason, REASON));
        }
    }
    one_line(&line, 4_000)
}

/// What notifications show.
pub(super) fn text(event: &AlertEvent) -> String {
    match event.kind {
        AlertEventKind::Notice => escape(&event.summary, SENTENCE),
        _ => escape(&format!("{}: {} ({}). {}", word(event), event.alert, event.monitor, event.summary), SENTENCE),
    }
}

/// The last runs, oldest first, between their lowest and their highest; `None` where there is nothing to compare.
fn spark(history: &[f64]) -> Option<String> {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let (first, last) = (history.first()?, history.last().filter(|_| history.len() > 1)?);
    let (low, high) = history.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
    let bar = |value: &f64| {
        let height = if high > low { (value - low) / (high - low) } else { 0.5 };
        BARS.into_iter().zip(1..).find(|(_, step)| height * 8.0 <= f64::from(*step)).map_or(BARS[7], |(bar, _)| bar)
    };
    let bars: String = history.iter().map(bar).collect();
    Some(format!("{bars}  {} → {} over the last {} runs", figure(*first), figure(*last), history.len()))
}

fn header(event: &AlertEvent) -> SlackBlock {
    heading(&format!("{} {}: {} · {}", sign(event), word(event), event.alert, event.monitor))
}

/// Plain text, in which Slack obeys nothing but emoji names.
pub(super) fn heading(text: &str) -> SlackBlock {
    let mut units = 0;
    // Slack may count as UTF-16 does, in which an emoji is two.
    let fits = |c: &char| {
        units += c.len_utf16();
        units <= HEADER
    };
    let text: String = one_line(text, HEADER).chars().take_while(fits).collect();
    SlackBlock::Header(SlackHeaderBlock::new(SlackBlockPlainText::new(text).into()))
}

fn sentence(event: &AlertEvent) -> String {
    let summary = escape(&event.summary, SENTENCE);
    if event.kind == AlertEventKind::Resolved { format!("{summary}\nIt lasted {}.", lasted(event)) } else { summary }
}

fn fields(event: &AlertEvent) -> SlackBlock {
    let field = |name: &str, text: String| mrkdwn(format!("*{name}*\n{text}"));
    let mut fields = vec![field("Severity", event.severity.as_str().to_owned())];
    if let Some(metric) = &event.metric {
        fields.push(field("Metric", escape(metric, FIELD)));
    }
    if let Some(value) = event.value {
        let interval = event.interval.map(|(low, high)| format!(" ({} to {})", bound(low), bound(high))).unwrap_or_default();
        fields.push(field("Measured", format!("{}{interval}", figure(value))));
    }
    fields.push(field("Condition", escape(&event.condition, FIELD)));
    if let Some(n) = event.n {
        fields.push(field("Samples", n.to_string()));
    }
    if let Some(window) = &event.window {
        fields.push(field("Window", escape(window, FIELD)));
    }
    fields.push(field("Since", date(event.since)));
    SlackBlock::Section(SlackSectionBlock::new().with_fields(fields))
}

fn worst(item: &WorstItem) -> String {
    let id = escape(&item.item_id, ITEM_ID);
    // Inside a link the bar separates address and label.
    let name = match item.url.as_deref().and_then(link) {
        Some(url) => format!("<{url}|{}>", id.replace('|', "¦")),
        None => id,
    };
    let reason = escape(&item.reason, REASON);
    let gap = if reason.is_empty() { "" } else { " — " };
    format!("• {name}  *{}*{gap}{reason}", figure(item.value))
}

fn context(event: &AlertEvent) -> SlackBlock {
    let mut text = date(event.at);
    if !event.run_id.is_empty() {
        text.push_str(&format!(" · run {}", escape(&event.run_id, FIELD)));
    }
    for (key, value) in &event.labels {
        let label = format!(" · {}={}", escape(key, FIELD), escape(value, FIELD));
        if text.chars().count() + label.chars().count() > CONTEXT {
            text.push_str(" · …");
            break;
        }
        text.push_str(&label);
    }
    small(text)
}

pub(super) fn small(text: String) -> SlackBlock {
    let text = SlackBlockMarkDownText { text, verbatim: Some(true) };
    SlackBlock::Context(SlackContextBlock::new(vec![SlackContextBlockElement::MarkDown(text)]))
}

pub(super) fn section(text: String) -> SlackBlock {
    SlackBlock::Section(SlackSectionBlock::new().with_text(mrkdwn(text)))
}

fn mrkdwn(text: String) -> SlackBlockText {
    SlackBlockText::MarkDown(SlackBlockMarkDownText { text, verbatim: Some(true) })
}

fn word(event: &AlertEvent) -> &'static str {
    match event.kind {
        AlertEventKind::Firing => "Firing",
        AlertEventKind::Repeat => "Still firing",
        AlertEventKind::Resolved => "Resolved",
        AlertEventKind::Notice => "Notice",
    }
}

/// The colour, in a form that also shows in notifications and survives an edit.
pub(super) fn sign(event: &AlertEvent) -> &'static str {
    match (event.kind, event.severity) {
        (AlertEventKind::Resolved, _) => "✅",
        (_, Severity::Critical) => "🔴",
        (_, Severity::Warning) => "🟠",
        (_, Severity::Info) => "🔵",
    }
}

/// In whole minutes, or seconds where it was less than one.
fn lasted(event: &AlertEvent) -> Human {
    let secs = u64::try_from(event.at.as_second() - event.since.as_second()).unwrap_or(0);
    if secs < 60 { Human::secs(secs) } else { Human::mins(secs / 60) }
}

/// Shown in the reader's own time zone; the fallback is UTC.
pub(super) fn date(at: Timestamp) -> String {
    format!("<!date^{}^{{date_short_pretty}} {{time}}|{}>", at.as_second(), at.strftime("%Y-%m-%d %H:%M UTC"))
}

/// Untrusted text for mrkdwn: one line, the three characters that Slack obeys escaped, a backtick replaced (an unclosed
/// one would take in what follows), at most `max` characters in all without cutting an escape in two.
pub(super) fn escape(text: &str, max: usize) -> String {
    // More than `max` characters never survive, so a 30 MB text costs no more than a short one.
    let head: String = text.chars().take(max + 1).collect();
    let line = one_line(&head, max);
    let (mut escaped, mut length) = (String::new(), 0);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let mut buffer = [0; 4];
        let piece = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '`' => "'",
            c => c.encode_utf8(&mut buffer),
        };
        length += piece.chars().count();
        let mark = usize::from(chars.peek().is_some());
        if length + mark > max {
            escaped.push('…');
            break;
        }
        escaped.push_str(piece);
    }
    escaped
}

/// An address that is safe inside `<...|...>`: http or https, nothing that ends the link, no user name (which reads like
/// a host: `https://langfuse.com@elsewhere`).
pub(super) fn link(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    let safe = url.as_str().replace('|', "%7C").replace('<', "%3C").replace('>', "%3E").replace('&', "&amp;");
    (safe.chars().count() <= LINK).then_some(safe)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    pub(in crate::sinks::slack) fn event(kind: AlertEventKind) -> AlertEvent {
        let since = Timestamp::from_second(1_767_225_600).unwrap();
        let at = since + jiff::SignedDuration::from_mins(if kind == AlertEventKind::Firing { 15 } else { 260 });
        AlertEvent {
            fingerprint: "support-answers/helpful-low/1767226500000-1".into(),
            kind,
            monitor: "support-answers".into(),
            alert: "helpful-low".into(),
            severity: Severity::Critical,
            condition: "mean < 0.8".into(),
            summary: "helpful: mean 0.71 over 130 answers, below 0.8".into(),
            metric: Some("helpful".into()),
            value: Some(0.712_34),
            interval: Some((0.63, 0.78)),
            threshold: Some(0.8),
            n: Some(130),
            window: Some("24h".into()),
            since,
            at,
            run_id: "0b8f".into(),
            labels: BTreeMap::from([("team".into(), "support".into())]),
            worst: vec![
                WorstItem {
                    item_id: "t-1".into(),
                    value: 0.0,
                    reason: "Does not answer the question".into(),
                    url: Some("https://lf.example/project/p/traces/t-1?a=1&b=2".into()),
                },
                WorstItem { item_id: "t-2".into(), value: 0.25, reason: String::new(), url: None },
            ],
            history: vec![0.9, 0.91, 0.88, 0.75, 0.71],
            lines: Vec::new(),
        }
    }

    /// What a reader sees, roughly: the texts in order.
    fn texts(event: &AlertEvent, blocks: &[SlackBlock]) -> String {
        fn collect(value: &serde_json::Value, into: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(map) => {
                    if let Some(text) = map.get("text").and_then(|text| text.as_str()) {
                        into.push(format!("{}: {}", map["type"].as_str().unwrap_or("?"), text.replace('\n', " / ")));
                    }
                    // Text before fields; the map is sorted by name.
                    map.iter().rev().for_each(|(_, value)| collect(value, into));
                }
                serde_json::Value::Array(list) => list.iter().for_each(|value| collect(value, into)),
                _ => {}
            }
        }
        let mut lines = vec![text(event)];
        collect(&serde_json::to_value(blocks).unwrap(), &mut lines);
        lines.join("\n")
    }

    fn seen(kind: AlertEventKind, render: fn(&AlertEvent) -> Vec<SlackBlock>) -> String {
        let event = event(kind);
        texts(&event, &render(&event))
    }

    #[test]
    fn firing() {
        insta::assert_snapshot!(seen(AlertEventKind::Firing, message), @"
        Firing: helpful-low (support-answers). helpful: mean 0.71 over 130 answers, below 0.8
        plain_text: 🔴 Firing: helpful-low · support-answers
        mrkdwn: helpful: mean 0.71 over 130 answers, below 0.8
        mrkdwn: *Severity* / critical
        mrkdwn: *Metric* / helpful
        mrkdwn: *Measured* / 0.7123 (0.63 to 0.78)
        mrkdwn: *Condition* / mean &lt; 0.8
        mrkdwn: *Samples* / 130
        mrkdwn: *Window* / 24h
        mrkdwn: *Since* / <!date^1767225600^{date_short_pretty} {time}|2026-01-01 00:00 UTC>
        mrkdwn: ██▇▂▁  0.9 → 0.71 over the last 5 runs
        mrkdwn: *Worst answers*
        mrkdwn: • <https://lf.example/project/p/traces/t-1?a=1&amp;b=2|t-1>  *0* — Does not answer the question
        mrkdwn: • t-2  *0.25*
        mrkdwn: <!date^1767226500^{date_short_pretty} {time}|2026-01-01 00:15 UTC> · run 0b8f · team=support
        ");
    }

    #[test]
    fn repeat() {
        insta::assert_snapshot!(seen(AlertEventKind::Repeat, reply), @"
        Still firing: helpful-low (support-answers). helpful: mean 0.71 over 130 answers, below 0.8
        mrkdwn: 🔴 *Still firing* / helpful: mean 0.71 over 130 answers, below 0.8
        mrkdwn: • <https://lf.example/project/p/traces/t-1?a=1&amp;b=2|t-1>  *0* — Does not answer the question
        mrkdwn: • t-2  *0.25*
        mrkdwn: <!date^1767241200^{date_short_pretty} {time}|2026-01-01 04:20 UTC> · run 0b8f · team=support
        ");
    }

    #[test]
    fn resolved() {
        let mut event = event(AlertEventKind::Resolved);
        event.worst.clear();
        event.value = Some(0.83);
        event.summary = "helpful: mean 0.83 over 140 answers, not below 0.8".into();
        insta::assert_snapshot!(texts(&event, &message(&event)), @"
        Resolved: helpful-low (support-answers). helpful: mean 0.83 over 140 answers, not below 0.8
        plain_text: ✅ Resolved: helpful-low · support-answers
        mrkdwn: helpful: mean 0.83 over 140 answers, not below 0.8 / It lasted 4h 20m.
        mrkdwn: *Severity* / critical
        mrkdwn: *Metric* / helpful
        mrkdwn: *Measured* / 0.83 (0.63 to 0.78)
        mrkdwn: *Condition* / mean &lt; 0.8
        mrkdwn: *Samples* / 130
        mrkdwn: *Window* / 24h
        mrkdwn: *Since* / <!date^1767225600^{date_short_pretty} {time}|2026-01-01 00:00 UTC>
        mrkdwn: ██▇▂▁  0.9 → 0.71 over the last 5 runs
        mrkdwn: <!date^1767241200^{date_short_pretty} {time}|2026-01-01 04:20 UTC> · run 0b8f · team=support
        ");
        insta::assert_snapshot!(texts(&event, &reply(&event)), @"
        Resolved: helpful-low (support-answers). helpful: mean 0.83 over 140 answers, not below 0.8
        mrkdwn: ✅ *Resolved* / helpful: mean 0.83 over 140 answers, not below 0.8 / It lasted 4h 20m.
        mrkdwn: <!date^1767241200^{date_short_pretty} {time}|2026-01-01 04:20 UTC> · run 0b8f · team=support
        ");
    }

    #[test]
    fn one_block_as_slack_gets_it() {
        let blocks = serde_json::to_value(message(&event(AlertEventKind::Firing))).unwrap();
        insta::assert_snapshot!(blocks[0], @r#"{"text":{"text":"🔴 Firing: helpful-low · support-answers","type":"plain_text"},"type":"header"}"#);
        insta::assert_snapshot!(blocks[1], @r#"{"text":{"text":"helpful: mean 0.71 over 130 answers, below 0.8","type":"mrkdwn","verbatim":true},"type":"section"}"#);
    }

    #[test]
    fn a_log_line() {
        insta::assert_snapshot!(
            [AlertEventKind::Firing, AlertEventKind::Resolved].map(|kind| plain(&event(kind))).join("\n"),
            @"
        firing support-answers/helpful-low (critical): helpful: mean 0.71 over 130 answers, below 0.8; since 2026-01-01T00:00:00Z; run 0b8f; t-1 0 https://lf.example/project/p/traces/t-1?a=1&b=2 (Does not answer the question); t-2 0.25
        resolved support-answers/helpful-low (critical): helpful: mean 0.71 over 130 answers, below 0.8; after 4h 20m; run 0b8f
        ");
    }

    const HOSTILE: &str = "<!channel> <@U123|boss> ```x & <https://evil.example|langfuse.com>\n\u{202e}> quote |";

    #[test]
    fn hostile_text_pings_nobody_and_links_nowhere() {
        let mut event = event(AlertEventKind::Firing);
        event.summary = HOSTILE.into();
        event.labels = BTreeMap::from([(HOSTILE.into(), HOSTILE.into())]);
        event.metric = Some(HOSTILE.into());
        event.worst = ["javascript:alert(1)", "https://lf.example/a|b> <!channel>", "https://langfuse.com@evil.example/"]
            .map(|url| WorstItem { item_id: HOSTILE.into(), value: 0.0, reason: HOSTILE.into(), url: Some(url.into()) })
            .to_vec();
        for blocks in [message(&event), reply(&event), vec![section(line(&event))]] {
            let seen = texts(&event, &blocks);
            // All that is left in angle brackets is what this file wrote: dates and the one address that is allowed.
            for (at, _) in seen.match_indices('<') {
                let rest = &seen[at..];
                assert!(rest.starts_with("<!date^") || rest.starts_with("<https://lf.example/a%7Cb%3E%20%3C!channel%3E|"), "{rest}");
            }
            assert!(!seen.contains('`') && !seen.contains('\u{202e}'), "{seen}");
        }
        assert!(!plain(&event).contains('\n'));
    }

    proptest! {
        #[test]
        fn slacks_limits_hold_for_any_text(piece in ".{0,60}", times in 1usize..200, labels in 0usize..40) {
            let long = piece.repeat(times) + &"&<>".repeat(times * 3);
            let mut event = event(AlertEventKind::Firing);
            event.alert.clone_from(&long);
            event.monitor.clone_from(&long);
            event.summary.clone_from(&long);
            event.condition.clone_from(&long);
            event.run_id.clone_from(&long);
            event.metric = Some(long.clone());
            event.window = Some(long.clone());
            event.labels = (0..labels).map(|n| (format!("{n}{long}"), long.clone())).collect();
            event.worst = vec![WorstItem { item_id: long.clone(), value: 1.0, reason: long.clone(), url: Some(format!("https://x.example/{long}")) }; 5];
            for blocks in [message(&event), reply(&event), vec![section(line(&event))]] {
                prop_assert!(blocks.len() <= 50);
                let mut total = 0;
                let mut size = |text: &SlackBlockText, max: usize| {
                    let SlackBlockText::MarkDown(text) = text else { return true };
                    total += text.text.chars().count();
                    !text.text.is_empty() && text.text.encode_utf16().count() <= max
                };
                for block in &blocks {
                    match block {
                        SlackBlock::Section(section) => {
                            prop_assert!(section.text.as_ref().is_none_or(|text| size(text, 3_000)));
                            let fields = section.fields.as_deref().unwrap_or_default();
                            prop_assert!(fields.len() <= 10 && fields.iter().all(|text| size(text, 2_000)));
                        }
                        SlackBlock::Context(context) => for element in &context.elements {
                            let SlackContextBlockElement::MarkDown(text) = element else { continue };
                            prop_assert!(size(&text.as_block_text(), 3_000));
                        },
                        SlackBlock::Header(header) => {
                            let json = serde_json::to_value(header).unwrap();
                            prop_assert!(json["text"]["text"].as_str().unwrap().encode_utf16().count() <= 150);
                        }
                        _ => prop_assert!(false, "unexpected block"),
                    }
                }
                prop_assert!(total <= 12_000);
                prop_assert!(text(&event).chars().count() <= 3_000);
            }
        }

        #[test]
        fn an_escape_is_never_cut(text in "[&<>a]{0,50}", max in 6usize..40) {
            let escaped = escape(&text, max);
            prop_assert!(escaped.chars().count() <= max);
            let rest = escaped.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
            prop_assert!(!rest.contains(['&', '<', '>', ';']), "{}", escaped);
        }
    }
}
