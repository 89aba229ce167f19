//! A trace as templates see it: its own fields, `observations`, and `steps` by name.

use std::{collections::BTreeMap, sync::Arc};

use minijinja::{
    Value,
    value::{Enumerator, Object, ObjectRepr, Serde},
};
use regex::Regex;

use crate::model::{Case, Observation, Outcome, Trace};

/// Step name -> (which text: `input` or `output`, the regex).
pub(super) type Patterns = BTreeMap<String, Vec<(String, Regex)>>;

/// `trace` in a template. Fields that a trace lacks are undefined, and so an error where a template needs them.
pub(super) fn trace(trace: &Trace, patterns: &Patterns) -> Value {
    let mut fields: BTreeMap<String, Value> = match serde_json::to_value(trace) {
        Ok(serde_json::Value::Object(map)) => map.into_iter().map(|(key, value)| (key, Value::from(Serde(value)))).collect(),
        _ => BTreeMap::new(),
    };
    let mut steps: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for observation in &trace.observations {
        steps.entry(observation.name.clone()).or_default().push(step(observation, patterns.get(&observation.name)));
    }
    fields.entry("observations".to_owned()).or_insert_with(|| Value::from(Vec::<Value>::new()));
    fields.entry("tags".to_owned()).or_insert_with(|| Value::from(Vec::<Value>::new()));
    fields.insert("steps".to_owned(), Value::from_object(Steps(steps)));
    Value::from(fields)
}

fn step(observation: &Observation, patterns: Option<&Vec<(String, Regex)>>) -> Value {
    let mut variables: BTreeMap<String, Value> = BTreeMap::new();
    for (side, regex) in patterns.into_iter().flatten() {
        let value = if side == "output" { &observation.output } else { &observation.input };
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let Some(found) = regex.captures(&text) else { continue };
        for name in regex.capture_names().flatten() {
            if let Some(group) = found.name(name) {
                variables.insert(name.to_owned(), Value::from(group.as_str()));
            }
        }
    }
    let mut fields: BTreeMap<String, Value> = match serde_json::to_value(observation) {
        Ok(serde_json::Value::Object(map)) => map.into_iter().map(|(key, value)| (key, Value::from(Serde(value)))).collect(),
        _ => BTreeMap::new(),
    };
    fields.insert("variables".to_owned(), Value::from(variables));
    Value::from(fields)
}

/// `trace.steps`
#[derive(Debug)]
struct Steps(BTreeMap<String, Vec<Value>>);

impl Object for Steps {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let found = self.0.get(key.as_str()?)?;
        Some(Value::from_object(Step(found.clone())))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(Value::from).collect())
    }
}

/// `trace.steps.NAME`: the first of that name by its fields, any of them by index.
#[derive(Debug)]
struct Step(Vec<Value>);

impl Object for Step {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        if let Some(index) = key.as_i64() {
            let len = i64::try_from(self.0.len()).ok()?;
            let index = if index < 0 { len + index } else { index };
            return self.0.get(usize::try_from(index).ok()?).cloned();
        }
        self.0.first()?.get_item_opt(key)
    }

    /// The fields of the first, so that a step shows as what its name gives.
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let fields = self.0.first().and_then(|first| first.try_iter().ok());
        fields.map_or(Enumerator::Empty, |fields| Enumerator::Values(fields.collect()))
    }
}

/// Attribute or nothing; a missing one is not an error here but where it is used.
trait GetOpt {
    fn get_item_opt(&self, key: &Value) -> Option<Value>;
}

impl GetOpt for Value {
    fn get_item_opt(&self, key: &Value) -> Option<Value> {
        self.get_item(key).ok().filter(|value| !value.is_undefined())
    }
}

/// All that a metric's templates may name.
pub(super) fn case(case: &Case, trace: &Value, scores: &BTreeMap<String, Outcome>) -> Value {
    let scores = outcomes(scores);
    let metadata: BTreeMap<String, Value> = case.metadata.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
    let details: BTreeMap<String, Value> = case.details.iter().map(|(key, value)| (key.clone(), Value::from(Serde(value.clone())))).collect();
    let texts = minijinja::context! {
        input => case.input.as_str(),
        output => case.output.as_str(),
        context => case.context.as_str(),
        expected => case.expected.as_str(),
        metadata => Value::from(metadata),
        trace => trace.clone(),
        scores => Value::from(scores),
    };
    // Most cases have none, and looking in two places costs.
    if details.is_empty() {
        texts
    } else {
        minijinja::context! { ..texts, ..Value::from(details) }
    }
}

/// `scores.METRIC.value`, `scores.METRIC.PART.value`
fn outcomes(scores: &BTreeMap<String, Outcome>) -> BTreeMap<String, Value> {
    let mut named: BTreeMap<String, BTreeMap<&str, Value>> = BTreeMap::new();
    for (name, outcome) in scores {
        match name.split_once('.') {
            Some((metric, part)) => drop(named.entry(metric.to_owned()).or_default().insert(part, Value::from(outcome_fields(outcome)))),
            None => named.entry(name.clone()).or_default().extend(outcome_fields(outcome)),
        }
    }
    named.into_iter().map(|(name, fields)| (name, Value::from(fields))).collect()
}

fn outcome_fields(outcome: &Outcome) -> BTreeMap<&'static str, Value> {
    let mut fields: BTreeMap<&str, Value> = BTreeMap::from([("outcome", Value::from(outcome.kind())), ("reason", Value::from(outcome.reason()))]);
    if let Outcome::Scored { value, raw, label, passed, .. } = outcome {
        fields.insert("value", Value::from(*value));
        fields.extend(raw.map(|raw| ("raw", Value::from(raw))));
        fields.extend(label.as_ref().map(|label| ("label", Value::from(label.as_str()))));
        fields.extend(passed.map(|passed| ("passed", Value::from(passed))));
    }
    fields
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_shows_as_its_first_time_and_is_found_by_name_and_number() {
        let step = |id: &str, output: &str| json!({ "id": id, "name": "retrieve", "type": "SPAN", "start": "2026-01-01T00:00:00Z", "output": output });
        let given = json!({ "id": "t", "timestamp": "2026-01-01T00:00:00Z", "observations": [step("a", "one"), step("b", "two")] });
        let view = trace(&serde_json::from_value(given).unwrap(), &Patterns::new());
        let sent = serde_json::to_value(&view).unwrap();
        assert_eq!((&sent["steps"]["retrieve"]["id"], &sent["steps"]["retrieve"]["output"]), (&json!("a"), &json!("one")));
        assert_eq!(sent["observations"][1]["output"], "two");
        let text = |template: &str| crate::util::template::Template::new(template).unwrap().render(&minijinja::context! { trace => view.clone() }).unwrap();
        assert_eq!(
            text("{{ trace.steps.retrieve.output }} {{ trace.steps.retrieve[-1].output }}{% if trace.steps.retrieve %} there{% endif %}"),
            "one two there"
        );
    }
}
