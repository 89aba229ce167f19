//! Tells people. What happened waits in the store, by group; the courier takes what is due, has it said, and keeps how far that
//! came. What cannot be said to one receiver holds no other one up.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    Services,
    publish::{Couriers, Round, Stop, again, sleep_until, stopped},
};
use crate::{
    alerting::group::{came_and_went, louder, stand},
    model::{AlertEvent, AlertEventKind, News, Route},
    sinks::{NotifyError, SoFar, slack::plain},
    store::{DueGroup, GroupTold, TellingEnd, Told},
};

/// The queue of messages, in logs.
pub const NOTICES: &str = "notices";
/// Groups that one receiver is told of at a time.
const TOGETHER: u32 = 10;

/// What is due, by receiver, and when others will be.
struct Found {
    due: BTreeMap<Route, Vec<DueGroup>>,
    until_us: Option<i64>,
}

impl Couriers {
    /// Serves the messages until `stop` says so or the store closes. Receivers are told side by side, and one that takes long holds up
    /// no other.
    pub async fn serve_notices(&self, services: &Services, mut stop: watch::Receiver<bool>) {
        let mut wake = services.outbox.subscribe();
        let (mut telling, mut busy) = (FuturesUnordered::new(), BTreeSet::new());
        loop {
            // Told to stop, what is under way ends, and nothing further is begun.
            let mut until_us = None;
            if !*stop.borrow() {
                match self.next_round(services, &busy).await {
                    Ok(Found { due, until_us: next }) => {
                        until_us = next;
                        for (route, groups) in due {
                            busy.insert(route.clone());
                            telling.push(self.tell_one(services, route, groups, stop.clone()));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(queue = NOTICES, %error, "the outbox could not be read");
                        until_us = Some(services.now_us() + 1_000_000);
                    }
                }
            } else if telling.is_empty() {
                return;
            }
            tokio::select! {
                Some((route, told)) = telling.next() => match told {
                    Ok(()) => drop(busy.remove(&route)),
                    Err(Stop::Closed) => return,
                    Err(Stop::Store(error)) => {
                        tracing::warn!(queue = NOTICES, %error, "the outbox could not be read");
                        busy.remove(&route);
                    }
                },
                () = stopped(&mut stop), if !*stop.borrow() => {}
                changed = wake.changed() => if changed.is_err() { return },
                () = sleep_until(services, until_us) => {}
            }
        }
    }

    async fn next_round(&self, services: &Services, busy: &BTreeSet<Route>) -> Result<Found, sqlx::Error> {
        let mut due: BTreeMap<Route, Vec<DueGroup>> = BTreeMap::new();
        for group in services.store.due_groups(services.now_us(), busy, TOGETHER).await? {
            due.entry(group.group.route.clone()).or_default().push(group);
        }
        let busy: BTreeSet<Route> = busy.iter().chain(due.keys()).cloned().collect();
        Ok(Found { due, until_us: services.store.next_telling_us(&busy).await? })
    }

    /// One receiver, one group after the other. Where a group has to wait, the others most likely have to as well.
    async fn tell_one(&self, services: &Services, route: Route, groups: Vec<DueGroup>, stop: watch::Receiver<bool>) -> (Route, Result<(), Stop>) {
        for group in groups {
            match self.tell(services, group).await {
                Ok(true) if !*stop.borrow() => {}
                Ok(_) => break,
                Err(error) => return (route, Err(error)),
            }
        }
        (route, Ok(()))
    }

    /// Tells what is due, the receivers side by side.
    pub(super) async fn tell_due(&self, services: &Services) -> Result<Round, Stop> {
        let Found { due, until_us } = self.next_round(services, &BTreeSet::new()).await?;
        if due.is_empty() {
            return Ok(Round::Idle { until_us });
        }
        let (_go_on, stop) = watch::channel(false);
        let told = join_all(due.into_iter().map(|(route, groups)| self.tell_one(services, route, groups, stop.clone()))).await;
        told.into_iter().map(|(_, told)| told).collect::<Result<Vec<()>, Stop>>()?;
        Ok(Round::Sent)
    }

    /// Whether it was told, or there is nothing to tell.
    async fn tell(&self, services: &Services, due: DueGroup) -> Result<bool, Stop> {
        let notices = due.waiting.iter().map(|(id, _)| *id).collect();
        let end = match news(&due) {
            Some(news) => {
                let begun = GroupTold { group: due.id, at_us: services.now_us(), notices, end: TellingEnd::Begun };
                services.store.record_told(begun.clone()).await?;
                let end = self.say(&due, &news, services.clock.now()).await;
                GroupTold { at_us: services.now_us(), end, ..begun }
            }
            None => GroupTold { group: due.id, at_us: services.now_us(), notices, end: nothing_to_tell(&due) },
        };
        let told = !matches!(end.end, TellingEnd::Again { .. });
        services.store.record_told(end).await?;
        Ok(told)
    }

    async fn say(&self, due: &DueGroup, news: &News, now: Timestamp) -> TellingEnd {
        let Route { sink, connection, target } = &due.group.route;
        // What is over is forgotten: the next one begins anew.
        let delivered = |thread| if news.over() { (None, Vec::new()) } else { (thread, news.members.clone()) };
        let Some(notifier) = self.notifier(sink, connection) else {
            for event in &news.changes {
                tracing::warn!(monitor = %event.monitor, alert = %event.alert, kind = ?event.kind, run = %event.run_id, "alert: {}", plain(event));
            }
            let (thread, members) = delivered(None);
            return TellingEnd::Delivered { thread, members };
        };
        let Told { thread, pages, unsure_us } = due.told.clone();
        let mut so_far = SoFar { thread, pages, unsure_since: unsure_us.and_then(|us| Timestamp::from_microsecond(us).ok()) };
        let answer = notifier.notify(news, target, &mut so_far).await;
        let named: Vec<&str> = news.changes.iter().map(|event| event.alert.as_str()).collect();
        match answer {
            Ok(()) => {
                let (thread, members) = delivered(so_far.thread);
                TellingEnd::Delivered { thread, members }
            }
            Err(NotifyError::Dead(error)) => {
                tracing::error!(alerts = ?named, to = %target, %error, "an alert could not be delivered and is given up");
                TellingEnd::Dead { error, members: without(&due.members, news) }
            }
            Err(NotifyError::Retry { message, retry_after, unsure }) => {
                tracing::warn!(alerts = ?named, to = %target, error = %message, "an alert waits to be delivered");
                let since = so_far.unsure_since.unwrap_or(now).as_microsecond();
                let told = Told { thread: so_far.thread, pages: so_far.pages, unsure_us: unsure.then_some(since) };
                TellingEnd::Again { failure: again(now, due.attempts, retry_after, message), told }
            }
        }
    }
}

/// What is to be told of a group; `None` where there is nothing.
fn news(due: &DueGroup) -> Option<News> {
    let changes: Vec<AlertEvent> = due.waiting.iter().filter_map(|(_, event)| event.clone()).collect();
    let (last, _) = due.waiting.last()?;
    let patience = Duration::from_micros(u64::try_from(due.group.wait_us.max(due.group.interval_us)).unwrap_or(0));
    // Somebody may have heard the beginning.
    let tried = due.attempts > 0 || due.told.pages > 0 || due.told.unsure_us.is_some();
    if changes.is_empty() || !tried && came_and_went(&due.members, &changes, patience) {
        return None;
    }
    let louder = louder(&due.members, &changes);
    let members = stand(&due.members, &changes);
    // A message of these very news does not make them old.
    let first = due.members.is_empty() && (due.told.thread.is_none() || due.told.pages > 0);
    Some(News { id: format!("{}-{last}", due.group.key), key: due.group.key.clone(), labels: due.group.labels.clone(), changes, members, first, louder })
}

/// What people know, but for alerts of which nothing could be told: what cannot be read must not make later messages unreadable. Nothing
/// where nothing else fires.
fn without(members: &[AlertEvent], news: &News) -> Vec<AlertEvent> {
    let unreadable = |member: &AlertEvent| news.changes.iter().any(|event| (&event.monitor, &event.alert) == (&member.monitor, &member.alert));
    let left: Vec<AlertEvent> = members.iter().filter(|member| !unreadable(member)).cloned().collect();
    if left.iter().all(|member| member.kind == AlertEventKind::Resolved) { Vec::new() } else { left }
}

fn nothing_to_tell(due: &DueGroup) -> TellingEnd {
    if due.waiting.iter().all(|(_, event)| event.is_none()) {
        tracing::error!(group = due.id, "messages to people no longer read and are given up");
        return TellingEnd::Dead { error: "it no longer reads".to_owned(), members: due.members.clone() };
    }
    TellingEnd::Delivered { thread: due.told.thread.clone(), members: due.members.clone() }
}

#[cfg(test)]
mod tests;
