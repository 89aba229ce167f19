//! Which recorded scores of an item still hold once its content has changed.
//!
//! A score's id is made of the case, which is what most metrics judge: as long as the case is the same, so is its score. A
//! metric that reads the trace beside the case may find something else in the same case. Its scores' ids are made of
//! what the source gave too, where `rejudge` asks for it: the old one stays, and the new one is another.

use super::Monitor;
use crate::{
    config::{MetricSpec, MonitorSpec, Rejudge},
    metrics::Gives,
    model::{Case, GivenHash, Score, Trace, content_hash, score_id},
    store::NewScore,
};

/// Names of the metrics whose verdict may hang on more of a trace than the case.
pub(super) fn reading_the_trace(spec: &MonitorSpec) -> Vec<String> {
    if spec.source.rejudge == Rejudge::Never {
        return Vec::new();
    }
    let names = |metric: &MetricSpec, word: &str| metric.when.as_deref().into_iter().chain(metric.config.templates()).any(|text| text.contains(word));
    // What a prompt or a process elsewhere looks at is not known here.
    let itself = |metric: &&MetricSpec| names(metric, "trace") || metric.config.prompt().is_some() || metric.config.gives() == Gives::Unknown;
    let through_others = |metric: &MetricSpec| names(metric, "scores") || !metric.config.parts().is_empty();
    let any = spec.metrics.iter().any(|metric| itself(&metric));
    spec.metrics.iter().filter(|metric| itself(metric) || any && through_others(metric)).map(|metric| metric.name.clone()).collect()
}

/// One item's scores by metrics that read the trace.
pub(super) struct Beyond<'a> {
    monitor: &'a Monitor,
    item_id: &'a str,
    case: String,
    whole: String,
}

impl<'a> Beyond<'a> {
    /// `None` where no metric reads more than the case.
    pub(super) fn of(monitor: &'a Monitor, trace: &'a Trace, case: &Case) -> Option<Self> {
        (!monitor.reading_the_trace.is_empty()).then(|| {
            let case = content_hash(case);
            let given = u128::from_be_bytes(GivenHash::new(trace).0);
            Self { monitor, item_id: &trace.id, whole: format!("{case}+{given:032x}"), case }
        })
    }

    fn id(&self, metric: &str, revision: &str, content: &str) -> String {
        score_id(&self.monitor.spec.name, metric, revision, self.item_id, content)
    }

    fn reads(&self, outcome: &str) -> bool {
        // A metric's name has no dot.
        let metric = outcome.split_once('.').map_or(outcome, |(metric, _)| metric);
        self.monitor.reading_the_trace.iter().any(|name| name == metric)
    }

    /// Recorded scores under the ids that judging by the case looks for, without those that were given for something else.
    pub(super) fn holding(&self, recorded: Vec<Score>) -> Vec<Score> {
        let of_this = |mut score: Score| {
            if self.reads(&score.metric) {
                if score.score_id != self.id(&score.metric, &score.metric_revision, &self.whole) {
                    return None;
                }
                score.score_id = self.id(&score.metric, &score.metric_revision, &self.case);
            }
            Some(score)
        };
        recorded.into_iter().filter_map(of_this).collect()
    }

    /// New scores under the ids that they are recorded by.
    pub(super) fn told_apart(&self, scores: &mut [NewScore]) {
        for score in scores.iter_mut().filter(|score| self.reads(&score.metric)) {
            score.score_id = self.id(&score.metric, &score.revision, &self.whole);
        }
    }
}
