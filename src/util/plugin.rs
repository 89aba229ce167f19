//! The registry of plug-ins: a plug-in's file submits one [`Kind`], and from these records come the loader, the
//! JSON Schema, the reference docs and a test that loads every example.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::{
    text,
    yaml::{self, Fault, Node, Value},
};

/// One kind of source, metric, provider or sink. `C` is the family's config trait.
pub struct Kind<C: ?Sized + 'static> {
    /// The word after `type:`.
    pub name: &'static str,
    /// A block that a user can paste, without `type` and without the family's common keys.
    pub example: &'static str,
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Reads the block (without `type` and the family's common keys). `None` after at least one fault was pushed.
    pub parse: fn(&Node, &mut Vec<Fault>) -> Option<Box<C>>,
}

/// The `parse` of a config struct that needs nothing special.
#[must_use]
pub fn parse<T: DeserializeOwned>(node: &Node, faults: &mut Vec<Fault>) -> Option<T> {
    yaml::read(node, faults)
}

/// Reads a block with a `type`: the kind's name and its settings, without `type` and the `common` keys.
pub fn read_block<C: ?Sized>(
    node: &Node,
    common: &[&str],
    kinds: Vec<&'static Kind<C>>,
    family: &str,
    faults: &mut Vec<Fault>,
) -> Option<(&'static str, Box<C>)> {
    let Some(map) = node.as_map() else {
        faults.push(Fault::new(&node.at, format!("a {family} is a mapping with a `type`, found {}", node.describe())));
        return None;
    };
    let known = || {
        let mut names: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
        names.sort_unstable();
        names
    };
    let Some((.., chosen)) = map.iter().find(|(key, ..)| key == "type") else {
        faults.push(Fault::new(&node.at, format!("`type` is missing; known are {}", known().join(", "))));
        return None;
    };
    let Value::String(name) = &chosen.value else {
        faults.push(Fault::new(&chosen.at, format!("`type` is a word, found {}", chosen.describe())));
        return None;
    };
    let Some(kind) = kinds.iter().find(|kind| kind.name == name) else {
        let (word, names) = (text::word(name), known());
        let hint = word.and_then(|word| text::nearest(word, names.iter().copied())).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
        let word = word.map(|word| format!(" `{word}`")).unwrap_or_default();
        faults.push(Fault::new(&chosen.at, format!("unknown {family} type{word}: {hint}known are {}", names.join(", "))));
        return None;
    };
    let own = map.iter().filter(|(key, ..)| key != "type" && !common.contains(&key.as_str())).cloned().collect();
    let own = Node::new(node.at.clone(), Value::Map(own));
    Some((kind.name, (kind.parse)(&own, faults)?))
}

/// Schema of `T`, with its definitions in the generator's.
#[must_use]
pub fn schema<T: schemars::JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

/// One alternative a kind: `type`, the keys all kinds share (`common`), the kind's own.
pub fn blocks<C: ?Sized>(generator: &mut SchemaGenerator, common: &Schema, mut kinds: Vec<&'static Kind<C>>) -> Schema {
    kinds.sort_by_key(|kind| kind.name);
    let part = |schema: &Schema, key: &str| schema.as_value().get(key).cloned();
    let alternatives: Vec<Json> = kinds
        .into_iter()
        .map(|kind| {
            let own = (kind.schema)(generator);
            let mut properties: serde_json::Map<String, Json> = serde_json::Map::from_iter([("type".to_owned(), serde_json::json!({ "const": kind.name }))]);
            let mut required = vec![Json::from("type")];
            for schema in [common, &own] {
                if let Some(Json::Object(more)) = part(schema, "properties") {
                    properties.extend(more);
                }
                if let Some(Json::Array(more)) = part(schema, "required") {
                    required.extend(more);
                }
            }
            let description = part(&own, "description").unwrap_or_default();
            serde_json::json!({ "type": "object", "description": description, "properties": properties, "required": required, "additionalProperties": false })
        })
        .collect();
    json_schema!({ "oneOf": alternatives })
}

/// Why a block cannot be built; `key` is the key inside the block that is at fault, where there is one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    pub key: Option<&'static str>,
    /// Where a block holds others: the keys that lead to the one at fault, from outside in.
    pub within: Vec<&'static str>,
    pub message: String,
}

impl BuildError {
    #[must_use]
    pub fn at(key: &'static str, message: impl Into<String>) -> Self {
        Self { key: Some(key), within: Vec::new(), message: message.into() }
    }

    /// The same, of the block that stands at `key` of the block being built.
    #[must_use]
    pub fn within(mut self, key: &'static str) -> Self {
        self.within.insert(0, key);
        self
    }
}
