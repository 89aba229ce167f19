//! A monitor lives through what a test has written: the pipeline as it is, over a store of its own, with stand-ins for the source
//! and for whoever is asked, and a clock that stands where the test puts it.

mod stand_ins;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use anyhow::{Context, anyhow, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::watch;

use self::stand_ins::{Given, Hand, Script, Scripted};
use super::{once::new_order, wire};
use crate::{
    config::{MonitorSpec, Settings, UserRun, UserTest},
    control::RunRequest,
    metrics::Metric,
    model::{RunReport, Trace, Trigger},
    pipeline::{self, BuildEnv, Monitor, Services},
    schedule::{
        clock::{Clock, SystemClock},
        plan::Plan,
    },
    sources::scoped,
    store::{ItemLife, Store},
};

/// What came of the runs of one entry of a test, after the last of them.
#[derive(Debug)]
pub struct Rehearsed {
    /// Which run of the test that was, from 1.
    pub run: usize,
    pub at: Timestamp,
    pub report: RunReport,
    /// What the ledger has of each item that is expected, by the name that the test has for it.
    pub items: BTreeMap<String, Option<ItemLife>>,
}

/// Where a test begins that names no time.
const BEGIN: &str = "2026-01-01T00:00:00Z";

/// A folder that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("assayd-test-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left of it lies where temporary files lie.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Lives through a test; one entry for each of the test's.
///
/// # Errors
/// When the store cannot be made, the monitor not be built, or a trace is none.
pub async fn rehearse(settings: &Settings, test: &UserTest) -> anyhow::Result<Vec<Rehearsed>> {
    let scratch = Scratch::new()?;
    let (store, writer) = Store::open(&scratch.0).await?;
    let story = async {
        let stage = Stage::new(settings, &test.monitor, store.clone());
        let lived = match stage {
            Ok(stage) => stage.live(&test.runs).await,
            Err(error) => Err(error),
        };
        // An error means that it is closed already.
        let _ = store.close().await;
        lived
    };
    let (lived, ()) = tokio::join!(story, writer.run());
    lived
}

struct Stage {
    monitor: Monitor,
    plan: Plan,
    services: Services,
    clock: Arc<Hand>,
    script: Arc<Script>,
}

impl Stage {
    fn new(settings: &Settings, spec: &Arc<MonitorSpec>, store: Store) -> anyhow::Result<Self> {
        let clock = Arc::new(Hand::new(BEGIN.parse()?));
        let script = Arc::new(Script::default());
        let monitor = monitor(settings, spec, &script)?;
        let plan = Plan::new(&spec.schedule, &spec.name)?;
        let services = Services {
            store,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            outbox: Arc::new(watch::Sender::new(())),
            routing: Arc::new(settings.routing.clone()),
        };
        Ok(Self { monitor, plan, services, clock, script })
    }

    async fn live(&self, entries: &[UserRun]) -> anyhow::Result<Vec<Rehearsed>> {
        let mut lived = Vec::with_capacity(entries.len());
        let (mut last, mut number) = (None, 0);
        let mut traces = &[][..];
        let mut verdicts = &BTreeMap::new();
        for entry in entries {
            if !entry.again {
                traces = &entry.traces;
                verdicts = &entry.verdicts;
            } else if !entry.verdicts.is_empty() {
                verdicts = &entry.verdicts;
            }
            let mut end = None;
            for time in 0..entry.times {
                number += 1;
                let at = self.next(entry.at.filter(|_| time == 0), last)?;
                last = Some(at);
                // The first time that traces are given they bear the ids that are written.
                let own = if time == 0 && !entry.again { None } else { Some(number) };
                self.clock.put(at);
                let made = traces.iter().map(|fields| self.trace(fields, at, own)).collect::<anyhow::Result<Vec<Trace>>>()?;
                self.script.add(made);
                self.script.set_verdicts(verdicts.iter().map(|(item, given)| (renamed(item, own), given.clone())).collect());
                end = Some((at, own, self.run(at).await?));
            }
            let Some((at, own, report)) = end else { continue };
            let mut items = BTreeMap::new();
            for item in entry.expect.decisions.keys().chain(entry.expect.scores.keys()) {
                let life = self.services.store.item_life(&self.monitor.spec.name, &renamed(item, own)).await?.pop();
                items.insert(item.clone(), life);
            }
            lived.push(Rehearsed { run: number, at, report, items });
        }
        Ok(lived)
    }

    /// When the next run is.
    fn next(&self, wanted: Option<Timestamp>, last: Option<Timestamp>) -> anyhow::Result<Timestamp> {
        if let (Some(wanted), Some(last)) = (wanted, last) {
            ensure!(wanted > last, "`at: {wanted}` is not after the run before, at {last}");
        }
        let slot = || match last {
            None => self.plan.latest_at(self.clock.now()).or_else(|| self.plan.next_after(self.clock.now())),
            Some(last) => self.plan.next_after(last),
        };
        wanted.or_else(slot).ok_or_else(|| anyhow!("the schedule has no slot more; say `at`"))
    }

    /// One without a time is as young as a run takes it.
    fn trace(&self, fields: &serde_json::Map<String, Value>, at: Timestamp, own: Option<usize>) -> anyhow::Result<Trace> {
        let mut fields = fields.clone();
        for key in ["id", "session_id"] {
            if let Some(Value::String(id)) = fields.get_mut(key) {
                *id = renamed(id, own);
            }
        }
        let settled = at.checked_sub(SignedDuration::from_millis(self.monitor.spec.source.settle.millis() + 1000))?;
        // The traces of a run that is lived through again are as old as they were.
        if own.is_some() || !fields.contains_key("timestamp") {
            fields.insert("timestamp".to_owned(), json!(settled));
        }
        let id = fields.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        serde_json::from_value(Value::Object(fields)).map_err(|error| anyhow!("trace `{id}`: {error}"))
    }

    async fn run(&self, at: Timestamp) -> anyhow::Result<RunReport> {
        let request = RunRequest { no_publish: true, ..RunRequest::default() };
        let order = new_order(&self.monitor.spec, Some(&self.plan), at, Trigger::Schedule, &request, None);
        self.services.store.begin_run(order.run.clone()).await?;
        Ok(pipeline::run(&self.monitor, &self.services, &order).await?)
    }
}

/// The name of an item of a later run: a scope's item is `TRACE/OBSERVATION`.
fn renamed(item: &str, run: Option<usize>) -> String {
    match (run, item.split_once('/')) {
        (None, _) => item.to_owned(),
        (Some(_), _) if item == "*" => item.to_owned(),
        (Some(run), None) => format!("{item}~{run}"),
        (Some(run), Some((trace, rest))) => format!("{trace}~{run}/{rest}"),
    }
}

/// The monitor with stand-ins for its source and for all that is asked.
fn monitor(settings: &Settings, spec: &Arc<MonitorSpec>, script: &Arc<Script>) -> anyhow::Result<Monitor> {
    let http = wire::http(settings)?;
    let (gateway, _) = wire::gateway(settings, &http, None, Arc::new(SystemClock))?;
    let env = BuildEnv {
        connections: &settings.connections,
        http: &http,
        models: &gateway,
        prompts: &wire::prompts(settings, &http),
        processes: &wire::no_processes(),
        runs: &wire::no_runs(),
        base_dir: &settings.base_dir,
    };
    let built = Monitor::build(Arc::clone(spec), &env)?;
    let source = scoped(Arc::new(Given(Arc::clone(script))), &spec.source.scope, spec.source.settle)?;
    Ok(built.rehearsed(source, |metric| Arc::new(Scripted { script: Arc::clone(script), metric: metric.to_owned() }) as Arc<dyn Metric>))
}
