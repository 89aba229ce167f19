//! Stories of groups of alerts: a store of its own, a clock that stands until it is set, and somebody who writes down what they
//! are told.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::*;
use crate::{
    config::Routing,
    model::{AlertEventKind, Group, Severity},
    schedule::clock::Clock,
    sinks::Notifier,
    store::{MovedAlerts, NewNotice, Store},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Refused,
    /// We are killed before they hear it.
    KilledBefore,
    /// We are killed before we know that they heard it.
    KilledAfter,
    Unreadable,
}

/// Somebody who is told; what they heard outlives us.
#[derive(Debug, Clone, Default)]
struct Listener {
    heard: Arc<Mutex<Heard>>,
    killed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Heard {
    news: Vec<News>,
    faults: VecDeque<Fault>,
    /// They know what they heard, and can be asked.
    can_be_asked: bool,
}

#[async_trait]
impl Notifier for Listener {
    async fn notify(&self, news: &News, _: &str, so_far: &mut SoFar) -> Result<(), NotifyError> {
        let fault = {
            let mut heard = self.heard.lock().unwrap();
            let known = heard.can_be_asked && so_far.unsure_since.is_some() && heard.news.iter().any(|other| other.id == news.id);
            let fault = heard.faults.pop_front();
            if !known && !matches!(fault, Some(Fault::Refused | Fault::KilledBefore | Fault::Unreadable)) {
                heard.news.push(news.clone());
            }
            fault
        };
        match fault {
            None => {
                so_far.thread.get_or_insert_with(|| format!("thread of {}", news.id));
                Ok(())
            }
            Some(Fault::Refused) => Err(NotifyError::Retry { message: "busy".to_owned(), retry_after: None, unsure: false }),
            Some(Fault::Unreadable) => Err(NotifyError::Dead("unreadable".to_owned())),
            Some(Fault::KilledBefore | Fault::KilledAfter) => {
                self.killed.notify_one();
                std::future::pending().await
            }
        }
    }
}

#[derive(Debug, Default)]
struct Hand(Mutex<Timestamp>);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

struct Story {
    folder: TempDir,
    clock: Arc<Hand>,
    listener: Listener,
    wait_secs: i64,
    interval_secs: i64,
}

impl Story {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), clock: Arc::default(), listener: Listener::default(), wait_secs: 0, interval_secs: 0 }
    }

    fn at(&self, second: i64) {
        *self.clock.0.lock().unwrap() = Timestamp::from_second(second).unwrap();
    }

    /// We live for as long as this takes.
    async fn alive<T>(&self, story: impl AsyncFnOnce(&Services, &Couriers) -> T) -> T {
        let (store, writer) = Store::open(self.folder.path()).await.unwrap();
        let couriers = Couriers::default();
        couriers.set_notifier("test", "default", Arc::new(self.listener.clone()));
        let clock: Arc<dyn Clock> = Arc::<Hand>::clone(&self.clock);
        let services = Services { store, clock, outbox: Arc::new(watch::Sender::new(())), routing: Arc::new(Routing::default()) };
        let told = async {
            let told = story(&services, &couriers).await;
            // Where it does not close, a kill has been.
            let _ = services.store.close().await;
            told
        };
        tokio::join!(told, writer.run()).0
    }

    async fn happens(&self, services: &Services, events: &[(&str, AlertEventKind)]) {
        let route = Route { sink: "test".to_owned(), connection: "default".to_owned(), target: "#x".to_owned() };
        let labels = BTreeMap::from([("monitor".to_owned(), "m".to_owned())]);
        let group = Group::new(route, labels, self.wait_secs * 1_000_000, self.interval_secs * 1_000_000);
        let notices = events.iter().map(|(alert, kind)| NewNotice { group: group.clone(), event: self.event(alert, *kind) }).collect();
        let moved = MovedAlerts { monitor: "m".to_owned(), at_us: services.now_us(), rows: Vec::new(), removed: Vec::new(), notices, gone: false };
        services.store.record_alerts(moved).await.unwrap();
    }

    fn event(&self, alert: &str, kind: AlertEventKind) -> AlertEvent {
        let at = self.clock.now();
        AlertEvent {
            fingerprint: alert.to_owned(),
            kind,
            monitor: "m".to_owned(),
            alert: alert.to_owned(),
            severity: Severity::Warning,
            condition: String::new(),
            summary: String::new(),
            metric: None,
            value: None,
            interval: None,
            threshold: None,
            n: None,
            window: None,
            since: at,
            at,
            run_id: String::new(),
            labels: BTreeMap::new(),
            worst: Vec::new(),
            history: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Tells what is due, and all that becomes due by it.
    async fn tell(&self, services: &Services, couriers: &Couriers) {
        while matches!(couriers.tell_due(services).await, Ok(Round::Sent)) {}
    }

    /// Something happens, and is told as far as the faults allow; then we are gone.
    async fn step(&self, second: i64, events: &[(&str, AlertEventKind)]) {
        self.at(second);
        self.alive(async |services, couriers| {
            self.happens(services, events).await;
            self.go_on(services, couriers).await;
        })
        .await;
    }

    /// We are back, and tell what is due.
    async fn back(&self, second: i64) {
        self.at(second);
        self.alive(async |services, couriers| self.go_on(services, couriers).await).await;
    }

    async fn go_on(&self, services: &Services, couriers: &Couriers) {
        tokio::select! {
            () = self.tell(services, couriers) => {}
            () = self.listener.killed.notified() => {}
        }
    }

    fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.listener.heard.lock().unwrap().faults.extend(faults);
    }

    /// (what happened, how all stand) of each message, shortly.
    fn heard(&self) -> Vec<String> {
        let one = |event: &AlertEvent| format!("{} {:?}", event.alert, event.kind).to_lowercase();
        let all = |events: &[AlertEvent]| events.iter().map(one).collect::<Vec<_>>().join(", ");
        self.listener.heard.lock().unwrap().news.iter().map(|news| format!("{} | {}", all(&news.changes), all(&news.members))).collect()
    }
}

use AlertEventKind::{Firing, Repeat, Resolved};

#[tokio::test]
async fn alerts_of_a_group_are_one_message_that_changes_with_them() {
    let story = Story::new();
    story.step(0, &[("a", Firing), ("b", Firing)]).await;
    story.step(60, &[("a", Resolved)]).await;
    story.step(120, &[("b", Repeat)]).await;
    story.step(180, &[("b", Resolved)]).await;
    story.step(240, &[("a", Firing)]).await;
    assert_eq!(
        story.heard(),
        [
            "a firing, b firing | a firing, b firing",
            "a resolved | a resolved, b firing",
            "b repeat | a resolved, b repeat",
            "b resolved | a resolved, b resolved",
            "a firing | a firing",
        ]
    );
    let news = &story.listener.heard.lock().unwrap().news;
    assert_eq!(news.iter().map(|news| news.first).collect::<Vec<_>>(), [true, false, false, false, true], "once all is over the next one is another message");
}

#[tokio::test]
async fn the_first_of_a_group_waits_for_the_others() {
    let story = Story { wait_secs: 30, ..Story::new() };
    story.step(0, &[("a", Firing)]).await;
    story.step(20, &[("b", Firing)]).await;
    story.back(29).await;
    assert!(story.heard().is_empty());
    story.back(30).await;
    assert_eq!(story.heard(), ["a firing, b firing | a firing, b firing"]);
}

#[tokio::test]
async fn what_comes_and_goes_while_the_group_waits_is_not_told() {
    let story = Story { wait_secs: 30, ..Story::new() };
    story.step(0, &[("a", Firing)]).await;
    story.step(20, &[("a", Resolved)]).await;
    story.back(3600).await;
    assert!(story.heard().is_empty());
    story.step(7200, &[("a", Firing)]).await;
    story.back(7230).await;
    assert_eq!(story.heard(), ["a firing | a firing"], "the next time it stays");
}

#[tokio::test]
async fn a_group_speaks_no_more_often_than_its_interval() {
    let story = Story { interval_secs: 300, ..Story::new() };
    story.step(0, &[("a", Firing)]).await;
    story.step(60, &[("b", Firing)]).await;
    story.step(120, &[("c", Firing)]).await;
    story.step(180, &[("c", Resolved)]).await;
    assert_eq!(story.heard(), ["a firing | a firing"]);
    story.back(300).await;
    assert_eq!(story.heard()[1..], ["b firing, c firing, c resolved | a firing, b firing, c resolved"]);
}

#[tokio::test]
async fn an_outage_loses_nothing_and_hides_nothing() {
    let story = Story::new();
    story.faults([Fault::Refused, Fault::Refused]);
    story.step(0, &[("a", Firing)]).await;
    story.step(3600, &[("a", Resolved)]).await;
    assert!(story.heard().is_empty());
    story.back(7200).await;
    assert_eq!(story.heard(), ["a firing, a resolved | a resolved"], "it was, and people shall know");
}

#[tokio::test]
async fn what_nobody_could_ever_read_holds_up_nothing() {
    let story = Story::new();
    story.faults([Fault::Unreadable]);
    story.step(0, &[("a", Firing)]).await;
    story.step(60, &[("b", Firing)]).await;
    assert_eq!(story.heard(), ["b firing | b firing"]);
}

#[tokio::test]
async fn a_receiver_that_never_answers_holds_up_no_other() {
    let story = Story::new();
    story.faults([Fault::KilledBefore]);
    let other = Listener::default();
    story
        .alive(async |services, couriers| {
            couriers.set_notifier("test", "other", Arc::new(other.clone()));
            let (stop, stopped) = watch::channel(false);
            let serve = couriers.serve_notices(services, stopped);
            let told = async {
                for n in 0..30 {
                    story.happens(services, &[(&format!("a{n}"), Firing)]).await;
                }
                services.outbox.send_replace(());
                story.listener.killed.notified().await;
                let route = Route { sink: "test".to_owned(), connection: "other".to_owned(), target: "#y".to_owned() };
                let notices = vec![NewNotice { group: Group::alone(route, "b"), event: story.event("b", Firing) }];
                services.store.record_alerts(MovedAlerts { monitor: "m".to_owned(), notices, ..MovedAlerts::default() }).await.unwrap();
                services.outbox.send_replace(());
                let heard = async {
                    while other.heard.lock().unwrap().news.is_empty() {
                        tokio::task::yield_now().await;
                    }
                };
                // Far more than it takes: without it a test that fails would never end.
                tokio::time::timeout(Duration::from_secs(60), heard).await.expect("the other is told");
            };
            tokio::select! {
                () = serve => unreachable!("nobody asked it to stop"),
                () = told => {}
            }
            drop(stop);
        })
        .await;
    assert!(story.heard().is_empty() && other.heard.lock().unwrap().news.len() == 1);
}

/// Every place at which a kill can fall: before we say that we begin, before it is heard, before we know that it was, after.
const KILLS: [Option<Fault>; 3] = [None, Some(Fault::KilledBefore), Some(Fault::KilledAfter)];

#[tokio::test]
async fn a_kill_anywhere_loses_no_transition_and_repeats_one_only_where_nobody_can_be_asked() {
    for can_be_asked in [true, false] {
        for first in KILLS {
            for second in KILLS {
                for third in KILLS {
                    let story = Story::new();
                    story.listener.heard.lock().unwrap().can_be_asked = can_be_asked;
                    let steps = [(0, ("a", Firing), first), (3600, ("b", Firing), second), (7200, ("b", Resolved), third)];
                    for (second, event, kill) in steps {
                        story.at(second);
                        // Killed before anything of it is begun.
                        story.alive(async |services, _| story.happens(services, &[event]).await).await;
                        story.faults(kill);
                        story.back(second + 1).await;
                        story.back(second + 1800).await;
                    }
                    let mut heard = story.heard();
                    let unsure = [first, second, third].into_iter().filter(|kill| *kill == Some(Fault::KilledAfter)).count();
                    let all = heard.len();
                    heard.dedup();
                    assert_eq!(
                        heard,
                        ["a firing | a firing", "b firing | a firing, b firing", "b resolved | a firing, b resolved"],
                        "{first:?} {second:?} {third:?}"
                    );
                    assert_eq!(all - heard.len(), if can_be_asked { 0 } else { unsure }, "{first:?} {second:?} {third:?}");
                }
            }
        }
    }
}
