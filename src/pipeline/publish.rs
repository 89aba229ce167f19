//! The outbox's couriers: one for each queue of scores, one for messages to people ([`super::tell`]). Each sends, retries and gives up on
//! its own, so a sink that is down holds no other one up. What waits is in the store; a courier keeps nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use tokio::sync::watch;

use super::Services;
use crate::{
    sinks::{Notifier, RowError, Sink},
    store::{Closed, Failure, Fate, SentBatch},
    util::backoff::{self, Policy},
};

/// Of rows: it begins small so that a hiccup is not felt, and ends at a minute so that a sink that came back is.
const RETRY: Policy = Policy { attempts: u32::MAX, max_elapsed: Duration::MAX, base: Duration::from_secs(1), cap: Duration::from_secs(60) };
/// A refused key is tried this often: somebody has to act, but need not restart us.
const REFUSED: Duration = Duration::from_secs(60);
/// A row that its sink refused again and again for this long is given up. However long a sink is away, or we are, no row is.
const GIVE_UP_US: i64 = 7 * 24 * 3600 * 1_000_000;
/// And at least this often: a week in which nobody tried says nothing of a row.
const REFUSALS: u32 = 10;
/// For messages to people, at the end of a process.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Rows gathered for this long share a request.
const LINGER: Duration = Duration::from_millis(100);

/// Who delivers what.
#[derive(Default)]
pub struct Couriers {
    sinks: Mutex<BTreeMap<String, Arc<dyn Sink>>>,
    /// By kind and connection.
    notifiers: Mutex<BTreeMap<(String, String), Arc<dyn Notifier>>>,
}

/// What the outbox knows of a row that was sent.
struct Row {
    id: i64,
    attempts: u32,
    failures: u32,
    failed_us: Option<i64>,
}

impl Row {
    /// What becomes of it after what its sink said of it.
    fn fate(&self, now: Timestamp, error: Option<RowError>) -> Fate {
        match error {
            None => Fate::Delivered,
            Some(RowError::Dead(error)) => Fate::Dead(error),
            Some(RowError::Retry(error)) => match self.failed_us {
                Some(since_us) if self.failures + 1 >= REFUSALS && now.as_microsecond().saturating_sub(since_us) > GIVE_UP_US => {
                    Fate::Dead(format!("given up after {} refusals in more than 7 days: {error}", self.failures + 1))
                }
                _ => Fate::Again(again(now, self.attempts, None, error)),
            },
        }
    }
}

/// What a round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// The queue may hold more.
    Sent,
    /// Nothing may be sent before then.
    Idle { until_us: Option<i64> },
}

impl std::fmt::Debug for Couriers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Couriers").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The maps are whole after every statement, so a panic elsewhere leaves them sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Couriers {
    /// Makes known who serves a queue; true when the queue is new and wants a courier.
    pub fn set_sink(&self, queue: &str, sink: Arc<dyn Sink>) -> bool {
        lock(&self.sinks).insert(queue.to_owned(), sink).is_none()
    }

    pub fn set_notifier(&self, sink: &str, connection: &str, notifier: Arc<dyn Notifier>) {
        lock(&self.notifiers).insert((sink.to_owned(), connection.to_owned()), notifier);
    }

    /// Who tells people by a kind of sink and a connection.
    pub fn notifier(&self, sink: &str, connection: &str) -> Option<Arc<dyn Notifier>> {
        lock(&self.notifiers).get(&(sink.to_owned(), connection.to_owned())).cloned()
    }

    fn sink(&self, queue: &str) -> Option<Arc<dyn Sink>> {
        lock(&self.sinks).get(queue).cloned()
    }

    fn queues(&self) -> Vec<String> {
        lock(&self.sinks).keys().cloned().collect()
    }

    /// Serves one queue until `stop` says so or the store closes; a request under way is finished.
    pub async fn serve(&self, services: &Services, queue: &str, mut stop: watch::Receiver<bool>) {
        let mut wake = services.outbox.subscribe();
        while !*stop.borrow() {
            let until_us = match self.round(services, queue).await {
                Ok(Round::Sent) => continue,
                Ok(Round::Idle { until_us }) => until_us,
                Err(Stop::Closed) => return,
                Err(Stop::Store(error)) => {
                    tracing::warn!(queue, %error, "the outbox could not be read");
                    Some(services.now_us() + 1_000_000)
                }
            };
            tokio::select! {
                () = stopped(&mut stop) => return,
                changed = wake.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Cut short at the end: what is left then goes out at once, by the last flush.
                    tokio::select! {
                        () = stopped(&mut stop) => return,
                        () = tokio::time::sleep(LINGER) => {}
                    }
                }
                () = sleep_until(services, until_us) => {}
            }
        }
    }

    /// Sends what can be sent within `patience`, over all queues; what a sink does not take stays queued.
    pub async fn flush(&self, services: &Services, patience: Duration) {
        let deadline_us = services.now_us().saturating_add(i64::try_from(patience.as_micros()).unwrap_or(i64::MAX));
        let scores =
            self.queues().into_iter().map(|queue| async move { while self.once_more(services, self.round(services, &queue).await, deadline_us).await {} });
        // Receivers may be slow and many: what is not told by then is told by the next process.
        let people =
            tokio::time::timeout(patience.max(LAST_WORDS), async { while self.once_more(services, self.tell_due(services).await, deadline_us).await {} });
        let (_, told) = tokio::join!(futures_util::future::join_all(scores), people);
        if told.is_err() {
            tracing::warn!("messages to people are left to the next process");
        }
    }

    /// Whether another round before the deadline can do anything; waits until it can.
    async fn once_more(&self, services: &Services, round: Result<Round, Stop>, deadline_us: i64) -> bool {
        match round {
            Ok(Round::Sent) => true,
            Ok(Round::Idle { until_us: Some(until_us) }) if until_us <= deadline_us => {
                sleep_until(services, Some(until_us)).await;
                true
            }
            _ => false,
        }
    }

    async fn round(&self, services: &Services, queue: &str) -> Result<Round, Stop> {
        let Some(sink) = self.sink(queue) else { return Ok(Round::Idle { until_us: None }) };
        let due = services.store.due(queue, services.now_us(), sink.batch_size()).await?;
        if due.is_empty() {
            return Ok(Round::Idle { until_us: services.store.next_due(queue).await? });
        }
        let (rows, batch): (Vec<_>, Vec<_>) = due
            .into_iter()
            .map(|due| (Row { id: due.outbox_id, attempts: due.attempts, failures: due.failures, failed_us: due.failed_us }, due.delivery))
            .unzip();
        let answer = sink.deliver(&batch).await;
        let now = services.clock.now();
        let (fates, sent): (Vec<_>, bool) = match answer {
            Ok(answers) => (rows.iter().zip(answers).map(|(row, answer)| (row.id, row.fate(now, answer.err()))).collect(), true),
            Err(error) => {
                tracing::warn!(queue, waiting = rows.len(), error = %error.message, "a sink could not be served; its rows stay queued");
                let wait = if error.transient { error.retry_after } else { Some(error.retry_after.unwrap_or(REFUSED)) };
                (rows.iter().map(|row| (row.id, Fate::Held(again(now, row.attempts, wait, error.message.clone())))).collect(), false)
            }
        };
        for (id, fate) in &fates {
            if let Fate::Dead(reason) = fate {
                tracing::error!(queue, row = id, reason = %reason, "a row is dead: the sink refused it for good");
            }
        }
        let with_items = batch.iter().any(|delivery| delivery.item.is_some());
        services.store.record_sent(SentBatch { at_us: now.as_microsecond(), fates, with_items }).await?;
        if sent { Ok(Round::Sent) } else { Ok(Round::Idle { until_us: services.store.next_due(queue).await? }) }
    }
}

pub(super) fn again(now: Timestamp, attempts: u32, wait: Option<Duration>, error: String) -> Failure {
    let wait = wait.or_else(|| RETRY.wait(attempts + 1, Duration::ZERO, None, backoff::chance())).unwrap_or(RETRY.cap);
    Failure { next_us: now.as_microsecond().saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX)), error }
}

/// Why a courier cannot go on.
pub(super) enum Stop {
    Closed,
    Store(sqlx::Error),
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error)
    }
}

pub(super) async fn sleep_until(services: &Services, until_us: Option<i64>) {
    let Some(until_us) = until_us else { return std::future::pending().await };
    let wait = u64::try_from(until_us.saturating_sub(services.now_us())).unwrap_or(0);
    // Waking now and then lets a wall clock that was set back not hold a row for ever.
    tokio::time::sleep(Duration::from_micros(wait.max(1000)).min(Duration::from_secs(60))).await;
}

pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone asks for the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_US: i64 = 24 * 3600 * 1_000_000;

    fn row(failures: u32, failed_us: Option<i64>) -> Row {
        Row { id: 1, attempts: 50, failures, failed_us }
    }

    #[test]
    fn a_row_is_given_up_after_many_refusals_over_a_week_and_for_no_other_reason() {
        let at = |days: i64| Timestamp::from_microsecond(days * DAY_US).unwrap();
        let busy = || Some(RowError::Retry("busy".to_owned()));
        let dead = |row: Row, days| matches!(row.fate(at(days), busy()), Fate::Dead(_));
        assert!(!dead(row(0, None), 400), "the first refusal of a row of any age");
        assert!(!dead(row(REFUSALS - 2, Some(0)), 400), "few refusals, however long ago the first");
        assert!(!dead(row(1_000, Some(0)), 6), "many within a week");
        assert!(dead(row(REFUSALS - 1, Some(0)), 8));
        assert_eq!(row(0, None).fate(at(0), Some(RowError::Dead("no".to_owned()))), Fate::Dead("no".to_owned()));
    }
}
