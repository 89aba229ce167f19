//! JSON Schemas for editors, from the structs that the loader reads.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use super::{
    monitor::{self, MetricCommon, SourceCommon},
    settings,
};
use crate::{metrics::MetricKind, providers::ProviderKind, sinks::SinkKind, sources::SourceKind, util::plugin::Kind};

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

/// One alternative a kind: `type`, the keys all kinds share, the kind's own.
fn blocks<C: ?Sized>(generator: &mut SchemaGenerator, common: &Schema, mut kinds: Vec<&'static Kind<C>>) -> Schema {
    kinds.sort_by_key(|kind| kind.name);
    let part = |schema: &Schema, key: &str| schema.as_value().get(key).cloned();
    let alternatives: Vec<Value> = kinds
        .into_iter()
        .map(|kind| {
            let own = (kind.schema)(generator);
            let mut properties: Map<String, Value> = Map::from_iter([("type".to_owned(), serde_json::json!({ "const": kind.name }))]);
            let mut required = vec![Value::from("type")];
            for schema in [common, &own] {
                if let Some(Value::Object(more)) = part(schema, "properties") {
                    properties.extend(more);
                }
                if let Some(Value::Array(more)) = part(schema, "required") {
                    required.extend(more);
                }
            }
            let description = part(&own, "description").unwrap_or_default();
            serde_json::json!({ "type": "object", "description": description, "properties": properties, "required": required, "additionalProperties": false })
        })
        .collect();
    json_schema!({ "oneOf": alternatives })
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
