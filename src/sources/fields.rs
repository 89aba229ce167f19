//! A map of fields as a trace: for sources whose items are the user's own records.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::model::Trace;

/// Missing in a trace of any other source where nothing is known; here commonly a column without a value.
const OWN: [&str; 7] = ["name", "tags", "user_id", "session_id", "environment", "latency_ms", "cost_usd"];
/// Names that the trace's own fields bear, or that a template finds something else under.
const TAKEN: [&str; 7] = ["id", "timestamp", "observations", "release", "version", "url", "steps"];

/// Fields with a name of the trace's own (`input`, `output`, `metadata`, `tags`, `name`, `user_id`, `session_id`,
/// `environment`, `latency_ms`, `cost_usd`) become those, or are missing where they are null. Every other one is reachable
/// as `trace.FIELD`, and as `trace.FIELD_` where the name is the trace's own and the form does not fit: shown under its own
/// name it would make a record that does not read back.
pub(super) fn trace(id: String, timestamp: Timestamp, mut map: Map<String, Value>) -> Trace {
    for key in OWN {
        if map.get(key).is_some_and(Value::is_null) {
            map.remove(key);
        }
    }
    let mut text = |key: &str| match map.remove(key)? {
        Value::String(text) => Some(text),
        // Keys of users and sessions are often numbers.
        Value::Number(number) => Some(number.to_string()),
        other => {
            map.insert(key.to_owned(), other);
            None
        }
    };
    let [name, user_id, session_id, environment] = ["name", "user_id", "session_id", "environment"].map(&mut text);
    let tags = map.get("tags").and_then(|tags| serde_json::from_value(tags.clone()).ok());
    if tags.is_some() {
        map.remove("tags");
    }
    let mut number = |key: &str| {
        let number = map.get(key)?.as_f64()?;
        map.remove(key);
        Some(number)
    };
    let [latency_ms, cost_usd] = ["latency_ms", "cost_usd"].map(&mut number);
    let mut value = |key: &str| map.remove(key).unwrap_or(Value::Null);
    let [input, output, metadata] = ["input", "output", "metadata"].map(&mut value);
    for field in OWN.into_iter().chain(TAKEN) {
        if let Some(value) = map.remove(field) {
            let mut name = format!("{field}_");
            while map.contains_key(&name) {
                name.push('_');
            }
            map.insert(name, value);
        }
    }
    Trace {
        id,
        timestamp,
        name,
        input,
        output,
        metadata,
        tags: tags.unwrap_or_default(),
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
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// JSON of any shape, a few levels deep.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1000..1000_i32).prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
            "\\PC{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-z_]{1,6}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_record_is_a_trace_that_reads_back_and_loses_no_field(
            own in proptest::collection::btree_map(proptest::sample::select([&OWN[..], &TAKEN, &["input", "metadata", "cost_usd_", "id_"]].concat()), any_json(), 0..16),
            others in proptest::collection::btree_map("[a-z]{1,6}_?", any_json(), 0..4),
        ) {
            let map: Map<String, Value> = own.into_iter().map(|(key, value)| (key.to_owned(), value)).chain(others).collect();
            let trace = trace("a".to_owned(), Timestamp::UNIX_EPOCH, map.clone());
            let written = serde_json::to_string(&trace).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Trace>(&written).unwrap(), &trace, "{}", written);
            let shown = serde_json::to_value(&trace).unwrap();
            let (given, shown) = (map.iter().filter(|(_, value)| !value.is_null()), shown.as_object().unwrap());
            for (key, value) in given {
                let under = [key.clone(), format!("{key}_"), format!("{key}__")].iter().any(|key| shown.get(key) == Some(value));
                // Keys of users are text, a figure is a double, no tags are none.
                let meant = OWN.contains(&key.as_str()) && (value.is_number() && shown.contains_key(key) || value.as_array().is_some_and(Vec::is_empty));
                prop_assert!(under || meant, "{} of {:?}", key, shown);
            }
        }
    }

    #[test]
    fn a_field_of_another_form_than_the_traces_own_has_another_name() {
        let Value::Object(map) = json!({ "cost_usd": "0.01", "tags": "a,b", "name": { "first": "Jo" }, "latency_ms": [1], "url": "u", "cost_usd_": 7 }) else {
            unreachable!()
        };
        let expected = json!({
            "id": "a", "timestamp": "1970-01-01T00:00:00Z", "input": null, "output": null,
            "cost_usd_": 7, "cost_usd__": "0.01", "tags_": "a,b", "name_": { "first": "Jo" }, "latency_ms_": [1], "url_": "u",
        });
        assert_eq!(json!(trace("a".to_owned(), Timestamp::UNIX_EPOCH, map)), expected);
    }

    #[test]
    fn a_field_without_a_value_is_one_that_is_not_there() {
        let given = json!({ "input": "q", "output": null, "name": null, "tags": null, "user_id": 7, "session_id": null, "environment": null, "latency_ms": null, "cost_usd": null, "note": null });
        let Value::Object(map) = given else { unreachable!() };
        let trace = trace("a".to_owned(), Timestamp::UNIX_EPOCH, map);
        let expected = json!({ "id": "a", "timestamp": "1970-01-01T00:00:00Z", "input": "q", "output": null, "user_id": "7", "note": null });
        assert_eq!(json!(trace), expected);
    }
}
