//! The daemon: one loop owns all state of the monitors ([`run`]); runs, couriers and the API are tasks that send it
//! messages. What a message does is a method; the loop itself fits on a screen.

mod between;
mod heartbeat;
mod housekeeping;
mod infer;
mod look;
mod monitors;
mod once;
mod outbox;
mod prompts;
mod rehearse;
mod reload;
mod silences;
pub mod supervisor;
mod watch;
pub mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use jiff::Timestamp;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::sync::{mpsc, watch as channel};

use self::{
    monitors::{Between, Monitors},
    reload::{Asker, Looks},
    supervisor::Supervisor,
    watch::Files,
    wire::World,
};
use crate::{
    config::Settings,
    control::{Command, Control},
    pipeline::Digests,
    schedule::{
        clock::{Clock, SystemClock},
        queue::{Due, Queue},
    },
    telemetry, web,
};
pub use infer::infer;
pub use look::look;
pub use once::once;
pub use outbox::change_outbox;
pub use prompts::refresh_prompts;
pub use rehearse::{Rehearsed, rehearse};
pub use silences::silence;

/// How long couriers get to send what is left when the daemon stops.
const LAST_SENDING: Duration = Duration::from_secs(5);

/// Between two clean-ups of what was counted, which take milliseconds where there are thousands of monitors.
const UPKEEP: Duration = Duration::from_secs(10);

/// Slots handed over before anything else gets a turn.
const BURST: usize = 256;

/// Runs until a signal ends it.
///
/// # Errors
/// When the daemon cannot be set up, or a part that it cannot do without is gone.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let settings = Arc::new(settings);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let metrics = telemetry::start().context("setting up metrics")?;
    let (world, hands) = World::open(Arc::clone(&settings), Arc::clone(&clock)).await?;
    let world = Arc::new(world);

    let mut core = Supervisor::default();
    core.spawn("store", hands.writer.run());
    core.spawn("hooks", hands.runner.run());
    core.spawn("processes", supervisor::each("process", hands.processes));
    let (control, mut commands) = Control::channel();
    let ready = Arc::new(AtomicBool::new(false));
    let (stop, stopped) = channel::channel(false);
    core.spawn("prompts", hands.keeper.run(stopped.clone()));
    if let Some(address) = settings.listen {
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let (work, begun) = mpsc::unbounded_channel();
        let web = web::Web {
            control,
            store: world.services.store.clone(),
            metrics: metrics.clone(),
            ready: Arc::clone(&ready),
            token: settings.auth.as_ref().map(|auth| auth.token.clone()),
            models: Arc::clone(&world.gateway) as Arc<dyn crate::providers::Models>,
            prompts: world.prompts.clone(),
            work,
        };
        core.spawn("streams", supervisor::each("stream", begun));
        let app = web::router(web).into_make_service_with_connect_info::<std::net::SocketAddr>();
        let mut stopped = stopped.clone();
        core.spawn("api", async move {
            let end = async move {
                // A sender that is gone asks for the same.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(end).await {
                tracing::error!(%error, "the API ended");
            }
        });
        tracing::info!(%address, "listening");
    }

    let mut until = stopped.clone();
    core.spawn("metrics", async move {
        // A sender that is gone asks for the same as a `true`.
        while tokio::time::timeout(UPKEEP, until.wait_for(|stop| *stop)).await.is_err() {
            metrics.run_upkeep();
        }
    });

    let (slots, mut due) = mpsc::unbounded_channel::<Due>();
    // A closed receiver means that the daemon is going down, and slots no longer matter.
    let queue = Queue::start(Arc::clone(&clock), move |due| drop(slots.send(due))).context("starting the timer")?;
    let (dirty, mut changed) = mpsc::channel(1);
    let mut files = settings.poll.is_none().then(|| Files::watch(&settings.monitors, dirty));
    let (unserved, mut queues) = mpsc::unbounded_channel();
    let (watch, watched) = channel::channel(Arc::default());
    let turn = between::Turn::default();
    let mut monitors = Monitors::new(Arc::clone(&world), queue, unserved, stopped.clone(), Between { watch, turn: Arc::clone(&turn) });
    let mut looks = Looks::new(Arc::clone(&settings));
    looks.ask(Asker::Start);
    let loaded = looks.found().await;
    looks.done(&monitors.take_up(&loaded, true));
    core.spawn("watch", between::watch(Arc::clone(&world), watched, turn, between::LOOK, stopped.clone()));
    if let Some(digest) = &settings.digest {
        let digests = Digests::new(digest.daily.clone(), digest.notify.clone());
        core.spawn("digest", between::digest(Arc::clone(&world), digests, monitors.watched(), between::LOOK, stopped));
    }
    monitors.start().await?;
    let mut chores = housekeeping::start(&world.services, &world.gateway, settings.retention).await?;
    let mut signals = signals(&[SIGTERM, SIGINT, SIGHUP])?;

    ready.store(true, Ordering::Relaxed);
    // Without systemd these say nothing to nobody.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(monitors = monitors.len(), "ready");
    monitors.tell_start();

    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let rescan = settings.poll.map_or(watch::RESCAN, |poll| poll.0.max(Duration::from_millis(200)));
    let mut batch = Vec::with_capacity(BURST);
    let mut next_look = tokio::time::Instant::now() + rescan;
    let failure = loop {
        tokio::select! {
            1.. = due.recv_many(&mut batch, BURST) => batch.drain(..).for_each(|due| monitors.due(&due)),
            ended = monitors.run_ended() => monitors.ended(ended),
            Some(queue) = queues.recv() => monitors.serve(queue),
            loaded = looks.found() => looks.done(&monitors.take_up(&loaded, looks.asked())),
            Some(command) = commands.recv() => match command {
                Command::RunNow { monitor, request, reply } => monitors.run_now(&monitor, &request, reply),
                Command::Reload { reply } => looks.ask(Asker::Api(reply)),
                Command::Outbox { change, reply } => monitors.change_outbox(change, reply),
            },
            Some(()) = changed.recv() => next_look = next_look.min(tokio::time::Instant::now() + watch::SETTLE),
            () = tokio::time::sleep_until(next_look) => {
                if let Some(files) = &mut files {
                    files.again();
                }
                looks.ask(Asker::Watch);
                next_look = tokio::time::Instant::now() + rescan;
            }
            Some(signal) = signals.recv() => match signal {
                SIGHUP => {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading]);
                    looks.ask(Asker::Signal);
                }
                _ => break None,
            },
            ended = core.ended() => break Some(format!("`{}` ended; the daemon cannot do without it", ended.name)),
            _ = tick.tick() => {
                if clock.now().duration_since(monitors.last_beat()) < jiff::SignedDuration::from_secs(10) {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                }
            }
        }
    };

    // Drain: no new slot, runs get their grace, sinks are flushed, the store closes.
    ready.store(false, Ordering::Relaxed);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!(grace = %settings.shutdown_grace, "stopping");
    let drained = async {
        if let Err(error) = chores.shutdown().await {
            tracing::debug!(%error, "housekeeping did not end in order");
        }
        let left = monitors.drain(settings.shutdown_grace.0).await;
        if !left.is_empty() {
            tracing::warn!(runs = ?left, "ended before they were done; they are finished after the restart");
        }
        stop.send_replace(true);
        monitors.stop_couriers(LAST_SENDING).await;
        world.couriers.flush(&world.services, Duration::ZERO).await;
        world.processes.close();
        world.gateway.finish().await;
        // An error means that it is closed already.
        let _ = world.services.store.close().await;
        drop((monitors, commands));
        core.finish(LAST_SENDING).await;
    };
    tokio::select! {
        () = drained => {}
        Some(_) = second(&mut signals) => {
            tracing::warn!("a second signal: leaving at once");
            // Nothing is dropped by leaving.
            world.processes.kill();
            std::process::exit(1);
        }
    }
    tracing::info!("stopped");
    failure.map_or(Ok(()), |failure| Err(anyhow::anyhow!(failure)))
}

/// The next signal that asks to stop.
async fn second(signals: &mut mpsc::Receiver<i32>) -> Option<i32> {
    loop {
        match signals.recv().await {
            Some(SIGHUP) => {}
            other => return other,
        }
    }
}

/// Signals as messages.
fn signals(which: &[i32]) -> anyhow::Result<mpsc::Receiver<i32>> {
    let (sender, receiver) = mpsc::channel(8);
    let mut signals = signal_hook::iterator::Signals::new(which).context("handling signals")?;
    std::thread::Builder::new().name("assayd-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if sender.blocking_send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// How late a slot is, never negative.
fn lateness(now: Timestamp, slot: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(slot)).unwrap_or_default()
}
