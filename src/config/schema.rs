//! JSON Schemas for editors, from the structs that the loader reads.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::{
    monitor::{self, MetricCommon, SourceCommon},
    settings,
};
use crate::{metrics::MetricKind, providers::ProviderKind, sinks::SinkKind, sources::SourceKind, util::plugin::blocks};

/// `assayd schema monitor`
#[must_use]
pub fn monitor_schema() -> Value {
    SchemaGenerator::default().into_root_schema_for::<monitor::File>().to_value()
}

/// `assayd schema config`
#[must_use]
pub fn config_schema() -> Value {
    SchemaGenerator::default().into_root_schema_for::<settings::File>().to_value()
}

pub(super) fn source(generator: &mut SchemaGenerator) -> Schema {
    let common = SourceCommon::json_schema(generator);
    blocks(generator, &common, inventory::iter::<SourceKind>().collect())
}

pub(super) fn metrics(generator: &mut SchemaGenerator) -> Schema {
    let common = MetricCommon::json_schema(generator);
    let items = blocks(generator, &common, inventory::iter::<MetricKind>().collect());
    json_schema!({ "type": "array", "minItems": 1, "items": items })
}

pub(super) fn publish(generator: &mut SchemaGenerator) -> Schema {
    let items = blocks(generator, &json_schema!({}), inventory::iter::<SinkKind>().collect());
    json_schema!({ "type": ["array", "null"], "items": items })
}

pub(super) fn providers(generator: &mut SchemaGenerator) -> Schema {
    let limits = generator.subschema_for::<crate::providers::Limits>();
    let values = blocks(generator, &json_schema!({ "limits": limits }), inventory::iter::<ProviderKind>().collect());
    json_schema!({ "type": ["object", "null"], "additionalProperties": values })
}

pub(super) fn over(generator: &mut SchemaGenerator) -> Schema {
    let duration = generator.subschema_for::<crate::util::duration::Human>();
    json_schema!({ "anyOf": [duration, { "type": "object", "properties": { "runs": { "type": "integer", "minimum": 1 } }, "required": ["runs"], "additionalProperties": false }] })
}

pub(super) fn hold(generator: &mut SchemaGenerator) -> Schema {
    let duration = generator.subschema_for::<crate::util::duration::Human>();
    json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, duration] })
}

pub(super) fn by(generator: &mut SchemaGenerator) -> Schema {
    let map = generator.subschema_for::<monitor::ByFile>();
    json_schema!({ "anyOf": [{ "type": "string" }, map, { "type": "null" }] })
}
