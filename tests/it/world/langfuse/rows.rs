use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::Langfuse;

/// An observation as the server keeps it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub id: String,
    pub trace_id: String,
    pub start: Timestamp,
    pub parent: Option<String>,
    pub kind: String,
    pub name: String,
    pub input: Value,
    pub output: Value,
    pub trace: Context,
}

/// What every observation of a trace shares.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub name: String,
    pub tags: Vec<String>,
    pub metadata: Value,
    pub user: Option<String>,
    pub session: Option<String>,
    pub environment: String,
}

/// A trace to put in. Its input carries `[[item:ID]]`, so that the judge can count its calls by item.
#[derive(Debug, Clone)]
pub struct NewTrace {
    pub id: String,
    pub at: Timestamp,
    pub input: Value,
    pub output: Value,
    pub name: String,
    pub tags: Vec<String>,
    pub metadata: Value,
    pub user: Option<String>,
    pub session: Option<String>,
    pub environment: String,
    pub children: Vec<Child>,
}

#[derive(Debug, Clone)]
pub struct Child {
    pub name: String,
    pub kind: &'static str,
    pub input: Value,
    pub output: Value,
}

impl NewTrace {
    pub fn new(id: impl Into<String>, at: Timestamp) -> Self {
        let id = id.into();
        Self {
            input: json!(format!("[[item:{id}]] How do I reset my password?")),
            output: json!(format!("Click 'forgot password'. [[item:{id}]]")),
            id,
            at,
            name: "answer".to_owned(),
            tags: Vec::new(),
            metadata: json!({}),
            user: None,
            session: None,
            environment: "production".to_owned(),
            children: Vec::new(),
        }
    }
}

impl Langfuse {
    pub fn add(&self, trace: NewTrace) {
        let context = Context {
            name: trace.name.clone(),
            tags: trace.tags,
            metadata: trace.metadata,
            user: trace.user,
            session: trace.session,
            environment: trace.environment,
        };
        // The API tells times to the millisecond.
        let start = Timestamp::from_millisecond(trace.at.as_millisecond()).unwrap();
        let root = Row {
            id: format!("o-{}", trace.id),
            trace_id: trace.id.clone(),
            start,
            parent: None,
            kind: "SPAN".to_owned(),
            name: trace.name,
            input: trace.input,
            output: trace.output,
            trace: context.clone(),
        };
        let children = trace.children.into_iter().enumerate().map(|(i, child)| Row {
            id: format!("o-{}-{i}", trace.id),
            start: start + SignedDuration::from_millis(10 * (i as i64 + 1)),
            parent: Some(root.id.clone()),
            kind: child.kind.to_owned(),
            name: child.name,
            input: child.input,
            output: child.output,
            ..root.clone()
        });
        let rows: Vec<Row> = std::iter::once(root.clone()).chain(children).collect();
        self.state.lock().unwrap().rows.extend(rows);
    }

    /// `n` traces PREFIX0000 ..., evenly spread over `spread`, the first one `ago` before now.
    pub fn add_many(&self, prefix: &str, n: usize, ago: SignedDuration, spread: SignedDuration) {
        let first = Timestamp::now() - ago;
        for i in 0..n {
            let at = first + SignedDuration::from_millis((spread.as_millis() as i64 * i as i64) / n as i64);
            self.add(NewTrace::new(format!("{prefix}{i:04}"), at));
        }
    }

    /// `n` traces t0000 ... within the half hour that began an hour ago.
    pub fn add_some(&self, n: usize) {
        self.add_many("t", n, SignedDuration::from_mins(60), SignedDuration::from_mins(30));
    }
}

pub(super) fn millis(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

impl Row {
    pub fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    /// As `/v2/observations` tells it, with the groups asked for; values of metadata are cut unless their keys are named.
    pub fn v2(&self, groups: &[&str], whole: &[&str]) -> Value {
        // `input` and `output` are strings there, whatever was sent in.
        let io = |value: &Value| match value {
            Value::Null | Value::String(_) => value.clone(),
            other => json!(other.to_string()),
        };
        let mut row = json!({
            "id": self.id, "traceId": self.trace_id, "startTime": millis(self.start), "endTime": millis(self.start + SignedDuration::from_millis(500)),
            "projectId": "p1", "parentObservationId": self.parent, "type": self.kind, "modelId": null, "inputPrice": null, "outputPrice": null, "totalPrice": null,
        });
        let groups_of = [
            (
                "basic",
                json!({ "name": self.name, "level": "DEFAULT", "statusMessage": null, "version": null, "environment": self.trace.environment, "bookmarked": false,
                "public": false, "userId": self.trace.user, "sessionId": self.trace.session, "isRootObservation": self.is_root() }),
            ),
            ("io", json!({ "input": io(&self.input), "output": io(&self.output) })),
            ("metadata", json!({ "metadata": cut(&self.trace.metadata, whole) })),
            ("usage", json!({ "usageDetails": { "input": 10, "output": 5, "total": 15 }, "costDetails": { "total": 0.001 }, "totalCost": 0.001 })),
            ("metrics", json!({ "latency": 0.5, "timeToFirstToken": null })),
            ("trace_context", json!({ "tags": self.trace.tags, "release": null, "traceName": self.trace.name })),
        ];
        for (group, fields) in groups_of {
            if groups.contains(&group) {
                extend(&mut row, fields);
            }
        }
        row
    }

    /// The trace of this root, as the legacy paths tell it: with whole children, or with their ids.
    pub fn legacy(&self, children: &[&Row], whole: bool) -> Value {
        let at = millis(self.start);
        let mut trace = json!({
            "id": self.trace_id, "timestamp": at, "name": self.trace.name, "input": parsed(&self.input), "output": parsed(&self.output), "sessionId": self.trace.session, "release": null,
            "version": null, "userId": self.trace.user, "metadata": self.trace.metadata, "tags": self.trace.tags, "public": false, "bookmarked": false,
            "environment": self.trace.environment, "projectId": "p1", "externalId": null, "createdAt": at, "updatedAt": at,
            "htmlPath": format!("/project/p1/traces/{}", self.trace_id), "latency": 0.5, "totalCost": 0.001, "scores": [],
        });
        trace["observations"] = children.iter().map(|child| if whole { child.legacy_observation() } else { json!(child.id) }).collect();
        trace
    }

    fn legacy_observation(&self) -> Value {
        let at = millis(self.start);
        json!({
            "id": self.id, "traceId": self.trace_id, "type": self.kind, "name": self.name, "startTime": at, "endTime": at, "completionStartTime": null, "model": null,
            "modelParameters": null, "input": self.input, "output": self.output, "version": null, "metadata": self.trace.metadata,
            "usage": { "input": 10, "output": 5, "total": 15, "unit": "TOKENS" }, "level": "DEFAULT", "statusMessage": null, "parentObservationId": self.parent,
            "promptId": null, "promptName": null, "promptVersion": null, "modelId": null, "inputPrice": null, "outputPrice": null, "totalPrice": null,
            "calculatedInputCost": null, "calculatedOutputCost": null, "calculatedTotalCost": null, "latency": 0.5, "timeToFirstToken": null,
            "usageDetails": { "input": 10, "output": 5, "total": 15 }, "costDetails": {}, "environment": self.trace.environment,
        })
    }

    /// The value of a column that filters name.
    pub fn column(&self, name: &str) -> Value {
        match name {
            "id" => json!(self.id),
            "type" => json!(self.kind),
            "name" => json!(self.name),
            "traceId" => json!(self.trace_id),
            "startTime" | "timestamp" => json!(millis(self.start)),
            "environment" => json!(self.trace.environment),
            "userId" => json!(self.trace.user),
            "sessionId" => json!(self.trace.session),
            "traceName" => json!(self.trace.name),
            "tags" | "traceTags" => json!(self.trace.tags),
            "isRootObservation" => json!(self.is_root()),
            "parentObservationId" => json!(self.parent),
            _ => Value::Null,
        }
    }
}

/// The legacy paths take text that is JSON for what it says.
fn parsed(value: &Value) -> Value {
    value.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_else(|| value.clone())
}

fn cut(metadata: &Value, whole: &[&str]) -> Value {
    const MOST: usize = 200;
    let Some(map) = metadata.as_object() else { return metadata.clone() };
    let cut = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if text.chars().count() > MOST { json!(text.chars().take(MOST).collect::<String>()) } else { value.clone() }
    };
    map.iter().map(|(key, value)| (key.clone(), if whole.contains(&key.as_str()) { value.clone() } else { cut(value) })).collect()
}

fn extend(row: &mut Value, fields: Value) {
    let (Value::Object(row), Value::Object(fields)) = (row, fields) else { return };
    let fields: Map<String, Value> = fields;
    row.extend(fields);
}
