//! The registry of plug-ins: a plug-in's file submits one [`Kind`], and from these records come the loader, the
//! JSON Schema, the reference docs and a test that loads every example.

use serde::de::DeserializeOwned;

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
    pub schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
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
pub fn schema<T: schemars::JsonSchema>(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    T::json_schema(generator)
}

/// Why a block cannot be built; `key` is the key inside the block that is at fault, where there is one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    pub key: Option<&'static str>,
    pub message: String,
}

impl BuildError {
    #[must_use]
    pub fn at(key: &'static str, message: impl Into<String>) -> Self {
        Self { key: Some(key), message: message.into() }
    }
}
