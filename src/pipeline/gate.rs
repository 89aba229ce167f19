//! A release check: is the mean of a window's items at a threshold or better? Items are judged in a random order that was
//! fixed beforehand, as many as it takes to know.
//!
//! What is judged is recorded and published like any run's, once: a second check uses what the first has paid for. Nothing is
//! decided about items that were not needed, no watermark moves, and no alert looks at it.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{StreamExt, future::BoxFuture, stream};
use jiff::SignedDuration;

use super::{
    books::Books,
    candidates::{Candidate, candidates},
    dedup::Open,
    monitor::Judge,
    run::{Stopped, fetch_all, judge, record},
};
use crate::{
    model::{Decision as Ended, Gate, GateAnswer, GateReport, ItemKey, Score},
    sources::Window,
    statistics::decide::{Answer, Decider, Decision},
};

/// What an item said.
enum Said {
    Value(f64),
    /// Nothing: its judgement failed, or the metric does not apply.
    Nothing,
    /// It waits, and so would the next one.
    Waits(String),
}

pub(super) async fn gate<'a>(books: &'a Books<'a>, gate: &'a Gate) -> Result<GateReport, Stopped> {
    // Should this run be interrupted, what is left of it are the items under way.
    books.complete().await?;
    let Some(judge) = books.metrics.iter().find(|judge| judge.gives.may_give(&judge.name, &gate.metric)) else {
        return Ok(report(gate, &Taken::new(gate, true, 0), None, Some(format!("the monitor has no metric `{}`", gate.metric))));
    };
    let mut items = population(books).await?;
    items.sort_by_cached_key(|item| *blake3::hash(item.fetched_id.as_bytes()).as_bytes());
    let mut taken = Taken::new(gate, judge.higher_is_better, items.len() as u64);
    if items.is_empty() {
        return Ok(report(gate, &taken, None, Some("there is no item in the window".to_owned())));
    }
    let enough = AtomicBool::new(false);
    let asked = stream::iter(items).take_while(|_| std::future::ready(!enough.load(Ordering::Relaxed)));
    let asked = asked.map(|item| -> BoxFuture<'_, _> { Box::pin(ask(books, judge, gate, item)) });
    // In their fixed order, whichever is done first.
    let mut answers = asked.buffered(books.monitor.spec.evaluation.concurrency.max(1));
    let (mut decision, mut reason) = (None, None);
    while let Some(said) = answers.next().await {
        // What was asked before it was known is paid for and recorded, and no longer needed.
        if decision.is_some() || reason.is_some() {
            said?;
            continue;
        }
        match said? {
            Said::Value(x) => decision = taken.count(x),
            Said::Nothing => decision = taken.leave_out(),
            Said::Waits(why) => reason = Some(why),
        }
        enough.store(decision.is_some() || reason.is_some(), Ordering::Relaxed);
    }
    let reason = reason.or_else(|| decision.is_none().then(|| "no item could be judged".to_owned()));
    Ok(report(gate, &taken, decision, reason))
}

/// All items of the window that pass the filter and have a case, known or not.
async fn population<'a>(books: &'a Books<'a>) -> Result<Vec<Candidate>, Stopped> {
    let (monitor, now) = (books.monitor, books.services.clock.now());
    let before = |by: crate::util::duration::Human| now.checked_sub(SignedDuration::from_millis(by.millis())).unwrap_or(jiff::Timestamp::MIN);
    let at = |us: i64| jiff::Timestamp::from_microsecond(us).unwrap_or(now);
    let settled = before(monitor.spec.source.settle);
    let window = Window {
        from: books.order.run.since_us.map_or_else(|| before(monitor.spec.source.lookback), at),
        to: books.order.run.until_us.map_or(settled, |us| at(us).min(settled)),
    };
    let (mut seen, mut items) = (std::collections::HashSet::new(), Vec::new());
    for page in fetch_all(books, window).await? {
        let open = page.into_iter().filter_map(|item| {
            let key = ItemKey::new(&monitor.source_key, &monitor.spec.name, &item.id);
            seen.insert(key).then_some(Open { key, item, given: None, known: true, failed: None })
        });
        items.extend(candidates(books, open.collect(), Vec::new()).await?.open);
    }
    Ok(items)
}

/// What the item says: as it is recorded, else by being judged now.
async fn ask(books: &Books<'_>, by: &Judge, gate: &Gate, mut item: Candidate) -> Result<Said, Stopped> {
    item.keep_recorded(|score| books.metrics.iter().any(|judge| judge.gives.may_give(&judge.name, &score.metric) && *judge.revision == *score.metric_revision));
    if let Some(value) = item.recorded_value(books, &gate.metric, &by.revision) {
        return Ok(Said::Value(value));
    }
    books.record_again(item.drawn("drawn for a release check")).await?;
    let drawn = item.into_drawn(books.services.now_us());
    let key = drawn.key;
    let outcome = judge(books, drawn).await?;
    let end = outcome.end.clone();
    record(books, Ok(outcome)).await?;
    // As it is on disk: what came before the next paid question was recorded by itself.
    let scores = books.services.store.scores_of(key).await?;
    let of_now = |score: &&Score| score.metric == gate.metric && *score.metric_revision == *by.revision && score.outcome == "scored";
    Ok(match (scores.iter().filter(of_now).max_by_key(|score| score.created_at).and_then(|score| score.value), end) {
        (Some(value), _) => Said::Value(value),
        (None, Some(end)) if end.decision == Ended::Deferred => Said::Waits(end.reason),
        (None, _) => Said::Nothing,
    })
}

/// What has been taken in, in order.
struct Taken {
    decider: Decider,
    scores: Vec<f64>,
    higher_is_better: bool,
    threshold: f64,
    alpha: f64,
    population: u64,
    left_out: u64,
}

impl Taken {
    fn new(gate: &Gate, higher_is_better: bool, population: u64) -> Self {
        let threshold = if higher_is_better { gate.threshold } else { 1.0 - gate.threshold };
        let alpha = 1.0 - gate.confidence;
        let decider = Decider::new(threshold, alpha, Some(population));
        Self { decider, scores: Vec::new(), higher_is_better, threshold, alpha, population, left_out: 0 }
    }

    /// Where less is better, everything is seen in a mirror.
    fn turned(&self, x: f64) -> f64 {
        if self.higher_is_better { x } else { 1.0 - x }
    }

    fn count(&mut self, x: f64) -> Option<Decision> {
        let x = self.turned(x);
        self.scores.push(x);
        self.decider.count(x)
    }

    /// There is an item less: what was counted is counted anew among the rest.
    fn leave_out(&mut self) -> Option<Decision> {
        self.left_out += 1;
        self.decider = Decider::new(self.threshold, self.alpha, Some(self.population - self.left_out));
        let scores = std::mem::take(&mut self.scores);
        scores.iter().find_map(|x| {
            self.scores.push(*x);
            self.decider.count(*x)
        })
    }
}

fn report(gate: &Gate, taken: &Taken, decision: Option<Decision>, reason: Option<String>) -> GateReport {
    let answer = match decision.map(|decision| decision.answer) {
        Some(Answer::Pass) => GateAnswer::Pass,
        Some(Answer::Fail) => GateAnswer::Fail,
        None => GateAnswer::Undecided,
    };
    let (n, population) = (taken.decider.n(), taken.population - taken.left_out);
    let interval = if population > 0 { taken.decider.interval() } else { crate::statistics::Interval { low: 0.0, high: 1.0 } };
    let (low, high) = if taken.higher_is_better { (interval.low, interval.high) } else { (1.0 - interval.high, 1.0 - interval.low) };
    GateReport {
        metric: gate.metric.clone(),
        threshold: gate.threshold,
        confidence: gate.confidence,
        answer,
        certain: decision.is_some_and(|decision| decision.certain),
        n,
        population,
        mean: (n > 0).then(|| taken.turned(taken.decider.mean())),
        low,
        high,
        left_out: taken.left_out,
        reason,
    }
}
