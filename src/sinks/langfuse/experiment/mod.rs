//! Scores as an experiment of Langfuse: a dataset of the items judged, a run of it, the items' scores and their means.
//!
//! v3 takes a run item by item (`POST /dataset-run-items`), which links an item to its trace. v4 has no such thing: an
//! experiment is spans with its attributes, under an id that is made from its name ([`experiment_id`]); so is it in v3
//! where the item comes from elsewhere and has no trace in Langfuse. Every id is derived from what it stands for, so that
//! a repeat changes nothing. v3 numbers its links itself: there the run is read before it is added to.

mod spans;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::join_all;
use jiff::Timestamp;
use reqwest::Method;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use self::spans::input;
use super::{Body, Sender, row_error, sink_error};
use crate::{
    connections::{self, Dialect, Langfuse},
    model::{About, Item},
    sinks::{BuildError, Delivery, RowError, Runs, SinkError},
    util::{
        http::{self, HttpError},
        template::Template,
        text,
    },
};

/// `experiment:`, the run of a dataset that the scores become.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExperimentConfig {
    /// Dataset that judged items are put into; made if it is missing.
    dataset: String,
    /// Name of the run: a template over monitor, environment, description, labels, `run_id`, slot (RFC 3339) and date.
    /// Runs of the same name become one. Default `{{ monitor }} {{ slot }}`.
    #[serde(default = "run_name")]
    run_name: String,
    /// Of the run.
    #[serde(default)]
    metadata: Map<String, Value>,
    #[serde(default)]
    tags: Vec<String>,
}

fn run_name() -> String {
    "{{ monitor }} {{ slot }}".to_owned()
}

/// Hidden from the views of production, and left out by our own source.
const ENVIRONMENT: &str = "sdk-experiment";
/// Requests at the same time.
const PARALLEL: usize = 8;
/// Of one export of spans; a server takes 16 MB and more.
const EXPORT_BYTES: usize = 4 << 20;
/// What is remembered of what was sent; beyond, it is sent again, which changes nothing.
const REMEMBERED: usize = 50_000;
/// Of a page of a run's links.
const PAGE: usize = 100;

impl ExperimentConfig {
    /// Tells this experiment from others in the queue's name.
    pub(super) fn name(&self) -> String {
        let rest = json!([self.run_name, self.metadata, self.tags]).to_string();
        format!("{}#{}", self.dataset, &blake3::hash(rest.as_bytes()).to_hex()[..6])
    }

    pub(super) fn build(&self, langfuse: &Langfuse, runs: &Arc<dyn Runs>, metrics: &[String]) -> Result<Experiment, BuildError> {
        if self.dataset.trim().is_empty() {
            return Err(BuildError::at("experiment", "`dataset` is empty: it names the dataset that judged items are put into"));
        }
        let template = Template::new(&self.run_name).map_err(|error| BuildError::at("experiment", format!("`run_name` is no template: {error}")))?;
        // Labels are the monitor's own; everything else is known by name.
        if !self.run_name.contains("labels") {
            template
                .render(&names(&About::default(), "r", Timestamp::UNIX_EPOCH))
                .map_err(|error| BuildError::at("experiment", format!("`run_name`: {error}")))?;
        }
        Ok(Experiment {
            langfuse: langfuse.clone(),
            config: self.clone(),
            run_name: template,
            runs: Arc::clone(runs),
            metrics: metrics.to_vec(),
            project: OnceCell::new(),
            dataset: tokio::sync::Mutex::default(),
            sent: Mutex::default(),
        })
    }
}

/// What a run's name may be made of: the same for all of a run.
fn names(about: &About, run_id: &str, slot: Timestamp) -> minijinja::Value {
    minijinja::context! {
        monitor => about.monitor.as_str(),
        description => about.description.as_str(),
        environment => about.environment.as_deref().unwrap_or("production"),
        labels => &about.labels,
        run_id => run_id,
        slot => slot.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        date => slot.strftime("%Y-%m-%d").to_string(),
    }
}

pub(super) struct Experiment {
    langfuse: Langfuse,
    config: ExperimentConfig,
    run_name: Template,
    runs: Arc<dyn Runs>,
    /// The metrics that are published; empty for all.
    metrics: Vec<String>,
    project: OnceCell<String>,
    /// The dataset's id, once it was made or found.
    dataset: tokio::sync::Mutex<Option<String>>,
    sent: Mutex<Sent>,
}

/// What this process knows to be there.
#[derive(Default)]
struct Sent {
    items: HashSet<String>,
    /// By the experiment's name.
    runs: HashMap<String, Run>,
}

#[derive(Default, Clone)]
struct Run {
    /// Langfuse's, for scores of the run as a whole.
    id: Option<String>,
    /// Dataset items in it.
    items: HashSet<String>,
    /// Our runs that are part of it.
    run_ids: BTreeSet<String>,
}

/// A row, placed in its experiment.
struct Place<'a> {
    delivery: &'a Delivery,
    item: &'a Item,
    run_name: String,
    item_id: String,
    /// The item is a trace of this project.
    known: bool,
    /// The trace that the item is judged in: its own, or one that we make.
    trace_id: String,
    /// Of a trace that we make.
    spans: Option<Spans>,
}

#[derive(Clone)]
struct Spans {
    root: String,
    task: String,
}

/// 32 hex digits.
fn hash(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// The id that Langfuse v4 gives the run of a dataset: 16 hex digits.
fn experiment_id(project: &str, dataset_id: &str, run_name: &str) -> String {
    let text = json!(["langfuse-experiment-v1", project, dataset_id, run_name]).to_string();
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Experiment {
    /// Answers for every row, in their order.
    pub(super) async fn publish(&self, sender: &Sender, rows: &[&Delivery]) -> Result<Vec<Result<(), RowError>>, SinkError> {
        let dialect = self.langfuse.dialect().await.map_err(|error| sink_error(&error))?;
        let dataset_id = self.dataset_id().await?;
        let project = self.project.get_or_try_init(|| self.langfuse.project_id()).await.map_err(|error| sink_error(&error))?;
        let mut answers: Vec<Result<(), RowError>> = Vec::with_capacity(rows.len());
        let mut places = Vec::with_capacity(rows.len());
        for delivery in rows {
            let place = self.place(delivery, dialect, project).await;
            answers.push(place.as_ref().map(drop).map_err(Clone::clone));
            places.push(place.ok());
        }
        self.put_items(&places, &mut answers).await?;
        let sound = places.iter().enumerate().filter(|(at, _)| answers[*at].is_ok());
        let some: Vec<(usize, &Place<'_>)> = sound.filter_map(|(at, place)| Some((at, place.as_ref()?))).collect();
        let experiment_of = |project: &str, place: &Place<'_>| experiment_id(project, &dataset_id, &place.run_name);
        self.put_spans(&some, &dataset_id, |place| experiment_of(project, place)).await?;
        for (at, place) in &some {
            match dialect {
                Dialect::V3 => {
                    if let Err(error) = self.link(&dataset_id, place).await? {
                        answers[*at] = Err(error);
                    }
                }
                Dialect::V4 => self.with_run(&place.run_name, |run| run.id = Some(experiment_of(project, place))),
            }
            self.with_run(&place.run_name, |run| run.run_ids.insert(place.delivery.score.run_id.clone()));
        }
        self.score_items(sender, &some, &mut answers).await?;
        self.score_runs(sender, &some).await?;
        Ok(answers)
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        // Whole after every statement.
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_run<T>(&self, name: &str, change: impl FnOnce(&mut Run) -> T) -> T {
        let mut sent = self.sent();
        change(sent.runs.entry(name.to_owned()).or_default())
    }

    /// Of the dataset, which is made where it is missing.
    async fn dataset_id(&self) -> Result<String, SinkError> {
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

    async fn place<'a>(&self, delivery: &'a Delivery, dialect: Dialect, project: &str) -> Result<Place<'a>, RowError> {
        let dead = |message: &str| RowError::Dead(format!("Langfuse experiment: {message}"));
        let item = delivery.item.as_deref().ok_or_else(|| dead("what was judged is no longer kept"))?;
        let score = &delivery.score;
        let slot = self.runs.slot(&score.run_id).await.map_err(RowError::Retry)?.unwrap_or(score.created_at);
        let run_name = self.run_name.render(&names(&item.about, &score.run_id, slot)).map_err(|error| dead(&format!("`run_name`: {error}")))?;
        let run_name = text::one_line(&run_name, 255);
        let item_id = format!("assayd-{}", hash(&[&self.config.dataset, &item.about.source_kind, &item.trace.id, &item.content_hash]));
        // The left side of a join is told by its address. (One that got an id of its own is no trace that Langfuse knows.)
        let page = self.langfuse.page(&format!("/project/{project}/traces/{}", item.trace.scored_trace()));
        let known = item.about.source_kind == "langfuse" || item.trace.url.as_ref() == Some(&page);
        // v3 links an item to the trace that Langfuse has of it.
        let own = dialect == Dialect::V3 && known;
        let spans =
            (!own).then(|| Spans { root: hash(&["root", &run_name, &item_id])[..16].to_owned(), task: hash(&["task", &run_name, &item_id])[..16].to_owned() });
        let trace_id = if own { item.trace.scored_trace().to_owned() } else { hash(&["trace", &run_name, &item_id]) };
        Ok(Place { delivery, item, run_name, item_id, known, trace_id, spans })
    }

    /// The items that are not known to be there, each once.
    async fn put_items(&self, places: &[Option<Place<'_>>], answers: &mut [Result<(), RowError>]) -> Result<(), SinkError> {
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

    /// Traces that we make, of items that are not known to be in their run.
    async fn put_spans(&self, some: &[(usize, &Place<'_>)], dataset_id: &str, experiment: impl Fn(&Place<'_>) -> String) -> Result<(), SinkError> {
        let mut new: BTreeMap<(&str, &str), (&Place<'_>, &Spans)> = BTreeMap::new();
        for (_, place) in some {
            let known = self.with_run(&place.run_name, |run| run.items.contains(&place.item_id));
            if let Some(spans) = place.spans.as_ref().filter(|_| !known) {
                new.insert((&place.run_name, &place.item_id), (place, spans));
            }
        }
        let (mut export, mut size) = (Vec::new(), 0);
        for (place, spans) in new.values() {
            let both = self.spans(place, spans, dataset_id, &experiment(place));
            size += both.iter().map(|span| span.to_string().len()).sum::<usize>();
            export.extend(both);
            if size > EXPORT_BYTES {
                self.export(&std::mem::take(&mut export)).await?;
                size = 0;
            }
        }
        if !export.is_empty() {
            self.export(&export).await?;
        }
        // In v3 the link that follows says that the item is there.
        if matches!(self.langfuse.dialect().await, Ok(Dialect::V4)) {
            for (place, _) in new.into_values() {
                self.with_run(&place.run_name, |run| run.items.insert(place.item_id.clone()));
            }
            let mut sent = self.sent();
            if sent.runs.values().map(|run| run.items.len()).sum::<usize>() > REMEMBERED {
                sent.runs.values_mut().for_each(|run| run.items.clear());
            }
        }
        Ok(())
    }

    async fn export(&self, spans: &[Value]) -> Result<(), SinkError> {
        self.langfuse.http().attempt(self.langfuse.spans(spans)).await.map(drop).map_err(|error| sink_error(&error))
    }

    fn run_metadata(&self, item: &Item) -> Value {
        let mut metadata = self.config.metadata.clone();
        metadata.entry("monitor").or_insert_with(|| json!(item.about.monitor));
        if !self.config.tags.is_empty() {
            metadata.entry("tags").or_insert_with(|| json!(self.config.tags));
        }
        Value::Object(metadata)
    }

    /// v3: the item becomes one of the run's, unless it is.
    async fn link(&self, dataset_id: &str, place: &Place<'_>) -> Result<Result<(), RowError>, SinkError> {
        if self.with_run(&place.run_name, |run| run.id.is_none()) {
            self.read_run(dataset_id, &place.run_name).await?;
        }
        if self.with_run(&place.run_name, |run| run.items.contains(&place.item_id)) {
            return Ok(Ok(()));
        }
        let mut body =
            json!({ "runName": place.run_name, "datasetItemId": place.item_id, "traceId": place.trace_id, "metadata": self.run_metadata(place.item) });
        if !place.item.about.description.is_empty() {
            body["runDescription"] = json!(place.item.about.description);
        }
        let sent = self.langfuse.http().attempt(self.langfuse.request(Method::POST, "/dataset-run-items").json(&body)).await;
        match sent.and_then(|answer| http::json::<Link>(&answer)) {
            Ok(link) => {
                self.with_run(&place.run_name, |run| {
                    run.id = Some(link.dataset_run_id);
                    run.items.insert(place.item_id.clone());
                });
                Ok(Ok(()))
            }
            Err(HttpError::Status { status: status @ (400 | 413 | 422), body, .. }) => Ok(Err(row_error(status, &body))),
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

    /// What is in a run already: put there before we were started, or by an answer that was lost.
    async fn read_run(&self, dataset_id: &str, run_name: &str) -> Result<(), SinkError> {
        #[derive(Deserialize)]
        struct Links {
            data: Vec<Link>,
        }
        for page in 1_usize.. {
            let query = [("datasetId", dataset_id), ("runName", run_name), ("page", &page.to_string()), ("limit", &PAGE.to_string())];
            let found = self.langfuse.http().attempt(self.langfuse.request(Method::GET, "/dataset-run-items").query(&query)).await;
            let links = match found.and_then(|answer| http::json::<Links>(&answer)) {
                Ok(links) => links.data,
                // There is no such run yet.
                Err(HttpError::Status { status: 404, .. }) => return Ok(()),
                Err(error) => return Err(sink_error(&error)),
            };
            let last = links.len() < PAGE;
            self.with_run(run_name, |run| {
                for link in links {
                    run.id = Some(link.dataset_run_id);
                    run.items.insert(link.dataset_item_id);
                }
            });
            if last {
                break;
            }
        }
        Ok(())
    }

    /// Scores on the traces that we made; those of Langfuse's own traces have them anyway.
    async fn score_items(&self, sender: &Sender, some: &[(usize, &Place<'_>)], answers: &mut [Result<(), RowError>]) -> Result<(), SinkError> {
        let (mut at, mut bodies) = (Vec::new(), Vec::new());
        for (row, place) in some {
            let Some(spans) = &place.spans else { continue };
            match super::body(place.delivery) {
                Ok(body) => {
                    let id = format!("{}-{}", body.id, &hash(&[&self.config.dataset, &place.run_name])[..12]);
                    at.push(*row);
                    bodies.push(Body {
                        id,
                        trace_id: Some(place.trace_id.clone()),
                        observation_id: Some(spans.task.clone()),
                        environment: Some(ENVIRONMENT.to_owned()),
                        ..body
                    });
                }
                Err(error) => answers[*row] = Err(error),
            }
        }
        for (row, answer) in at.into_iter().zip(sender.send(&bodies).await?) {
            if let Err(error) = answer {
                answers[row] = Err(error);
            }
        }
        Ok(())
    }

    /// The mean of every metric, of the runs that these rows belong to.
    async fn score_runs(&self, sender: &Sender, some: &[(usize, &Place<'_>)]) -> Result<(), SinkError> {
        let names: BTreeSet<&str> = some.iter().map(|(_, place)| place.run_name.as_str()).collect();
        for name in names {
            let Run { id: Some(id), run_ids, .. } = self.with_run(name, |run| Run { items: HashSet::new(), ..run.clone() }) else { continue };
            let group = format!("{}/{name}", self.config.dataset);
            let later = |message: String| SinkError { message, retry_after: None, transient: true };
            let means = self.runs.means(&group, &run_ids).await.map_err(later)?;
            let wanted = means.metrics.iter().filter(|mean| self.metrics.is_empty() || self.metrics.contains(&mean.metric));
            let bodies: Vec<Body> = wanted
                .map(|mean| Body {
                    id: format!("assayd-{}", hash(&["run", &self.config.dataset, name, &mean.metric])),
                    trace_id: None,
                    observation_id: None,
                    dataset_run_id: Some(id.clone()),
                    name: mean.metric.clone(),
                    value: json!(mean.mean),
                    data_type: "NUMERIC".to_owned(),
                    comment: format!("mean of {} scores", mean.n),
                    metadata: json!({ "n": mean.n }),
                    environment: None,
                    timestamp: means.since.to_string(),
                })
                .collect();
            for answer in sender.send(&bodies).await? {
                match answer {
                    Ok(()) => {}
                    // The items' scores are there; a mean that is refused is nobody's row.
                    Err(RowError::Dead(error)) => tracing::warn!(experiment = name, %error, "the mean of an experiment was refused"),
                    Err(RowError::Retry(error)) => return Err(later(error)),
                }
            }
        }
        let mut sent = self.sent();
        if sent.runs.len() > 1_000 {
            // Read anew, or made anew under the same ids, when they are needed.
            sent.runs.clear();
        }
        Ok(())
    }
}

/// A dataset item in a run.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    dataset_run_id: String,
    dataset_item_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_experiment_has_the_id_that_langfuse_gives_it() {
        assert_eq!(experiment_id("proj_1", "ds_1", "run A"), "6c802cc01897e925");
        assert_ne!(experiment_id("p", "d", "läuft"), experiment_id("p", "d", "lauft"));
    }

    #[test]
    fn parts_of_a_hash_do_not_run_together() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
    }
}
