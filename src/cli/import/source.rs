//! `source:` of the older tool, in its four types.

use super::{
    needs::Needs,
    old::{Figure, Section, carried, carried_all},
    report::{Fate, Report},
    slack::{per_channel, slack, threads},
    sql::{COLUMN, sql},
    yaml::{List, Map},
};
use crate::util::text::one_line;

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

fn limit(old: &Section, block: &mut Map, report: &mut Report) {
    let Some(limit) = old.count("limit", report) else { return };
    report.say(Fate::Changed, &old.place("limit"), "most new items a run takes, oldest first; the rest is left to the next run, where it was lost before");
    block.set("limit", limit);
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
