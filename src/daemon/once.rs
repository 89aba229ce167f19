//! One run without the daemon: `assayd once`.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::sync::watch;

use super::{
    supervisor::{self, Supervisor},
    wire::World,
};
use crate::{
    config::{MonitorSpec, Settings},
    control::RunRequest,
    model::{RunReport, Trigger, run_id},
    pipeline::{self, Order, Progress},
    schedule::{clock::SystemClock, plan::Plan},
    store::RunRow,
};

/// A run by hand, beginning now.
///
/// # Errors
/// When the request reaches further back than the ledger remembers.
pub(super) fn order(world: &World, spec: &MonitorSpec, request: &RunRequest, progress: Option<watch::Sender<Progress>>) -> anyhow::Result<Order> {
    let now = world.services.clock.now();
    let kept = world.settings.retention.decisions;
    // A release check looks at known items too, and uses what was judged.
    if let Some(since) = request.since
        && request.gate.is_none()
        && now.duration_since(since).as_millis() > i128::from(kept.millis())
    {
        bail!("--since {since} lies further back than decisions are remembered ({kept}): items would be judged again");
    }
    let plan = Plan::new(&spec.schedule, &spec.name).ok();
    let trigger = if request.gate.is_some() { Trigger::Gate } else { Trigger::Manual };
    Ok(new_order(spec, plan.as_ref(), now, trigger, request, progress))
}

/// The order of a new run. Its slot is where its seed comes from, so the same run draws the same items.
pub(super) fn new_order(
    spec: &MonitorSpec,
    plan: Option<&Plan>,
    slot: jiff::Timestamp,
    trigger: Trigger,
    request: &RunRequest,
    progress: Option<watch::Sender<Progress>>,
) -> Order {
    let id = run_id(&spec.name, slot, trigger);
    let seed = spec.sampling.seed.map_or_else(
        || {
            let mut head = [0; 8];
            head.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..8]);
            i64::from_le_bytes(head)
        },
        |seed| i64::from_ne_bytes(seed.to_ne_bytes()),
    );
    let slot_us = slot.as_microsecond();
    let run = RunRow {
        id,
        monitor: spec.name.clone(),
        slot_us,
        trigger,
        seed,
        publish: !request.no_publish,
        started_us: slot_us,
        since_us: request.since.map(jiff::Timestamp::as_microsecond),
        until_us: request.until.map(jiff::Timestamp::as_microsecond),
        drawn: false,
    };
    let period = plan.and_then(|plan| plan.period(slot));
    Order { run, dry_run: request.dry_run, gate: request.gate.clone(), period, progress }
}

/// Runs one monitor now, finishing what an interrupted run left, and delivers what can be delivered.
///
/// # Errors
/// When the store or the monitor cannot be set up, or a signal asks to stop; a run that failed is a report, not an error.
pub async fn once(settings: Settings, spec: Arc<MonitorSpec>, request: RunRequest, progress: watch::Sender<Progress>) -> anyhow::Result<RunReport> {
    let mut signals = super::signals(&[SIGINT, SIGTERM])?;
    tokio::select! {
        report = to_its_end(settings, spec, request, progress) => report,
        // Its tasks are dropped with it, and with them the processes of metrics and all that those have started.
        _ = signals.recv() => bail!("interrupted; the next run finishes what this one has begun"),
    }
}

async fn to_its_end(settings: Settings, spec: Arc<MonitorSpec>, request: RunRequest, progress: watch::Sender<Progress>) -> anyhow::Result<RunReport> {
    let patience = settings.retry.max_elapsed.max(Duration::from_secs(1));
    let (world, hands) = World::open(Arc::new(settings), Arc::new(SystemClock)).await?;
    // Nothing is looked at ahead of time in a process that runs once.
    drop(hands.keeper);
    let monitor = world.build(&spec)?;
    let queues = world.register(&monitor);
    let order = order(&world, &spec, &request, Some(progress))?;

    let mut tasks = Supervisor::default();
    tasks.spawn("store", hands.writer.run());
    tasks.spawn("hooks", hands.runner.run());
    tasks.spawn("processes", supervisor::each("process", hands.processes));
    let (stop, stopped) = watch::channel(false);
    let mut couriers = Supervisor::default();
    for queue in queues {
        let (of_queue, services, stopped) = (Arc::clone(&world.couriers), world.services.clone(), stopped.clone());
        couriers.spawn(queue.clone(), async move { of_queue.serve(&services, &queue, stopped).await });
    }

    if !request.dry_run {
        for open in world.services.store.open_runs().await?.into_iter().filter(|run| run.monitor == spec.name) {
            tracing::info!(monitor = %spec.name, run = %open.id, "finishing a run that was interrupted");
            let resumed = Order { run: open, dry_run: false, gate: None, period: order.period, progress: None };
            pipeline::run(&monitor, &world.services, &resumed).await?;
        }
        world.services.store.begin_run(order.run.clone()).await?;
    }
    let mut report = pipeline::run(&monitor, &world.services, &order).await?;
    stop.send_replace(true);
    couriers.finish(Duration::from_secs(30)).await;
    if !request.dry_run {
        world.couriers.flush(&world.services, patience).await;
        report.published = pipeline::published(&world.services, &report.run_id, &monitor).await;
    }
    world.processes.close();
    world.gateway.finish().await;
    // An error means that it is closed already.
    let _ = world.services.store.close().await;
    tasks.finish(Duration::from_secs(30)).await;
    Ok(report)
}
