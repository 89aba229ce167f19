//! What a monitor's runs would do, without a store to write to: for `assayd plan`.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::wire;
use crate::{
    config::{MonitorSpec, Settings},
    control::RunRequest,
    metrics,
    model::{Backfill, RunReport, Trigger},
    pipeline::{self, BuildEnv, Monitor, Order, Services, Task},
    schedule::clock::SystemClock,
    sinks::Runs,
    store::Store,
};

/// What the runs of a window would have fetched, drawn and judged, had nothing been known before. Asks the source and nobody
/// else, and writes nothing.
///
/// # Errors
/// What of the monitor cannot be built; a source that does not answer is a report.
pub async fn look(settings: &Settings, spec: &Arc<MonitorSpec>, store: &Store, since: Timestamp, until: Timestamp) -> anyhow::Result<RunReport> {
    let http = wire::http(settings)?;
    let (gateway, _) = wire::gateway(settings, &http, None, Arc::new(SystemClock))?;
    let prompts: Arc<dyn metrics::Prompts> = wire::prompts(settings, &http);
    let runs: Arc<dyn Runs> = wire::no_runs();
    let processes = &wire::no_processes();
    let (connections, base_dir) = (&settings.connections, &settings.base_dir);
    let env = BuildEnv { connections, http: &http, models: &gateway, prompts: &prompts, processes, runs: &runs, base_dir };
    let monitor = Monitor::build(Arc::clone(spec), &env)?;
    let services =
        Services { store: store.clone(), clock: Arc::new(SystemClock), outbox: Arc::new(watch::Sender::new(())), routing: Arc::new(settings.routing.clone()) };
    let request = RunRequest { since: Some(since), until: Some(until), dry_run: true, ..RunRequest::default() };
    let order = super::once::new_order(spec, None, until, Trigger::Backfill, &request, None);
    let task = Task { asked: Backfill::default(), stop: watch::channel(false).1, afresh: true };
    Ok(pipeline::run(&monitor, &services, &Order { backfill: Some(task), ..order }).await?)
}
