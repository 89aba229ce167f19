//! Alerts between runs: what has to be seen though no run ends. A monitor whose runs are missed, a file that was refused.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    Services,
    alerts::{Moved, Of, SWITCHED_OFF, found, silences},
};
use crate::{
    alerting::{
        AlertMemory, Builtin, FILE_REFUSED, Finding, STALLED,
        silence::Silence,
        watch::{Doing, Stall, file_refused, stalled},
    },
    config::MonitorSpec,
    model::AlertState,
    schedule::plan::Plan,
    store::{Closed, MovedAlerts},
};

/// A monitor that runs by its schedule.
#[derive(Debug, Clone)]
pub struct Scheduled {
    pub spec: Arc<MonitorSpec>,
    pub plan: Arc<Plan>,
    /// Since when it has been on, with this schedule, in this process.
    pub since: Timestamp,
}

/// What is watched, as the daemon has it now.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    pub monitors: BTreeMap<String, Scheduled>,
    /// What is wrong with files that were refused, by the monitor's name or what stands for it.
    pub refused: BTreeMap<String, String>,
    /// Whether the settings want to be told of those.
    pub tell_refused: bool,
}

/// Why a look did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("{0}")]
    Store(#[from] sqlx::Error),
    #[error("{0}")]
    Closed(#[from] Closed),
}

/// Without a look for so long the machine slept or the clock was set: what did not happen meanwhile is no stall.
const ABSENT: SignedDuration = SignedDuration::from_secs(60);

/// Looks, again and again.
#[derive(Debug, Default)]
pub struct Watcher {
    /// By monitor.
    known: HashMap<String, Known>,
    last_look: Option<Timestamp>,
    /// What is missed is missed since then at the earliest.
    awake_since: Option<Timestamp>,
}

/// What is known of a monitor's runs, so that a look at thousands asks neither the store nor their schedules.
#[derive(Debug, Default)]
struct Known {
    /// The newest success when it was last asked for.
    success: Option<Timestamp>,
    due: Option<Due>,
}

/// By when a success should have come that is waited for since then.
#[derive(Debug)]
struct Due {
    since: Timestamp,
    plan: Arc<Plan>,
    at: Option<Timestamp>,
}

impl Known {
    /// Two more slots, and the time that a run may take: a long run that is under way is none that is missed.
    fn due(&mut self, scheduled: &Scheduled, began: Timestamp) -> Option<Timestamp> {
        let since = self.success.map_or(began, |success| success.max(began));
        if let Some(due) = self.due.as_ref().filter(|due| due.since == since && Arc::ptr_eq(&due.plan, &scheduled.plan)) {
            return due.at;
        }
        let plan = &scheduled.plan;
        let second = plan.next_after(since).and_then(|first| plan.next_after(first));
        let at = second.and_then(|second| second.checked_add(scheduled.spec.schedule.timeout.0).ok());
        self.due = Some(Due { since, plan: Arc::clone(plan), at });
        at
    }
}

/// What a look works with.
struct Look<'a> {
    services: &'a Services,
    watched: &'a Watched,
    silences: Vec<Silence>,
    now: Timestamp,
    /// Each look counts once, as a run does.
    id: String,
}

impl Watcher {
    /// Evaluates what is evaluated between runs, and stores what moved with the messages that follow, monitor by monitor; returns
    /// the monitors whose alerts moved. To be called again within a minute.
    ///
    /// # Errors
    /// The store's: what was not stored is evaluated by the next look.
    pub async fn look(&mut self, services: &Services, watched: &Watched) -> Result<Vec<String>, LookError> {
        let now = services.clock.now();
        if self.last_look.is_none_or(|last| now.duration_since(last).abs() > ABSENT) {
            self.awake_since = Some(now);
        }
        self.last_look = Some(now);
        self.known.retain(|name, _| watched.monitors.contains_key(name));
        let look = Look { services, watched, silences: silences(services, now).await?, now, id: format!("look {now}") };
        let mut moved = self.stalls(&look).await?;
        moved.extend(look.refusals().await?);
        if !moved.is_empty() {
            services.outbox.send_replace(());
        }
        Ok(moved)
    }

    async fn stalls(&mut self, look: &Look<'_>) -> Result<Vec<String>, LookError> {
        let mut memories = look.memories(STALLED.name).await?;
        let mut moved = Vec::new();
        for (name, scheduled) in &look.watched.monitors {
            let before = memories.remove(name);
            let over = before.as_ref().filter(|_| !scheduled.spec.has_alert(STALLED.name));
            if !scheduled.spec.watches(STALLED.name) {
                if let Some(before) = over {
                    look.forget(name, &STALLED, before, SWITCHED_OFF).await?;
                    moved.push(name.clone());
                }
                continue;
            }
            let before = before.unwrap_or_default();
            let stall = self.stall(look, name, scheduled, &before).await?;
            if look.evaluate(name, &STALLED, stalled(&stall), &before).await? {
                moved.push(name.clone());
            }
        }
        Ok(moved)
    }

    async fn stall(&mut self, look: &Look<'_>, name: &str, scheduled: &Scheduled, before: &AlertMemory) -> Result<Stall, sqlx::Error> {
        let now = look.now;
        let fires = before.state == AlertState::Firing;
        let since = scheduled.since.max(self.awake_since.unwrap_or(now));
        let known = self.known.entry(name.to_owned()).or_default();
        let mut doing = Doing::Nothing;
        if fires || known.due(scheduled, since).is_some_and(|due| now > due) {
            let last = look.services.store.last_success(name).await?;
            known.success = last.and_then(|us| Timestamp::from_microsecond(us).ok());
            doing = self::doing(look, name).await?;
        }
        let over = known.success.zip(before.firing_since).is_some_and(|(success, began)| success >= began);
        Ok(Stall { now, since, last_success: known.success, due: known.due(scheduled, since), fires: fires && !over, doing })
    }
}

async fn doing(look: &Look<'_>, name: &str) -> Result<Doing, sqlx::Error> {
    let store = &look.services.store;
    if let Some(since) = store.under_way(name).await?.and_then(|us| Timestamp::from_microsecond(us).ok()) {
        return Ok(Doing::Runs(since));
    }
    let last = store.last_reports(name, 1).await?.pop();
    Ok(last.and_then(|run| run.error).map_or(Doing::Nothing, Doing::Failed))
}

impl Look<'_> {
    async fn memories(&self, alert: &str) -> Result<BTreeMap<String, AlertMemory>, sqlx::Error> {
        let stored = self.services.store.alerts_named(alert).await?;
        // A memory that no longer reads starts anew, as after a run.
        Ok(stored.into_iter().map(|(monitor, json)| (monitor, serde_json::from_str(&json).unwrap_or_default())).collect())
    }

    fn of<'a>(&'a self, monitor: &'a str) -> Of<'a> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let spec = self.watched.monitors.get(monitor).map(|scheduled| &scheduled.spec);
        let labels = spec.map_or(&NONE, |spec| &spec.labels);
        let maintenance = spec.map_or(&[][..], |spec| &spec.maintenance);
        Of { services: self.services, monitor, labels, maintenance, run_id: "", now: self.now }
    }

    /// True where something changed, which is stored then.
    async fn evaluate(&self, monitor: &str, builtin: &Builtin, finding: Finding, before: &AlertMemory) -> Result<bool, LookError> {
        let (of, mut moved) = (self.of(monitor), Moved::default());
        let evaluation = found(builtin, finding, before, self.now, &self.id);
        match moved.settle(of, before, &evaluation, None, &self.silences, None) {
            Some(event) => moved.tell(self.services, event, evaluation.notify).await?,
            None if evaluation.after.memory.state == before.state => return Ok(false),
            None => {}
        }
        self.store(monitor, moved).await?;
        Ok(true)
    }

    async fn forget(&self, monitor: &str, builtin: &Builtin, before: &AlertMemory, why: &str) -> Result<(), LookError> {
        let mut moved = Moved::default();
        moved.end(self.of(monitor), builtin.name.to_owned(), before, why).await?;
        self.store(monitor, moved).await
    }

    async fn store(&self, monitor: &str, moved: Moved) -> Result<(), LookError> {
        let Moved { rows, removed, notices, .. } = moved;
        let moved = MovedAlerts { monitor: monitor.to_owned(), at_us: self.now.as_microsecond(), rows, removed, notices, gone: false };
        Ok(self.services.store.record_alerts(moved).await?)
    }

    async fn refusals(&self) -> Result<Vec<String>, LookError> {
        let memories = self.memories(FILE_REFUSED.name).await?;
        let own = |name: &String| self.watched.monitors.get(name).is_some_and(|scheduled| scheduled.spec.has_alert(FILE_REFUSED.name));
        let names: BTreeSet<&String> = memories.keys().chain(self.watched.refused.keys()).filter(|name| !own(name)).collect();
        let mut moved = Vec::new();
        for name in names {
            let why = self.watched.refused.get(name).filter(|_| self.watched.tell_refused);
            let changed = match (why, memories.get(name)) {
                (Some(why), before) => self.evaluate(name, &FILE_REFUSED, file_refused(why), &before.cloned().unwrap_or_default()).await?,
                (None, Some(before)) => {
                    let why = if self.watched.tell_refused { "no file of it is refused any more" } else { SWITCHED_OFF };
                    self.forget(name, &FILE_REFUSED, before, why).await?;
                    true
                }
                (None, None) => false,
            };
            if changed {
                moved.push(name.clone());
            }
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        config::{Cache, Overrides, load_monitors, load_settings},
        model::{RunReport, RunStatus, Trigger},
        schedule::clock::Clock,
        store::{FinishedRun, GroupTold, RunRow, Store, TellingEnd},
    };

    const START: i64 = 1_767_225_600;

    /// Stands where it was put, in minutes.
    #[derive(Debug, Default)]
    struct Hand(Mutex<i64>);

    impl Clock for Hand {
        fn now(&self) -> Timestamp {
            at(*self.0.lock().unwrap())
        }
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(START + minute * 60).unwrap()
    }

    /// A monitor every ten minutes, whose runs may take five.
    fn scheduled(folder: &std::path::Path, watch: &str) -> Scheduled {
        let config = folder.join("assayd.yaml");
        std::fs::write(&config, "{}").unwrap();
        std::fs::create_dir_all(folder.join("monitors")).unwrap();
        let text = format!(
            "schedule: {{ every: 10m, timeout: 5m }}\nsource: {{ type: file, path: x }}\nmetrics: [{{ name: a, type: length, max: 1 }}]\nwatch: {{ {watch} }}\n"
        );
        std::fs::write(folder.join("monitors/m.yaml"), text).unwrap();
        let settings = load_settings(&Overrides { config: Some(config), ..Overrides::default() }).unwrap();
        let loaded = load_monitors(&settings.monitors, &settings, &mut Cache::default());
        let spec = Arc::clone(&loaded.monitors["m"]);
        let plan = Arc::new(Plan::new(&spec.schedule, &spec.name).unwrap());
        Scheduled { spec, plan, since: at(0) }
    }

    struct Stage {
        services: Services,
        clock: Arc<Hand>,
        watched: Watched,
        watcher: Watcher,
    }

    impl Stage {
        /// Looks each minute until then, and says in which ones somebody is told.
        async fn until(&mut self, minute: i64) -> Vec<String> {
            let mut told = Vec::new();
            let from = *self.clock.0.lock().unwrap();
            for now in from..=minute {
                *self.clock.0.lock().unwrap() = now;
                self.watcher.look(&self.services, &self.watched).await.unwrap();
                for group in self.services.store.due_groups(i64::MAX, &BTreeSet::new(), 9).await.unwrap() {
                    let events = group.waiting.iter().map(|(_, event)| event.clone().unwrap());
                    told.extend(events.map(|event| format!("{now} {:?}: {}", event.kind, event.summary)));
                    let notices = group.waiting.iter().map(|(id, _)| *id).collect();
                    let end = TellingEnd::Delivered { thread: None, members: Vec::new() };
                    self.services.store.record_told(GroupTold { group: group.id, at_us: now, notices, end }).await.unwrap();
                }
            }
            told
        }

        async fn run(&self, id: &str, minute: i64, status: RunStatus) {
            let us = at(minute).as_microsecond();
            let row = RunRow {
                id: id.to_owned(),
                monitor: "m".to_owned(),
                slot_us: us,
                trigger: Trigger::Schedule,
                seed: 1,
                publish: true,
                started_us: us,
                since_us: None,
                until_us: None,
                drawn: true,
            };
            self.services.store.begin_run(row).await.unwrap();
            if status == RunStatus::Running {
                return;
            }
            let error = (status == RunStatus::Failed).then(|| "HTTP 500".to_owned());
            let report = RunReport { error, ..RunReport::empty(id.to_owned(), "m".to_owned(), at(minute), Trigger::Schedule, status) };
            let end = FinishedRun { new_items: 0, report, at_us: us, alerts: Vec::new(), removed_alerts: Vec::new(), notices: Vec::new(), version: None };
            self.services.store.finish_run(end).await.unwrap();
        }

        /// A process that begins now, and knows what was stored.
        fn restart(&mut self) {
            let now = self.services.clock.now();
            self.watcher = Watcher::default();
            self.watched.monitors.get_mut("m").unwrap().since = now;
        }
    }

    async fn play(watch: &str, story: impl AsyncFnOnce(&mut Stage, &std::path::Path)) {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let clock = Arc::new(Hand::default());
        let services =
            Services { store, clock: Arc::clone(&clock) as Arc<dyn Clock>, outbox: Arc::new(tokio::sync::watch::Sender::new(())), routing: Arc::default() };
        let watched = Watched { monitors: BTreeMap::from([("m".to_owned(), scheduled(folder.path(), watch))]), tell_refused: true, ..Watched::default() };
        let mut stage = Stage { services, clock, watched, watcher: Watcher::default() };
        let story = async {
            story(&mut stage, folder.path()).await;
            stage.services.store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }

    #[tokio::test]
    async fn two_slots_and_the_time_of_a_run_may_pass() {
        play("", async |stage, _| {
            assert_eq!(stage.until(25).await, Vec::<String>::new());
            assert_eq!(stage.until(26).await, ["26 Firing: no run has done its work for 26m; none is under way"]);
            stage.run("a", 27, RunStatus::Failed).await;
            assert_eq!(stage.until(60).await, Vec::<String>::new(), "said once");
            stage.run("b", 60, RunStatus::Partial).await;
            assert_eq!(stage.until(60).await, ["60 Resolved: runs do their work"]);
            stage.run("c", 71, RunStatus::Running).await;
            assert_eq!(stage.until(85).await, Vec::<String>::new());
            assert_eq!(stage.until(90).await, ["86 Firing: the last run that did its work ended 26m ago; one has been under way for 15m"]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_time_in_which_nobody_looked_is_no_stall() {
        play("", async |stage, _| {
            stage.run("a", 0, RunStatus::Succeeded).await;
            stage.until(5).await;
            *stage.clock.0.lock().unwrap() = 5_000;
            stage.restart();
            assert_eq!(stage.until(5_015).await, Vec::<String>::new());
            // The machine slept.
            *stage.clock.0.lock().unwrap() = 9_000;
            assert_eq!(stage.until(9_025).await, Vec::<String>::new());
            assert_eq!(stage.until(9_026).await.len(), 1);
            stage.restart();
            *stage.clock.0.lock().unwrap() = 12_000;
            assert_eq!(
                stage.until(12_001).await,
                ["12000 Repeat: the last run that did its work ended 8d 8h ago; none is under way"],
                "a new process is no success"
            );
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_switched_off_or_has_an_alert_of_its_own_is_left_alone() {
        play("stalled: false", async |stage, folder| {
            assert_eq!(stage.until(100).await, Vec::<String>::new());
            stage.watched.monitors.insert("m".to_owned(), scheduled(folder, ""));
            assert_eq!(stage.until(101).await.len(), 1);
            stage.watched.monitors.insert("m".to_owned(), scheduled(folder, "stalled: false"));
            assert_eq!(stage.until(102).await, ["101 Resolved: the alert was switched off"]);
            assert_eq!(stage.services.store.alert_memories("m").await.unwrap(), []);
        })
        .await;
    }

    #[tokio::test]
    async fn a_refused_file_is_said_once_and_ends() {
        play("", async |stage, _| {
            stage.watched.refused.insert("half".to_owned(), "half.yaml:1:1: no".to_owned());
            assert_eq!(stage.until(3).await, ["0 Firing: a file was refused, what was good before goes on: half.yaml:1:1: no"]);
            stage.restart();
            assert_eq!(stage.until(6).await, Vec::<String>::new());
            stage.watched.tell_refused = false;
            assert_eq!(stage.until(7).await, ["6 Resolved: the alert was switched off"]);
            stage.watched.tell_refused = true;
            assert_eq!(stage.until(8).await.len(), 1);
            stage.watched.refused.clear();
            assert_eq!(stage.until(9).await, ["8 Resolved: no file of it is refused any more"]);
            assert_eq!(stage.services.store.alert_memories("half").await.unwrap(), []);
        })
        .await;
    }
}
