//! Threads of Slack, as a source and as a join's left side.

use std::time::Duration;

use regex::Regex;

use super::{
    needs::Needs,
    old::{Figure, Section, carried, carried_all, whole},
    report::{Fate, Report},
    yaml::Map,
};
use crate::util::{duration::Human, text::one_line};

/// Requests that our source makes at the same time.
const MOST_AT_A_TIME: u32 = 32;

/// The fields of Slack, of a source or of a join's left side.
pub(super) fn slack(old: &Section, block: &mut Map, needs: &mut Needs, report: &mut Report) {
    needs.slack();
    match old.texts("channel_ids", report).filter(|channels| !channels.is_empty()) {
        Some(channels) => block.set("channels", carried_all(channels)),
        None => report.fault(&old.place("channel_ids"), "a Slack source needs its channels"),
    }
    old.taken("channel_ids", "channels", report);
    let mut bots = old.texts("bot_names", report).unwrap_or_default();
    bots.extend(old.text("bot_name", report).filter(|bot| !bots.contains(bot)));
    if bots.is_empty() {
        report.say(
            Fate::Changed,
            &old.here(),
            "neither `bot_names` nor `bot_name`: there the assistant then had a built-in name, here every bot is the assistant",
        );
    } else {
        block.set("bot_names", carried_all(bots));
        old.taken("bot_names", "bot_names", report);
        old.taken("bot_name", "bot_names", report);
    }
    for key in ["scrape_threads", "drop_if_first_is_user", "drop_if_all_ai"] {
        block.set_some(key, old.flag(key, report));
        old.taken(key, key, report);
    }
    for key in ["filter_sender", "human_mention_token", "workspace_domain"] {
        block.set_some(key, old.text(key, report).map(|text| carried(&text)));
        old.taken(key, key, report);
    }
    if let Some(senders) = old.texts("exclude_senders", report) {
        block.set("exclude_senders", carried_all(senders));
        old.taken("exclude_senders", "exclude_senders", report);
    }
    patterns(old, block, report);
    let citations = old.either(["strip_citations", "strip_citation_block"]);
    block.set_some("strip_citations", old.flag(citations, report));
    old.taken(citations, "strip_citations", report);
    let members = old.either(["member_names", "member_id_to_display_name"]);
    if let Some(node) = old.get(members) {
        if node.as_map().is_some() {
            block.set("member_names", whole(node));
            old.taken(members, "member_names", report);
        } else {
            report.fault(&old.place(members), format!("expected names by member id, found {}", node.describe()));
        }
    }
    let concurrency = old.either(["concurrency", "max_concurrent"]);
    block.set_some("concurrency", old.count_up_to(concurrency, MOST_AT_A_TIME, report));
    old.taken(concurrency, "concurrency", report);
    for key in ["oldest_ts", "latest_ts"] {
        if old.has(key) {
            report.say(
                Fate::Contradiction,
                &old.place(key),
                "a fixed period for a monitor: every run looked at the same messages; left out. `assayd once MONITOR --since T --until T` looks at a period once",
            );
        }
    }
}

/// Python's patterns are ours but for what looks around and back.
fn patterns(old: &Section, block: &mut Map, report: &mut Report) {
    let Some(patterns) = old.texts("drop_message_regexes", report) else { return };
    let (sound, strange): (Vec<_>, Vec<_>) = patterns.into_iter().partition(|pattern| Regex::new(pattern).is_ok());
    for pattern in strange {
        report.say(
            Fate::Decide,
            &old.place("drop_message_regexes"),
            format!("`{}` is no pattern here: there is no looking ahead or back, and no `\\1`; left out", one_line(&pattern, 120)),
        );
    }
    block.set("drop_message_regexes", carried_all(sound));
    old.taken("drop_message_regexes", "drop_message_regexes", report);
}

/// Slack's limit was one of messages, of each channel.
pub(super) fn per_channel(old: &Section, block: &mut Map, report: &mut Report) {
    let channels = old.texts("channel_ids", &mut Report::default()).unwrap_or_default().len().max(1);
    let Some(limit) = old.count("limit", report) else { return };
    let limit = match limit {
        #[expect(clippy::cast_precision_loss, reason = "channels are few")]
        Figure::Known(n) => Figure::Known(n * channels as f64),
        Figure::Variable(text) => Figure::Variable(text),
    };
    report.say(
        Fate::Changed,
        &old.place("limit"),
        "it was of messages and a channel; here it is of threads and a run, over all channels, oldest first, and the rest is left to the next run",
    );
    block.set("limit", limit);
}

/// Threads that were begun longer ago are only seen if the source is told so.
pub(super) fn threads(minutes: Option<f64>, block: &mut Map) {
    const BY_DEFAULT: f64 = 7.0 * 1_440.0;
    if let Some(minutes) = minutes.filter(|minutes| *minutes > BY_DEFAULT) {
        block.set("thread_window", Human(Duration::from_secs_f64(minutes * 60.0)).to_string());
    }
}
