use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision, verdict};
use crate::{
    model::Outcome,
    util::{
        plugin,
        template::{Expr, TemplateError},
        text,
    },
};

/// A figure or a condition of your own: a minijinja expression over input, output, context, expected, metadata, trace
/// and scores.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expression {
    /// Gives a number in [0, 1] or a boolean.
    value: String,
}

inventory::submit! {
    MetricKind {
        name: "expression",
        example: "value: output | length < 2000\n",
        schema: plugin::schema::<Expression>,
        parse: |node, faults| plugin::parse::<Expression>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Expression {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        let expr = Expr::new(&self.value).map_err(|error| BuildError::at("value", format!("no expression: {error}")))?;
        Ok(Arc::new(Compiled(expr)))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("expression", self)
    }

    fn templates(&self) -> Vec<&str> {
        vec![&self.value]
    }
}

struct Compiled(Expr);

#[async_trait]
impl Metric for Compiled {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let outcome = match self.0.eval(cx.view) {
            Err(TemplateError::Missing(reason)) => Outcome::NotApplicable { reason },
            Err(TemplateError::Invalid(reason)) => Outcome::Failed { reason },
            Ok(value) => match (bool::try_from(value.clone()), f64::try_from(value.clone())) {
                (Ok(passed), _) if value.kind() == minijinja::value::ValueKind::Bool => verdict(passed, format!("`{}` is {passed}", self.0.source())),
                (_, Ok(number)) if (0.0..=1.0).contains(&number) => {
                    Outcome::Scored { value: number, raw: None, label: None, passed: None, reason: format!("`{}` is {number}", self.0.source()) }
                }
                _ => Outcome::Failed {
                    reason: format!(
                        "`{}` gave `{}`, which is neither a boolean nor a number in [0, 1]",
                        self.0.source(),
                        text::one_line(&value.to_string(), 60)
                    ),
                },
            },
        };
        outcome.into()
    }
}
