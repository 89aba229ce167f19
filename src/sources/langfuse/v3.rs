//! `GET /api/public/traces`: pages by number, oldest first.

use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Pages, Reader, SourceError, Usage, Window, fetched, figure, tokens};
use crate::{
    model::{Observation, Trace},
    util::http::{self, HttpError},
};

#[derive(Deserialize)]
struct Page {
    data: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    timestamp: Timestamp,
    name: Option<String>,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    output: Value,
    #[serde(default)]
    metadata: Value,
    tags: Option<Vec<String>>,
    user_id: Option<String>,
    session_id: Option<String>,
    environment: Option<String>,
    release: Option<String>,
    version: Option<String>,
    html_path: Option<String>,
    /// Seconds.
    latency: Option<f64>,
    total_cost: Option<f64>,
}

pub(super) async fn fetch(reader: &Reader, window: Window, pages: &Pages) -> Result<(), SourceError> {
    let (mut size, mut number) = (reader.config.page_size, 1);
    let mut last: Vec<String> = Vec::new();
    loop {
        let mut query = reader.filters();
        query.extend(reader.config.tags.iter().map(|tag| ("tags", tag.clone())));
        query.extend([
            ("fromTimestamp", window.from.to_string()),
            ("toTimestamp", window.to.to_string()),
            ("orderBy", "timestamp.asc".to_owned()),
            ("fields", "core,io,metrics".to_owned()),
            ("limit", size.to_string()),
            ("page", number.to_string()),
        ]);
        let answer = reader.api.http().send(|| reader.api.request(Method::GET, "/traces").query(&query), |answer| http::json::<Page>(&answer)).await;
        let page = match answer {
            Ok(page) => page.data,
            // Too much at once: smaller pages, from where this one began.
            Err(HttpError::TooLarge(_) | HttpError::Status { status: 413 | 422, .. }) if size > 1 => {
                let done = (number - 1) * size;
                size /= 2;
                number = done / size + 1;
                last.clear();
                continue;
            }
            Err(error) => return Err(reader.error(&error)),
        };
        let ids: Vec<String> = page.iter().map(|row| row.id.clone()).collect();
        if !ids.is_empty() && ids == last {
            return Err(SourceError::Protocol(format!("Langfuse gave page {number} of the traces a second time")));
        }
        let full = page.len() >= size as usize;
        last = ids;
        let traces: Vec<_> = page.into_iter().map(|row| trace(reader, row)).filter(|trace| reader.wants(trace)).map(fetched).collect();
        if !traces.is_empty() && pages.send(traces).await.is_err() || !full {
            return Ok(());
        }
        number += 1;
    }
}

fn trace(reader: &Reader, row: Row) -> Trace {
    Trace {
        id: row.id,
        timestamp: row.timestamp,
        name: row.name,
        input: row.input,
        output: row.output,
        metadata: row.metadata,
        tags: row.tags.unwrap_or_default(),
        user_id: row.user_id,
        session_id: row.session_id,
        environment: row.environment,
        release: row.release,
        version: row.version,
        latency_ms: figure(row.latency).map(|secs| secs * 1000.0),
        cost_usd: figure(row.total_cost),
        url: row.html_path.map(|path| reader.api.page(&path)),
        observations: Vec::new(),
        extra: Map::new(),
    }
}

pub(super) async fn observations(reader: &Reader, trace: &Trace) -> Result<Vec<Observation>, SourceError> {
    #[derive(Deserialize)]
    struct Full {
        #[serde(default)]
        observations: Vec<Child>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Child {
        id: String,
        parent_observation_id: Option<String>,
        name: Option<String>,
        #[serde(default, rename = "type")]
        kind: String,
        start_time: Timestamp,
        end_time: Option<Timestamp>,
        #[serde(default)]
        input: Value,
        #[serde(default)]
        output: Value,
        #[serde(default)]
        metadata: Value,
        level: Option<String>,
        calculated_total_cost: Option<f64>,
        usage_details: Option<Usage>,
    }
    let path = format!("/traces/{}", urlencode(&trace.id));
    let full: Full =
        reader.api.http().send(|| reader.api.request(Method::GET, &path), |answer| http::json(&answer)).await.map_err(|error| reader.error(&error))?;
    let observation = |child: Child| Observation {
        id: child.id,
        parent_id: child.parent_observation_id,
        name: child.name.unwrap_or_default(),
        kind: child.kind,
        start: child.start_time,
        end: child.end_time,
        input: child.input,
        output: child.output,
        metadata: child.metadata,
        level: child.level,
        cost_usd: figure(child.calculated_total_cost),
        tokens: child.usage_details.as_ref().and_then(tokens),
    };
    Ok(full.observations.into_iter().map(observation).collect())
}

/// A trace's id is whatever its product made of it.
fn urlencode(id: &str) -> String {
    url::form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>().replace('+', "%20")
}
