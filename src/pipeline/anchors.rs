//! Labelled items that judges are asked about again and again. What they say of them is no score: it is published nowhere, stands in no
//! window and counts as no item.
//!
//! A judge is asked about the whole set once, over as many runs as the budget makes it, and from then on about a few anchors of each
//! run's own draw. Each answer is stored as it comes, so a run that was killed draws the same anchors and asks for what is missing.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use futures_util::future::join_all;

use super::{
    alerts::{Ended, Evaluation},
    books::Books,
    evaluate::decided,
    measure::interval,
    monitor::Judge,
    run::Stopped,
    view,
};
use crate::{
    alerting::{
        AlertMemory, Hold, Observed, OfValue, Rule, Statistic, Step, Verdict,
        anchors::{JUDGE_CHANGED, Start, firing_sentence, quiet_sentence, resolved_sentence},
        evidence::{Ask, Shown, step_on_evidence},
        step,
    },
    config::{AlertSpec, Anchor, AnchorsSpec, MonitorSpec, anchors},
    metrics::{Judgement, MetricCx, Price},
    model::{AlertEventKind, AlertLine, AlertState, Case, Judged, Outcome, Severity, alert_of_value, alertname},
    providers::CallCx,
    statistics::evidence::Promise,
    store::AnchorRow,
    util::duration::Human,
};

/// What a run held its judges against.
#[derive(Debug, Clone)]
pub(super) enum Looked {
    At(Arc<[Anchor]>),
    /// Why the file cannot be read.
    Unreadable(String),
}

/// Of the whole set, in one run: the rest follows in the next.
const START: usize = 200;

/// An anchor, and the outcomes that it has a label for.
type Labelled<'a> = (&'a Anchor, Vec<&'a str>);

/// The anchors that have a label for what a judge gives.
struct Held<'a>(Vec<Labelled<'a>>);

impl<'a> Held<'a> {
    fn of(judge: &Judge, set: &'a [Anchor]) -> Self {
        let names = |anchor: &'a Anchor| anchor.labels.keys().map(String::as_str).filter(|name| judge.gives.may_give(&judge.name, name)).collect::<Vec<_>>();
        let held = set.iter().map(|anchor| (anchor, names(anchor)));
        Self(held.filter(|(_, names)| judge.price == Price::Paid && !names.is_empty()).collect())
    }

    /// Which of them the judge is asked about, and for which run: for none (empty) until it was asked about the whole set.
    fn draw<'r>(&self, rows: &[AnchorRow], run: &'r str, n: usize, max_tries: u32) -> (&'r str, Vec<&Labelled<'a>>) {
        let done = rows.iter().filter(|row| !row.run_id.is_empty() || is_final(row, max_tries));
        let done: HashSet<(&str, &str, &str)> = done.map(|row| (&*row.run_id, &*row.metric, &*row.anchor)).collect();
        let open = |run: &str, (anchor, names): &Labelled<'a>| names.iter().any(|name| !done.contains(&(run, *name, &*anchor.key(name))));
        let start: Vec<_> = self.0.iter().filter(|one| open("", one)).take(START).collect();
        if !start.is_empty() {
            return ("", start);
        }
        let mut drawn: Vec<_> = self.0.iter().collect();
        drawn.sort_by_cached_key(|(anchor, _)| *blake3::hash(format!("{run}\0{}", anchor.id).as_bytes()).as_bytes());
        drawn.truncate(n);
        drawn.retain(|one| open(run, one));
        (run, drawn)
    }

    /// The outcomes that are compared.
    fn metrics(&self) -> BTreeSet<&'a str> {
        self.0.iter().flat_map(|(_, names)| names.iter().copied()).collect()
    }
}

/// Asks each judge about its anchors.
pub(super) async fn judge(books: &Books<'_>) -> Result<(), Stopped> {
    let Some(spec) = books.monitor.spec.anchors.as_ref().filter(|_| !books.order.dry_run) else { return Ok(()) };
    let read = tokio::fs::read(&spec.file).await.map_err(|error| error.to_string()).and_then(|bytes| anchors(&bytes));
    let set: Arc<[Anchor]> = match read {
        Ok(set) => set.into(),
        Err(reason) => {
            let reason = format!("{}: {reason}", spec.file.display());
            tracing::warn!(monitor = %books.monitor.spec.name, %reason, "the anchors cannot be read");
            books.tally().anchors = Some(Looked::Unreadable(reason));
            return Ok(());
        }
    };
    for judge in books.metrics.iter() {
        by_judge(books, judge, &Held::of(judge, &set), spec).await?;
    }
    books.tally().anchors = Some(Looked::At(set));
    Ok(())
}

async fn by_judge(books: &Books<'_>, judge: &Judge, held: &Held<'_>, spec: &AnchorsSpec) -> Result<(), Stopped> {
    let (monitor, evaluation) = (&books.monitor.spec.name, &books.monitor.spec.evaluation);
    if held.0.is_empty() {
        return Ok(());
    }
    let rows = books.services.store.anchors(monitor, &judge.revision, &books.order.run.id).await?;
    let (run_id, open) = held.draw(&rows, &books.order.run.id, spec.n, evaluation.max_attempts);
    for few in open.chunks(evaluation.concurrency.max(1)) {
        let mut asked = Vec::with_capacity(few.len());
        for (anchor, names) in few {
            asked.push(ask(books, judge, anchor, names, run_id));
        }
        let answered: Vec<bool> = join_all(asked).await.into_iter().collect::<Result<_, Stopped>>()?;
        // Those after one that waits would wait too: they are left out of this run.
        if answered.contains(&false) {
            break;
        }
    }
    Ok(())
}

/// There is a verdict to compare, or none will come.
fn is_final(row: &AnchorRow, max_tries: u32) -> bool {
    row.agrees.is_some() || row.tries >= max_tries
}

/// Asks about one anchor and stores what came of it; false where the judge or the budget makes it wait.
async fn ask(books: &Books<'_>, judge: &Judge, anchor: &Anchor, names: &[&str], run_id: &str) -> Result<bool, Stopped> {
    // An answer that cannot be stored would be paid for twice.
    books.services.store.wait_until_well().await?;
    let Judgement { outcomes, usage, .. } = judgement(books, judge, anchor).await;
    books.spent(usage.cost_usd);
    let whole = outcomes.iter().find(|named| named.part.is_none()).map(|named| &named.outcome);
    let mut rows = Vec::with_capacity(names.len());
    for name in names {
        let part = name.split_once('.').map(|(_, part)| part);
        let own = outcomes.iter().find(|named| named.part.as_deref() == part).map(|named| &named.outcome);
        let max_tries = books.monitor.spec.evaluation.max_attempts;
        let (agrees, tries) = match own.or(whole).map(|outcome| decided(outcome.clone(), judge)) {
            Some(Outcome::Deferred { .. }) => return Ok(false),
            Some(Outcome::Scored { value, passed, .. }) => (anchor.labels.get(*name).and_then(|label| label.agrees(value, passed)), max_tries),
            Some(Outcome::Failed { .. }) => (None, 1),
            Some(Outcome::NotApplicable { .. }) | None => (None, max_tries),
        };
        rows.push(AnchorRow { run_id: run_id.to_owned(), metric: (*name).to_owned(), anchor: anchor.key(name), agrees, tries });
    }
    books.services.store.record_anchors(&books.monitor.spec.name, &judge.revision, rows, books.services.now_us()).await?;
    Ok(true)
}

/// As an item is judged, but for what an anchor does not have: a trace around it, and metrics before this one.
async fn judgement(books: &Books<'_>, judge: &Judge, anchor: &Anchor) -> Judgement {
    let Anchor { input, output, context, expected, .. } = anchor.clone();
    let item_id = format!("anchor:{}", anchor.id);
    let trace = minijinja::context! { id => item_id.as_str(), input => input.as_str(), output => output.as_str() };
    let case = Case { input, output, context, expected, metadata: BTreeMap::new(), details: BTreeMap::new() };
    let scores = BTreeMap::new();
    let view = view::case(&case, &trace, &scores);
    let call = CallCx {
        monitor: &books.monitor.spec.name,
        metric: &judge.name,
        run_id: &books.order.run.id,
        item_id: &item_id,
        budgets: &books.monitor.spec.evaluation.budget,
        fresh: true,
        background: None,
    };
    judge.metric.judge(&MetricCx { case: &case, view: &view, latency_ms: None, cost_usd: None, observations: &[], scores: &scores, call }).await
}

/// What a run made of `judge-changed`.
#[derive(Default)]
pub(super) struct Judges<'a> {
    pub evaluated: Vec<(AlertMemory, Evaluation<'a>)>,
    /// Alerts of judges that were not looked at: as they were.
    pub unchanged: Vec<AlertLine>,
    /// What was kept of judges that are others now.
    pub edited: Vec<(String, AlertMemory)>,
    /// The metrics whose alert fires.
    changed: BTreeSet<String>,
}

impl Judges<'_> {
    /// Why people are not told of an alert: what it measures is made by a judge that changed.
    pub(super) fn explain(&self, ended: Ended<'_>, alert: &AlertSpec) -> Option<String> {
        let metric = alert.metric.as_deref()?;
        // How many judgements failed, how long they took and what they cost is no matter of what a judge says.
        if matches!(alert.when.statistic, Statistic::FailedRate | Statistic::N | Statistic::CostUsd | Statistic::LatencyP95) {
            return None;
        }
        let changed = self.changed.iter().find(|changed| rests_on(&ended.monitor.spec, metric, changed))?;
        Some(format!("{} fires and explains it", alert_of_value(JUDGE_CHANGED, "metric", changed)))
    }
}

/// Whether a metric is given by the judge that gives another, or made of what that gives.
fn rests_on(spec: &MonitorSpec, metric: &str, judged: &str) -> bool {
    let Some(giver) = spec.metrics.iter().find(|known| known.config.gives().may_give(&known.name, metric)) else { return false };
    // Parts stand above what is made of them, so this ends.
    giver.config.gives().may_give(&giver.name, judged) || giver.config.parts().into_iter().any(|part| part != metric && rests_on(spec, part, judged))
}

/// Fires at once, since evidence knows itself how much it takes; repeats daily, since a judge is mended by a person.
const RULE: Rule = Rule { hold: Hold::Runs(1), repeat: Human::hours(24), keep: Human::secs(0) };

/// Takes out of `memories` what is kept of the monitor's `judge-changed`, and evaluates it.
pub(super) async fn evaluate<'a>(ended: Ended<'a>, memories: &mut BTreeMap<String, AlertMemory>) -> Result<Judges<'a>, sqlx::Error> {
    let mut judges = Judges::default();
    let Some(spec) = &ended.monitor.spec.anchors else { return Ok(judges) };
    match ended.anchors {
        Some(Looked::At(set)) => {
            for judge in ended.metrics {
                let held = Held::of(judge, set);
                let rows = if held.0.is_empty() {
                    Vec::new()
                } else {
                    ended.services.store.anchors(&ended.monitor.spec.name, &judge.revision, &ended.report.run_id).await?
                };
                for metric in held.metrics() {
                    let name = alert_of_value(JUDGE_CHANGED, "metric", metric);
                    let before = memories.remove(&name).unwrap_or_default();
                    let said = Said::of(judge, &held, metric, &rows, ended.monitor.spec.evaluation.max_attempts);
                    judges.take(ended, spec, metric, &said, name, before);
                }
            }
        }
        Some(Looked::Unreadable(reason)) => judges.fault(ended, memories, reason),
        None => judges.keep(memories),
    }
    Ok(judges)
}

impl<'a> Judges<'a> {
    fn take(&mut self, ended: Ended<'_>, spec: &AnchorsSpec, metric: &'a str, said: &Said, name: String, before: AlertMemory) {
        let other = before.of.as_ref().is_some_and(|of| of.by != said.about);
        // Nothing is known of the judge as it is now: it may just have been away.
        let away = other && said.judged == 0 && said.run.is_empty();
        let before = if other && !away {
            self.edited.push((name.clone(), before));
            AlertMemory::default()
        } else {
            before
        };
        let compared = if away {
            let after = step(&before, &RULE, &Observed::NoData, ended.now, &ended.report.run_id);
            Compared { after, summary: "no anchor was judged in this run".to_owned(), threshold: None }
        } else {
            let mut compared = said.compare(ended, spec, metric, &before);
            compared.after.memory.of = Some(OfValue { by: said.about.clone(), value: metric.to_owned() });
            compared
        };
        self.note(&compared.after.memory);
        let evaluation =
            Evaluation { value: said.share(), n: Some(said.run.len() as u64), window: Some("1 run".to_owned()), ..evaluation(name, Some(metric), compared) };
        self.evaluated.push((before, evaluation));
    }

    /// The run did not come to the anchors: all is as it was.
    fn keep(&mut self, memories: &mut BTreeMap<String, AlertMemory>) {
        for (name, memory) in take_kept(memories) {
            self.note(&memory);
            self.unchanged.push(AlertLine { name, state: memory.state, reason: "no anchor was judged in this run".to_owned() });
        }
    }

    /// There are no anchors to be judged; whose labels there are is not known where there never were any.
    fn fault(&mut self, ended: Ended<'_>, memories: &mut BTreeMap<String, AlertMemory>, reason: &str) {
        let mut kept = take_kept(memories);
        if kept.is_empty() {
            kept.push((JUDGE_CHANGED.to_owned(), AlertMemory::default()));
        }
        for (name, before) in kept {
            let after = step(&before, &RULE, &Observed::Error(reason.to_owned()), ended.now, &ended.report.run_id);
            self.note(&before);
            let summary = "the anchors cannot be read".to_owned();
            self.evaluated.push((before, evaluation(name, None, Compared { after, summary, threshold: None })));
        }
    }

    /// What fires explains what rests on the judge.
    fn note(&mut self, memory: &AlertMemory) {
        let metric = memory.of.as_ref().filter(|_| memory.state == AlertState::Firing).map(|of| of.value.clone());
        self.changed.extend(metric);
    }
}

fn take_kept(memories: &mut BTreeMap<String, AlertMemory>) -> Vec<(String, AlertMemory)> {
    let names: Vec<String> = memories.keys().filter(|name| alertname(name) == JUDGE_CHANGED).cloned().collect();
    names.into_iter().filter_map(|name| Some((name.clone(), memories.remove(&name)?))).collect()
}

fn evaluation(name: String, metric: Option<&str>, Compared { after, summary, threshold }: Compared) -> Evaluation<'_> {
    Evaluation {
        name: name.into(),
        severity: Severity::Warning,
        after,
        condition: JUDGE_CHANGED.to_owned(),
        summary,
        metric,
        label: None,
        value: None,
        threshold,
        n: None,
        window: None,
        notify: &[],
        worst: None,
        interval: None,
        history: None,
    }
}

/// What a judge said of the anchors of one metric.
struct Said {
    /// Which judge and anchors these are.
    about: String,
    /// In the set, and those of them that the judge was asked about as often as it is.
    set: u64,
    judged: u64,
    start: Start,
    /// Of this run's draw: whether it agreed.
    run: Vec<bool>,
}

/// An evaluation, and what it says.
struct Compared {
    after: Step,
    summary: String,
    threshold: Option<f64>,
}

impl Said {
    fn of(judge: &Judge, held: &Held<'_>, metric: &str, rows: &[AnchorRow], max_tries: u32) -> Self {
        let keys: BTreeSet<String> = held.0.iter().filter(|(_, names)| names.contains(&metric)).map(|(anchor, _)| anchor.key(metric)).collect();
        let rows: Vec<&AnchorRow> = rows.iter().filter(|row| row.metric == metric && keys.contains(&row.anchor)).collect();
        let at_start = || rows.iter().filter(|row| row.run_id.is_empty());
        let about = keys.iter().fold(format!("{}\0{metric}", judge.revision), |about, key| about + "\0" + key);
        Self {
            about: blake3::hash(about.as_bytes()).to_hex()[..16].to_owned(),
            set: keys.len() as u64,
            judged: at_start().filter(|row| is_final(row, max_tries)).count() as u64,
            start: Start {
                n: at_start().filter(|row| row.agrees.is_some()).count() as u64,
                agreed: at_start().filter(|row| row.agrees == Some(true)).count() as u64,
            },
            run: rows.iter().filter(|row| !row.run_id.is_empty()).filter_map(|row| row.agrees).collect(),
        }
    }

    fn agreed(&self) -> u64 {
        self.run.iter().filter(|agrees| **agrees).count() as u64
    }

    /// Of this run's anchors, those that it agreed with.
    fn share(&self) -> Option<f64> {
        let numbers: Vec<f64> = self.run.iter().map(|agrees| f64::from(u8::from(*agrees))).collect();
        (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / crate::statistics::real(numbers.len() as u64))
    }

    fn compare(&self, ended: Ended<'_>, spec: &AnchorsSpec, metric: &str, before: &AlertMemory) -> Compared {
        let plainly = |observed: Observed, summary: String| {
            let after = step(before, &RULE, &observed, ended.now, &ended.report.run_id);
            Compared { after, summary, threshold: None }
        };
        if self.judged < self.set {
            let progress = format!("learning how {metric} agrees with its anchors: {} of {} judged", self.judged, self.set);
            return plainly(Observed::Learning(progress), format!("{metric}: {} of {} anchors judged", self.judged, self.set));
        }
        if self.start.n == 0 {
            let fault = format!("none of the {} anchors of {metric} gave a verdict to compare with its label", self.set);
            return plainly(Observed::Error(fault.clone()), fault);
        }
        let condition = self.start.condition();
        let promise = Promise { confidence: spec.confidence, interval: interval(ended.monitor, ended.report.slot) };
        let ask = Ask { condition, promise, min_samples: 0, about: &self.about, shared: None };
        let judged: Vec<Judged> = self.run.iter().map(|agrees| Judged { value: Some(f64::from(u8::from(*agrees))), ..Judged::default() }).collect();
        let slot = ended.report.slot.as_second();
        let (after, Shown { level, streak, .. }) = match step_on_evidence(before, &RULE, &ask, &judged, slot, ended.now, &ended.report.run_id) {
            Ok(stepped) => stepped,
            Err(message) => return plainly(Observed::Error(message.clone()), message),
        };
        let summary = match (&after.verdict, streak) {
            (Verdict::Notify(AlertEventKind::Firing, _), Some(streak)) => firing_sentence(metric, self.start, promise, streak),
            (Verdict::Notify(AlertEventKind::Resolved, _), Some(streak)) => resolved_sentence(metric, self.start, streak),
            _ => quiet_sentence(metric, self.start, self.run.len() as u64, self.agreed(), before.state == AlertState::Firing, level),
        };
        Compared { after, summary, threshold: Some(condition.threshold) }
    }
}
