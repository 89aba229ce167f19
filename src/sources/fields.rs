//! A map of fields as a trace: for sources whose items are the user's own records.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::model::Trace;

/// Missing in a trace of any other source where nothing is known; here commonly a column without a value.
const OWN: [&str; 7] = ["name", "tags", "user_id", "session_id", "environment", "latency_ms", "cost_usd"];

/// Fields with a name of the trace's own (`input`, `output`, `metadata`, `tags`, `name`, `user_id`, `session_id`,
/// `environment`, `latency_ms`, `cost_usd`) become those, or are missing where they are null; one whose form does not fit,
/// and every other one, is reachable as `trace.FIELD`.
pub(super) fn trace(id: String, timestamp: Timestamp, mut map: Map<String, Value>) -> Trace {
    for key in OWN {
        if map.get(key).is_some_and(Value::is_null) {
            map.remove(key);
        }
    }
    let mut take = |key: &str| match map.remove(key)? {
        Value::String(text) => Some(text),
        // Keys of users and sessions are often numbers.
        Value::Number(number) => Some(number.to_string()),
        other => {
            map.insert(key.to_owned(), other);
            None
        }
    };
    let [name, user_id, session_id, environment] = ["name", "user_id", "session_id", "environment"].map(&mut take);
    let tags = match map.get("tags").map(|tags| serde_json::from_value(tags.clone())) {
        Some(Ok(tags)) => {
            map.remove("tags");
            tags
        }
        _ => Vec::new(),
    };
    let mut number = |key: &str| match map.get(key).and_then(Value::as_f64) {
        Some(number) => {
            map.remove(key);
            Some(number)
        }
        None => None,
    };
    let [latency_ms, cost_usd] = ["latency_ms", "cost_usd"].map(&mut number);
    let mut value = |key: &str| map.remove(key).unwrap_or(Value::Null);
    let [input, output, metadata] = ["input", "output", "metadata"].map(&mut value);
    for field in ["id", "timestamp", "observations", "release", "version", "url", "steps"] {
        // Names that the trace's own fields bear: shown as they are would make a record that does not read back.
        if let Some(value) = map.remove(field) {
            map.insert(format!("{field}_"), value);
        }
    }
    Trace {
        id,
        timestamp,
        name,
        input,
        output,
        metadata,
        tags,
        user_id,
        session_id,
        environment,
        release: None,
        version: None,
        latency_ms,
        cost_usd,
        url: None,
        observations: Vec::new(),
        extra: map,
    }
}

/// RFC 3339, or a number of seconds or milliseconds since the epoch.
pub(super) fn time(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => {
            let number = number.as_f64()?;
            // Seconds reach this in the year 5138, milliseconds reached it in 1973.
            let secs = if number.abs() < 1e11 { number } else { number / 1000.0 };
            Timestamp::from_duration(jiff::SignedDuration::try_from_secs_f64(secs).ok()?).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_without_a_value_is_one_that_is_not_there() {
        let given = json!({ "input": "q", "output": null, "name": null, "tags": null, "user_id": 7, "session_id": null, "environment": null, "latency_ms": null, "cost_usd": null, "note": null });
        let Value::Object(map) = given else { unreachable!() };
        let trace = trace("a".to_owned(), Timestamp::UNIX_EPOCH, map);
        let expected = json!({ "id": "a", "timestamp": "1970-01-01T00:00:00Z", "input": "q", "output": null, "user_id": "7", "note": null });
        assert_eq!(json!(trace), expected);
    }
}
