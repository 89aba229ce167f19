//! Rows of a database, as a source and as a join's right side; and where a database is.

use std::sync::LazyLock;

use regex::Regex;

use super::{
    needs::Needs,
    old::{Section, carried},
    report::{Fate, Report},
    yaml::{List, Map},
};

static OWN_WINDOW: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\bnow\s*\(|\bcurrent_(timestamp|date|time)\b|\binterval\s*'").expect("a pattern of ours"));
static OWN_LIMIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?i)\blimit\s+\d").expect("a pattern of ours"));
pub(super) static COLUMN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$").expect("a pattern of ours"));

/// The fields of a query, of a source or of a join's right side, whose rows are known by what joins them.
pub(super) fn sql(old: &Section, key: &'static str, joined_by: &[String], block: &mut Map, needs: &mut Needs, report: &mut Report) {
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
