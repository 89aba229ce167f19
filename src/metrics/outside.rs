//! What metrics that live elsewhere (`exec`, `http`) are told and say: one item as JSON, one list of outcomes.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Judgement, MetricCx, Named};
use crate::{
    model::{Outcome, Usage},
    util::{hidden::Hidden, text},
};

/// Reasons are for people; a longer one is cut.
const REASON: usize = 4000;
/// Outcomes of one item.
const OUTCOMES: usize = 64;

/// Names of providers and models.
const NAME: usize = 100;

/// What there is to say of the trace without sending it.
const OF_TRACE: [&str; 4] = ["tags", "user_id", "session_id", "environment"];

/// The item as the other side sees it. Keys that the case does not have are left out, `trace` unless it is asked for.
pub(super) fn item(cx: &MetricCx<'_>, with_trace: bool) -> Value {
    let mut item = json!({
        "id": cx.call.item_id,
        "monitor": cx.call.monitor,
        "metric": cx.call.metric,
        "run_id": cx.call.run_id,
        "input": cx.case.input,
        "output": cx.case.output,
        "context": cx.case.context,
        "expected": cx.case.expected,
        "metadata": cx.case.metadata,
        "latency_ms": cx.latency_ms,
        "cost_usd": cx.cost_usd,
    });
    if let Value::Object(fields) = &mut item {
        let trace = cx.view.get_attr("trace").unwrap_or_default();
        let of_trace = OF_TRACE.iter().filter_map(|key| Some(((*key).to_owned(), serde_json::to_value(trace.get_attr(key).ok()?).ok()?)));
        fields.extend(of_trace);
        fields.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
        fields.extend(cx.case.details.iter().map(|(key, value)| (key.clone(), value.clone())));
        if with_trace {
            fields.extend(serde_json::to_value(trace).ok().map(|trace| ("trace".to_owned(), trace)));
        }
    }
    item
}

/// What comes back.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    outcomes: Vec<Said>,
    /// Of the whole item: it could not be judged.
    error: Option<String>,
    #[serde(default)]
    usage: Paid,
}

/// One outcome: `score`, `not_applicable` or `error`.
#[derive(Debug, Deserialize)]
struct Said {
    name: Option<String>,
    /// In [0, 1].
    score: Option<f64>,
    /// On the metric's own scale.
    raw: Option<f64>,
    label: Option<String>,
    passed: Option<bool>,
    reason: Option<String>,
    /// Why the metric does not apply to the item.
    not_applicable: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Paid {
    provider: Option<String>,
    model: Option<String>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cost_usd: Option<f64>,
}

impl Answer {
    /// `took_ms`: how long the other side took. What it was given to keep to itself is taken out of all that it says.
    pub(super) fn judgement(self, took_ms: u64, hidden: &Hidden) -> Judgement {
        let name = |name: Option<String>| name.map(|name| text::one_line(&hidden.out_of(&name), NAME));
        let usage = Usage {
            provider: name(self.usage.provider),
            model: name(self.usage.model),
            input_tokens: self.usage.input_tokens,
            output_tokens: self.usage.output_tokens,
            cost_usd: self.usage.cost_usd.filter(|cost| *cost >= 0.0),
            latency_ms: Some(took_ms),
        };
        match named(self.outcomes, self.error, hidden) {
            Ok(outcomes) => Judgement { outcomes, usage, answer: None },
            Err(reason) => Judgement::new(Outcome::Failed { reason }, usage, None),
        }
    }
}

fn named(outcomes: Vec<Said>, error: Option<String>, hidden: &Hidden) -> Result<Vec<Named>, String> {
    if let Some(error) = error {
        return Err(text::clip(&hidden.out_of(&error), REASON));
    }
    if outcomes.is_empty() {
        return Err("the answer has no outcome".to_owned());
    }
    if outcomes.len() > OUTCOMES {
        return Err(format!("the answer has {} outcomes; {OUTCOMES} are the most", outcomes.len()));
    }
    let mut names = HashSet::new();
    if outcomes.len() > 1
        && let Some(nameless) = outcomes.iter().position(|said| said.name.is_none())
    {
        return Err(format!("outcome {} of {} has no `name`", nameless + 1, outcomes.len()));
    }
    for name in outcomes.iter().filter_map(|said| said.name.as_deref()) {
        let name = hidden.out_of(name);
        let plain = (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        if !plain {
            return Err(format!("`{}` is no name of an outcome: up to 64 letters, digits, `_` and `-`", text::one_line(&name, 80)));
        }
        if !names.insert(name.clone()) {
            return Err(format!("the outcome `{name}` stands there twice"));
        }
    }
    Ok(outcomes.into_iter().map(|said| Named { part: said.name.clone(), outcome: said.outcome(hidden) }).collect())
}

impl Said {
    fn outcome(self, hidden: &Hidden) -> Outcome {
        let clipped = |text: String| text::clip(&hidden.out_of(&text), REASON);
        match (self.error, self.not_applicable, self.score) {
            (Some(error), _, _) => Outcome::Failed { reason: clipped(error) },
            (None, Some(reason), _) => Outcome::NotApplicable { reason: clipped(reason) },
            (None, None, Some(value)) => Outcome::Scored {
                value,
                raw: self.raw,
                label: self.label.map(|label| text::one_line(&hidden.out_of(&label), 200)),
                passed: self.passed,
                reason: self.reason.map(clipped).unwrap_or_default(),
            },
            (None, None, None) => Outcome::Failed { reason: "an outcome has a `score`, or says `not_applicable` or `error`".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(answer: Value) -> Vec<(Option<String>, &'static str, String)> {
        let judgement = serde_json::from_value::<Answer>(answer).unwrap().judgement(5, &Hidden::default());
        assert_eq!(judgement.usage.latency_ms, Some(5));
        judgement.outcomes.into_iter().map(|named| (named.part, named.outcome.kind(), named.outcome.reason().to_owned())).collect()
    }

    #[test]
    fn an_answer_is_one_outcome_or_several_by_name() {
        let own = told(json!({ "outcomes": [{ "score": 0.5, "reason": "so so" }] }));
        assert_eq!(own, [(None, "scored", "so so".to_owned())]);
        let parts =
            told(json!({ "outcomes": [{ "name": "a", "score": 1 }, { "name": "b", "error": "no key" }, { "name": "c", "not_applicable": "no context" }] }));
        assert_eq!(
            parts.iter().map(|(name, kind, _)| (name.as_deref().unwrap(), *kind)).collect::<Vec<_>>(),
            [("a", "scored"), ("b", "failed"), ("c", "not_applicable")]
        );
    }

    #[test]
    fn names_are_short_and_keys_are_not_told() {
        let said = json!({ "outcomes": [{ "score": 1, "label": "of key-1234", "reason": "by key-1234" }], "usage": { "model": "m\u{1b}".repeat(99), "provider": "key-1234" } });
        let judgement = serde_json::from_value::<Answer>(said).unwrap().judgement(5, &Hidden::of([&"key-1234".into()]));
        let model = judgement.usage.model.unwrap();
        assert!(model.chars().count() == 100 && !model.contains('\u{1b}'), "{model}");
        assert_eq!(judgement.usage.provider.as_deref(), Some("***"));
        assert!(matches!(&judgement.outcomes[0].outcome, Outcome::Scored { label: Some(label), reason, .. } if label == "of ***" && reason == "by ***"));
    }

    #[test]
    fn what_is_no_verdict_fails_and_says_why() {
        for (answer, why) in [
            (json!({}), "no outcome"),
            (json!({ "error": "quota" }), "quota"),
            (json!({ "outcomes": [{ "reason": "hm" }] }), "has a `score`"),
            (json!({ "outcomes": [{ "score": 1 }, { "name": "a", "score": 1 }] }), "outcome 1 of 2 has no `name`"),
            (json!({ "outcomes": [{ "name": "a", "score": 1 }, { "name": "a", "score": 0 }] }), "twice"),
            (json!({ "outcomes": [{ "name": "a.b", "score": 1 }] }), "no name of an outcome"),
            (json!({ "outcomes": vec![json!({ "name": "a", "score": 1 }); 65] }), "64 are the most"),
        ] {
            let told = told(answer);
            assert!(told.len() == 1 && told[0].1 == "failed" && told[0].2.contains(why), "{told:?}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_gives_at_least_one_outcome(names in proptest::collection::vec(proptest::option::of(".{0,8}"), 0..5), score in proptest::option::of(any::<f64>())) {
            let outcomes: Vec<_> = names.iter().map(|name| json!({ "name": name, "score": score })).collect();
            if let Ok(answer) = serde_json::from_value::<Answer>(json!({ "outcomes": outcomes })) {
                prop_assert!(!answer.judgement(0, &Hidden::default()).outcomes.is_empty());
            }
        }
    }
}
