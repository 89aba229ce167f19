use std::sync::Arc;

use axum::{
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Inner, Langfuse, Mode, Quirk, Row, error, through};

/// Query parameters, repeated ones included.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(raw: Option<String>) -> Self {
        Self(url::form_urlencoded::parse(raw.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// An instant, or the answer to one that cannot be read.
    fn instant(&self, key: &str) -> Result<Option<Timestamp>, Response> {
        self.get(key).map(|text| text.parse().map_err(|_| invalid(key))).transpose()
    }

    fn number(&self, key: &str, default: usize, most: usize) -> Result<usize, Response> {
        let number = self.get(key).map_or(Ok(default), |text| text.parse().map_err(|_| invalid(key)))?;
        if number == 0 || number > most { Err(invalid(key)) } else { Ok(number) }
    }
}

fn invalid(key: &str) -> Response {
    error(StatusCode::BAD_REQUEST, "Invalid request data", Some(key))
}

pub(super) async fn observations(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, RawQuery(raw): RawQuery) -> Response {
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    let query = Query::parse(raw);
    let answer = through(&langfuse.reads, || {
        if langfuse.mode() == Mode::V3 {
            return Err(error(StatusCode::NOT_FOUND, "The observations v2 API is only available in a Langfuse v4 write mode.", Some("LangfuseNotFoundError")));
        }
        if query.get("fromStartTime").is_none() && query.get("filter").is_none() {
            langfuse.breaches.push("a read of observations without a bound in time");
        }
        langfuse.state.lock().unwrap().observations(&query)
    })
    .await;
    langfuse.pulse.beat();
    answer
}

impl Inner {
    fn observations(&mut self, query: &Query) -> Result<Value, Response> {
        let limit = query.number("limit", 50, 1000)?;
        let (from, to) = (query.instant("fromStartTime")?, query.instant("toStartTime")?);
        let filter: Vec<Value> = query.get("filter").map_or(Ok(Vec::new()), |text| serde_json::from_str(text).map_err(|_| invalid("filter")))?;
        // A filter overrides the plain parameters.
        let mut rows: Vec<&Row> = if filter.is_empty() {
            self.rows.iter().filter(|row| from.is_none_or(|from| row.start >= from) && to.is_none_or(|to| row.start < to) && plain(row, query)).collect()
        } else {
            self.rows.iter().filter(|row| filter.iter().all(|condition| holds(row, condition))).collect()
        };
        rows.sort_by(|a, b| key(b).cmp(&key(a)));
        let quirk = if limit == 1 { None } else { self.quirk };
        if let Some(cursor) = query.get("cursor").filter(|_| quirk != Some(Quirk::RepeatPage)) {
            rows.retain(|row| encode(row).as_str() < cursor);
        }
        let more = rows.len() > limit;
        rows.truncate(limit);
        let groups: Vec<&str> = query.get("fields").unwrap_or("core,basic").split(',').collect();
        let whole: Vec<&str> = query.get("expandMetadata").map(|keys| keys.split(',').collect()).unwrap_or_default();
        let mut meta = json!({});
        if let Some(last) = rows.last().filter(|_| (more && quirk != Some(Quirk::EarlyEnd)) || quirk == Some(Quirk::RepeatPage)) {
            meta["cursor"] = json!(encode(last));
        }
        let data: Vec<Value> = rows.iter().map(|row| row.v2(&groups, &whole)).collect();
        self.children_served += rows.iter().filter(|row| !row.is_root()).count();
        if limit > 1 {
            self.listings.push(Timestamp::now());
        }
        Ok(json!({ "data": data, "meta": meta }))
    }
}

fn key(row: &Row) -> (Timestamp, &str, &str) {
    (row.start, &row.trace_id, &row.id)
}

/// Sorts like [`key`]: the milliseconds have a fixed width.
fn encode(row: &Row) -> String {
    format!("{:016}|{}|{}", row.start.as_millisecond(), row.trace_id, row.id)
}

fn plain(row: &Row, query: &Query) -> bool {
    let text = |key: &str| query.get(key).is_none_or(|wanted| row.column(key).as_str() == Some(wanted));
    ["name", "userId", "sessionId", "type", "traceId"].into_iter().all(text)
        && query.get("isRootObservation").is_none_or(|wanted| row.is_root() == (wanted == "true"))
        && query.get("parentObservationId").is_none_or(|wanted| row.parent.as_deref().unwrap_or("") == wanted)
        && (query.get("environment").is_none() || query.all("environment").any(|wanted| row.trace.environment == wanted))
}

/// One condition of `filter`.
fn holds(row: &Row, condition: &Value) -> bool {
    let text = |key: &str| condition[key].as_str().unwrap_or("");
    let have = row.column(text("column"));
    let want = &condition["value"];
    let wanted: Vec<&Value> = want.as_array().map(|list| list.iter().collect()).unwrap_or_default();
    match (text("type"), text("operator")) {
        ("datetime", operator) => {
            let (Ok(have), Ok(want)) = (have.as_str().unwrap_or("").parse::<Timestamp>(), want.as_str().unwrap_or("").parse::<Timestamp>()) else {
                return false;
            };
            match operator {
                ">" => have > want,
                "<" => have < want,
                ">=" => have >= want,
                _ => have <= want,
            }
        }
        ("arrayOptions", operator) => {
            let have = have.as_array().cloned().unwrap_or_default();
            match operator {
                "any of" => wanted.iter().any(|value| have.contains(value)),
                "all of" => wanted.iter().all(|value| have.contains(value)),
                _ => !wanted.iter().any(|value| have.contains(value)),
            }
        }
        ("stringOptions" | "categoryOptions", operator) => wanted.contains(&&have) == (operator == "any of"),
        ("boolean", operator) => (have == *want) == (operator == "="),
        ("null", operator) => have.is_null() == (operator == "is null"),
        (_, operator) => {
            let (have, want) = (have.as_str().unwrap_or(""), want.as_str().unwrap_or(""));
            match operator {
                "=" => have == want,
                "contains" => have.contains(want),
                "does not contain" => !have.contains(want),
                "starts with" => have.starts_with(want),
                _ => have.ends_with(want),
            }
        }
    }
}

fn legacy_gone() -> Response {
    error(StatusCode::NOT_FOUND, "This endpoint is not available on deployments running in Langfuse v4 events_only mode. Use the v2 API.", None)
}

pub(super) async fn traces(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, RawQuery(raw): RawQuery) -> Response {
    if langfuse.mode() == Mode::V4 {
        return legacy_gone();
    }
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    let query = Query::parse(raw);
    let answer = through(&langfuse.reads, || {
        if query.get("fromTimestamp").is_none() && query.get("filter").is_none() {
            return Err(error(StatusCode::BAD_REQUEST, "fromTimestamp is required on this server", Some("InvalidRequestError")));
        }
        langfuse.state.lock().unwrap().traces(&query)
    })
    .await;
    langfuse.pulse.beat();
    answer
}

impl Inner {
    fn traces(&mut self, query: &Query) -> Result<Value, Response> {
        let limit = query.number("limit", 50, 100)?;
        let page = query.number("page", 1, usize::MAX)?;
        let (from, to) = (query.instant("fromTimestamp")?, query.instant("toTimestamp")?);
        let filter: Vec<Value> = query.get("filter").map_or(Ok(Vec::new()), |text| serde_json::from_str(text).map_err(|_| invalid("filter")))?;
        let mut rows: Vec<&Row> = self
            .rows
            .iter()
            .filter(|row| row.is_root())
            .filter(|row| if filter.is_empty() { legacy_plain(row, query, from, to) } else { filter.iter().all(|condition| holds(row, condition)) })
            .collect();
        rows.sort_by(|a, b| key(a).cmp(&key(b)));
        if !query.get("orderBy").unwrap_or("timestamp.desc").ends_with(".asc") {
            rows.reverse();
        }
        let quirk = if limit == 1 { None } else { self.quirk };
        let total = if quirk == Some(Quirk::EarlyEnd) { rows.len().min(limit) } else { rows.len() };
        let skip = if quirk == Some(Quirk::RepeatPage) { 0 } else { (page - 1) * limit };
        let pages = if quirk == Some(Quirk::RepeatPage) { 1_000_000 } else { total.div_ceil(limit) };
        let whole = query.get("fields").is_none_or(|fields| fields.split(',').any(|group| group == "observations"));
        let data: Vec<Value> =
            rows.iter().take(total).skip(skip).take(limit).map(|row| row.legacy(&if whole { self.children_of(row) } else { Vec::new() }, false)).collect();
        if limit > 1 {
            self.listings.push(Timestamp::now());
        }
        Ok(json!({ "data": data, "meta": { "page": page, "limit": limit, "totalItems": total, "totalPages": pages } }))
    }

    fn children_of(&self, root: &Row) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.trace_id == root.trace_id && !row.is_root()).collect()
    }
}

fn legacy_plain(row: &Row, query: &Query, from: Option<Timestamp>, to: Option<Timestamp>) -> bool {
    from.is_none_or(|from| row.start >= from)
        && to.is_none_or(|to| row.start < to)
        && ["name", "userId", "sessionId"].into_iter().all(|key| query.get(key).is_none_or(|wanted| row.column(key).as_str() == Some(wanted)))
        && query.all("tags").all(|tag| row.trace.tags.iter().any(|have| have == tag))
        && (query.get("environment").is_none() || query.all("environment").any(|wanted| row.trace.environment == wanted))
}

pub(super) async fn trace(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, Path(id): Path<String>) -> Response {
    if langfuse.mode() == Mode::V4 {
        return legacy_gone();
    }
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    let answer = through(&langfuse.reads, || {
        let mut inner = langfuse.state.lock().unwrap();
        let found = inner.rows.iter().find(|row| row.is_root() && row.trace_id == id);
        let Some(root) = found else { return Err(error(StatusCode::NOT_FOUND, "Trace not found within authorized project", Some("LangfuseNotFoundError"))) };
        let children = inner.children_of(root);
        let (body, served) = (root.legacy(&children, true), children.len());
        inner.children_served += served;
        Ok(body)
    })
    .await;
    langfuse.pulse.beat();
    answer
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::{
        super::{
            super::{Breaches, Pulse, schema::Schema},
            rows::{Child, NewTrace},
        },
        *,
    };

    fn ask(langfuse: &Langfuse, query: &str) -> Value {
        langfuse.state.lock().unwrap().observations(&Query::parse(Some(query.to_owned()))).unwrap()
    }

    fn filled() -> Langfuse {
        let langfuse = Langfuse::new(Mode::V4, String::new(), Pulse::new(), Breaches::default());
        let child = Child { name: "retrieve".to_owned(), kind: "RETRIEVER", input: json!({ "q": 1 }), output: json!("text") };
        langfuse.add(NewTrace { children: vec![child], ..NewTrace::new("a", Timestamp::now()) });
        langfuse.add_many("t", 9, SignedDuration::from_mins(9), SignedDuration::from_mins(9));
        langfuse
    }

    #[test]
    fn answers_hold_the_schemas_of_the_real_server() {
        let langfuse = filled();
        let body = ask(&langfuse, "fields=core,basic,io,metadata,usage,metrics,trace_context&limit=100");
        assert_eq!(body["data"].as_array().unwrap().len(), 11);
        assert_eq!(Schema::of("ObservationsV2Response").faults(&body), Vec::<String>::new());
        let mut inner = langfuse.state.lock().unwrap();
        let body = inner.traces(&Query::parse(Some("fields=core,io".to_owned()))).unwrap();
        assert_eq!(Schema::of("Traces").faults(&body), Vec::<String>::new());
        let root = inner.rows[0].clone();
        assert_eq!(Schema::of("TraceWithFullDetails").faults(&root.legacy(&inner.children_of(&root), true)), Vec::<String>::new());
    }

    #[test]
    fn a_walk_along_the_cursor_sees_each_row_once_newest_first() {
        let langfuse = filled();
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let body = ask(&langfuse, &format!("limit=4{cursor}"));
            ids.extend(body["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()));
            let Some(next) = body["meta"]["cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(ids.len(), 11);
        assert_eq!(ids[0], "o-a-0");
        assert_eq!(ids[10], "o-t0000");
    }
}
