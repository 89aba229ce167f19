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
    model::{Backfill, Budget, Per, RunReport, Trigger, run_id},
    pipeline::{self, Order, Progress, Task},
    schedule::{clock::SystemClock, plan::Plan},
    store::RunRow,
};

/// A run by hand, beginning now. `stop`: ends a backfill early.
///
/// # Errors
/// When the request reaches further back than the ledger remembers.
pub(super) fn order(
    world: &World,
    spec: &MonitorSpec,
    request: &RunRequest,
    progress: Option<watch::Sender<Progress>>,
    stop: &watch::Receiver<bool>,
) -> anyhow::Result<Order> {
    let now = world.services.clock.now();
    let kept = world.settings.retention.decisions;
    // A release check looks at known items too, and uses what was judged.
    if let Some(since) = request.since
        && request.gate.is_none()
        && !request.backfill.as_ref().is_some_and(|backfill| backfill.rejudge)
        && now.duration_since(since).as_millis() > i128::from(kept.millis())
    {
        match request.backfill {
            Some(_) => bail!(
                "--from {since} lies further back than decisions are remembered ({kept}): items that were left out would be drawn anew; --rejudge does that"
            ),
            None => bail!("--since {since} lies further back than decisions are remembered ({kept}): items would be judged again"),
        }
    }
    if let Some(backfill) = &request.backfill {
        sound(spec, request, backfill)?;
    }
    let plan = Plan::new(&spec.schedule, &spec.name).ok();
    let trigger = match (&request.gate, &request.backfill) {
        (Some(_), _) => Trigger::Gate,
        (None, Some(_)) => Trigger::Backfill,
        (None, None) => Trigger::Manual,
    };
    let order = new_order(spec, plan.as_ref(), now, trigger, request, progress);
    Ok(Order { backfill: request.backfill.clone().map(|asked| Task { asked, stop: stop.clone(), afresh: false }), ..order })
}

/// # Errors
/// What of a backfill cannot be asked for.
fn sound(spec: &MonitorSpec, request: &RunRequest, asked: &Backfill) -> anyhow::Result<()> {
    anyhow::ensure!(request.since.zip(request.until).is_some_and(|(since, until)| since < until), "a backfill has a begin, and an end behind it");
    anyhow::ensure!(asked.per_minute.is_none_or(|rate| rate.is_finite() && rate > 0.0), "the rate is a number of items above 0");
    anyhow::ensure!(asked.max_usd.is_none_or(|usd| Budget::new(usd, Per::Run).is_ok()), "the limit is no amount of money");
    let unknown = asked.metrics.iter().find(|name| spec.metrics.iter().all(|metric| metric.name != **name));
    anyhow::ensure!(unknown.is_none(), "the monitor has no metric `{}`", unknown.map_or("", String::as_str));
    Ok(())
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
    let seed = pipeline::seed(&spec.sampling, &id);
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
    Order { run, dry_run: request.dry_run, gate: request.gate.clone(), backfill: None, period, progress }
}

/// Runs one monitor now, finishing what an interrupted run left, and delivers what can be delivered.
///
/// # Errors
/// When the store or the monitor cannot be set up, or a signal asks to stop; a run that failed is a report, not an error.
pub async fn once(settings: Settings, spec: Arc<MonitorSpec>, request: RunRequest, progress: watch::Sender<Progress>) -> anyhow::Result<RunReport> {
    let mut signals = super::signals(&[SIGINT, SIGTERM])?;
    let (stop, stopped) = watch::channel(false);
    let is_backfill = request.backfill.is_some();
    let mut run = std::pin::pin!(to_its_end(settings, spec, request, progress, stopped));
    tokio::select! {
        report = &mut run => return report,
        _ = signals.recv() => {}
    }
    // Its tasks are dropped with it, and with them the processes of metrics and all that those have started.
    anyhow::ensure!(is_backfill, "interrupted; the next run finishes what this one has begun");
    // What is under way is paid for.
    stop.send_replace(true);
    tokio::select! {
        report = run => report,
        _ = signals.recv() => bail!("interrupted; begun again with the same arguments it goes on"),
    }
}

async fn to_its_end(
    settings: Settings,
    spec: Arc<MonitorSpec>,
    request: RunRequest,
    progress: watch::Sender<Progress>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<RunReport> {
    let patience = settings.retry.max_elapsed.max(Duration::from_secs(1));
    let (world, hands) = World::open(Arc::new(settings), Arc::new(SystemClock)).await?;
    // Nothing is looked at ahead of time in a process that runs once.
    drop(hands.keeper);
    let monitor = world.build(&spec)?;
    let queues = world.register(&monitor);
    let order = order(&world, &spec, &request, Some(progress), &stop)?;

    let mut tasks = Supervisor::default();
    tasks.spawn("store", hands.writer.run());
    tasks.spawn("hooks", hands.runner.run());
    tasks.spawn("processes", supervisor::each("process", hands.processes));
    let (end, ended) = watch::channel(false);
    let mut couriers = Supervisor::default();
    for queue in queues {
        let (of_queue, services, ended) = (Arc::clone(&world.couriers), world.services.clone(), ended.clone());
        couriers.spawn(queue.clone(), async move { of_queue.serve(&services, &queue, ended).await });
    }

    if !request.dry_run {
        for open in world.services.store.open_runs().await?.into_iter().filter(|run| run.monitor == spec.name) {
            if open.trigger == Trigger::Backfill {
                pipeline::end_interrupted(&world.services, &open).await?;
                continue;
            }
            tracing::info!(monitor = %spec.name, run = %open.id, "finishing a run that was interrupted");
            let resumed = Order { run: open, dry_run: false, gate: None, backfill: None, period: order.period, progress: None };
            pipeline::run(&monitor, &world.services, &resumed).await?;
        }
        world.services.store.begin_run(order.run.clone()).await?;
    }
    let mut report = pipeline::run(&monitor, &world.services, &order).await?;
    end.send_replace(true);
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
