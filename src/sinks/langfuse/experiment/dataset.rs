//! The dataset and its items. Both have ids of ours or by name, so that making them twice changes nothing.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::{Experiment, PARALLEL, Place, REMEMBERED, spans::input};
use crate::{
    connections,
    sinks::{
        RowError, SinkError,
        langfuse::{row_error, sink_error},
    },
    util::http::{self, HttpError},
};

impl Experiment {
    /// Of the dataset, which is made where it is missing.
    pub(super) async fn dataset_id(&self) -> Result<String, SinkError> {
        #[derive(Deserialize)]
        struct Dataset {
            id: String,
        }
        let mut known = self.dataset.lock().await;
        if let Some(id) = &*known {
            return Ok(id.clone());
        }
        let http = self.langfuse.http();
        let path = format!("/v2/datasets/{}", connections::segment(&self.config.dataset));
        let found = http.attempt(self.langfuse.request(Method::GET, &path)).await;
        let answer = match found {
            // Made only where it is missing: making it again would empty its description.
            Err(HttpError::Status { status: 404, .. }) => {
                let request = self.langfuse.request(Method::POST, "/v2/datasets").json(&json!({ "name": self.config.dataset }));
                http.attempt(request).await
            }
            found => found,
        };
        let dataset: Dataset = answer.and_then(|answer| http::json(&answer)).map_err(|error| sink_error(&error))?;
        *known = Some(dataset.id.clone());
        Ok(dataset.id)
    }

    /// The items that are not known to be there, each once.
    pub(super) async fn put_items(&self, places: &[Option<Place<'_>>], answers: &mut [Result<(), RowError>]) -> Result<(), SinkError> {
        let mut missing: BTreeMap<&str, &Place<'_>> = BTreeMap::new();
        {
            let mut sent = self.sent();
            if sent.items.len() > REMEMBERED {
                sent.items.clear();
            }
            missing.extend(places.iter().flatten().filter(|place| !sent.items.contains(&place.item_id)).map(|place| (place.item_id.as_str(), place)));
        }
        let missing: Vec<_> = missing.into_iter().collect();
        let mut put = Vec::with_capacity(missing.len());
        for some in missing.chunks(PARALLEL) {
            let mut requests = Vec::with_capacity(some.len());
            for (_, place) in some {
                requests.push(self.put_item(place));
            }
            put.extend(some.iter().map(|(id, _)| *id).zip(join_all(requests).await));
        }
        for (id, outcome) in put {
            match outcome {
                Ok(()) => {
                    self.sent().items.insert(id.to_owned());
                }
                Err(HttpError::Status { status: status @ (400 | 413 | 422), body, .. }) => {
                    let of_item = places.iter().enumerate().filter(|(_, place)| place.as_ref().is_some_and(|place| place.item_id == id));
                    of_item.for_each(|(at, _)| answers[at] = Err(row_error(status, &body)));
                }
                Err(error) => {
                    if error.status() == Some(404) {
                        // Somebody deleted the dataset: it is made anew.
                        *self.dataset.lock().await = None;
                        self.sent().items.clear();
                    }
                    return Err(sink_error(&error));
                }
            }
        }
        Ok(())
    }

    async fn put_item(&self, place: &Place<'_>) -> Result<(), HttpError> {
        let (item, about) = (place.item, &place.item.about);
        let mut body = json!({
            "datasetName": self.config.dataset, "id": place.item_id, "input": input(item), "status": "ACTIVE",
            "metadata": { "item_id": item.trace.id, "source": format!("{}:{}", about.source_kind, about.source_name), "url": item.trace.url, "metadata": item.case.metadata },
        });
        if !item.case.expected.is_empty() {
            body["expectedOutput"] = json!(item.case.expected);
        }
        if place.known {
            body["sourceTraceId"] = json!(item.trace.scored_trace());
            if let Some((_, observation)) = item.trace.observation_place() {
                body["sourceObservationId"] = json!(observation);
            }
        }
        self.langfuse.http().attempt(self.langfuse.request(Method::POST, "/dataset-items").json(&body)).await.map(drop)
    }
}
