//! A monitor made ready to run: settings compiled, plug-ins built. Touches neither network nor disk.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, anyhow};
use regex::Regex;

use super::{again, dimension::Dimension, extract::Extract, view::Patterns};
use crate::{
    config::{MetricSpec, MonitorSpec},
    connections::Connections,
    metrics::{Gives, Metric, MetricBuildCx, Price, Prompts, exec::Processes},
    model::{About, MetricAbout, PromptUse},
    providers::Models,
    sinks::{Runs, Sink, SinkCx},
    sources::{Scope, Source, SourceCx, scoped},
    store::Queue,
    util::{http::Http, template::Expr},
};

/// What building needs.
pub struct BuildEnv<'a> {
    pub connections: &'a Connections,
    pub http: &'a Http,
    pub models: &'a dyn Models,
    pub prompts: &'a Arc<dyn Prompts>,
    pub processes: &'a Processes,
    pub runs: &'a Arc<dyn Runs>,
    pub base_dir: &'a PathBuf,
}

pub struct Monitor {
    pub spec: Arc<MonitorSpec>,
    pub(super) source_key: String,
    pub(super) source: Arc<dyn Source>,
    pub(super) wants_observations: bool,
    pub(super) filter: Option<Expr>,
    pub(super) always: Option<Expr>,
    pub(super) patterns: Patterns,
    pub(super) extract: Extract,
    /// What alerts tell items by.
    pub(super) dimensions: Vec<Dimension>,
    /// Free ones first, those made of others last, else as written.
    pub(super) metrics: Arc<[Judge]>,
    /// Metrics whose verdict may change where the case does not.
    pub(super) reading_the_trace: Vec<String>,
    /// The outbox queues that get each score.
    pub(super) queues: Arc<[Queue]>,
    pub(super) about: Arc<About>,
    /// The sinks behind the queues.
    pub sinks: Vec<(String, Arc<dyn Sink>)>,
}

/// One metric of a monitor.
#[derive(Clone)]
pub(super) struct Judge {
    pub name: Arc<str>,
    pub revision: Arc<str>,
    pub when: Option<Arc<Expr>>,
    pub threshold: Option<f64>,
    pub higher_is_better: bool,
    pub price: Price,
    pub gives: Gives,
    pub metric: Arc<dyn Metric>,
    /// The prompt that it judges with, where that is kept outside of the settings; known in a run.
    pub prompt: Option<PromptUse>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("name", &self.spec.name).finish_non_exhaustive()
    }
}

impl Monitor {
    /// # Errors
    /// What does not compile or fit together; `config::check` has told the user before.
    pub fn build(spec: Arc<MonitorSpec>, env: &BuildEnv<'_>) -> anyhow::Result<Self> {
        let name = &spec.name;
        let wants_observations = wants_observations(&spec) || spec.source.scope.needs_observations();
        let cx = SourceCx { connections: env.connections, http: env.http, base_dir: env.base_dir, wants_observations };
        let source = spec.source.config.build(&cx).and_then(|source| scoped(source, &spec.source.scope, spec.source.settle));
        let source = source.with_context(|| format!("monitor {name}: source"))?;
        let lenient =
            |key: &str, text: &Option<String>| text.as_deref().map(Expr::lenient).transpose().map_err(|error| anyhow!("monitor {name}: {key}: {error}"));
        let expr = |key: &str, text: &Option<String>| text.as_deref().map(Expr::new).transpose().map_err(|error| anyhow!("monitor {name}: {key}: {error}"));
        let metric_cx = MetricBuildCx { models: env.models, prompts: env.prompts, http: env.http, processes: env.processes, base_dir: env.base_dir };
        let mut metrics = Vec::with_capacity(spec.metrics.len());
        let mut in_order: Vec<_> = spec.metrics.iter().collect();
        in_order.sort_by_key(|metric| (!metric.config.parts().is_empty(), metric.config.price()));
        for metric in in_order {
            let built = metric.config.build(&metric_cx).with_context(|| format!("monitor {name}: metric {}", metric.name))?;
            metrics.push(Judge {
                name: metric.name.as_str().into(),
                revision: revision(&metric.config.revision(&metric_cx), metric.threshold, metric.higher_is_better).into(),
                when: expr("when", &metric.when)?.map(Arc::new),
                threshold: metric.threshold,
                higher_is_better: metric.higher_is_better,
                price: metric.config.price(),
                gives: metric.config.gives(),
                metric: built,
                prompt: None,
            });
        }
        let sink_cx = SinkCx { connections: env.connections, http: env.http, base_dir: env.base_dir, runs: env.runs };
        let sinks: Vec<_> = spec
            .publish
            .iter()
            .map(|config| Ok((config.queue(), config.build(&sink_cx).with_context(|| format!("monitor {name}: publish"))?)))
            .collect::<anyhow::Result<_>>()?;
        let patterns = spec
            .extract
            .patterns
            .iter()
            .map(|(step, sides)| {
                let regexes = sides.iter().map(|(side, pattern)| Ok((side.clone(), Regex::new(pattern)?))).collect::<Result<Vec<_>, regex::Error>>();
                Ok((step.clone(), regexes.with_context(|| format!("monitor {name}: extract.patterns.{step}"))?))
            })
            .collect::<anyhow::Result<Patterns>>()?;
        Ok(Self {
            source_key: spec.source.key(),
            source,
            wants_observations,
            filter: lenient("source.filter", &spec.source.filter)?,
            always: lenient("sampling.always", &spec.sampling.always)?,
            patterns,
            extract: Extract::new(&spec.extract).map_err(|error| anyhow!("monitor {name}: {error}"))?,
            dimensions: Dimension::all(&spec).map_err(|error| anyhow!("monitor {name}: alerts: by: {error}"))?,
            metrics: metrics.into(),
            reading_the_trace: again::reading_the_trace(&spec),
            queues: sinks.iter().zip(&spec.publish).map(|((name, sink), config)| queue(name, sink.as_ref(), config.metrics())).collect(),
            about: Arc::new(about(&spec)),
            sinks,
            spec,
        })
    }

    /// The metrics of one run: what stands outside of the settings is read now, and is the same for all of the run.
    pub(super) async fn pinned(&self) -> Arc<[Judge]> {
        let pins = futures_util::future::join_all(self.metrics.iter().map(|judge| judge.metric.pin())).await;
        if pins.iter().all(Option::is_none) {
            return Arc::clone(&self.metrics);
        }
        let pinned = self.metrics.iter().zip(pins).map(|(judge, pin)| match pin {
            Some(pin) => Judge {
                revision: revision(&pin.revision, judge.threshold, judge.higher_is_better).into(),
                metric: pin.metric,
                prompt: pin.prompt,
                ..judge.clone()
            },
            None => judge.clone(),
        });
        pinned.collect()
    }

    /// The same monitor with another source, and with stand-ins for the metrics that ask somebody, by name: for tests of what users
    /// have written.
    #[must_use]
    pub fn rehearsed(self, source: Arc<dyn Source>, stand_in: impl Fn(&str) -> Arc<dyn Metric>) -> Self {
        let metrics = self.metrics.iter().map(|judge| match judge.price {
            Price::Paid => Judge { metric: stand_in(&judge.name), ..judge.clone() },
            Price::Free => judge.clone(),
        });
        let metrics = metrics.collect();
        Self { source, metrics, ..self }
    }

    /// The source's own cheap check, for `validate --live`.
    ///
    /// # Errors
    /// What the source says.
    pub async fn probe(&self) -> anyhow::Result<String> {
        Ok(self.source.probe().await?)
    }
}

fn queue(name: &str, sink: &dyn Sink, metrics: &[String]) -> Queue {
    Queue { name: name.to_owned(), wants_item: sink.wants_item(), metrics: metrics.to_vec() }
}

fn about(spec: &MonitorSpec) -> About {
    let metric = |metric: &MetricSpec| MetricAbout { kind: metric.kind.clone(), threshold: metric.threshold, higher_is_better: metric.higher_is_better };
    About {
        monitor: spec.name.clone(),
        description: spec.description.clone(),
        labels: spec.labels.clone(),
        environment: spec.environment.clone(),
        source_kind: spec.source.kind.clone(),
        source_name: spec.source.name.clone(),
        langfuse: spec.source.langfuse.clone().filter(|_| spec.source.kind == "langfuse"),
        metrics: spec.metrics.iter().map(|spec| (spec.name.clone(), metric(spec))).collect(),
    }
}

/// 16 hex digits over all that decides a verdict.
fn revision(metric: &str, threshold: Option<f64>, higher_is_better: bool) -> String {
    blake3::hash(format!("{metric}\0{threshold:?}\0{higher_is_better}").as_bytes()).to_hex()[..16].to_owned()
}

/// Whether any template names a trace's children: fetching them costs a request a trace.
fn wants_observations(spec: &MonitorSpec) -> bool {
    let extract = &spec.extract;
    let texts = [&extract.input, &extract.output, &extract.context, &extract.expected].into_iter().chain(extract.metadata.values());
    let texts =
        texts.map(String::as_str).chain(extract.details().map(|(_, text)| text)).chain(spec.source.filter.as_deref()).chain(spec.sampling.always.as_deref());
    let texts = texts.chain(spec.alerts.iter().filter_map(|alert| Some(alert.by.as_ref()?.value.as_str())));
    let texts = texts.chain(spec.metrics.iter().flat_map(|metric| metric.when.as_deref().into_iter().chain(metric.config.templates())));
    // A session's traces have their own.
    let of_turns = |text: &str| matches!(spec.source.scope, Scope::Session { .. }) && text.contains("observations");
    !extract.patterns.is_empty()
        || texts.into_iter().any(|text| text.contains("trace.steps") || text.contains("trace.observations") || text.contains("trace[") || of_turns(text))
}
