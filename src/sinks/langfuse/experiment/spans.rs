//! An item as a trace of its own: what makes it part of an experiment in v4, and gives v3 something to link to.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ENVIRONMENT, Experiment, Place, REMEMBERED, Spans};
use crate::{
    connections::{Dialect, attribute},
    model::Item,
    sinks::{
        RowError, SinkError,
        langfuse::{row_error, sink_error},
    },
    util::http::HttpError,
};

/// Of one export; a server takes 16 MB and more.
const EXPORT_BYTES: usize = 4 << 20;

/// Name of the run, and the dataset item in it.
type Key<'a> = (&'a str, &'a str);

impl Experiment {
    /// Traces that we make, of items that are not known to be in their run.
    pub(super) async fn put_spans(
        &self,
        some: &[(usize, &Place<'_>)],
        dialect: Dialect,
        dataset_id: &str,
        experiment: impl Fn(&Place<'_>) -> String,
        answers: &mut [Result<(), RowError>],
    ) -> Result<(), SinkError> {
        let mut new: BTreeMap<Key<'_>, (&Place<'_>, &Spans)> = BTreeMap::new();
        for (_, place) in some {
            let known = self.with_run(&place.run_name, |run| run.items.contains(&place.item_id));
            if let Some(spans) = place.spans.as_ref().filter(|_| !known) {
                new.insert((&place.run_name, &place.item_id), (place, spans));
            }
        }
        let (mut export, mut size, mut refused) = (Vec::new(), 0, BTreeMap::new());
        for (key, (place, spans)) in &new {
            let both = self.spans(place, spans, dataset_id, &experiment(place));
            size += both.iter().map(|span| span.to_string().len()).sum::<usize>();
            export.push((*key, both));
            if size > EXPORT_BYTES {
                refused.extend(self.export(&std::mem::take(&mut export)).await?);
                size = 0;
            }
        }
        refused.extend(self.export(&export).await?);
        for (at, place) in some {
            if let Some(error) = refused.get(&(place.run_name.as_str(), place.item_id.as_str())) {
                answers[*at] = Err(error.clone());
            }
        }
        // In v3 the link that follows says that the item is there.
        if dialect == Dialect::V4 {
            for (key, (place, _)) in new {
                if !refused.contains_key(&key) {
                    self.with_run(&place.run_name, |run| run.items.insert(place.item_id.clone()));
                }
            }
        }
        let mut sent = self.sent();
        if sent.runs.values().map(|run| run.items.len()).sum::<usize>() > REMEMBERED {
            sent.runs.values_mut().for_each(|run| run.items.clear());
        }
        Ok(())
    }

    /// Sends items; returns those that were refused for good.
    async fn export<'a>(&self, items: &[(Key<'a>, [Value; 2])]) -> Result<Vec<(Key<'a>, RowError)>, SinkError> {
        let spans: Vec<&Value> = items.iter().flat_map(|(_, both)| both).collect();
        if spans.is_empty() {
            return Ok(Vec::new());
        }
        let (status, body) = match self.langfuse.http().attempt(self.langfuse.spans(&spans)).await {
            Ok(_) => return Ok(Vec::new()),
            Err(HttpError::Status { status: status @ (400 | 413 | 422), body, .. }) => (status, body),
            Err(error) => return Err(sink_error(&error)),
        };
        if let [(key, _)] = items {
            return Ok(vec![(*key, row_error(status, &body))]);
        }
        // One item spoils the whole export, or all of it is too much: each for itself.
        let mut refused = Vec::new();
        for item in items {
            refused.extend(Box::pin(self.export(std::slice::from_ref(item))).await?);
        }
        Ok(refused)
    }

    pub(super) fn run_metadata(&self, item: &Item) -> Value {
        let mut metadata = self.config.metadata.clone();
        metadata.entry("monitor").or_insert_with(|| json!(item.about.monitor));
        if !self.config.tags.is_empty() {
            metadata.entry("tags").or_insert_with(|| json!(self.config.tags));
        }
        Value::Object(metadata)
    }

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
