use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, DataType, Field, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision, verdict};
use crate::util::{plugin, text};

/// Passes when the text holds some words and lacks others.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Contains {
    /// input | output | context | expected | metadata.KEY. Default output.
    field: Field,
    /// At least one of these.
    any: Vec<String>,
    /// All of these.
    all: Vec<String>,
    /// None of these.
    none: Vec<String>,
    /// Default false.
    ignore_case: bool,
}

impl Default for Contains {
    fn default() -> Self {
        Self { field: Field::Output, any: Vec::new(), all: Vec::new(), none: Vec::new(), ignore_case: false }
    }
}

inventory::submit! {
    MetricKind {
        name: "contains",
        example: "any: [sorry, unable]\nignore_case: true\n",
        schema: plugin::schema::<Contains>,
        parse: |node, faults| plugin::parse::<Contains>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Contains {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        if self.any.is_empty() && self.all.is_empty() && self.none.is_empty() {
            return Err(BuildError::at("any", "one of `any`, `all` and `none` is needed"));
        }
        Ok(Arc::new(self.clone()))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("contains", self)
    }
}

#[async_trait]
impl Metric for Contains {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let folded = |text: &str| if self.ignore_case { text.to_lowercase() } else { text.to_owned() };
        let text = match self.field.require(cx.case) {
            Ok(text) => folded(text),
            Err(outcome) => return outcome.into(),
        };
        let holds = |word: &&String| text.contains(&folded(word));
        let shown = |word: &String| format!("`{}`", text::one_line(word, 60));
        let outcome = if let Some(found) = self.none.iter().find(holds) {
            verdict(false, format!("{} holds {}", self.field, shown(found)))
        } else if let Some(missing) = self.all.iter().find(|word| !holds(word)) {
            verdict(false, format!("{} lacks {}", self.field, shown(missing)))
        } else if let Some(found) = self.any.iter().find(holds) {
            verdict(true, format!("{} holds {}", self.field, shown(found)))
        } else {
            verdict(self.any.is_empty(), if self.any.is_empty() { "all that was asked for" } else { "none of the words was found" })
        };
        outcome.into()
    }

    fn data_type(&self) -> DataType {
        DataType::Boolean
    }
}
