use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, DataType, Field, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, no_expected, revision, verdict};
use crate::util::plugin;

/// Passes when the text is the expected one; space around both does not count.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Equals {
    /// input | output | context | metadata.KEY. Default output.
    field: Field,
    /// Default false.
    ignore_case: bool,
}

inventory::submit! {
    MetricKind {
        name: "equals",
        example: "ignore_case: true\n",
        schema: plugin::schema::<Equals>,
        parse: |node, faults| plugin::parse::<Equals>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Equals {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        Ok(Arc::new(self.clone()))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("equals", self)
    }
}

#[async_trait]
impl Metric for Equals {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        if cx.case.expected.is_empty() {
            return no_expected().into();
        }
        let text = match self.field.require(cx.case) {
            Ok(text) => text.trim(),
            Err(outcome) => return outcome.into(),
        };
        let expected = cx.case.expected.trim();
        let same = if self.ignore_case { text.to_lowercase() == expected.to_lowercase() } else { text == expected };
        verdict(same, if same { "as expected" } else { "not as expected" }).into()
    }

    fn data_type(&self) -> DataType {
        DataType::Boolean
    }
}
