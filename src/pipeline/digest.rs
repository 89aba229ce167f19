//! The daily digest: what a day holds, put into words by [`alerting::digest`](crate::alerting::digest), on its way to people.

use std::collections::BTreeMap;

use super::{Services, between::LookError};
use crate::{
    alerting::digest::{FiringAlert, MetricDay, MonitorDay, digest},
    config::NotifyTarget,
    model::{AlertEvent, AlertEventKind, DayTally, Group, Severity},
    schedule::daily::{Daily, Day},
    store::{NewDigest, NewNotice},
};

/// Once a day, whichever process is up.
#[derive(Debug)]
pub struct Digests {
    daily: Daily,
    notify: Vec<NotifyTarget>,
    /// The newest day that is known to be done.
    done: Option<String>,
}

impl Digests {
    #[must_use]
    pub fn new(daily: Daily, notify: Vec<NotifyTarget>) -> Self {
        Self { daily, notify, done: None }
    }

    /// Stores the digest of the day with its messages, where it is due and has not been; true where it has done so.
    ///
    /// # Errors
    /// The store's: the next call tries again.
    pub async fn look(&mut self, services: &Services, monitors: &[String]) -> Result<bool, LookError> {
        let Some(day) = self.daily.due(services.clock.now()) else { return Ok(false) };
        let date = day.date.to_string();
        if self.done.as_ref() == Some(&date) {
            return Ok(false);
        }
        let earlier = services.store.digest_day().await?.is_some_and(|last| last >= date);
        let made = !earlier && self.send(services, monitors, day, &date).await?;
        self.done = Some(date);
        if made {
            services.outbox.send_replace(());
        }
        Ok(made)
    }

    /// False where another has.
    async fn send(&self, services: &Services, monitors: &[String], day: Day, date: &str) -> Result<bool, LookError> {
        let mut days = Vec::with_capacity(monitors.len());
        for monitor in monitors {
            days.push(look_back(services, monitor, day).await?);
        }
        let firing = services.store.firing().await?.into_iter().map(|(monitor, alert, reason)| FiringAlert { monitor, alert, reason });
        let (summary, lines) = digest(date, &firing.collect::<Vec<_>>(), &days);
        let now = services.clock.now();
        let event = AlertEvent {
            fingerprint: format!("digest/{date}"),
            kind: AlertEventKind::Notice,
            monitor: "assayd".to_owned(),
            alert: "daily digest".to_owned(),
            severity: Severity::Info,
            condition: "digest".to_owned(),
            summary,
            metric: None,
            value: None,
            interval: None,
            threshold: None,
            n: None,
            window: None,
            since: day.from,
            at: now,
            run_id: String::new(),
            labels: BTreeMap::new(),
            worst: Vec::new(),
            history: Vec::new(),
            lines,
        };
        let routes = services.routing.routes(&self.notify).into_iter();
        let notices = routes.map(|route| NewNotice { group: Group::alone(route, &event.fingerprint), event: event.clone() }).collect();
        Ok(services.store.record_digest(NewDigest { day: date.to_owned(), at_us: now.as_microsecond(), notices }).await?)
    }
}

/// An item that waits for no longer is no gap in a day.
const USUAL_US: i64 = 3_600_000_000;

async fn look_back(services: &Services, monitor: &str, day: Day) -> Result<MonitorDay, sqlx::Error> {
    let (store, before, from, to) = (&services.store, day.before.as_microsecond(), day.from.as_microsecond(), day.to.as_microsecond());
    let mut earlier: BTreeMap<String, DayTally> = store.day_scores(monitor, before, from).await?.into_iter().collect();
    let now = store.day_scores(monitor, from, to).await?.into_iter();
    let metrics = now.map(|(metric, day)| MetricDay { before: earlier.remove(&metric).unwrap_or_default(), metric, day }).collect();
    Ok(MonitorDay {
        monitor: monitor.to_owned(),
        metrics,
        coverage: store.coverage(monitor, (from, to), to.saturating_sub(USUAL_US)).await?,
        cost_usd: store.day_cost(monitor, from, to).await?,
    })
}
