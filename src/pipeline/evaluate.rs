//! Judging one item: its metrics in order, gates and thresholds, what becomes of the item.

use std::{collections::BTreeMap, sync::Arc};

use minijinja::Value;

use super::{
    monitor::{Judge, Monitor},
    view,
};
use crate::{
    metrics::{DataType, Judgement, MetricCx, Named},
    model::{Case, Decision, ItemKey, Outcome, Score, Trace, Wait, content_hash, score_id},
    providers::{Background, CallCx},
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
    /// What earlier attempts recorded.
    pub recorded: Vec<Score>,
}

/// The state of judging one item.
pub(super) struct Judging<'a> {
    monitor: &'a Monitor,
    run_id: &'a str,
    item: &'a Drawn,
    background: Option<&'a Background>,
    content_hash: String,
    outcomes: BTreeMap<String, Outcome>,
}

/// What one metric found now.
#[derive(Default)]
pub(super) struct Found {
    pub scores: Vec<NewScore>,
    /// Scores of earlier attempts that give way to these, by id: a metric that failed as a whole may give parts later, and
    /// the other way round.
    pub stale: Vec<String>,
}

impl<'a> Judging<'a> {
    pub(super) fn new(monitor: &'a Monitor, run_id: &'a str, item: &'a Drawn, background: Option<&'a Background>) -> Self {
        Self { monitor, run_id, item, background, content_hash: content_hash(&item.case), outcomes: BTreeMap::new() }
    }

    /// Judges by one metric. Nothing when an earlier attempt has its scores: a paid answer is never paid for again. Nothing
    /// either when it has failed as often as is tried, and the item is here because of another.
    pub(super) async fn by(&mut self, judge: &Judge) -> Found {
        let recorded = self.recorded(judge);
        if !recorded.is_empty() {
            self.outcomes.extend(recorded.into_iter().map(|score| (score.metric.clone(), recorded_outcome(score))));
            return Found::default();
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
                    observations: &self.item.trace.observations,
                    scores: &self.outcomes,
                    call: CallCx {
                        monitor: &self.monitor.spec.name,
                        metric: &judge.name,
                        run_id: self.run_id,
                        item_id: &self.item.trace.id,
                        budgets: &self.monitor.spec.evaluation.budget,
                        fresh: false,
                        background: self.background,
                    },
                };
                judge.metric.judge(&cx).await
            }
        };
        // What was paid was paid once: the first score has it.
        let mut paid = Some((judgement.usage, judgement.answer));
        let mut scores = Vec::with_capacity(judgement.outcomes.len());
        for Named { part, outcome } in judgement.outcomes {
            let outcome = decided(outcome, judge);
            let name = part.as_ref().map_or_else(|| Arc::clone(&judge.name), |part| format!("{}.{part}", judge.name).into());
            self.outcomes.insert(name.to_string(), outcome.clone());
            let (usage, answer) = paid.take().unwrap_or_default();
            scores.push(NewScore {
                score_id: self.score_id(&name, &judge.revision),
                metric: name,
                revision: Arc::clone(&judge.revision),
                data_type: if part.is_some() { data_type(&outcome) } else { judge.metric.data_type() }.as_str(),
                outcome,
                usage,
                answer,
            });
        }
        let stale = self.stale(judge, &scores);
        Found { scores, stale }
    }

    fn score_id(&self, name: &str, revision: &str) -> String {
        score_id(&self.monitor.spec.name, name, revision, &self.item.trace.id, &self.content_hash)
    }

    /// What earlier attempts recorded of the metric or its parts for the case as it is, by revision: a changed one judges
    /// new items, and what it replaced was paid for.
    fn earlier(&self, judge: &Judge) -> BTreeMap<&'a str, Vec<&'a Score>> {
        let mut by_revision: BTreeMap<&str, Vec<&Score>> = BTreeMap::new();
        for score in &self.item.recorded {
            // Whatever it gives, it fails and does not apply under its own name.
            let its = score.metric == *judge.name || judge.gives.may_give(&judge.name, &score.metric);
            if its && score.score_id == self.score_id(&score.metric, &score.metric_revision) {
                by_revision.entry(&score.metric_revision).or_default().push(score);
            }
        }
        by_revision
    }

    /// What need not be asked again: all of it, since scores are recorded together, and where one failed all are asked for
    /// again, as long as failures are tried again.
    fn recorded(&self, judge: &Judge) -> Vec<&'a Score> {
        let whole = |scores: &Vec<&Score>| scores.iter().any(|score| score.outcome == "scored") && scores.iter().all(|score| score.outcome != "failed");
        let earlier = self.earlier(judge);
        if let Some(whole) = earlier.values().find(|scores| whole(scores)) {
            return whole.clone();
        }
        let given_up = |scores: &Vec<&Score>| self.tried_enough() && scores.iter().any(|score| score.outcome == "failed");
        earlier.into_values().filter(given_up).max_by_key(|scores| scores.iter().map(|score| score.created_at).max()).unwrap_or_default()
    }

    fn tried_enough(&self) -> bool {
        self.item.attempts >= self.monitor.spec.evaluation.max_attempts
    }

    /// A judgement that waits is not recorded, and replaces nothing.
    fn stale(&self, judge: &Judge, scores: &[NewScore]) -> Vec<String> {
        if scores.iter().any(|score| matches!(score.outcome, Outcome::Deferred { .. })) {
            return Vec::new();
        }
        let earlier = self.earlier(judge).remove(&*judge.revision).unwrap_or_default();
        let replaced = earlier.into_iter().filter(|before| before.outcome != "scored" && scores.iter().all(|score| score.score_id != before.score_id));
        replaced.map(|score| score.score_id.clone()).collect()
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
        let failed = self.outcomes.values().any(|outcome| outcome.kind() == "failed");
        match self.worst_so_far() {
            Decision::Deferred if now_us - self.item.first_us > evaluation.max_age.millis().saturating_mul(1000) => ItemEnd {
                decision: Decision::Failed,
                reason: format!("expired after {}: {}", evaluation.max_age, reasons("deferred")),
                comes_back: false,
                counts: false,
            },
            // Waiting costs no attempt; failing does, whatever else waits.
            Decision::Deferred => {
                let counts = failed && !self.tried_enough();
                ItemEnd { decision: Decision::Deferred, reason: reasons("deferred"), comes_back: true, counts }
            }
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
}

/// What a metric's outcome counts as.
pub(super) fn decided(outcome: Outcome, judge: &Judge) -> Outcome {
    with_threshold(sound(outcome), judge)
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

/// Of a part, which says by itself what it is.
fn data_type(outcome: &Outcome) -> DataType {
    match outcome {
        Outcome::Scored { label: Some(_), .. } => DataType::Categorical,
        _ => DataType::Numeric,
    }
}

fn recorded_outcome(score: &Score) -> Outcome {
    let reason = score.reason.clone();
    match (score.outcome.as_str(), score.value) {
        ("scored", Some(value)) => Outcome::Scored { value, raw: score.raw, label: score.label.clone(), passed: score.passed, reason },
        ("not_applicable", _) => Outcome::NotApplicable { reason },
        _ => Outcome::Failed { reason },
    }
}
