//! What may be drawn: items that are to be decided, with their observations, past the filter and with a case.

use std::sync::Arc;

use super::{Monitor, again::Beyond, books::Books, dedup::Open, evaluate::Drawn, extract::NoCase, monitor::Judge, run::Stopped, view};
use crate::{
    model::{Case, Decision, GivenHash, ItemKey, Score, Trace, content_hash, score_id},
    sources::SourceError,
    store::{Baseline, NewItem},
};

/// Children fetched at the same time.
const COMPLETIONS: usize = 8;

/// A few items, decided as far as that goes without the draw.
pub(super) struct Candidates {
    pub decided: Vec<NewItem>,
    pub open: Vec<Candidate>,
    /// Known without their content's hash.
    pub baseline: Vec<Baseline>,
    /// The newest dated item seen.
    pub watermark: Option<i64>,
}

/// An item that may be drawn.
pub(super) struct Candidate {
    key: ItemKey,
    pub fetched_id: String,
    pub item_us: i64,
    trace: Arc<Trace>,
    view: minijinja::Value,
    case: Case,
    pub always: bool,
    given: Option<GivenHash>,
    /// Attempts it has used up, where it failed before the draw of an earlier run.
    failed: Option<u32>,
    /// What was judged of it before it changed.
    recorded: Vec<Score>,
}

impl Candidate {
    pub(super) fn sampled_out(&self) -> NewItem {
        self.item(Decision::SampledOut, "not drawn", false)
    }

    pub(super) fn drawn(&self, reason: &str) -> NewItem {
        self.item(Decision::Drawn, reason, false)
    }

    /// Not drawn by chance, and judged all the same.
    pub(super) fn chosen(&self) -> NewItem {
        self.item(Decision::Drawn, "drawn: always", true)
    }

    fn item(&self, decision: Decision, reason: &str, chosen: bool) -> NewItem {
        NewItem {
            key: self.key,
            item_id: self.fetched_id.clone(),
            item_us: self.item_us,
            decision,
            reason: reason.into(),
            trace: (decision == Decision::Drawn).then(|| waiting(&self.trace)).flatten(),
            given: self.given,
            chosen,
            undrawn: self.failed.is_some(),
        }
    }

    /// What is judged of it by these metrics as they are now.
    pub(super) fn keep_recorded(&mut self, keep: impl Fn(&Score) -> bool) {
        self.recorded.retain(keep);
    }

    /// What a metric gave it, where that is recorded for the case as it is.
    pub(super) fn recorded_value(&self, books: &Books<'_>, metric: &str, revision: &str) -> Option<f64> {
        let id = score_id(&books.monitor.spec.name, metric, revision, &self.trace.id, &content_hash(&self.case));
        self.recorded.iter().find(|score| score.score_id == id && score.outcome == "scored")?.value
    }

    pub(super) fn key(&self) -> ItemKey {
        self.key
    }

    /// Whether a metric has said all that it has to say of the case as it is, whatever that was, and did not fail.
    pub(super) fn is_judged_by(&self, monitor: &str, judge: &Judge) -> bool {
        let content = content_hash(&self.case);
        let id = |score: &Score| score_id(monitor, &score.metric, &score.metric_revision, &self.trace.id, &content);
        let own = |score: &&Score| score.metric == *judge.name || judge.gives.may_give(&judge.name, &score.metric);
        let mut said = self.recorded.iter().filter(own).filter(|score| *score.metric_revision == *judge.revision && score.score_id == id(score)).peekable();
        said.peek().is_some() && said.all(|score| score.outcome != "failed")
    }

    pub(super) fn into_drawn(self, first_us: i64) -> Drawn {
        let attempts = self.failed.unwrap_or(0);
        Drawn { key: self.key, trace: self.trace, view: self.view, case: self.case, attempts, first_us, recorded: self.recorded }
    }
}

/// A trace as it is kept while its item waits.
fn waiting(trace: &Trace) -> Option<String> {
    // Plain data: it always serialises.
    serde_json::to_string(trace).ok()
}

/// Observations, filter, extract.
pub(super) async fn candidates(books: &Books<'_>, items: Vec<Open>, baseline: Vec<Baseline>) -> Result<Candidates, Stopped> {
    let monitor = books.monitor;
    let watermark = items.iter().filter(|open| open.item.dated).map(|open| open.item.timestamp.as_microsecond()).max();
    let items = complete(books, items).await?;
    let mut found = Candidates { decided: Vec::new(), open: Vec::with_capacity(items.len()), baseline, watermark };
    for Open { key, item, given, known, failed } in items {
        let item_us = item.timestamp.as_microsecond();
        let decided = |decision, reason: String, trace: Option<&Trace>| {
            let again = trace.filter(|_| decision == Decision::Failed && comes_back(monitor, failed.unwrap_or(0)));
            let trace = again.and_then(waiting);
            NewItem { key, item_id: item.id.clone(), item_us, decision, reason: reason.into(), trace, given, chosen: false, undrawn: failed.is_some() }
        };
        let trace = match item.body {
            Ok(trace) => trace,
            Err(reason) => {
                found.decided.push(decided(Decision::Failed, reason, None));
                continue;
            }
        };
        if let Some(reason) = monitor.spec.source.scope.leaves_out(&trace) {
            found.decided.push(decided(Decision::Filtered, reason, None));
            continue;
        }
        let view = view::trace(&trace, &monitor.patterns);
        let context = minijinja::context! { trace => view.clone() };
        match monitor.filter.as_ref().map(|filter| (filter, filter.is_true(&context))) {
            Some((filter, Ok(false))) => {
                found.decided.push(decided(Decision::Filtered, format!("`{}` is false", filter.source()), None));
                continue;
            }
            // Not silently filtered: a filter that does not fit the data would switch the monitor off.
            Some((_, Err(error))) => {
                found.decided.push(decided(Decision::Failed, format!("filter: {error}"), Some(&trace)));
                continue;
            }
            _ => {}
        }
        let always = match monitor.always.as_ref().map_or(Ok(false), |always| always.is_true(&context)) {
            Ok(always) => always,
            Err(error) => {
                found.decided.push(decided(Decision::Failed, format!("sampling.always: {error}"), Some(&trace)));
                continue;
            }
        };
        match monitor.extract.case(&view) {
            Ok(case) => {
                let recorded = if known { recorded(books, key, &trace, &case).await? } else { Vec::new() };
                found.open.push(Candidate { key, fetched_id: item.id, item_us, trace, view, case, always, given, failed, recorded });
            }
            Err(NoCase::NotApplicable(reason)) => found.decided.push(decided(Decision::NotApplicable, reason, None)),
            Err(NoCase::Failed(reason)) => found.decided.push(decided(Decision::Failed, reason, Some(&trace))),
        }
    }
    Ok(found)
}

/// Observations, where the monitor uses them. Those that come back have theirs.
async fn complete(books: &Books<'_>, items: Vec<Open>) -> Result<Vec<Open>, SourceError> {
    if !books.monitor.wants_observations {
        return Ok(items);
    }
    let mut completed = Vec::with_capacity(items.len());
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        let mut requests = Vec::with_capacity(COMPLETIONS);
        for item in items.by_ref().take(COMPLETIONS) {
            requests.push(complete_one(books, item));
        }
        for item in futures_util::future::join_all(requests).await {
            completed.push(item?);
        }
    }
    Ok(completed)
}

async fn complete_one(books: &Books<'_>, mut open: Open) -> Result<Open, SourceError> {
    if let (Ok(trace), None) = (&open.item.body, open.failed) {
        open.item.body = Ok(books.monitor.source.complete(Arc::clone(trace)).await?);
    }
    Ok(open)
}

/// Whether an item that failed after as many attempts is tried again.
pub(super) fn comes_back(monitor: &Monitor, attempts: u32) -> bool {
    attempts + 1 < monitor.spec.evaluation.max_attempts
}

/// What of an item is judged already: what was paid for is not paid again where the change is in nothing that is judged.
pub(super) async fn recorded(books: &Books<'_>, key: ItemKey, trace: &Trace, case: &Case) -> Result<Vec<Score>, sqlx::Error> {
    let scores = books.services.store.scores_of(key).await?;
    Ok(match Beyond::of(books.monitor, trace, case) {
        Some(beyond) => beyond.holding(scores),
        None => scores,
    })
}
