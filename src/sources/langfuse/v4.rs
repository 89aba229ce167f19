//! `GET /api/public/v2/observations`: newest first only, pages by cursor.
//!
//! To take the oldest first without holding a whole window, the window is cut into slices of time that fit one page: a
//! slice that does not fit is asked for again, narrowed by the density just seen; one that is sparse lets the next be
//! wider. Times are whole milliseconds, so slices neither overlap nor leave a gap.
//!
//! Values of metadata come cut at 200 characters, save those of keys that a request names. Which keys need it is seen
//! when the first value comes that may be cut: they are remembered and named from there on, and what came is asked for again.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Pages, Reader, SourceError, Usage, Window, fetched, figure, tokens};
use crate::{
    model::{Observation, Trace},
    util::{
        http::{self, HttpError},
        text,
    },
};

#[derive(Deserialize)]
struct Page {
    data: Vec<Row>,
    #[serde(default)]
    meta: Meta,
}

#[derive(Deserialize, Default)]
struct Meta {
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    trace_id: Option<String>,
    start_time: Timestamp,
    end_time: Option<Timestamp>,
    parent_observation_id: Option<String>,
    is_root_observation: Option<bool>,
    #[serde(default, rename = "type")]
    kind: String,
    name: Option<String>,
    level: Option<String>,
    version: Option<String>,
    environment: Option<String>,
    user_id: Option<String>,
    session_id: Option<String>,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    output: Value,
    #[serde(default)]
    metadata: Value,
    total_cost: Option<f64>,
    usage_details: Option<Usage>,
    /// Seconds.
    latency: Option<f64>,
    tags: Option<Vec<String>>,
    release: Option<String>,
    trace_name: Option<String>,
}

const FIELDS: &str = "core,basic,io,metadata,usage,metrics,trace_context";
/// Of a page that a slice aims to fill: room for what is denser than what was seen.
const FILL: f64 = 0.7;
/// Characters that a value of metadata is cut to.
const CUT: usize = 200;
/// Keys that a request names, and bytes of all their names: an address has to stay short enough for what lies in between.
const NAMED: usize = 64;
const NAMED_BYTES: usize = 2000;
/// Children start with their root or soon after; a trace that takes longer than a day is judged by what it had by then.
const CHILDREN: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// Keys of metadata that have long values.
#[derive(Debug, Default)]
pub(super) struct LongKeys(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    named: BTreeSet<String>,
    /// Those that cannot be named, or are too many: told once each.
    cut: BTreeSet<String>,
}

impl LongKeys {
    /// Whether rows have keys with values that may be cut and that were not named so far: the rows are to be asked for again.
    fn learn(&self, rows: &[Row]) -> bool {
        // Whole after every statement.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = false;
        for key in rows.iter().filter_map(|row| row.metadata.as_object()).flatten().filter(|(_, value)| may_be_cut(value)).map(|(key, _)| key) {
            if known.named.contains(key) || known.cut.contains(key) {
                continue;
            }
            let bytes: usize = known.named.iter().map(|key| key.len() + 1).sum();
            if key.contains(',') || known.named.len() >= NAMED || bytes + key.len() > NAMED_BYTES {
                if known.cut.len() < NAMED {
                    tracing::warn!(key = %text::one_line(key, 80), "Langfuse cuts this value of metadata after {CUT} characters, and it cannot be asked for whole");
                    known.cut.insert(key.clone());
                }
                continue;
            }
            known.named.insert(key.clone());
            new = true;
        }
        new
    }

    fn parameter(&self) -> Option<(&'static str, String)> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<&str> = known.named.iter().map(String::as_str).collect();
        (!names.is_empty()).then(|| ("expandMetadata", names.join(",")))
    }
}

/// A value of the length that longer ones are cut to. (Cut in the middle, an object or a list is text too.)
fn may_be_cut(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() >= CUT && text.chars().count() >= CUT)
}

pub(super) async fn fetch(reader: &Reader, window: Window, pages: &Pages) -> Result<(), SourceError> {
    let (end, mut low) = (ceil_ms(window.to), ceil_ms(window.from));
    let (mut width, mut size) = ((end - low).max(1), reader.config.page_size);
    while low < end {
        let high = low.saturating_add(width).min(end);
        let page = match slice(reader, low, high, size, None).await {
            Ok(page) => page,
            Err(HttpError::TooLarge(_) | HttpError::Status { status: 413 | 422, .. }) if high - low > 1 => {
                width = (high - low) / 2;
                continue;
            }
            Err(HttpError::TooLarge(_) | HttpError::Status { status: 413 | 422, .. }) if size > 1 => {
                size /= 2;
                continue;
            }
            Err(error) => return Err(reader.error(&error)),
        };
        let (mut rows, mut cursor) = (page.data, page.meta.cursor);
        if cursor.is_some() && high - low > 1 {
            width = narrowed(low, high, &rows);
            continue;
        }
        // A millisecond that holds more than a page: there is no narrower slice, so its pages are gathered.
        let mut seen: HashSet<String> = rows.iter().map(|row| row.id.clone()).collect();
        while let Some(from) = cursor {
            let page = slice(reader, low, high, size, Some(&from)).await.map_err(|error| reader.error(&error))?;
            if page.meta.cursor.as_ref() == Some(&from) || !page.data.is_empty() && page.data.iter().all(|row| seen.contains(&row.id)) {
                return Err(SourceError::Protocol("Langfuse gave a page of observations a second time".to_owned()));
            }
            seen.extend(page.data.iter().map(|row| row.id.clone()));
            rows.extend(page.data);
            cursor = page.meta.cursor;
        }
        if reader.long.learn(&rows) {
            continue;
        }
        let found = rows.len();
        rows.sort_by(|a, b| (a.start_time, &a.id).cmp(&(b.start_time, &b.id)));
        let mut traces = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(trace) = trace(row).filter(|trace| reader.wants(trace)) else { continue };
            let url = reader.api.trace_url(&trace.id).await;
            traces.push(fetched(Trace { url, ..trace }));
        }
        if !traces.is_empty() && pages.send(traces).await.is_err() {
            return Ok(());
        }
        low = high;
        if found < size as usize / 2 {
            width = width.saturating_mul(2);
        }
    }
    Ok(())
}

/// A width that should fill a page by the density of the newest rows of a slice that held too many.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate, bounded on both sides")]
fn narrowed(low: i64, high: i64, rows: &[Row]) -> i64 {
    let oldest = rows.iter().map(|row| row.start_time.as_millisecond()).min().unwrap_or(low);
    let spread = (high - oldest).max(1) as f64;
    // At most half: rows that stand closer together further down still make progress.
    ((spread * FILL) as i64).clamp(1, ((high - low) / 2).max(1))
}

fn ceil_ms(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond().div_euclid(1_000_000) + i128::from(at.as_nanosecond().rem_euclid(1_000_000) > 0)).unwrap_or(i64::MAX)
}

fn shown(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| Timestamp::MAX.to_string(), |at| format!("{at:.3}"))
}

async fn slice(reader: &Reader, low: i64, high: i64, size: u32, cursor: Option<&str>) -> Result<Page, HttpError> {
    let mut query = reader.filters();
    query.extend([
        ("fields", FIELDS.to_owned()),
        ("isRootObservation", "true".to_owned()),
        ("fromStartTime", shown(low)),
        ("toStartTime", shown(high)),
        ("limit", size.to_string()),
    ]);
    query.extend(reader.long.parameter());
    query.extend(cursor.map(|cursor| ("cursor", cursor.to_owned())));
    reader.api.http().send(|| reader.api.request(Method::GET, "/v2/observations").query(&query), |answer| http::json(&answer)).await
}

fn trace(row: Row) -> Option<Trace> {
    Some(Trace {
        id: row.trace_id?,
        timestamp: row.start_time,
        name: row.trace_name.or(row.name),
        input: decoded(row.input),
        output: decoded(row.output),
        metadata: row.metadata,
        tags: row.tags.unwrap_or_default(),
        user_id: row.user_id,
        session_id: row.session_id,
        environment: row.environment,
        release: row.release,
        version: row.version,
        latency_ms: figure(row.latency).map(|secs| secs * 1000.0),
        cost_usd: figure(row.total_cost),
        url: None,
        observations: Vec::new(),
        extra: Map::new(),
    })
}

/// `input` and `output` come as text. What is an object, a list or a JSON string inside is read as such; anything else
/// (`42`, `true`) is what the product said, and stays text.
fn decoded(value: Value) -> Value {
    let Value::String(text) = value else { return value };
    if text.starts_with(['{', '[', '"'])
        && let Ok(inner) = serde_json::from_str(&text)
    {
        return inner;
    }
    Value::String(text)
}

pub(super) async fn observations(reader: &Reader, trace: &Trace) -> Result<Vec<Observation>, SourceError> {
    let bound = |by: jiff::SignedDuration| trace.timestamp.checked_add(by).unwrap_or(Timestamp::MAX).as_millisecond();
    let query = [
        ("fields", FIELDS.to_owned()),
        ("traceId", trace.id.clone()),
        ("fromStartTime", shown(bound(jiff::SignedDuration::from_mins(-1)))),
        ("toStartTime", shown(bound(CHILDREN))),
        ("limit", "100".to_owned()),
    ];
    let (mut found, mut cursor): (Vec<Observation>, Option<String>) = (Vec::new(), None);
    loop {
        let request = || {
            let request = reader.api.request(Method::GET, "/v2/observations").query(&query).query(reader.long.parameter().as_slice());
            cursor.iter().fold(request, |request, cursor| request.query(&[("cursor", cursor)]))
        };
        let page: Page = reader.api.http().send(request, |answer| http::json(&answer)).await.map_err(|error| reader.error(&error))?;
        if reader.long.learn(&page.data) {
            (found, cursor) = (Vec::new(), None);
            continue;
        }
        if page.data.first().is_some_and(|row| found.iter().any(|known| known.id == row.id)) {
            return Err(SourceError::Protocol(format!("Langfuse gave observations of trace {} a second time", trace.id)));
        }
        // The root is the trace itself, not a step of it; one marked by an SDK may still name a parent.
        let children = page.data.into_iter().filter(|row| row.parent_observation_id.is_some() && row.is_root_observation != Some(true));
        found.extend(children.map(|row| Observation {
            id: row.id,
            parent_id: row.parent_observation_id,
            name: row.name.unwrap_or_default(),
            kind: row.kind,
            start: row.start_time,
            end: row.end_time,
            input: decoded(row.input),
            output: decoded(row.output),
            metadata: row.metadata,
            level: row.level,
            cost_usd: figure(row.total_cost),
            tokens: row.usage_details.as_ref().and_then(tokens),
        }));
        match page.meta.cursor {
            Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
            _ => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn row(metadata: Value) -> Row {
        serde_json::from_value(json!({ "id": "o", "startTime": "2026-01-31T09:30:00Z", "metadata": metadata })).unwrap()
    }

    proptest! {
        #[test]
        fn whatever_the_metadata_rows_are_asked_for_once_more_and_addresses_stay_short(pages in prop::collection::vec(prop::collection::vec("[a-z,é]{1,90}", 0..40), 1..6)) {
            let (long, whole) = (LongKeys::default(), "é".repeat(CUT));
            for keys in pages {
                let metadata: Map<String, Value> = keys.iter().map(|key| (key.clone(), json!(whole))).collect();
                let rows = [row(json!({ "short": "é".repeat(CUT - 1), "number": 7 })), row(Value::Object(metadata))];
                long.learn(&rows);
                prop_assert!(!long.learn(&rows));
                let (_, names) = long.parameter().unwrap_or_default();
                prop_assert!(names.len() <= NAMED_BYTES && names.split(',').all(|name| name != "short"));
            }
        }
    }

    #[test]
    fn a_key_of_a_value_that_may_be_cut_is_named() {
        let long = LongKeys::default();
        let cut = "x".repeat(CUT);
        assert!(long.learn(&[row(json!({ "guide": cut, "short": "x", "a,b": cut })), row(json!("text"))]));
        assert_eq!(long.parameter(), Some(("expandMetadata", "guide".to_owned())));
        assert!(!long.learn(&[row(json!({ "guide": "x".repeat(9 * CUT), "a,b": cut }))]));
    }
}
