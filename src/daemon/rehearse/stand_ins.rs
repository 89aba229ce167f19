//! What stands in the place of a source and of judges while a monitor is rehearsed: nothing here asks anybody.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    metrics::{Judgement, Metric, MetricCx, Named},
    model::{Outcome, Trace, Usage},
    schedule::clock::Clock,
    sources::{Fetched, Pages, Source, SourceError, Window},
};

/// A clock that stands where it was put.
#[derive(Debug)]
pub(super) struct Hand(Mutex<Timestamp>);

impl Hand {
    pub fn new(at: Timestamp) -> Self {
        Self(Mutex::new(at))
    }

    pub fn put(&self, at: Timestamp) {
        *lock(&self.0) = at;
    }
}

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        *lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the test has written so far.
#[derive(Debug, Default)]
pub(super) struct Script {
    traces: Mutex<Vec<Arc<Trace>>>,
    /// Of the run under way, by item and metric.
    verdicts: Mutex<BTreeMap<String, BTreeMap<String, Outcome>>>,
}

impl Script {
    pub fn add(&self, traces: impl IntoIterator<Item = Trace>) {
        let mut all = lock(&self.traces);
        all.extend(traces.into_iter().map(Arc::new));
        all.sort_by_key(|trace| trace.timestamp);
    }

    pub fn set_verdicts(&self, verdicts: BTreeMap<String, BTreeMap<String, Outcome>>) {
        *lock(&self.verdicts) = verdicts;
    }

    fn verdict(&self, item: &str, metric: &str) -> Judgement {
        let verdicts = lock(&self.verdicts);
        let of = |item: &str| {
            let given = verdicts.get(item)?;
            let named: Vec<Named> = given.iter().filter_map(|given| named(metric, given)).collect();
            (!named.is_empty()).then_some(named)
        };
        match of(item).or_else(|| of("*")) {
            Some(outcomes) => Judgement { outcomes, usage: Usage::default(), answer: None },
            None => Outcome::Failed { reason: "the test gives no verdict".to_owned() }.into(),
        }
    }
}

/// A verdict under the metric's own name or one of its parts'; `None` where it is another metric's.
fn named(metric: &str, (name, outcome): (&String, &Outcome)) -> Option<Named> {
    let part = match name.strip_prefix(metric)? {
        "" => None,
        rest => Some(rest.strip_prefix('.')?.to_owned()),
    };
    Some(Named { part, outcome: outcome.clone() })
}

/// The traces of a script.
pub(super) struct Given(pub Arc<Script>);

#[async_trait]
impl Source for Given {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        let fetched = |trace: &Arc<Trace>| Fetched { id: trace.id.clone(), timestamp: trace.timestamp, dated: true, body: Ok(Arc::clone(trace)) };
        let page: Vec<Fetched> =
            lock(&self.0.traces).iter().filter(|trace| window.from <= trace.timestamp && trace.timestamp < window.to).map(fetched).collect();
        if !page.is_empty() {
            // Nobody may want it, which is no fault.
            let _ = pages.send(page).await;
        }
        Ok(())
    }

    async fn probe(&self) -> Result<String, SourceError> {
        Ok("traces of a test".to_owned())
    }
}

/// The verdicts of a script.
pub(super) struct Scripted {
    pub script: Arc<Script>,
    pub metric: String,
}

#[async_trait]
impl Metric for Scripted {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        self.script.verdict(cx.call.item_id, &self.metric)
    }
}
