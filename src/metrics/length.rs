use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, DataType, Field, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision, verdict};
use crate::util::plugin;

/// Passes when the text is neither too short nor too long.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Length {
    /// input | output | context | expected | metadata.KEY. Default output.
    field: Field,
    /// At least this many.
    min: Option<usize>,
    /// At most this many.
    max: Option<usize>,
    /// chars | words. Default chars.
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Unit {
    Chars,
    Words,
}

impl Default for Length {
    fn default() -> Self {
        Self { field: Field::Output, min: None, max: None, unit: Unit::Chars }
    }
}

inventory::submit! {
    MetricKind {
        name: "length",
        example: "field: output\nmax: 300\nunit: words\n",
        schema: plugin::schema::<Length>,
        parse: |node, faults| plugin::parse::<Length>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Length {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        match (self.min, self.max) {
            (None, None) => Err(BuildError::at("max", "one of `min` and `max` is needed")),
            (Some(min), Some(max)) if min > max => Err(BuildError::at("min", "`min` is larger than `max`")),
            _ => Ok(Arc::new(self.clone())),
        }
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("length", self)
    }
}

#[async_trait]
impl Metric for Length {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let text = match self.field.require(cx.case) {
            Ok(text) => text,
            Err(outcome) => return outcome.into(),
        };
        let (n, unit) = match self.unit {
            Unit::Chars => (text.chars().count(), "characters"),
            Unit::Words => (text.split_whitespace().count(), "words"),
        };
        let outcome = match (self.min, self.max) {
            (Some(min), _) if n < min => verdict(false, format!("{n} {unit}, at least {min}")),
            (_, Some(max)) if n > max => verdict(false, format!("{n} {unit}, at most {max}")),
            _ => verdict(true, format!("{n} {unit}")),
        };
        outcome.into()
    }

    fn data_type(&self) -> DataType {
        DataType::Boolean
    }
}
