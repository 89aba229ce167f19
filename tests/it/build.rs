//! Monitors as tests need them, to be changed by [`with`].

use serde_json::{Value, json};

use crate::site::Site;

/// A judge that rates helpfulness from 1 to 5.
pub fn judge() -> Value {
    json!({
        "name": "helpful", "type": "judge", "model": "judge", "output": { "kind": "score", "min": 1, "max": 5 }, "threshold": 0.5,
        "prompt": "Rate how helpful the answer is.\nQuestion: {{ input }}\nAnswer: {{ output }}",
    })
}

/// Free: true of every trace that the fake Langfuse is given.
pub fn short() -> Value {
    json!({ "name": "short", "type": "length", "field": "output", "max": 2000 })
}

/// Judges every trace of Langfuse, and publishes there.
pub fn langfuse() -> Value {
    json!({
        "schedule": { "every": "1h" },
        "source": { "type": "langfuse", "name": "bot", "settle": "1m", "lookback": "24h" },
        "sampling": { "strategy": "all" },
        "metrics": [judge()],
        "publish": [{ "type": "langfuse", "scores": true }],
    })
}

/// The same every second, and nothing is too young.
pub fn quick() -> Value {
    with(langfuse(), json!({ "schedule": { "every": "1s" }, "source": { "settle": "0s" } }))
}

/// The demo: real answers from a file, heuristics only.
pub fn demo(site: &Site) -> Value {
    site.write("answers.jsonl", include_str!("../fixtures/answers.jsonl"));
    json!({
        "schedule": { "interval_minutes": 60 },
        "source": { "type": "file", "path": "answers.jsonl", "name": "halueval", "limit": 10000, "lookback": "3650d", "settle": "0s" },
        "sampling": { "strategy": "random", "n": 100, "seed": 42 },
        "metrics": [
            { "name": "refusal", "type": "regex", "field": "output", "pattern": "(?i)\\b(i can't|i cannot|i am unable|as an ai)\\b", "invert": true },
            short(),
        ],
    })
}

/// Maps merge key by key, everything else is replaced.
pub fn with(mut base: Value, changes: Value) -> Value {
    merge(&mut base, changes);
    base
}

fn merge(base: &mut Value, changes: Value) {
    match (base, changes) {
        (Value::Object(base), Value::Object(changes)) => {
            for (key, value) in changes {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, changes) => *base = changes,
    }
}
