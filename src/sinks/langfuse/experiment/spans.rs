//! An item as a trace of its own: what makes it part of an experiment in v4, and gives v3 something to link to.

use serde_json::{Value, json};

use super::{ENVIRONMENT, Experiment, Place, Spans};
use crate::{connections::attribute, model::Item};

impl Experiment {
    /// The item's run and, within it, the task: what the product did. At the product's own time, which is the same whenever
    /// it is sent.
    pub(super) fn spans(&self, place: &Place<'_>, spans: &Spans, dataset_id: &str, experiment: &str) -> [Value; 2] {
        let (item, config) = (place.item, &self.config);
        let input = input(item);
        // A time is unsigned there.
        let begin = item.trace.timestamp.as_nanosecond().max(0);
        #[expect(clippy::cast_possible_truncation, reason = "a latency in milliseconds")]
        let took = item.trace.latency_ms.filter(|latency| latency.is_finite() && *latency >= 1.0).map_or(1, |latency| latency.min(1e12) as i128);
        let metadata = self.run_metadata(item).to_string();
        let of_item = json!({ "item_id": item.trace.id, "url": item.trace.url, "metadata": item.case.metadata }).to_string();
        let mut attributes = vec![
            attribute("langfuse.environment", ENVIRONMENT),
            attribute("langfuse.trace.name", item.trace.name.as_deref().unwrap_or("experiment-item-run")),
            attribute("langfuse.trace.metadata.source_trace_id", item.trace.scored_trace()),
            attribute("langfuse.experiment.id", experiment),
            attribute("langfuse.experiment.name", &place.run_name),
            attribute("langfuse.experiment.metadata", &metadata),
            attribute("langfuse.experiment.dataset.id", dataset_id),
            attribute("langfuse.experiment.item.id", &place.item_id),
            attribute("langfuse.experiment.item.metadata", &of_item),
            attribute("langfuse.experiment.item.root_observation_id", &spans.task),
            attribute("langfuse.observation.input", &input.as_str().map_or_else(|| input.to_string(), str::to_owned)),
            attribute("langfuse.observation.output", &item.case.output),
        ];
        if !item.about.description.is_empty() {
            attributes.push(attribute("langfuse.experiment.description", &item.about.description));
        }
        if !item.case.expected.is_empty() {
            attributes.push(attribute("langfuse.experiment.item.expected_output", &item.case.expected));
        }
        if !config.tags.is_empty() {
            let tags: Vec<Value> = config.tags.iter().map(|tag| json!({ "stringValue": tag })).collect();
            attributes.push(json!({ "key": "langfuse.trace.tags", "value": { "arrayValue": { "values": tags } } }));
        }
        let span = |id: &str, name: &str| {
            json!({
                "traceId": place.trace_id, "spanId": id, "name": name, "kind": 1, "startTimeUnixNano": begin.to_string(),
                "endTimeUnixNano": (begin + took * 1_000_000).to_string(), "attributes": attributes, "status": { "code": 1 },
            })
        };
        let mut task = span(&spans.task, "experiment-item-task");
        task["parentSpanId"] = json!(spans.root);
        [span(&spans.root, "experiment-item-run"), task]
    }
}

/// The question alone, or with what its answer had to rest on.
pub(super) fn input(item: &Item) -> Value {
    if item.case.context.is_empty() { json!(item.case.input) } else { json!({ "input": item.case.input, "context": item.case.context }) }
}
