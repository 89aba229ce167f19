use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BuildError, DataType, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision};
use crate::{
    model::{Observation, Outcome},
    util::{duration::Human, plugin, text},
};

/// What must hold of a trace's steps (its observations, by name). The value is the share of what holds; it passes when
/// all of it does.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TraceConfig {
    /// Steps that occur in this order; others may stand between them.
    order: Vec<String>,
    /// Steps that occur.
    must: Vec<String>,
    /// Steps that do not occur.
    must_not: Vec<String>,
    /// Step -> how often it may come again after its first time.
    retries: BTreeMap<String, usize>,
    /// Step (`*`: any) -> what each time of it may take.
    limits: BTreeMap<String, Limits>,
    /// Steps that may have failed (level ERROR), at most.
    errors: Option<usize>,
    /// Tools that are called: observations of type TOOL.
    tools: Vec<Tool>,
}

/// What one time of a step may take, at most. A step of which a figure is not known keeps within it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    latency: Option<Human>,
    cost_usd: Option<f64>,
    tokens: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tool {
    name: String,
    /// Arguments that one of its calls has, each equal to this; it may have others.
    #[serde(default)]
    arguments: BTreeMap<String, Value>,
}

inventory::submit! {
    MetricKind {
        name: "trace",
        example: "order: [retrieve, answer]\nmust_not: [fallback]\nretries: { answer: 1 }\nlimits: { answer: { latency: 10s, tokens: 4000 } }\nerrors: 0\ntools: [ { name: search, arguments: { index: docs } } ]\n",
        schema: plugin::schema::<TraceConfig>,
        parse: |node, faults| plugin::parse::<TraceConfig>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for TraceConfig {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        if self.checks(&[]).is_empty() {
            let keys = "order, must, must_not, retries, limits, errors or tools";
            return Err(BuildError::at("type", format!("says nothing that must hold of a trace: add {keys}")));
        }
        if let Some((step, _)) = self.limits.iter().find(|(_, limits)| limits.latency.is_none() && limits.cost_usd.is_none() && limits.tokens.is_none()) {
            return Err(BuildError::at("limits", format!("`{step}` has no limit: latency, cost_usd or tokens")));
        }
        Ok(Arc::new(self.clone()))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("trace", self)
    }

    fn templates(&self) -> Vec<&str> {
        vec!["trace.observations"]
    }

    fn needs_steps(&self) -> bool {
        true
    }
}

#[async_trait]
impl Metric for TraceConfig {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        self.judged(cx.observations).into()
    }

    fn data_type(&self) -> DataType {
        DataType::Numeric
    }
}

impl TraceConfig {
    fn judged(&self, steps: &[Observation]) -> Outcome {
        let checks = self.checks(steps);
        let broken: Vec<&str> = checks.iter().filter_map(|check| check.as_ref().err().map(String::as_str)).collect();
        let reason = match broken.as_slice() {
            [] => format!("all {} hold", checks.len()),
            broken => text::clip(&broken.join("; "), 2000),
        };
        #[expect(clippy::cast_precision_loss, reason = "as many as the settings name")]
        let value = 1.0 - broken.len() as f64 / checks.len() as f64;
        Outcome::Scored { value, raw: None, label: None, passed: Some(broken.is_empty()), reason }
    }

    /// Everything that must hold, each with what is wrong where it does not.
    fn checks(&self, steps: &[Observation]) -> Vec<Result<(), String>> {
        let times = |name: &str| steps.iter().filter(|step| step.name == name).count();
        let mut checks = Vec::new();
        if !self.order.is_empty() {
            checks.push(in_order(&self.order, steps));
        }
        checks.extend(self.must.iter().map(|name| hold(times(name) > 0, || format!("`{name}` does not occur"))));
        checks.extend(self.must_not.iter().map(|name| hold(times(name) == 0, || format!("`{name}` occurs {} times", times(name)))));
        let retries = self.retries.iter();
        checks
            .extend(retries.map(|(name, most)| hold(times(name) <= most + 1, || format!("`{name}` occurs {} times; {} are the most", times(name), most + 1))));
        checks.extend(self.limits.iter().map(|(name, limits)| {
            let over: Vec<String> = steps.iter().filter(|step| name == "*" || step.name == *name).filter_map(|step| limits.broken_by(step)).collect();
            hold(over.is_empty(), || over.join(", "))
        }));
        checks.extend(self.errors.map(|most| {
            let failed: Vec<&str> = steps
                .iter()
                .filter(|step| step.level.as_deref().is_some_and(|level| level.eq_ignore_ascii_case("error")))
                .map(|step| step.name.as_str())
                .collect();
            hold(failed.len() <= most, || format!("{} steps failed ({}); {most} are the most", failed.len(), failed.join(", ")))
        }));
        checks.extend(self.tools.iter().map(|tool| tool.called(steps)));
        checks
    }
}

fn hold(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn in_order(order: &[String], steps: &[Observation]) -> Result<(), String> {
    let mut left = steps.iter();
    let missing = order.iter().position(|name| !left.any(|step| step.name == *name));
    let Some(at) = missing else { return Ok(()) };
    Err(match at.checked_sub(1).and_then(|before| order.get(before)) {
        Some(before) => format!("`{}` does not come after `{before}`", order[at]),
        None => format!("`{}` does not occur", order[at]),
    })
}

impl Limits {
    fn broken_by(&self, step: &Observation) -> Option<String> {
        let took = step.end.map(|end| end.duration_since(step.start));
        let late = self.latency.zip(took).filter(|(most, took)| took.as_millis() > i128::from(most.millis()));
        let dear = self.cost_usd.zip(step.cost_usd).filter(|(most, cost)| cost > most);
        let long = self.tokens.zip(step.tokens).filter(|(most, tokens)| tokens > most);
        let broken = [
            late.map(|(most, took)| format!("`{}` took {took:#} of {most}", step.name)),
            dear.map(|(most, cost)| format!("`{}` cost {cost} of {most} USD", step.name)),
            long.map(|(most, tokens)| format!("`{}` used {tokens} of {most} tokens", step.name)),
        ];
        let broken: Vec<String> = broken.into_iter().flatten().collect();
        (!broken.is_empty()).then(|| broken.join(", "))
    }
}

impl Tool {
    fn called(&self, steps: &[Observation]) -> Result<(), String> {
        let mut calls = steps.iter().filter(|step| step.kind.eq_ignore_ascii_case("tool") && step.name == self.name).peekable();
        if calls.peek().is_none() {
            return Err(format!("the tool `{}` is not called", self.name));
        }
        let fits = |call: &Observation| self.arguments.iter().all(|(name, value)| call.input.get(name) == Some(value));
        hold(calls.any(fits), || {
            format!("no call of the tool `{}` has the arguments {}", self.name, serde_json::to_string(&self.arguments).unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn step(name: &str, rest: Value) -> Observation {
        let mut step = json!({ "id": name, "name": name, "type": "SPAN", "start": "2026-01-01T00:00:00Z" });
        step.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        serde_json::from_value(step).unwrap()
    }

    fn of(settings: Value, steps: &[Observation]) -> (f64, String) {
        let config: TraceConfig = serde_json::from_value(settings).unwrap();
        match config.judged(steps) {
            Outcome::Scored { value, passed, reason, .. } => {
                assert_eq!(passed, Some(value == 1.0));
                (value, reason)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_must_hold_is_told_where_it_does_not() {
        let steps = [
            step("retrieve", json!({ "end": "2026-01-01T00:00:03Z" })),
            step("search", json!({ "type": "TOOL", "input": { "index": "docs", "k": 5 } })),
            step("answer", json!({ "level": "ERROR", "cost_usd": 0.2, "tokens": 900 })),
            step("answer", json!({ "cost_usd": 0.1 })),
        ];
        let told = |settings: Value| of(settings, &steps);
        let holds = json!({ "order": ["retrieve", "answer"], "must": ["search"], "must_not": ["fallback"], "retries": { "answer": 1 }, "errors": 1,
            "limits": { "retrieve": { "latency": "3s" }, "*": { "tokens": 900, "cost_usd": 0.2 } }, "tools": [{ "name": "search", "arguments": { "index": "docs" } }] });
        assert_eq!(told(holds), (1.0, "all 8 hold".to_owned()));
        for (settings, why) in [
            (json!({ "order": ["answer", "retrieve"] }), "`retrieve` does not come after `answer`"),
            (json!({ "order": ["fallback"] }), "`fallback` does not occur"),
            (json!({ "must": ["rerank"] }), "`rerank` does not occur"),
            (json!({ "must_not": ["answer"] }), "`answer` occurs 2 times"),
            (json!({ "retries": { "answer": 0 } }), "`answer` occurs 2 times; 1 are the most"),
            (json!({ "errors": 0 }), "1 steps failed (answer); 0 are the most"),
            (json!({ "limits": { "retrieve": { "latency": "2s" } } }), "`retrieve` took 3s of 2s"),
            (json!({ "limits": { "*": { "cost_usd": 0.1 } } }), "`answer` cost 0.2 of 0.1 USD"),
            (json!({ "limits": { "answer": { "tokens": 899 } } }), "`answer` used 900 of 899 tokens"),
            (json!({ "tools": [{ "name": "answer" }] }), "the tool `answer` is not called"),
            (json!({ "tools": [{ "name": "search", "arguments": { "k": 6 } }] }), "no call of the tool `search` has the arguments {\"k\":6}"),
        ] {
            assert_eq!(told(settings), (0.0, why.to_owned()));
        }
        assert_eq!(told(json!({ "must": ["search", "rerank", "answer", "retrieve"] })).0, 0.75);
    }

    #[test]
    fn a_trace_in_which_nothing_happened_is_judged_by_that() {
        let settings = json!({ "order": ["retrieve", "answer"], "must": ["answer"], "must_not": ["fallback"], "tools": [{ "name": "search" }] });
        assert_eq!(of(settings, &[]), (0.25, "`retrieve` does not occur; `answer` does not occur; the tool `search` is not called".to_owned()));
    }

    proptest! {
        #[test]
        fn an_order_holds_of_whatever_is_put_between(order in proptest::collection::vec("[a-e]", 1..6), between in proptest::collection::vec("[v-z]", 0..12), seed in any::<u64>()) {
            let mut names = order.clone();
            for (n, name) in between.iter().enumerate() {
                let at = usize::try_from(seed.rotate_left(u32::try_from(n).unwrap() * 7) % (names.len() as u64 + 1)).unwrap();
                names.insert(at, name.clone());
            }
            let steps: Vec<_> = names.iter().map(|name| step(name, json!({}))).collect();
            prop_assert!(in_order(&order, &steps).is_ok());
            let mut longer = order.clone();
            longer.push("never".to_owned());
            prop_assert!(in_order(&longer, &steps).is_err());
        }
    }
}
