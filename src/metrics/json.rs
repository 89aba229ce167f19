use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use serde_json::Value;

use super::{BuildError, DataType, Field, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision, verdict};
use crate::util::{plugin, text};

/// Passes when the text is JSON, and follows a JSON Schema where one is given.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Json {
    /// input | output | context | expected | metadata.KEY. Default output.
    field: Field,
    /// A JSON Schema, written inline. References to other documents are not followed.
    schema: Option<Value>,
}

impl Default for Json {
    fn default() -> Self {
        Self { field: Field::Output, schema: None }
    }
}

inventory::submit! {
    MetricKind {
        name: "json",
        example: "schema: { type: object, required: [answer] }\n",
        schema: plugin::schema::<Json>,
        parse: |node, faults| plugin::parse::<Json>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Json {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        let schema = self.schema.as_ref().map(jsonschema::validator_for).transpose();
        let schema = schema.map_err(|error| BuildError::at("schema", format!("no JSON Schema: {}", text::one_line(&error.to_string(), 300))))?;
        Ok(Arc::new(Checker { field: self.field.clone(), schema }))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("json", self)
    }
}

struct Checker {
    field: Field,
    schema: Option<jsonschema::Validator>,
}

#[async_trait]
impl Metric for Checker {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let text = match self.field.require(cx.case) {
            Ok(text) => text,
            Err(outcome) => return outcome.into(),
        };
        let outcome = match serde_json::from_str::<Value>(text) {
            Err(error) => verdict(false, format!("no JSON: {error}")),
            Ok(value) => match self.schema.as_ref().map(|schema| schema.validate(&value)) {
                Some(Err(error)) => verdict(false, format!("at `{}`: {}", error.instance_path(), text::one_line(&error.to_string(), 300))),
                Some(Ok(())) => verdict(true, "JSON that follows the schema"),
                None => verdict(true, "JSON"),
            },
        };
        outcome.into()
    }

    fn data_type(&self) -> DataType {
        DataType::Boolean
    }
}
