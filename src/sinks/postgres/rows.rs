//! A score and its item as rows: which column holds what. A column of which nothing is known stays NULL.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::table::{Cell, Row};
use crate::{
    model::{Item, dataset_id},
    sinks::Delivery,
};

/// The item's id in `evaluation_dataset`: derived from the monitor, the item and what was judged of it.
pub(super) fn id(delivery: &Delivery) -> String {
    let content = delivery.item.as_ref().map_or("", |item| item.content_hash.as_str());
    dataset_id(&delivery.score.monitor, &delivery.score.item_id, content)
}

/// A row of `evaluation_dataset`.
pub(super) fn dataset(id: &str, delivery: &Delivery) -> Row {
    let item = delivery.item.as_deref();
    let case = item.map(|item| &item.case);
    let trace = item.map(|item| &*item.trace);
    let about = item.map(|item| &*item.about);
    let detail = |key: &str| json(case.and_then(|case| case.details.get(key)).filter(|value| !value.is_null()));
    let retrieved = match (detail("retrieved_content"), case) {
        (Cell::Json(None), Some(case)) if !case.context.is_empty() => json(Some(&[&case.context])),
        (found, _) => found,
    };
    let environment = delivery.environment.as_ref().or(about.and_then(|about| about.environment.as_ref()));
    vec![
        ("dataset_id", text(Some(id))),
        ("query", text(case.map(|case| &case.input))),
        ("expected_output", text(case.map(|case| &case.expected).filter(|expected| !expected.is_empty()))),
        ("actual_output", text(case.map(|case| &case.output))),
        ("additional_input", detail("additional_input")),
        ("acceptance_criteria", detail("acceptance_criteria")),
        ("dataset_metadata", json(case.map(|case| &case.metadata).filter(|metadata| !metadata.is_empty()))),
        ("user_tags", json(trace.map(|trace| &trace.tags).filter(|tags| !tags.is_empty()))),
        ("conversation", detail("conversation")),
        ("source_type", text(about.map(|about| &about.source_kind))),
        ("environment", text(environment)),
        ("source_name", text(about.map(|about| &about.source_name))),
        ("source_component", text(trace.and_then(|trace| trace.name.as_ref()))),
        ("tools_called", detail("tools_called")),
        ("expected_tools", detail("expected_tools")),
        ("retrieved_content", retrieved),
        ("judgment", detail("judgment")),
        ("critique", detail("critique")),
        ("trace", json(trace)),
        ("additional_output", detail("additional_output")),
        ("document_text", text(case.and_then(|case| case.details.get("document_text")).and_then(plain).as_ref())),
        ("actual_reference", detail("actual_reference")),
        ("expected_reference", detail("expected_reference")),
        ("latency", Cell::Number(trace.and_then(|trace| trace.latency_ms).map(|ms| ms / 1000.0))),
        ("trace_id", text(delivery.score.trace_id.as_ref())),
        ("observation_id", text(delivery.observation_id.as_ref())),
        ("has_errors", Cell::Flag(item.and_then(has_errors))),
    ]
}

/// A row of `evaluation_results`.
pub(super) fn result(dataset_id: &str, delivery: &Delivery) -> Row {
    let score = &delivery.score;
    let about = delivery.item.as_ref().map(|item| &*item.about);
    // A metric that gives several scores names them METRIC.PART.
    let of = |name: &str| score.metric == name || score.metric.strip_prefix(name).is_some_and(|part| part.starts_with('.'));
    let metric = about.and_then(|about| about.metrics.iter().filter(|(name, _)| of(name)).max_by_key(|(name, _)| name.len()));
    let parent = metric.map(|(name, _)| name).filter(|name| **name != score.metric);
    let metric = metric.map(|(_, metric)| metric);
    let value = score.value.filter(|value| value.is_finite());
    let category = match (value, &score.label) {
        (_, Some(_)) => "CLASSIFICATION",
        (Some(_), None) => "SCORE",
        (None, None) => "ANALYSIS",
    };
    let of_metric = sparse(json!({
        "label": score.label,
        "raw": score.raw,
        "data_type": delivery.data_type,
        "metric_revision": score.metric_revision,
        "higher_is_better": metric.map(|metric| metric.higher_is_better),
        "input_tokens": score.input_tokens,
        "output_tokens": score.output_tokens,
        "latency_ms": score.latency_ms,
    }));
    let of_evaluation = sparse(json!({
        "description": about.map(|about| &about.description).filter(|description| !description.is_empty()),
        "labels": about.map(|about| &about.labels).filter(|labels| !labels.is_empty()),
        "item_id": score.item_id,
        "item_timestamp": score.item_timestamp,
    }));
    vec![
        ("run_id", text(Some(&score.run_id))),
        ("dataset_id", text(Some(dataset_id))),
        ("metric_name", text(Some(&score.metric))),
        ("metric_score", Cell::Number(value)),
        ("passed", Cell::Flag(score.passed)),
        ("explanation", text(Some(&score.reason).filter(|reason| !reason.is_empty()))),
        ("metric_type", text(metric.map(|metric| &metric.kind))),
        ("metric_category", text(Some(category))),
        ("threshold", Cell::Number(metric.and_then(|metric| metric.threshold))),
        ("metric_id", text(Some(&score.score_id))),
        ("parent", text(parent)),
        ("source", text(Some("assayd"))),
        ("metric_metadata", json(Some(&of_metric))),
        ("evaluation_name", text(Some(&score.monitor))),
        ("cost_estimate", Cell::Number(score.cost_usd)),
        ("model_name", text(score.model.as_ref())),
        ("llm_provider", text(score.provider.as_ref())),
        ("timestamp", Cell::Time(score.created_at.to_string())),
        ("evaluation_metadata", json(Some(&of_evaluation))),
        ("version", text(Some(&score.metric_revision))),
    ]
}

/// Known only where the trace's steps are.
fn has_errors(item: &Item) -> Option<bool> {
    let steps = &item.trace.observations;
    (!steps.is_empty()).then(|| steps.iter().any(|step| step.level.as_deref() == Some("ERROR")))
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// An object without what is not known.
fn sparse(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { return Map::new() };
    map.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

fn text<T: AsRef<str> + ?Sized>(value: Option<&T>) -> Cell {
    // The one character that Postgres has no place for.
    Cell::Text(value.map(|text| text.as_ref().replace('\0', "")))
}

fn json<T: Serialize + ?Sized>(value: Option<&T>) -> Cell {
    Cell::Json(value.and_then(|value| serde_json::to_string(value).ok()).map(|json| without_nul(&json)))
}

/// JSON text without the escape of NUL, which JSONB refuses.
fn without_nul(json: &str) -> String {
    const NUL: &str = "\\u0000";
    if !json.contains(NUL) {
        return json.to_owned();
    }
    let mut clean = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        clean.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(behind) = rest.strip_prefix(NUL) {
            rest = behind;
        } else {
            // The escape and the character that it escapes: in `\\u0000` no NUL is meant.
            let (escape, behind) = rest.split_at(2.min(rest.len()));
            clean.push_str(escape);
            rest = behind;
        }
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn of_a_text_only_its_nuls_are_lost(text in "[a\\\\u0\\x00\"é]{0,24}") {
            let json = without_nul(&serde_json::to_string(&text).unwrap());
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text.replace('\0', ""));
        }
    }
}
