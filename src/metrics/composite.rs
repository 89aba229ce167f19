use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision};
use crate::{
    model::{Outcome, Wait},
    util::plugin,
};

/// The weighted mean of other metrics of the monitor. It waits for a part that waits, and fails with a part that failed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Composite {
    /// Metric -> weight, above 0. The weights need no particular sum.
    parts: BTreeMap<String, f64>,
    /// What becomes of an item that a part does not apply to. Default `not_applicable`.
    #[serde(default)]
    missing: Missing,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Missing {
    /// The whole does not apply either.
    #[default]
    NotApplicable,
    /// The mean of the other parts.
    Skip,
}

inventory::submit! {
    MetricKind {
        name: "composite",
        example: "parts: { helpful: 2, short: 1 }\nmissing: skip\n",
        schema: plugin::schema::<Composite>,
        parse: |node, faults| plugin::parse::<Composite>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for Composite {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        if self.parts.is_empty() {
            return Err(BuildError::at("parts", "names no metric".to_owned()));
        }
        if let Some((part, weight)) = self.parts.iter().find(|(_, weight)| !(weight.is_finite() && **weight > 0.0)) {
            return Err(BuildError::at("parts", format!("the weight of `{part}` is {weight}; a weight is above 0")));
        }
        Ok(Arc::new(self.clone()))
    }

    fn parts(&self) -> Vec<&str> {
        self.parts.keys().map(String::as_str).collect()
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("composite", self)
    }
}

#[async_trait]
impl Metric for Composite {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        combined(&self.parts, self.missing, cx.scores).into()
    }
}

/// Of a metric, or of one of its parts: where there is none, the metric as a whole failed, waits or did not apply, and says
/// so under its own name.
fn outcome<'a>(part: &str, scores: &'a BTreeMap<String, Outcome>) -> Option<&'a Outcome> {
    let whole = || scores.get(part.split_once('.')?.0).filter(|whole| !matches!(whole, Outcome::Scored { .. }));
    scores.get(part).or_else(whole)
}

fn combined(parts: &BTreeMap<String, f64>, missing: Missing, scores: &BTreeMap<String, Outcome>) -> Outcome {
    let (mut sum, mut weights, mut terms) = (0.0, 0.0, Vec::with_capacity(parts.len()));
    let (mut failed, mut inapplicable) = (None, None);
    for (part, weight) in parts {
        match outcome(part, scores) {
            Some(Outcome::Scored { value, .. }) => {
                sum += value * weight;
                weights += weight;
                terms.push(format!("{part} {value:.3} x {weight}"));
            }
            Some(Outcome::Deferred { reason, .. }) => {
                return Outcome::Deferred { reason: format!("`{part}` waits: {reason}"), wait: Wait::Gate };
            }
            Some(Outcome::Failed { reason }) => failed = failed.or_else(|| Some(format!("`{part}` failed: {reason}"))),
            Some(Outcome::NotApplicable { reason }) => inapplicable = inapplicable.or_else(|| Some(format!("`{part}` does not apply: {reason}"))),
            None => inapplicable = inapplicable.or_else(|| Some(format!("`{part}` was not judged"))),
        }
    }
    match (failed, inapplicable) {
        (Some(reason), _) => Outcome::Failed { reason },
        (None, Some(reason)) if missing == Missing::NotApplicable || weights == 0.0 => Outcome::NotApplicable { reason },
        // Rounding may lead out of the range by a last bit.
        _ => Outcome::Scored { value: (sum / weights).clamp(0.0, 1.0), raw: None, label: None, passed: None, reason: terms.join(", ") },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scored(value: f64) -> Outcome {
        Outcome::Scored { value, raw: None, label: None, passed: None, reason: String::new() }
    }

    fn of(scores: Vec<(&str, Outcome)>, missing: Missing) -> Outcome {
        let parts = BTreeMap::from([("a".to_owned(), 3.0), ("b".to_owned(), 1.0)]);
        combined(&parts, missing, &scores.into_iter().map(|(name, outcome)| (name.to_owned(), outcome)).collect())
    }

    #[test]
    fn what_is_not_there_is_no_zero() {
        let gone = || Outcome::NotApplicable { reason: "no answer".to_owned() };
        let failed = || Outcome::Failed { reason: "no verdict".to_owned() };
        let waits = || Outcome::Deferred { reason: "over the budget".to_owned(), wait: Wait::Budget };
        let value = |outcome: Outcome| if let Outcome::Scored { value, .. } = outcome { Ok(value) } else { Err((outcome.kind(), outcome.reason().to_owned())) };
        assert_eq!(value(of(vec![("a", scored(1.0)), ("b", scored(0.0))], Missing::NotApplicable)), Ok(0.75));
        let nothing = Err(("not_applicable", "`b` does not apply: no answer".to_owned()));
        assert_eq!(value(of(vec![("a", scored(0.5)), ("b", gone())], Missing::NotApplicable)), nothing);
        assert_eq!(value(of(vec![("a", scored(0.5)), ("b", gone())], Missing::Skip)), Ok(0.5));
        assert_eq!(value(of(vec![("a", gone()), ("b", gone())], Missing::Skip)).unwrap_err().0, "not_applicable");
        for missing in [Missing::NotApplicable, Missing::Skip] {
            assert_eq!(value(of(vec![("a", scored(0.5)), ("b", failed())], missing)), Err(("failed", "`b` failed: no verdict".to_owned())));
            assert_eq!(value(of(vec![("a", failed()), ("b", waits())], missing)), Err(("deferred", "`b` waits: over the budget".to_owned())));
        }
    }

    #[test]
    fn a_part_of_a_metric_that_failed_or_waits_as_a_whole_does_too() {
        let parts = BTreeMap::from([("short".to_owned(), 1.0), ("m.kind".to_owned(), 1.0)]);
        let of = |whole: Outcome, missing| combined(&parts, missing, &BTreeMap::from([("short".to_owned(), scored(1.0)), ("m".to_owned(), whole)]));
        let failed = || Outcome::Failed { reason: "no key".to_owned() };
        let waits = || Outcome::Deferred { reason: "no process".to_owned(), wait: Wait::Judge };
        for missing in [Missing::NotApplicable, Missing::Skip] {
            assert_eq!(of(failed(), missing), Outcome::Failed { reason: "`m.kind` failed: no key".to_owned() });
            assert_eq!(of(waits(), missing), Outcome::Deferred { reason: "`m.kind` waits: no process".to_owned(), wait: Wait::Gate });
        }
        let closed = || Outcome::NotApplicable { reason: "`when` is false".to_owned() };
        assert_eq!(of(closed(), Missing::NotApplicable).reason(), "`m.kind` does not apply: `when` is false");
        // It had other outcomes, or one of its own: this part was none of them.
        for whole in [closed(), scored(0.0)] {
            assert!(matches!(of(whole, Missing::Skip), Outcome::Scored { value: 1.0, .. }));
        }
    }

    proptest! {
        #[test]
        fn a_mean_lies_between_its_parts(values in proptest::collection::vec((0.0f64..=1.0, 1e-6f64..1e6), 1..8)) {
            let parts = values.iter().enumerate().map(|(n, (_, weight))| (n.to_string(), *weight)).collect();
            let scores = values.iter().enumerate().map(|(n, (value, _))| (n.to_string(), scored(*value))).collect();
            let Outcome::Scored { value, .. } = combined(&parts, Missing::Skip, &scores) else { panic!("no score") };
            let (low, high) = values.iter().fold((1.0f64, 0.0f64), |(low, high), (value, _)| (low.min(*value), high.max(*value)));
            prop_assert!(value >= low - 1e-12 && value <= high + 1e-12, "{low} {value} {high}");
        }
    }
}
