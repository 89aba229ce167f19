use std::sync::LazyLock;

use serde_json::{Value, json};

static SCHEMAS: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(include_str!("../../fixtures/langfuse/schemas.json")).unwrap());

/// One schema of Langfuse's OpenAPI document.
pub struct Schema(&'static str, jsonschema::Validator);

impl Schema {
    pub fn of(name: &'static str) -> Self {
        let mut root = json!({ "$ref": format!("#/$defs/{name}") });
        root["$defs"] = SCHEMAS["$defs"].clone();
        assert!(root["$defs"][name].is_object(), "no schema {name}");
        Self(name, jsonschema::validator_for(&root).unwrap())
    }

    /// What is wrong with a value, in words.
    pub fn faults(&self, value: &Value) -> Vec<String> {
        self.1.iter_errors(value).map(|error| format!("{} at {}: {error}", self.0, error.instance_path())).collect()
    }
}
