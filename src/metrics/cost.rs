use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, DataType, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision};
use crate::{model::Outcome, util::plugin};

/// Passes when the trace itself cost no more than this.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// USD.
    max: f64,
}

inventory::submit! {
    MetricKind {
        name: "cost",
        example: "max: 0.02\n",
        schema: plugin::schema::<Cost>,
        parse: |node, faults| plugin::parse::<Cost>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Cost {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        if !(self.max.is_finite() && self.max >= 0.0) {
            return Err(BuildError::at("max", "an amount of USD, 0 or more"));
        }
        Ok(Arc::new(self.clone()))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("cost", self)
    }
}

#[async_trait]
impl Metric for Cost {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let max = self.max;
        let outcome = match cx.cost_usd {
            None => Outcome::NotApplicable { reason: "the source does not know the cost of the trace".to_owned() },
            Some(raw) => {
                let passed = raw <= max;
                Outcome::Scored {
                    value: f64::from(u8::from(passed)),
                    raw: Some(raw),
                    label: None,
                    passed: Some(passed),
                    reason: format!("{raw} USD, at most {max}"),
                }
            }
        };
        outcome.into()
    }

    fn data_type(&self) -> DataType {
        DataType::Boolean
    }
}
