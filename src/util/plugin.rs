//! The registry of plug-ins: a plug-in's file submits one [`Kind`], and from these records come the loader, the
//! JSON Schema, the reference docs and a test that loads every example.

use serde::de::DeserializeOwned;

use super::yaml::{self, Fault, Node};

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
