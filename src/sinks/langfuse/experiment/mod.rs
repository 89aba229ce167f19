//! Scores as an experiment of Langfuse: a dataset of the items judged, a run of it, the items' scores and their means.
//!
//! v3 takes a run item by item (`POST /dataset-run-items`), which links an item to its trace. v4 has no such thing: an
//! experiment is spans with its attributes, under an id that is made from its name ([`experiment_id`]); so is it in v3
//! where the item comes from elsewhere and has no trace in Langfuse. Every id is derived from what it stands for, so that
//! a repeat changes nothing. v3 numbers its links itself: there the run is read before it is added to ([`links`]).

mod dataset;
mod links;
mod scores;
mod spans;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;

use super::{Sender, sink_error};
use crate::{
    connections::{Dialect, Langfuse},
    model::{About, Item},
    sinks::{BuildError, Delivery, RowError, Runs, SinkError},
    util::{template::Template, text},
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
/// What is remembered of what was sent; beyond, it is sent again, which changes nothing.
const REMEMBERED: usize = 50_000;

impl ExperimentConfig {
    /// Tells this experiment from others in the queue's name.
    pub(super) fn name(&self) -> String {
        let rest = json!([self.run_name, self.metadata, self.tags]).to_string();
        format!("{}#{}", self.dataset, &blake3::hash(rest.as_bytes()).to_hex()[..6])
    }

    pub(super) fn build(&self, connection: &str, langfuse: &Langfuse, runs: &Arc<dyn Runs>, metrics: &[String]) -> Result<Experiment, BuildError> {
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
            connection: connection.to_owned(),
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
    /// The name of the project's connection.
    connection: String,
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
    /// Dataset items that it was sent by us.
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

/// The places of rows that nothing was refused of so far.
fn sound<'p, 'a>(places: &'p [Option<Place<'a>>], answers: &[Result<(), RowError>]) -> Vec<(usize, &'p Place<'a>)> {
    let sound = places.iter().enumerate().filter(|(at, _)| answers[*at].is_ok());
    sound.filter_map(|(at, place)| Some((at, place.as_ref()?))).collect()
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
        let experiment_of = |place: &Place<'_>| experiment_id(project, &dataset_id, &place.run_name);
        self.put_spans(&sound(&places, &answers), dialect, &dataset_id, experiment_of, &mut answers).await?;
        let some = sound(&places, &answers);
        match dialect {
            Dialect::V3 => self.link_all(&some, &dataset_id, &mut answers).await?,
            Dialect::V4 => some.iter().for_each(|(_, place)| self.with_run(&place.run_name, |run| run.id = Some(experiment_of(place)))),
        }
        let some = sound(&places, &answers);
        for (_, place) in &some {
            self.with_run(&place.run_name, |run| run.run_ids.insert(place.delivery.score.run_id.clone()));
        }
        self.score_items(sender, &some, &mut answers).await?;
        self.score_runs(sender, project, &some).await?;
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
        // Of another connection the same address is the same project.
        let known = item.about.langfuse.as_ref() == Some(&self.connection) || item.trace.url.as_ref() == Some(&page);
        // v3 links an item to the trace that Langfuse has of it.
        let own = dialect == Dialect::V3 && known;
        let spans =
            (!own).then(|| Spans { root: hash(&["root", &run_name, &item_id])[..16].to_owned(), task: hash(&["task", &run_name, &item_id])[..16].to_owned() });
        let trace_id = if own { item.trace.scored_trace().to_owned() } else { hash(&["trace", &run_name, &item_id]) };
        Ok(Place { delivery, item, run_name, item_id, known, trace_id, spans })
    }
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
