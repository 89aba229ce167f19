//! Links of a dataset's items to their traces, which make a run of v3. The server numbers them itself, so that each has to be
//! sent once: the run is read to its end before it is added to, and again after any answer that is not known
//! ([`crate::connections::Links`]).

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::{Experiment, Place};
use crate::{
    connections::{Dialect, Links},
    sinks::{
        RowError, SinkError,
        langfuse::{row_error, sink_error},
    },
    util::http::{self, HttpError},
};

/// Of a page of a run's links.
const PAGE: usize = 100;

/// A dataset item in a run.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    dataset_run_id: String,
    dataset_item_id: String,
}

impl Experiment {
    /// The items become the runs', unless they are.
    pub(super) async fn link_all(&self, some: &[(usize, &Place<'_>)], dataset_id: &str, answers: &mut [Result<(), RowError>]) -> Result<(), SinkError> {
        let mut sent = false;
        for (at, place) in some {
            // Held over the request: whoever publishes to the same run waits, and finds it there.
            let links = self.langfuse.links(dataset_id, &place.run_name);
            let mut links = links.lock().await;
            if !links.complete {
                self.read_run(&mut links, dataset_id, &place.run_name).await?;
            }
            if !links.items.contains(&place.item_id) {
                sent = true;
                if let Err(error) = self.link(&mut links, place).await? {
                    answers[*at] = Err(error);
                    continue;
                }
            }
            self.with_run(&place.run_name, |run| {
                run.id.clone_from(&links.run_id);
                run.items.insert(place.item_id.clone());
            });
        }
        if sent { self.check_dialect().await } else { Ok(()) }
    }

    async fn link(&self, links: &mut Links, place: &Place<'_>) -> Result<Result<(), RowError>, SinkError> {
        let mut body =
            json!({ "runName": place.run_name, "datasetItemId": place.item_id, "traceId": place.trace_id, "metadata": self.run_metadata(place.item) });
        if !place.item.about.description.is_empty() {
            body["runDescription"] = json!(place.item.about.description);
        }
        // Until the answer is here: it may be lost, and so may we.
        links.complete = false;
        let sent = self.langfuse.http().attempt(self.langfuse.request(Method::POST, "/dataset-run-items").json(&body)).await;
        match sent.and_then(|answer| http::json::<Link>(&answer)) {
            Ok(link) => {
                links.run_id = Some(link.dataset_run_id);
                links.items.insert(place.item_id.clone());
                links.complete = true;
                Ok(Ok(()))
            }
            Err(HttpError::Status { status: status @ (400 | 413 | 422), body, .. }) => {
                links.complete = true;
                Ok(Err(row_error(status, &body)))
            }
            Err(error) => {
                if error.status() == Some(404) {
                    // The item is gone, or the dataset.
                    self.sent().items.clear();
                    *self.dataset.lock().await = None;
                }
                Err(sink_error(&error))
            }
        }
    }

    /// What is in a run already: put there before we were started, by somebody else, or by an answer that was lost.
    async fn read_run(&self, links: &mut Links, dataset_id: &str, run_name: &str) -> Result<(), SinkError> {
        #[derive(Deserialize)]
        struct Page {
            data: Vec<Link>,
        }
        for page in 1_usize.. {
            let query = [("datasetId", dataset_id), ("runName", run_name), ("page", &page.to_string()), ("limit", &PAGE.to_string())];
            let found = self.langfuse.http().attempt(self.langfuse.request(Method::GET, "/dataset-run-items").query(&query)).await;
            let found = match found.and_then(|answer| http::json::<Page>(&answer)) {
                Ok(page) => page.data,
                Err(HttpError::Status { status: 404, body, .. }) if body.contains("events_only") || body.contains("not available on deployments") => {
                    return Err(self.upgraded());
                }
                // There is no such run yet.
                Err(HttpError::Status { status: 404, .. }) => break,
                Err(error) => return Err(sink_error(&error)),
            };
            let last = found.len() < PAGE;
            for link in found {
                links.run_id = Some(link.dataset_run_id);
                links.items.insert(link.dataset_item_id);
            }
            if last {
                break;
            }
        }
        links.complete = true;
        Ok(())
    }

    /// A server that was upgraded to v4 takes links and keeps none of them: whether those that were just sent were kept is
    /// what it says now.
    async fn check_dialect(&self) -> Result<(), SinkError> {
        self.langfuse.forget_dialect();
        match self.langfuse.dialect().await {
            Ok(Dialect::V3) => Ok(()),
            Ok(Dialect::V4) => Err(self.upgraded()),
            Err(error) => Err(sink_error(&error)),
        }
    }

    /// What was sent the old way is sent again the new way.
    fn upgraded(&self) -> SinkError {
        self.langfuse.forget_dialect();
        self.sent().runs.clear();
        SinkError { message: "Langfuse: the server has become one of v4; its rows are sent again".to_owned(), retry_after: None, transient: true }
    }
}
