//! The monitors of a running daemon: which there are, which run, what a slot or a reload does to them.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, OnceLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    between::Turn,
    lateness, once,
    supervisor::{Ended, Supervisor},
    wire::{self, World},
};
use crate::{
    alerting::FILE_REFUSED,
    config::{Change, Loaded, MonitorSpec, diff},
    control::{Refusal, RunRequest},
    model::{AlertState, Changes, OutboxChange, RunReport, Trigger},
    pipeline::{self, Monitor, NOTICES, Order, Scheduled, Services, Watched},
    schedule::{
        plan::{CatchUp, Plan},
        queue::{Due, Queue},
    },
    store::{QueueStatus, RunRow},
    telemetry,
};

/// One monitor.
struct Active {
    spec: Arc<MonitorSpec>,
    plan: Arc<Plan>,
    /// Built when it first runs, by the run's own task: a thousand monitors that share a slot do not wait for each other.
    built: Arc<OnceLock<Arc<Monitor>>>,
    /// Since when it has been on, with this schedule.
    since: Timestamp,
}

/// Whoever evaluates alerts between runs.
pub(super) struct Between {
    pub watch: watch::Sender<Arc<Watched>>,
    pub turn: Turn,
}

/// What a run is to do.
enum What {
    Slot(Timestamp, Trigger),
    Asked(Order),
    /// Of a run that stands in the store.
    Rest(Order),
}

type Reply = oneshot::Sender<Result<RunReport, Refusal>>;

/// A run that has to be done, and waits for a place where all are taken.
struct Wanted {
    monitor: Arc<str>,
    what: What,
    reply: Option<Reply>,
}

pub(super) struct Monitors {
    world: Arc<World>,
    queue: Queue,
    active: BTreeMap<Arc<str>, Active>,
    /// Monitors whose run is under way or waits for a place: a monitor never overlaps itself.
    busy: HashSet<Arc<str>>,
    /// In the order of their slots. Thousands may share one, so a wait costs an entry here and no task.
    waiting: VecDeque<Wanted>,
    runs: Supervisor,
    couriers: Supervisor,
    /// Beside the runs, which go first; of each monitor one at a time.
    backfills: Supervisor,
    backfilling: HashSet<String>,
    /// True: no further items of the past are begun.
    draining: watch::Sender<bool>,
    /// What people ask for, beside runs.
    errands: Supervisor,
    stopped: watch::Receiver<bool>,
    /// Queues that want a courier.
    queues: mpsc::UnboundedSender<String>,
    between: Between,
    faults: Vec<String>,
    /// The alerts of monitors that went while nobody was here were ended.
    cleaned: bool,
}

/// Why alerts end that nothing else would end.
const REMOVED: &str = "the monitor was removed";
const DISABLED: &str = "the monitor was disabled";

/// `gone`: no file has the monitor any more.
async fn end_alerts(world: &World, turn: &Turn, monitor: &str, why: &str, gone: bool) {
    let _turn = turn.lock().await;
    if let Err(error) = pipeline::end_alerts(&world.services, monitor, why, gone).await {
        tracing::warn!(monitor, error = %format!("{error:#}"), "the alerts of a monitor that runs no longer could not be ended");
    }
    tell_states(&world.services, monitor).await;
}

/// The monitor, built once; its queues that nobody serves yet are handed over.
fn build(world: &World, spec: &Arc<MonitorSpec>, cell: &OnceLock<Arc<Monitor>>, queues: &mpsc::UnboundedSender<String>) -> anyhow::Result<Arc<Monitor>> {
    if let Some(built) = cell.get() {
        return Ok(Arc::clone(built));
    }
    // A monitor never overlaps itself, so nobody else builds it now; were it so, both would be the same.
    let built = world.build(spec)?;
    for queue in world.register(&built) {
        // A receiver that is gone means that the daemon is going down.
        let _ = queues.send(queue);
    }
    Ok(Arc::clone(cell.get_or_init(|| built)))
}

/// A monitor, and where it is once it is built.
type Publisher = (Arc<MonitorSpec>, Arc<OnceLock<Arc<Monitor>>>);

/// A monitor that publishes to the queue.
fn owner<'a>(publishers: &'a [Publisher], queue: &str) -> Option<&'a Publisher> {
    publishers.iter().find(|(spec, _)| spec.publish.iter().any(|sink| sink.queue() == queue))
}

/// Has queues with waiting rows served; returns those that no monitor publishes to.
async fn serve_waiting(world: &World, publishers: &[Publisher], queues: &mpsc::UnboundedSender<String>) -> Result<Vec<QueueStatus>, sqlx::Error> {
    let mut stranded = Vec::new();
    for waiting in world.services.store.queues().await?.into_iter().filter(|queue| queue.waiting > 0) {
        match owner(publishers, &waiting.name) {
            Some((spec, built)) => {
                if let Err(error) = build(world, spec, built, queues) {
                    tracing::error!(monitor = %spec.name, error = %format!("{error:#}"), "the monitor could not be built");
                }
            }
            None => stranded.push(waiting),
        }
    }
    Ok(stranded)
}

impl Monitors {
    /// `queues`: hands back queues that are to be served ([`Monitors::serve`]).
    pub fn new(world: Arc<World>, queue: Queue, queues: mpsc::UnboundedSender<String>, stopped: watch::Receiver<bool>, between: Between) -> Self {
        let mut couriers = Supervisor::default();
        let (of_notices, until) = (Arc::clone(&world), stopped.clone());
        couriers.spawn(NOTICES, async move { of_notices.couriers.serve_notices(&of_notices.services, until).await });
        Self {
            world,
            queue,
            active: BTreeMap::new(),
            busy: HashSet::new(),
            waiting: VecDeque::new(),
            runs: Supervisor::default(),
            couriers,
            backfills: Supervisor::default(),
            backfilling: HashSet::new(),
            draining: watch::Sender::new(false),
            errands: Supervisor::default(),
            stopped,
            queues,
            between,
            faults: Vec::new(),
            cleaned: false,
        }
    }

    pub fn len(&self) -> usize {
        self.active.len()
    }

    pub fn last_beat(&self) -> Timestamp {
        self.queue.last_beat()
    }

    /// Finishes what was interrupted, catches up what was missed.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let store = &self.world.services.store;
        let open: Vec<RunRow> = store.open_runs().await?;
        let last = store.last_slots().await?;
        let now = self.world.services.clock.now();
        for run in open {
            if run.trigger == Trigger::Backfill {
                pipeline::end_interrupted(&self.world.services, &run).await?;
                continue;
            }
            let (name, id) = (run.monitor.clone(), run.id.clone());
            let order = Order { run, dry_run: false, gate: None, backfill: None, period: None, progress: None };
            if self.start_run(&name, What::Rest(order), None) {
                tracing::info!(monitor = %name, run = %id, "finishing a run that was interrupted");
            }
        }
        let specs: Vec<_> = self.active.values().map(|active| (Arc::clone(&active.spec), Arc::clone(&active.plan))).collect();
        for (spec, plan) in specs.into_iter().filter(|(spec, _)| spec.enabled) {
            let missed = plan.latest_at(now).filter(|slot| last.get(&spec.name).is_some_and(|last| *last < slot.as_microsecond()));
            if let Some(slot) = missed.filter(|_| spec.schedule.catch_up == CatchUp::Once) {
                self.start_run(&spec.name, What::Slot(slot, Trigger::CatchUp), None);
            } else if spec.schedule.on_start {
                self.start_run(&spec.name, What::Slot(now, Trigger::Start), None);
            }
        }
        // Queues that hold rows of an earlier process get their couriers now, not at the next run.
        for stranded in serve_waiting(&self.world, &self.publishers(), &self.queues).await? {
            tracing::error!(
                queue = %stranded.name,
                waiting = stranded.waiting,
                "rows wait for a sink that no monitor publishes to: it was removed, or its settings are others now. A monitor with the old settings delivers them, `assayd outbox drop --waiting` forgets them"
            );
        }
        Ok(())
    }

    /// A slot is due.
    pub fn due(&mut self, due: &Due) {
        telemetry::slot_fired(lateness(self.world.services.clock.now(), due.slot));
        let busy = self.busy.contains(&due.monitor);
        let missed = due.missed + u64::from(busy);
        if missed > 0 {
            telemetry::slots_missed(&due.monitor, missed);
        }
        if !busy {
            self.start_run(&due.monitor, What::Slot(due.slot, Trigger::Schedule), None);
        }
    }

    /// Of monitors that were removed or disabled while nobody was here: once, as soon as all files are read. While one is refused
    /// nobody knows what it holds.
    fn end_alerts_of_the_gone(&mut self, loaded: &Loaded) {
        if self.cleaned || !loaded.faults.is_empty() || !loaded.broken.is_empty() {
            return;
        }
        self.cleaned = true;
        let enabled: HashMap<String, bool> = self.active.values().map(|active| (active.spec.name.clone(), active.spec.enabled)).collect();
        let (world, turn) = (Arc::clone(&self.world), Arc::clone(&self.between.turn));
        self.errands.spawn("alerts", async move {
            let alerted = world.services.store.alerted_monitors(FILE_REFUSED.name).await;
            for name in alerted.inspect_err(|error| tracing::warn!(%error, "old alerts could not be looked for")).unwrap_or_default() {
                match enabled.get(&name) {
                    Some(true) => {}
                    Some(false) => end_alerts(&world, &turn, &name, DISABLED, false).await,
                    None => end_alerts(&world, &turn, &name, REMOVED, true).await,
                }
            }
        });
    }

    /// Nothing else would ever end what fires of a monitor that runs no longer.
    fn end_alerts(&mut self, monitor: &str, why: &'static str, gone: bool) {
        let (world, monitor, turn) = (Arc::clone(&self.world), monitor.to_owned(), Arc::clone(&self.between.turn));
        self.errands.spawn("alerts", async move { end_alerts(&world, &turn, &monitor, why, gone).await });
    }

    /// Tells the watcher outside, where there is one, that work begins.
    pub fn tell_start(&mut self) {
        let world = Arc::clone(&self.world);
        self.errands.spawn("heartbeat", async move {
            if let Some(heartbeat) = &world.heartbeat {
                heartbeat.start().await;
            }
        });
    }

    pub fn run_now(&mut self, name: &str, request: &RunRequest, reply: Reply) {
        let refuse = |reply: Reply, refusal| drop(reply.send(Err(refusal)));
        let Some(active) = self.active.get(name) else { return refuse(reply, Refusal::NoSuchMonitor(name.to_owned())) };
        if request.backfill.is_some() {
            return self.backfill(name, request, reply);
        }
        if self.busy.contains(name) {
            return refuse(reply, Refusal::Busy(name.to_owned()));
        }
        match once::order(&self.world, &active.spec, request, None, &self.draining.subscribe()) {
            Ok(order) => {
                self.start_run(name, What::Asked(order), Some(reply));
            }
            Err(error) => refuse(reply, Refusal::Unfit(error.to_string())),
        }
    }

    /// Beside the monitor's runs, until it is done, nobody waits for it any more, or the daemon stops.
    fn backfill(&mut self, name: &str, request: &RunRequest, mut reply: Reply) {
        let Some(active) = self.active.get(name) else { return };
        if !self.backfilling.insert(name.to_owned()) {
            // A caller that went away needs no answer.
            return drop(reply.send(Err(Refusal::Backfilling(name.to_owned()))));
        }
        let (world, queues, mut draining) = (Arc::clone(&self.world), self.queues.clone(), self.draining.subscribe());
        let (spec, cell, request) = (Arc::clone(&active.spec), Arc::clone(&active.built), request.clone());
        self.backfills.spawn(name, async move {
            let (stop, stopped) = watch::channel(false);
            let work = async {
                let monitor = build(&world, &spec, &cell, &queues)?;
                let order = once::order(&world, &spec, &request, None, &stopped)?;
                if !order.dry_run {
                    world.services.store.begin_run(order.run.clone()).await?;
                }
                anyhow::Ok(pipeline::run(&monitor, &world.services, &order).await?)
            };
            let mut work = std::pin::pin!(work);
            let done = tokio::select! {
                done = &mut work => Some(done),
                () = reply.closed() => None,
                _ = draining.wait_for(|draining| *draining) => None,
            };
            let done = match done {
                Some(done) => done,
                None => {
                    // What is under way is paid for.
                    stop.send_replace(true);
                    work.await
                }
            };
            // As above.
            drop(reply.send(done.map_err(|error| Refusal::Unfit(format!("{error:#}")))));
        });
    }

    fn publishers(&self) -> Vec<Publisher> {
        self.active.values().map(|active| (Arc::clone(&active.spec), Arc::clone(&active.built))).collect()
    }

    /// Has rows sent again, or forgets them. Rows that wait for a monitor's sink are not forgotten: they will arrive.
    pub fn change_outbox(&mut self, change: OutboxChange, reply: oneshot::Sender<Result<u64, Refusal>>) {
        if let OutboxChange::Drop { queue, waiting: true } = &change
            && let Some((spec, _)) = owner(&self.publishers(), queue)
        {
            // A caller that went away needs no answer.
            drop(reply.send(Err(Refusal::Unfit(format!("monitor `{}` publishes to `{queue}`: what waits there will be sent", spec.name)))));
            return;
        }
        let (world, publishers, queues) = (Arc::clone(&self.world), self.publishers(), self.queues.clone());
        self.errands.spawn("outbox", async move {
            let changed = world.services.store.change_outbox(change).await.map_err(|_| Refusal::Stopping);
            // A queue that held nothing when we started may have no courier yet.
            if let Err(error) = serve_waiting(&world, &publishers, &queues).await {
                tracing::warn!(%error, "the outbox could not be read");
            }
            world.services.outbox.send_replace(());
            // As above.
            drop(reply.send(changed));
        });
    }

    /// Serves a queue from now on.
    pub fn serve(&mut self, queue: String) {
        let (world, until) = (Arc::clone(&self.world), self.stopped.clone());
        self.couriers.spawn(queue.clone(), async move { world.couriers.serve(&world.services, &queue, until).await });
    }

    /// False when the monitor is gone or has a run already.
    fn start_run(&mut self, name: &str, what: What, reply: Option<Reply>) -> bool {
        let Some((monitor, _)) = self.active.get_key_value(name) else {
            if let Some(reply) = reply {
                // A caller that went away needs no answer.
                drop(reply.send(Err(Refusal::NoSuchMonitor(name.to_owned()))));
            }
            return false;
        };
        let monitor = Arc::clone(monitor);
        let free = self.busy.insert(Arc::clone(&monitor));
        if free {
            self.waiting.push_back(Wanted { monitor, what, reply });
            self.fill_places();
        }
        free
    }

    /// Hands waiting runs to their tasks as long as there are places.
    fn fill_places(&mut self) {
        while self.runs.len() < self.world.settings.concurrency.runs.max(1) {
            let Some(wanted) = self.waiting.pop_front() else { return };
            self.begin(wanted);
        }
    }

    fn begin(&mut self, Wanted { monitor, what, reply }: Wanted) {
        let Some(active) = self.active.get(&monitor) else {
            // Removed while it waited.
            self.busy.remove(&monitor);
            if let Some(reply) = reply {
                // As above.
                drop(reply.send(Err(Refusal::NoSuchMonitor(monitor.to_string()))));
            }
            return;
        };
        let (spec, plan, cell) = (Arc::clone(&active.spec), Arc::clone(&active.plan), Arc::clone(&active.built));
        let (world, queues) = (Arc::clone(&self.world), self.queues.clone());
        self.runs.spawn(&*monitor, async move {
            let services = &world.services;
            let monitor = match build(&world, &spec, &cell, &queues) {
                Ok(monitor) => monitor,
                Err(error) => {
                    tracing::error!(monitor = %spec.name, error = %format!("{error:#}"), "the monitor could not be built");
                    if let Some(reply) = reply {
                        // As above.
                        drop(reply.send(Err(Refusal::Unfit(format!("{error:#}")))));
                    }
                    return;
                }
            };
            let (order, new) = match what {
                What::Slot(slot, trigger) => (once::new_order(&spec, Some(&plan), slot, trigger, &RunRequest::default(), None), true),
                What::Asked(order) => (order, true),
                What::Rest(order) => (order, false),
            };
            if new && !order.dry_run {
                match services.store.begin_run(order.run.clone()).await {
                    Ok(true) => {}
                    // Somebody ran this slot already.
                    Ok(false) | Err(_) => return,
                }
            }
            let Ok(report) = pipeline::run(&monitor, services, &order).await else { return };
            // A dry run and a release check evaluate none.
            if !report.alerts.is_empty() {
                tell_states(services, &report.monitor).await;
            }
            if let Some(reply) = reply {
                // As above.
                drop(reply.send(Ok(report.clone())));
            }
            if let Some(heartbeat) = &world.heartbeat {
                heartbeat.after(&report, services).await;
            }
        });
    }

    pub async fn run_ended(&mut self) -> Ended {
        loop {
            tokio::select! {
                ended = self.runs.ended() => return ended,
                _ = self.errands.ended() => {}
                ended = self.backfills.ended() => drop(self.backfilling.remove(&ended.name)),
            }
        }
    }

    pub fn ended(&mut self, ended: Ended) {
        self.busy.remove(ended.name.as_str());
        // What the run made of its alerts nothing would end.
        match self.active.get(ended.name.as_str()) {
            Some(active) if active.spec.enabled => {}
            Some(_) => self.end_alerts(&ended.name, DISABLED, false),
            None => self.end_alerts(&ended.name, REMOVED, true),
        }
        self.fill_places();
    }

    /// Acts on what a look found. Monitors that did not change are not touched. `asked`: by a person, who reads of it even
    /// if nothing changed.
    pub fn take_up(&mut self, loaded: &Loaded, asked: bool) -> Changes {
        let old = self.active.values().map(|active| (active.spec.name.clone(), Arc::clone(&active.spec))).collect();
        let (acts, mut changes) = diff(&old, &loaded.monitors, &loaded.broken);
        changes.faults = loaded.faults.iter().map(ToString::to_string).collect();
        self.report(loaded, &changes, asked || !acts.is_empty());
        let now = self.world.services.clock.now();
        for act in acts {
            match act {
                Change::Added(spec) | Change::Changed(spec) => {
                    // While a run is under way they are ended by its end.
                    if !spec.enabled && !self.busy.contains(spec.name.as_str()) {
                        self.end_alerts(&spec.name, DISABLED, false);
                    }
                    self.set(spec, now);
                }
                Change::Removed(name) => {
                    self.queue.remove(&name);
                    self.active.remove(name.as_str());
                    if !self.busy.contains(name.as_str()) {
                        self.end_alerts(&name, REMOVED, true);
                    }
                }
            }
        }
        self.end_alerts_of_the_gone(loaded);
        self.world.prompts.set_uses(wire::uses(self.active.values().map(|active| &active.spec)));
        let disabled = self.active.values().filter(|active| !active.spec.enabled).count();
        telemetry::monitors("active", self.active.len() - disabled);
        telemetry::monitors("disabled", disabled);
        telemetry::monitors("broken", loaded.broken.len());
        self.watch(loaded);
        changes
    }

    /// What is evaluated between runs, as it changes.
    pub fn watched(&self) -> watch::Receiver<Arc<Watched>> {
        self.between.watch.subscribe()
    }

    /// What is evaluated between runs from now on.
    fn watch(&self, loaded: &Loaded) {
        let on = self.active.values().filter(|active| active.spec.enabled);
        let scheduled = |active: &Active| Scheduled { spec: Arc::clone(&active.spec), plan: Arc::clone(&active.plan), since: active.since };
        let monitors = on.map(|active| (active.spec.name.clone(), scheduled(active))).collect();
        self.between.watch.send_modify(|watched| {
            // A look that failed found neither faults nor files.
            let failed = loaded.faults.is_empty() && !loaded.broken.is_empty();
            let refused = if failed { watched.refused.clone() } else { loaded.refused(self.active.values().map(|active| &active.spec)) };
            *watched = Arc::new(Watched { monitors, refused, tell_refused: self.world.settings.watch.is_on(FILE_REFUSED.name) });
        });
    }

    /// Says what is new, once.
    fn report(&mut self, loaded: &Loaded, changes: &Changes, acted: bool) {
        if acted || changes.faults != self.faults {
            telemetry::reloaded(if changes.faults.is_empty() { "success" } else { "failure" });
            tracing::info!(files = loaded.files, added = ?changes.added, changed = ?changes.changed, removed = ?changes.removed, kept = ?changes.kept, "monitors loaded");
            for fault in changes.faults.iter().filter(|fault| !self.faults.contains(fault)) {
                tracing::error!("{fault}");
            }
            self.faults.clone_from(&changes.faults);
        }
    }

    fn set(&mut self, spec: Arc<MonitorSpec>, now: Timestamp) {
        let name: Arc<str> = spec.name.as_str().into();
        spec.warnings.iter().for_each(|warning| tracing::warn!(monitor = %name, "{warning}"));
        match Plan::new(&spec.schedule, &spec.name) {
            Ok(plan) => {
                let plan = Arc::new(plan);
                if spec.enabled {
                    self.queue.set(&name, Arc::clone(&plan), now);
                } else {
                    self.queue.remove(&name);
                }
                let before = self.active.get(&name).filter(|before| before.spec.enabled && before.spec.schedule == spec.schedule);
                let since = before.map_or(now, |before| before.since);
                self.active.insert(name, Active { spec, plan, built: Arc::default(), since });
            }
            Err(fault) => tracing::error!(monitor = %name, %fault, "the schedule does not hold"),
        }
    }

    /// No new slots; runs under way get `grace`, those that wait are caught up after the restart. Returns the monitors
    /// whose runs were ended.
    pub async fn drain(&mut self, grace: Duration) -> Vec<String> {
        self.waiting.clear();
        let names: Vec<_> = self.active.keys().cloned().collect();
        names.iter().for_each(|name| self.queue.remove(name));
        self.draining.send_replace(true);
        let (mut left, backfills) = tokio::join!(self.runs.finish(grace), self.backfills.finish(grace));
        left.extend(backfills);
        left
    }

    pub async fn stop_couriers(&mut self, grace: Duration) {
        let left = self.couriers.finish(grace).await;
        if !left.is_empty() {
            tracing::warn!(sinks = ?left, "still sending when the time was up; what they held stays queued");
        }
    }
}

const STATES: [AlertState; 8] = [
    AlertState::Inactive,
    AlertState::Pending,
    AlertState::Firing,
    AlertState::Resolved,
    AlertState::Learning,
    AlertState::NoData,
    AlertState::Insufficient,
    AlertState::Error,
];

/// How many alerts of the monitor are in each state.
pub(super) async fn tell_states(services: &Services, monitor: &str) {
    // What cannot be read now is told after the next evaluation.
    let Ok(counted) = services.store.alert_states(monitor).await else { return };
    for state in STATES {
        let n = counted.iter().find(|(name, _)| name == state.as_str()).map_or(0, |(_, n)| *n);
        telemetry::alerts(monitor, state.as_str(), u32::try_from(n).unwrap_or(u32::MAX));
    }
}
