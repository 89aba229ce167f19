//! `source:` of the older tool, in its four types.

use std::{sync::LazyLock, time::Duration};

use regex::Regex;

use super::{
    needs::Needs,
    old::{Figure, Section, carried, carried_all, whole},
    report::{Fate, Report},
    yaml::{List, Map},
};
use crate::util::{duration::Human, text::one_line};

/// What came of a source.
pub(super) struct Source {
    pub block: Map,
    /// Of the older tool, for its ledger: `langfuse:support-bot`.
    pub old_key: String,
    /// Ours for the same.
    pub key: SourceKey,
    /// Templates that a Python extractor's work might look like.
    pub templates: &'static [(&'static str, &'static str)],
}

/// `type:name`, where the name may be the monitor's.
pub(super) struct SourceKey {
    pub kind: &'static str,
    pub name: Option<String>,
}

pub(super) const TYPES: [&str; 4] = ["langfuse", "slack", "neon", "slack_neon_join"];

/// Known before the source is read.
pub(super) struct Around {
    /// Minutes between two runs, where that is a number.
    pub every_minutes: Option<f64>,
}

pub(super) fn translate(old: &Section, around: &Around, needs: &mut Needs, report: &mut Report) -> Option<Source> {
    let kind = old.text("type", report).unwrap_or_else(|| "langfuse".to_owned());
    let name = old.text("name", report);
    let mut block = Map::default();
    let (key, templates): (&'static str, &[_]) = match kind.as_str() {
        "langfuse" => {
            langfuse(old, name.as_deref(), around, &mut block, needs, report);
            ("langfuse", &[("input", "{{ trace.input }}"), ("output", "{{ trace.output }}"), ("context", "{{ trace.steps.retrieve.output }}")])
        }
        "slack" => {
            block.set("type", "slack");
            name_of(old, name.as_deref(), &mut block, report);
            slack(old, &mut block, needs, report);
            let minutes = window(old, &SLACK_WINDOW, around, &mut block, report);
            threads(minutes, &mut block);
            per_channel(old, &mut block, report);
            ("slack", &[("input", "{{ trace.input }}"), ("output", "{{ trace.output }}")])
        }
        "neon" => {
            block.set("type", "sql");
            name_of(old, name.as_deref(), &mut block, report);
            sql(old, old.either(["query", "neon_query"]), &[], &mut block, needs, report);
            if LANGFUSE_WINDOW.iter().any(|(key, _)| old.has(key)) {
                window(old, &LANGFUSE_WINDOW, around, &mut block, report);
            } else {
                window(old, &SLACK_WINDOW, around, &mut block, report);
            }
            limit(old, &mut block, report);
            block.set("id_column", "id");
            report.say(Fate::Decide, &old.here(), "`id_column: id` says which column an item is known by; it has to hold what the Python extractor gave as the item's id, or the old ledger fits nothing");
            ("sql", &[("input", "{{ trace.row.question }}"), ("output", "{{ trace.row.answer }}")])
        }
        "slack_neon_join" => {
            join(old, name.as_deref(), around, &mut block, needs, report);
            ("join", &[("input", "{{ trace.input }}"), ("output", "{{ trace.output }}"), ("context", "{{ trace.right.row.context }}")])
        }
        other => {
            let hint = crate::util::text::nearest(other, TYPES).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
            report.fault(&old.place("type"), format!("`{}` is no source of the older tool{hint}: it had {}", one_line(other, 40), TYPES.join(", ")));
            return None;
        }
    };
    let old_key = format!("{kind}:{}", name.as_deref().unwrap_or("default"));
    if key == kind {
        old.taken("type", "source.type", report);
    } else {
        report.say(Fate::Changed, &old.place("type"), format!("`{kind}` is `{key}` here"));
    }
    Some(Source { block, old_key, key: SourceKey { kind: key, name }, templates })
}

fn name_of(old: &Section, name: Option<&str>, block: &mut Map, report: &mut Report) {
    block.set_some("name", name.map(carried));
    old.taken("name", "source.name", report);
}

const LANGFUSE_WINDOW: [(&str, &str); 3] = [("days_back", "d"), ("hours_back", "h"), ("minutes_back", "m")];
const SLACK_WINDOW: [(&str, &str); 3] = [("window_days", "d"), ("window_hours", "h"), ("window_minutes", "m")];

fn langfuse(old: &Section, name: Option<&str>, around: &Around, block: &mut Map, needs: &mut Needs, report: &mut Report) {
    needs.langfuse();
    block.set("type", "langfuse");
    block.set_some("name", name.map(carried));
    // There, the name was the filter by traces' names too.
    let filter = old.either(["trace_name", "name"]);
    if let Some(names) = old.texts(filter, report) {
        block.set("names", carried_all(names));
    }
    if filter == "name" {
        old.taken("name", "source.name, and source.names: it chose the traces of this name too", report);
    } else {
        old.taken("name", "source.name", report);
        old.taken("trace_name", "source.names", report);
    }
    if let Some(tags) = old.texts("tags", report) {
        block.set("tags", carried_all(tags));
        old.taken("tags", "source.tags: traces that have all of them", report);
    }
    window(old, &LANGFUSE_WINDOW, around, block, report);
    limit(old, block, report);
    if old.has("trace_ids") {
        report.say(
            Fate::Decide,
            &old.place("trace_ids"),
            "a fixed list is no monitoring, and is left out; `source.filter` chooses by an expression over `trace`",
        );
    }
    old.drop("timeout", "`retry` of assayd.yaml is for every call", report);
    old.drop("fetch_full_traces", "steps of a trace are fetched where a template uses them", report);
}

/// Days won there over hours, and hours over minutes. The window in minutes, where it is a number.
fn window(old: &Section, keys: &[(&'static str, &str)], around: &Around, block: &mut Map, report: &mut Report) -> Option<f64> {
    let set: Vec<_> = keys.iter().filter(|(key, _)| old.has(key)).collect();
    let (key, unit) = set.first()?;
    for (other, _) in &set[1..] {
        report.say(Fate::Contradiction, &old.place(other), format!("stands beside `{key}`, which won; left out"));
    }
    let lookback = old.time(key, unit, report)?;
    let minutes = match old.figure(key, report) {
        Some(Figure::Known(n)) => Some(
            n * if *unit == "d" {
                1_440.0
            } else if *unit == "h" {
                60.0
            } else {
                1.0
            },
        ),
        _ => None,
    };
    let cost = match (minutes, around.every_minutes) {
        (Some(window), Some(every)) if window < every => "so what happened between two windows was never seen",
        (Some(window), Some(every)) if window > every => "so the same items were fetched again and again, and what came after a longer pause was lost",
        _ => "so what came after a longer pause was lost",
    };
    report.say(
        Fate::Contradiction,
        &old.place(key),
        format!("a window in place of a watermark: each run looked back {lookback}, wherever the last one had come to, {cost}. Here it is `lookback`, how far the first run reaches; later ones go on from the watermark"),
    );
    block.set("lookback", carried(&lookback));
    minutes
}

/// Threads that were begun longer ago are only seen if the source is told so.
fn threads(minutes: Option<f64>, block: &mut Map) {
    const BY_DEFAULT: f64 = 7.0 * 1_440.0;
    if let Some(minutes) = minutes.filter(|minutes| *minutes > BY_DEFAULT) {
        block.set("thread_window", Human(Duration::from_secs_f64(minutes * 60.0)).to_string());
    }
}

fn limit(old: &Section, block: &mut Map, report: &mut Report) {
    let Some(limit) = old.count("limit", report) else { return };
    report.say(Fate::Changed, &old.place("limit"), "most new items a run takes, oldest first; the rest is left to the next run, where it was lost before");
    block.set("limit", limit);
}

/// Slack's limit was one of messages, of each channel.
fn per_channel(old: &Section, block: &mut Map, report: &mut Report) {
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

/// The fields of Slack, of a source or of a join's left side.
fn slack(old: &Section, block: &mut Map, needs: &mut Needs, report: &mut Report) {
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
    block.set_some("concurrency", old.count(concurrency, report));
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

static OWN_WINDOW: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\bnow\s*\(|\bcurrent_(timestamp|date|time)\b|\binterval\s*'").expect("a pattern of ours"));
static OWN_LIMIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?i)\blimit\s+\d").expect("a pattern of ours"));
static COLUMN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$").expect("a pattern of ours"));

/// The fields of a query, of a source or of a join's right side, whose rows are known by what joins them.
fn sql(old: &Section, key: &'static str, joined_by: &[String], block: &mut Map, needs: &mut Needs, report: &mut Report) {
    let url = connection_string(old, ["connection_string", "neon_connection_string"], report);
    block.set("connection", needs.postgres(url, "source"));
    let column = old.text("neon_time_column", report).unwrap_or_else(|| "created_at".to_owned());
    if !COLUMN.is_match(&column) {
        report.fault(&old.place("neon_time_column"), "expected the name of a column");
        return;
    }
    // In the wrapped query there is one table.
    let column = column.rsplit('.').next().unwrap_or_default().to_owned();
    match old.text(key, report) {
        None => report.fault(&old.place(key), "the source needs its query"),
        Some(query) => {
            let (query, id) = windowed(old, key, &query, &column, joined_by, report);
            block.set("query", query);
            block.set_some("id_column", id);
        }
    }
    if !old.has("neon_time_column") {
        report.say(
            Fate::Decide,
            &old.place(key),
            "no `neon_time_column`: `created_at` is taken; say in `query` and `timestamp_column` which one tells when a row came",
        );
    }
    old.taken("neon_time_column", "timestamp_column, and the window of the query", report);
    block.set("timestamp_column", column);
    if old.has("params") {
        report.say(Fate::Decide, &old.place("params"), "parameters of a query's own are not known here: write their values into `query`");
    }
    block.set_some("timeout", old.time(old.either(["timeout_seconds", "neon_timeout_seconds"]), "s", report));
    old.taken("timeout_seconds", "timeout", report);
    old.taken("neon_timeout_seconds", "timeout", report);
    if let Some(field) = old.text("has_field", report) {
        block.set("required", std::iter::once(field).collect::<List>());
        report.say(
            Fate::Changed,
            &old.place("has_field"),
            "`required`: a row without it is an item that failed, with the reason; before, it was skipped and nobody heard of it",
        );
    }
    old.drop("chunk_size", "rows are streamed, in pages of a bounded size", report);
    old.drop("neon_chunk_size", "rows are streamed, in pages of a bounded size", report);
}

/// A row of a join had no id of its own there.
const ROW_ID: &str = "row_id";

/// Only what is new: the old query in a window of ours. And the column that tells rows apart, where it was made here.
fn windowed(old: &Section, key: &'static str, query: &str, column: &str, joined_by: &[String], report: &mut Report) -> (String, Option<&'static str>) {
    let place = old.place(key);
    if query.contains("${") {
        report.say(Fate::Decide, &place, "nothing is filled in inside `query`: write what the `${..}` stood for");
    }
    if query.contains("%s") || query.contains("%(") || query.contains("%%") {
        report.say(Fate::Decide, &place, "`%s`, `%(..)s` and `%%` were read by Python; here `%` is a `%`, and only :since, :until and :limit are filled in");
    }
    let body = query.trim().trim_end_matches(';').trim_end();
    if body.contains(":since") && body.contains(":until") {
        old.taken(key, "query", report);
        return (format!("{body}\n"), None);
    }
    report.say(
        Fate::Changed,
        &place,
        format!("it was asked whole each time; now it stands in a window (`{column} >= :since AND {column} < :until`), so a run reads what is new"),
    );
    if OWN_WINDOW.is_match(body) {
        report.say(Fate::Contradiction, &place, "the query has a window of its own (`now()`, `interval`): what came before it is never seen after a pause. Take it out; the one around it is enough");
    }
    if OWN_LIMIT.is_match(body) {
        report.say(
            Fate::Contradiction,
            &place,
            "the query has a LIMIT of its own, which cuts rows off before the window chooses. Take it out; the one around it is enough",
        );
    }
    let inside: String = body.lines().map(|line| format!("  {line}\n")).collect();
    let (columns, id) = match joined_by {
        [] => ("*".to_owned(), None),
        columns => {
            let parts: String = columns.iter().map(|column| format!("q.{column}, ")).collect();
            (format!("q.*, concat_ws('-', {parts}q.{column}) AS {ROW_ID}"), Some(ROW_ID))
        }
    };
    (format!("SELECT {columns} FROM (\n{inside}) AS q\nWHERE q.{column} >= :since AND q.{column} < :until\nORDER BY q.{column}\nLIMIT :limit\n"), id)
}

/// Where a database is. A password that stands in the old file is not repeated.
pub(super) fn connection_string(old: &Section, keys: [&'static str; 2], report: &mut Report) -> Option<String> {
    let key = old.either(keys);
    let url = old.text(key, report)?;
    let authority = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
    let password = authority.rsplit_once('@').and_then(|(user, _)| user.split_once(':')).map_or("", |(_, password)| password);
    let hidden = |secret: &str| !secret.is_empty() && !secret.starts_with("${");
    let in_query = url.split_once("password=").is_some_and(|(_, secret)| hidden(secret));
    if hidden(password) || in_query {
        report.say(Fate::Decide, &old.place(key), "a password stands in the old file; put the address into the environment as DATABASE_URL");
        return None;
    }
    report.say(Fate::Taken, &old.place(key), "connections.postgres of assayd.yaml");
    Some(carried(&url))
}

fn join(old: &Section, name: Option<&str>, around: &Around, block: &mut Map, needs: &mut Needs, report: &mut Report) {
    block.set("type", "join");
    name_of(old, name, block, report);
    let minutes = window(old, &SLACK_WINDOW, around, block, report);
    per_channel(old, block, report);
    let mut left = Map::default();
    left.set("type", "slack");
    slack(old, &mut left, needs, report);
    threads(minutes, &mut left);
    let columns = |key: &'static str, before: &str, report: &mut Report| {
        let columns = old.texts(key, report).filter(|columns| !columns.is_empty());
        let sound = columns.as_ref().is_some_and(|columns| columns.iter().all(|column| COLUMN.is_match(column) && !column.contains('.')));
        match columns {
            None => report.fault(&old.place(key), "a join needs its columns"),
            Some(_) if !sound => report.fault(&old.place(key), "expected names of columns"),
            Some(columns) => return columns.into_iter().map(|column| format!("{before}{column}")).collect(),
        }
        Vec::new()
    };
    let of_slack: Vec<String> = columns("slack_join_columns", "trace.", report);
    let of_neon: Vec<String> = columns("neon_join_columns", "trace.row.", report);
    let joined_by: Vec<String> = of_neon.iter().filter_map(|column| column.strip_prefix("trace.row.")).map(str::to_owned).collect();
    if of_slack.len() != of_neon.len() && !of_slack.is_empty() && !of_neon.is_empty() {
        report.fault(&old.place("neon_join_columns"), format!("as many columns as in `slack_join_columns`, which has {}", of_slack.len()));
    }
    let mut right = Map::default();
    right.set("type", "sql");
    sql(old, old.either(["neon_query", "query"]), &joined_by, &mut right, needs, report);
    for column in of_slack.iter().filter(|column| !["trace.channel_id", "trace.thread_ts"].contains(&column.as_str())) {
        report.say(Fate::Decide, &old.place("slack_join_columns"), format!("a thread has trace.channel_id and trace.thread_ts; is `{column}` there?"));
    }
    let mut on = Map::default();
    on.set("left", of_slack.into_iter().collect::<List>());
    on.set("right", of_neon.into_iter().collect::<List>());
    block.set("left", left);
    block.set("right", right);
    block.set("on", on);
    block.set("how", "inner");
    block.set_some("buffer", old.time("buffer_minutes", "m", report));
    old.taken("slack_join_columns", "on.left, as expressions over `trace`", report);
    old.taken("neon_join_columns", "on.right, as expressions over `trace`", report);
    old.taken("buffer_minutes", "buffer", report);
    report.say(Fate::Changed, &old.place("neon_query"), "a row's columns are `trace.right.row.COLUMN` in templates");
    if let Some(column) = old.text("dataset_id_column", report) {
        if COLUMN.is_match(&column) {
            block.set("id", format!("{{{{ right.row.{column} }}}}"));
            old.taken("dataset_id_column", "id, a template over `left` and `right`", report);
        } else {
            report.fault(&old.place("dataset_id_column"), "expected the name of a column");
        }
    }
    if old.has("use_slack_thread_dataset_id") {
        report.say(Fate::Taken, &old.place("use_slack_thread_dataset_id"), "an item's id is slack-CHANNEL-THREAD_TS anyway");
    }
}

/// Keys of any source that say nothing about where items come from.
pub(super) fn beside(old: &Section, labels: &mut Map, report: &mut Report) {
    for key in ["component", "eval_mode"] {
        if let Some(text) = old.text(key, report) {
            labels.set(key, carried(&text));
            report.say(Fate::Changed, &old.place(key), "a label of the monitor");
        }
    }
    old.drop("db_source_type", "the source's type is told as it is", report);
    old.drop("show_progress", "`assayd once` shows it on a terminal", report);
}
