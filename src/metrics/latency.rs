use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, DataType, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision};
use crate::{
    model::Outcome,
    util::{duration::Human, plugin},
};

/// Passes when the trace itself took no longer than this.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Such as `2s`.
    max: Human,
}

inventory::submit! {
    MetricKind {
        name: "latency",
        example: "max: 2s\n",
        schema: plugin::schema::<Latency>,
        parse: |node, faults| plugin::parse::<Latency>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Latency {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        Ok(Arc::new(self.clone()))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("latency", self)
    }
}

#[async_trait]
impl Metric for Latency {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds stay far below 2^52")]
        let max = self.max.millis() as f64;
        let outcome = match cx.latency_ms {
            None => Outcome::NotApplicable { reason: "the source does not know the latency of the trace".to_owned() },
            Some(raw) => {
                let passed = raw <= max;
                Outcome::Scored {
                    value: f64::from(u8::from(passed)),
                    raw: Some(raw),
                    label: None,
                    passed: Some(passed),
                    reason: format!("{raw} ms, at most {max}"),
                }
            }
        };
        outcome.into()
    }

    fn data_type(&self) -> DataType {
        DataType::Boolean
    }
}
