use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::{Case, Trace, Trigger};

/// Namespace of every id that assayd derives (a UUIDv5 of the URL namespace and `urn:assayd`), fixed for ever:
/// a change would make a published score appear a second time.
const NAMESPACE: Uuid = Uuid::from_u128(0x8d1b_3c5e_6f0a_5b7c_9a3d_41f2_77e0_c6b4);

/// The dedup key (source_key, monitor_key, item_id), hashed to 16 bytes so that a ledger of millions stays small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ItemKey(pub [u8; 16]);

impl ItemKey {
    /// `source_key` = `source.type:source.name`, `monitor_key` = the monitor's name (SPEC 6).
    #[must_use]
    pub fn new(source_key: &str, monitor_key: &str, item_id: &str) -> Self {
        let hash = hash_parts(&[source_key, monitor_key, item_id]);
        let mut key = [0; 16];
        key.copy_from_slice(&hash.as_bytes()[..16]);
        Self(key)
    }
}

/// An item with the content it was judged by, as [`ItemKey`] is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyKey(pub [u8; 16]);

impl BodyKey {
    #[must_use]
    pub fn new(item: ItemKey, content_hash: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&item.0).update(content_hash.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(key)
    }
}

/// What a source gave of an item: two that differ have content that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GivenHash(pub [u8; 16]);

impl GivenHash {
    /// Over all but the time and what a source comes to know later of the same content: latency, cost, steps and, of an
    /// observation, the trace around it.
    #[must_use]
    pub fn new(trace: &Trace) -> Self {
        let around = trace.observation_place().map(|_| "parent");
        let extra: Vec<_> = trace.extra.iter().filter(|(key, _)| Some(key.as_str()) != around).map(|(key, value)| (key, lasting(key, value))).collect();
        let said = (&trace.name, &trace.input, &trace.output, &trace.metadata, &trace.tags, extra);
        let from = (&trace.user_id, &trace.session_id, &trace.environment, &trace.release, &trace.version);
        Self::hash(&(said, from))
    }

    /// Of an item as it came: one that could not be read is known by the reason.
    #[must_use]
    pub fn of(body: &Result<Arc<Trace>, String>) -> Self {
        match body {
            Ok(trace) => Self::new(trace),
            Err(reason) => Self::hash(&("unread", reason)),
        }
    }

    fn hash(content: &impl Serialize) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Plain data into a hasher: it always serialises.
        let _ = serde_json::to_writer(&mut hasher, content);
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(hash)
    }
}

/// A field of a trace without what becomes known later of the traces and observations that it holds: a session's, an
/// observation's own, the right side of a join.
fn lasting<'a>(key: &str, value: &'a Value) -> Cow<'a, Value> {
    match value {
        Value::Array(traces) if key == "traces" => Cow::Owned(traces.iter().map(without_later).collect()),
        Value::Object(_) if matches!(key, "observation" | "right") => Cow::Owned(without_later(value)),
        _ => Cow::Borrowed(value),
    }
}

fn without_later(held: &Value) -> Value {
    let Value::Object(fields) = held else { return held.clone() };
    let later = |key: &str| matches!(key, "latency_ms" | "cost_usd" | "end" | "tokens" | "observations");
    fields.iter().filter(|(key, _)| !later(key)).map(|(key, value)| (key.clone(), lasting(key, value).into_owned())).collect()
}

/// Length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
fn hash_parts(parts: &[&str]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize()
}

fn derived(parts: &[&str]) -> Uuid {
    Uuid::new_v5(&NAMESPACE, hash_parts(parts).as_bytes())
}

/// A run is (monitor, slot); a run by hand may share the millisecond of a slot, hence the trigger.
#[must_use]
pub fn run_id(monitor: &str, slot: Timestamp, trigger: Trigger) -> String {
    derived(&["run", monitor, &slot.to_string(), trigger.identity()]).to_string()
}

/// A score is (monitor, metric, metric_revision, item_id, content_hash): the same judgement has the same id for ever.
#[must_use]
pub fn score_id(monitor: &str, metric: &str, revision: &str, item_id: &str, content_hash: &str) -> String {
    derived(&["score", monitor, metric, revision, item_id, content_hash]).to_string()
}

/// An item's content as a monitor judged it: all scores of the same content share it, over runs and metrics.
#[must_use]
pub fn dataset_id(monitor: &str, item_id: &str, content_hash: &str) -> String {
    derived(&["dataset", monitor, item_id, content_hash]).to_string()
}

/// The trace under which the calls for one item of a run are told, as W3C Trace Context writes it: 32 hex digits.
#[must_use]
pub fn trace_id(run_id: &str, item_id: &str) -> String {
    hash_parts(&["trace", run_id, item_id]).to_hex()[..32].to_owned()
}

/// 32 hex digits over what is judged.
#[must_use]
pub fn content_hash(case: &Case) -> String {
    let mut parts = vec![case.input.as_str(), &case.output, &case.context, &case.expected];
    for (key, value) in &case.metadata {
        parts.extend([key.as_str(), value]);
    }
    let details: Vec<String> = case.details.iter().map(|(key, value)| format!("{key}\0{value}")).collect();
    parts.extend(details.iter().map(String::as_str));
    hash_parts(&parts).to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn trace(fields: Value) -> Trace {
        let mut whole = json!({ "id": "t", "timestamp": "2026-01-01T00:00:00Z" });
        whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    proptest! {
        #[test]
        fn what_a_source_gave_is_known_by_its_content(
            said in proptest::collection::vec("[ab]{0,2}", 5), others in proptest::collection::vec("[ab]{0,2}", 5), latency in 0.0..1e6_f64,
        ) {
            let of = |said: &[String]| trace(json!({ "input": said[0], "output": said[1], "metadata": said[2], "name": said[3], "row": said[4] }));
            prop_assert_eq!(GivenHash::new(&of(&said)) == GivenHash::new(&of(&others)), said == others);
            let later = Trace { latency_ms: Some(latency), cost_usd: Some(latency), timestamp: Timestamp::UNIX_EPOCH, ..of(&said) };
            prop_assert_eq!(GivenHash::new(&of(&said)), GivenHash::new(&later));
        }
    }

    #[test]
    fn what_becomes_known_later_of_what_a_trace_holds_is_none_of_its_content() {
        let observation =
            |said: &str, cost: f64| json!({ "id": "o", "output": said, "end": format!("2026-01-01T00:00:0{cost}Z"), "tokens": cost, "cost_usd": cost });
        let held =
            |said: &str, cost: f64| json!({ "id": "a", "output": said, "latency_ms": cost, "cost_usd": cost, "observations": [observation(said, cost)] });
        let session = |said: &str, cost: f64| trace(json!({ "traces": [held("one", cost), held(said, cost)] }));
        let one = |said: &str, cost: f64| trace(json!({ "observation": observation(said, cost) }));
        let joined = |said: &str, cost: f64| {
            let mut right = held("row", cost);
            right["right"] = held(said, cost);
            trace(json!({ "right": right, "rights": 1 }))
        };
        for of in [&session as &dyn Fn(&str, f64) -> Trace, &one, &joined] {
            assert_eq!(GivenHash::new(&of("one", 1.0)), GivenHash::new(&of("one", 2.0)));
            assert_ne!(GivenHash::new(&of("one", 1.0)), GivenHash::new(&of("two", 1.0)));
        }
    }

    #[test]
    fn what_could_not_be_read_is_known_by_the_reason() {
        let unread = |reason: &str| GivenHash::of(&Err(reason.to_owned()));
        assert_eq!(unread("no output"), unread("no output"));
        assert_ne!(unread("no output"), unread("no input"));
        assert_ne!(unread("no output"), GivenHash::of(&Ok(Arc::new(trace(json!({}))))));
    }

    #[test]
    fn the_trace_around_an_observation_is_none_of_its_content() {
        let of = |id: &str, around: &str| trace(json!({ "id": id, "observation": { "id": "o" }, "parent": { "id": "t", "output": around } }));
        assert_eq!(GivenHash::new(&of("t/o", "one")), GivenHash::new(&of("t/o", "two")));
        // Fields of a source's own.
        assert_ne!(GivenHash::new(&of("line-7", "one")), GivenHash::new(&of("line-7", "two")));
        assert_eq!((of("line-7", "").observation_place(), of("line-7", "").scored_trace()), (None, "line-7"));
    }
}
