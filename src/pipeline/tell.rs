//! Tells people. What happened waits in the store, by group; the courier takes what is due, has it said, and keeps how far that
//! came. What cannot be said to one receiver holds no other one up.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    Services,
    publish::{Couriers, Round, Stop, again, sleep_until, stopped},
};
use crate::{
    alerting::group::{came_and_went, stand},
    model::{AlertEvent, News, Route},
    sinks::{NotifyError, SoFar, slack::plain},
    store::{DueGroup, GroupTold, TellingEnd, Told},
};

/// The queue of messages, in logs.
pub const NOTICES: &str = "notices";
/// Groups told at a time.
const TOGETHER: u32 = 100;

impl Couriers {
    /// Serves the messages until `stop` says so or the store closes.
    pub async fn serve_notices(&self, services: &Services, mut stop: watch::Receiver<bool>) {
        let mut wake = services.outbox.subscribe();
        while !*stop.borrow() {
            let until_us = match self.tell_due(services).await {
                Ok(Round::Sent) => continue,
                Ok(Round::Idle { until_us }) => until_us,
                Err(Stop::Closed) => return,
                Err(Stop::Store(error)) => {
                    tracing::warn!(queue = NOTICES, %error, "the outbox could not be read");
                    Some(services.now_us() + 1_000_000)
                }
            };
            tokio::select! {
                () = stopped(&mut stop) => return,
                changed = wake.changed() => if changed.is_err() { return },
                () = sleep_until(services, until_us) => {}
            }
        }
    }

    /// Tells what is due: of one receiver one group after the other, the receivers side by side.
    pub(super) async fn tell_due(&self, services: &Services) -> Result<Round, Stop> {
        let due = services.store.due_groups(services.now_us(), TOGETHER).await?;
        if due.is_empty() {
            return Ok(Round::Idle { until_us: services.store.next_telling_us().await? });
        }
        let mut receivers: BTreeMap<Route, Vec<DueGroup>> = BTreeMap::new();
        for group in due {
            receivers.entry(group.group.route.clone()).or_default().push(group);
        }
        let told = join_all(receivers.into_values().map(|groups| async move {
            for group in groups {
                self.tell(services, group).await?;
            }
            Ok::<(), Stop>(())
        }));
        told.await.into_iter().collect::<Result<Vec<()>, Stop>>()?;
        Ok(Round::Sent)
    }

    async fn tell(&self, services: &Services, due: DueGroup) -> Result<(), Stop> {
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
        services.store.record_told(end).await?;
        Ok(())
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
                TellingEnd::Dead(error)
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
    if changes.is_empty() || came_and_went(&due.members, &changes, patience) {
        return None;
    }
    let members = stand(&due.members, &changes);
    // A message of these very news does not make them old.
    let first = due.members.is_empty() && (due.told.thread.is_none() || due.told.pages > 0);
    Some(News { id: format!("{}-{last}", due.group.key), key: due.group.key.clone(), labels: due.group.labels.clone(), changes, members, first })
}

fn nothing_to_tell(due: &DueGroup) -> TellingEnd {
    if due.waiting.iter().all(|(_, event)| event.is_none()) {
        tracing::error!(group = due.id, "messages to people no longer read and are given up");
        return TellingEnd::Dead("it no longer reads".to_owned());
    }
    TellingEnd::Delivered { thread: due.told.thread.clone(), members: due.members.clone() }
}

#[cfg(test)]
mod tests;
