use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, Field, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, no_expected, revision};
use crate::{model::Outcome, util::plugin};

/// How near the text is to the expected one: 1 - edits / length of the longer, in [0, 1] (Levenshtein 1966).
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Levenshtein {
    /// input | output | context | metadata.KEY. Default output.
    field: Field,
}

/// Characters of either text: the work grows with their product, and this takes some 100 ms.
const MAX_CHARS: usize = 10_000;

inventory::submit! {
    MetricKind {
        name: "levenshtein",
        example: "field: output\n",
        schema: plugin::schema::<Levenshtein>,
        parse: |node, faults| plugin::parse::<Levenshtein>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Levenshtein {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        Ok(Arc::new(self.clone()))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("levenshtein", self)
    }
}

#[async_trait]
impl Metric for Levenshtein {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        if cx.case.expected.is_empty() {
            return no_expected().into();
        }
        let text = match self.field.require(cx.case) {
            Ok(text) => text,
            Err(outcome) => return outcome.into(),
        };
        let lengths = [text.chars().count(), cx.case.expected.chars().count()];
        if lengths.iter().any(|chars| *chars > MAX_CHARS) {
            return Outcome::Failed { reason: format!("{} and {} characters are too many to compare, at most {MAX_CHARS}", lengths[0], lengths[1]) }.into();
        }
        let (text, expected) = (text.to_owned(), cx.case.expected.clone());
        // Long texts would hold up everything else that this worker serves.
        let near = tokio::task::spawn_blocking(move || strsim::normalized_levenshtein(&text, &expected)).await;
        match near {
            Ok(value) => Outcome::Scored { value, raw: None, label: None, passed: None, reason: format!("similarity {value:.3} to the expected text") }.into(),
            Err(error) => Outcome::Failed { reason: error.to_string() }.into(),
        }
    }
}
