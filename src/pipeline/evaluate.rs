//! Judging one item: its metrics in order, gates and thresholds, what becomes of the item.

use std::{collections::BTreeMap, sync::Arc};

use minijinja::Value;

use super::{
    monitor::{Judge, Monitor},
    view,
};
use crate::{
    metrics::{Judgement, MetricCx, Price},
    model::{Case, Decision, ItemKey, Outcome, Score, Trace, Wait, content_hash, score_id},
    providers::CallCx,
    store::{ItemEnd, NewScore},
    util::template::TemplateError,
};

/// An item on its way to its verdicts.
#[derive(Debug, Clone)]
pub(super) struct Drawn {
    pub key: ItemKey,
    pub trace: Arc<Trace>,
    pub view: Value,
    pub case: Case,
    /// Attempts before this one.
    pub attempts: u32,
    /// When it was drawn, in microseconds since the epoch.
    pub first_us: i64,
    /// Scores that an earlier attempt recorded.
    pub recorded: Vec<Score>,
}

/// The state of judging one item.
pub(super) struct Judging<'a> {
    monitor: &'a Monitor,
    run_id: &'a str,
    item: &'a Drawn,
    content_hash: String,
    outcomes: BTreeMap<String, Outcome>,
}

impl<'a> Judging<'a> {
    pub(super) fn new(monitor: &'a Monitor, run_id: &'a str, item: &'a Drawn) -> Self {
        Self { monitor, run_id, item, content_hash: content_hash(&item.case), outcomes: BTreeMap::new() }
    }

    /// Judges by one metric. `None` when an earlier attempt has its score: a paid answer is never paid for again.
    pub(super) async fn by(&mut self, judge: &Judge) -> Option<NewScore> {
        let score_id = score_id(&self.monitor.spec.name, &judge.name, &judge.revision, &self.item.trace.id, &self.content_hash);
        if let Some(score) = self.item.recorded.iter().find(|score| score.score_id == score_id && score.outcome == "scored") {
            self.outcomes.insert(judge.name.to_string(), recorded_outcome(score));
            return None;
        }
        let view = view::case(&self.item.case, &self.item.view, &self.outcomes);
        let judgement = match self.gate(judge, &view) {
            Some(closed) => Judgement::from(closed),
            None => {
                let cx = MetricCx {
                    case: &self.item.case,
                    view: &view,
                    latency_ms: self.item.trace.latency_ms,
                    cost_usd: self.item.trace.cost_usd,
                    scores: &self.outcomes,
                    call: CallCx {
                        monitor: &self.monitor.spec.name,
                        metric: &judge.name,
                        run_id: self.run_id,
                        item_id: &self.item.trace.id,
                        budgets: &self.monitor.spec.evaluation.budget,
                    },
                };
                judge.metric.judge(&cx).await
            }
        };
        let outcome = with_threshold(sound(judgement.outcome), judge);
        self.outcomes.insert(judge.name.to_string(), outcome.clone());
        Some(NewScore {
            score_id,
            metric: Arc::clone(&judge.name),
            revision: Arc::clone(&judge.revision),
            data_type: judge.metric.data_type().as_str(),
            outcome,
            usage: judgement.usage,
            answer: judgement.answer,
        })
    }

    /// The outcome of a metric whose gate is closed.
    fn gate(&self, judge: &Judge, view: &Value) -> Option<Outcome> {
        let when = judge.when.as_ref()?;
        match when.is_true(view) {
            Ok(true) => None,
            Ok(false) => Some(Outcome::NotApplicable { reason: format!("`when: {}` is false", when.source()) }),
            // What the gate asks about is not known, because the metric it names has failed, waits or did not apply.
            Err(TemplateError::Missing(error)) => Some(match self.worst_so_far() {
                Decision::Deferred => Outcome::Deferred { reason: format!("`when` waits: {error}"), wait: Wait::Gate },
                Decision::Failed => Outcome::Failed { reason: format!("`when` could not be decided: {error}") },
                _ => Outcome::NotApplicable { reason: format!("`when` does not apply: {error}") },
            }),
            Err(TemplateError::Invalid(error)) => Some(Outcome::Failed { reason: format!("`when` could not be decided: {error}") }),
        }
    }

    fn worst_so_far(&self) -> Decision {
        let any = |kind: &str| self.outcomes.values().any(|outcome| outcome.kind() == kind);
        if any("deferred") {
            Decision::Deferred
        } else if any("failed") {
            Decision::Failed
        } else if any("scored") {
            Decision::Scored
        } else {
            Decision::NotApplicable
        }
    }

    /// What becomes of the item, now that all its metrics have been asked.
    pub(super) fn end(&self, now_us: i64) -> ItemEnd {
        let evaluation = &self.monitor.spec.evaluation;
        let reasons = |kind: &str| {
            let reasons = self.outcomes.iter().filter(|(_, outcome)| outcome.kind() == kind).map(|(name, outcome)| format!("{name}: {}", outcome.reason()));
            crate::util::text::one_line(&reasons.collect::<Vec<_>>().join("; "), 500)
        };
        match self.worst_so_far() {
            Decision::Deferred if now_us - self.item.first_us > evaluation.max_age.millis().saturating_mul(1000) => ItemEnd {
                decision: Decision::Failed,
                reason: format!("expired after {}: {}", evaluation.max_age, reasons("deferred")),
                comes_back: false,
                counts: false,
            },
            Decision::Deferred => ItemEnd { decision: Decision::Deferred, reason: reasons("deferred"), comes_back: true, counts: false },
            Decision::Failed => {
                let comes_back = self.item.attempts + 1 < evaluation.max_attempts;
                ItemEnd { decision: Decision::Failed, reason: reasons("failed"), comes_back, counts: true }
            }
            Decision::Scored => {
                let scored = self.outcomes.values().filter(|outcome| outcome.kind() == "scored").count();
                ItemEnd {
                    decision: Decision::Scored,
                    reason: format!("{scored} of {} metrics gave a score", self.outcomes.len()),
                    comes_back: false,
                    counts: true,
                }
            }
            decision => ItemEnd { decision, reason: reasons("not_applicable"), comes_back: false, counts: true },
        }
    }

    /// Whether a paid metric comes after position `at`: then what is known by now is recorded before it is asked.
    pub(super) fn pays_after(&self, at: usize) -> bool {
        self.monitor.metrics.iter().skip(at + 1).any(|metric| metric.price == Price::Paid)
    }
}

/// A value outside [0, 1] or no number at all is a failed judgement, whatever a metric says.
fn sound(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Scored { value, .. } if !(0.0..=1.0).contains(&value) => {
            Outcome::Failed { reason: format!("the metric gave {value}, which is not in [0, 1]") }
        }
        other => other,
    }
}

fn with_threshold(outcome: Outcome, judge: &Judge) -> Outcome {
    match (outcome, judge.threshold) {
        (Outcome::Scored { value, raw, label, reason, .. }, Some(threshold)) => {
            let passed = if judge.higher_is_better { value >= threshold } else { value <= threshold };
            Outcome::Scored { value, raw, label, passed: Some(passed), reason }
        }
        (outcome, _) => outcome,
    }
}

fn recorded_outcome(score: &Score) -> Outcome {
    Outcome::Scored { value: score.value.unwrap_or_default(), raw: score.raw, label: score.label.clone(), passed: score.passed, reason: score.reason.clone() }
}
