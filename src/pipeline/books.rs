//! What a run counts as it goes, and what it makes of that in the end.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    Monitor, Services,
    anchors::Looked,
    evaluate::Drawn,
    monitor::Judge,
    run::{Order, Progress, Stopped},
};
use crate::{
    alerting::AlertMemory,
    metrics::{Gives, Price},
    model::{
        BackfillReport, BodyKey, CostBy, Decision, GateReport, Item, ItemCounts, ItemKey, MetricSummary, Outcome, RunReport, RunStatus, Trace, Wait,
        WouldJudge, alertname, content_hash,
    },
    providers::Background,
    sources::Window,
    statistics::{
        Interval,
        interval::{SHOWN, wilson},
        real,
    },
    store::{Baseline, DrawBatch, ItemEnd, ItemOutcome, NewItem, NewScore, Queue},
    telemetry,
};

/// What a run counts as it goes.
pub(super) struct Books<'a> {
    pub monitor: &'a Monitor,
    /// As this run judges by them.
    pub metrics: Arc<[Judge]>,
    pub services: &'a Services,
    pub order: &'a Order,
    queues: Arc<[Queue]>,
    /// Of calls that wait behind those of all others.
    background: Option<Background>,
    tally: Mutex<Tally>,
}

#[derive(Default)]
pub(super) struct Tally {
    pub counts: ItemCounts,
    pub new_items: u64,
    /// Up to which time each item counts as looked at by this run: a source may send it twice before its first is stored.
    pub seen: HashMap<ItemKey, i64>,
    /// Items of this run's draw, and those of them that failed before they could be drawn.
    looked_at: u64,
    unfit: u64,
    drawn: u64,
    metrics: BTreeMap<String, MetricTally>,
    judge_blocked: Option<String>,
    over_budget: Option<String>,
    first_failure: Option<String>,
    cost_usd: f64,
    pub gate: Option<GateReport>,
    /// The run has as many new items as it takes.
    pub full: bool,
    /// How far it came.
    watermark: Option<i64>,
    /// What the run's judges were held against.
    pub anchors: Option<Looked>,
    pub backfill: Option<BackfillReport>,
    would: WouldJudge,
    /// Of each question, by metric; `None` where the price is not known.
    guessed: BTreeMap<String, Vec<Option<f64>>>,
}

#[derive(Default)]
struct MetricTally {
    n: u64,
    sum: f64,
    verdicts: u64,
    passed: u64,
    failed: u64,
}

impl<'a> Books<'a> {
    pub(super) fn new(monitor: &'a Monitor, metrics: Arc<[Judge]>, services: &'a Services, order: &'a Order) -> Self {
        // Of a release check the store knows item by item: some are owed by a run that publishes.
        let queues = if order.run.publish || order.gate.is_some() { Arc::clone(&monitor.queues) } else { Arc::from(Vec::new()) };
        let background = order.backfill.as_ref().map(|task| Background { id: task.id(&order.run, &metrics), budget: task.budget() });
        Self { monitor, metrics, services, order, queues, background, tally: Mutex::default() }
    }

    /// One task runs a run, so this never waits; the lock lets the run move between threads.
    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn background(&self) -> Option<&Background> {
        self.background.as_ref()
    }

    /// Whether a paid metric comes after position `at`: then what is known by now is recorded before it is asked.
    pub(super) fn pays_after(&self, at: usize) -> bool {
        self.metrics.iter().skip(at + 1).any(|metric| metric.price == Price::Paid)
    }

    /// Counts what judging an item would take.
    pub(super) fn would_judge(&self, item: &Drawn, wanted: impl Fn(&Judge) -> bool) {
        let mut tally = self.tally();
        tally.would.items += 1;
        for judge in self.metrics.iter().filter(|judge| wanted(judge)) {
            *tally.would.judgements.entry(judge.name.to_string()).or_default() += 1;
            if judge.price == Price::Paid {
                let guess = judge.metric.guess(&item.case, &item.view);
                tally.guessed.entry(judge.name.to_string()).or_default().push(guess);
            }
        }
    }

    /// What a dry run would have judged, and what that would cost: by the mean of what was paid before, else by what the
    /// questions would cost by the price list.
    pub(super) async fn would(&self) -> Result<WouldJudge, sqlx::Error> {
        let (mut would, guessed) = {
            let mut tally = self.tally();
            (std::mem::take(&mut tally.would), std::mem::take(&mut tally.guessed))
        };
        let (mut usd, mut by) = (Some(0.0), None);
        for (metric, guesses) in guessed {
            let (of_metric, from) = match self.services.store.mean_cost(&self.monitor.spec.name, &metric).await? {
                Some(mean) => (Some(mean * real(guesses.len() as u64)), CostBy::History),
                None => (guesses.into_iter().sum(), CostBy::Prices),
            };
            by = Some(by.map_or(from, |by| if by == from { by } else { CostBy::Both }));
            usd = usd.zip(of_metric).map(|(sum, more)| sum + more);
        }
        would.usd_by = by.filter(|_| usd.is_some());
        would.usd = usd;
        Ok(would)
    }

    /// From `watermark - overlap` (or `now - lookback` on the first run) to `now - settle`, or what of that was asked for;
    /// `None` when that is empty.
    pub(super) async fn window(&self) -> Result<Option<Window>, Stopped> {
        let at = |us: i64| Timestamp::from_microsecond(us).ok();
        let from = match self.order.run.since_us.and_then(at) {
            Some(since) => since,
            None => self.runs_from().await?,
        };
        let to = self.order.run.until_us.and_then(at).map_or(self.settled(), |until| until.min(self.settled()));
        Ok((from < to).then_some(Window { from, to }))
    }

    /// Where the monitor's next run begins to look.
    pub(super) async fn runs_from(&self) -> Result<Timestamp, sqlx::Error> {
        let (spec, now) = (&self.monitor.spec.source, self.services.clock.now());
        let watermark = self.services.store.watermark(&self.monitor.spec.name, &self.monitor.source_key).await?;
        Ok(match watermark {
            Some(us) => before(Timestamp::from_microsecond(us).unwrap_or(now), spec.overlap),
            None => before(now, spec.lookback),
        })
    }

    /// What is younger is not settled yet, and would be judged by half, whoever asks.
    pub(super) fn settled(&self) -> Timestamp {
        before(self.services.clock.now(), self.monitor.spec.source.settle)
    }

    pub(super) fn cost_usd(&self) -> f64 {
        self.tally().cost_usd
    }

    /// How many times as many items as usual are drawn: the most that an alert in doubt asks for.
    pub(super) async fn boost(&self) -> Result<u32, sqlx::Error> {
        let wanted = self.monitor.spec.alerts.iter().filter_map(|alert| Some((alert, alert.evidence?.boost)));
        let wanted: Vec<_> = wanted.filter(|(_, boost)| *boost > 1).collect();
        if wanted.is_empty() {
            return Ok(1);
        }
        let memories = super::alerts::memories(self.services, &self.monitor.spec.name).await?;
        let in_doubt = wanted.into_iter().filter(|(alert, _)| {
            let of = || memories.iter().filter(|(name, _)| alertname(name) == alert.name).map(|(_, memory)| memory);
            // Of a value that no longer comes no item can be drawn, however unsure it was left.
            let newest = of().filter_map(AlertMemory::gathered_at).max();
            of().any(|memory| memory.in_doubt() && memory.gathered_at() == newest)
        });
        Ok(in_doubt.map(|(_, boost)| boost).max().unwrap_or(1))
    }

    pub(super) async fn record_draw(&self, items: Vec<NewItem>, baseline: Vec<Baseline>, watermark: Option<i64>, complete: bool) -> Result<(), Stopped> {
        let at_us = self.services.now_us();
        self.count_draw(&items);
        if self.order.dry_run {
            return Ok(());
        }
        // A run over a window of its own may lie anywhere: only the regular ones move the watermark.
        let regular = self.order.run.since_us.is_none() && self.order.run.until_us.is_none();
        if let Some(us) = watermark {
            let lag = Duration::from_micros(u64::try_from(at_us - us).unwrap_or(0));
            telemetry::watermark_lag(&self.monitor.spec.name, lag.as_secs_f64());
        }
        let watermark = watermark.filter(|_| regular);
        {
            let mut tally = self.tally();
            tally.watermark = tally.watermark.max(watermark);
        }
        let watermark = watermark.map(|us| (self.monitor.source_key.clone(), us));
        let batch =
            DrawBatch { monitor: self.monitor.spec.name.clone(), run_id: self.order.run.id.clone(), at_us, items, baseline, watermark, complete, again: false };
        Ok(self.services.store.record_draw(batch).await?)
    }

    fn count_draw(&self, items: &[NewItem]) {
        let mut tally = self.tally();
        for item in items {
            tally.counts.add(item.decision, 1);
            tally.looked_at += 1;
            if item.decision == Decision::Failed {
                tally.unfit += 1;
                tally.first_failure.get_or_insert_with(|| item.reason.to_string());
            }
            tally.drawn += u64::from(item.decision == Decision::Drawn);
        }
        drop(tally);
        self.tell_progress();
    }

    /// Decides items whatever was decided of them before, and moves no watermark.
    pub(super) async fn record_past(&self, items: Vec<NewItem>) -> Result<(), Stopped> {
        self.count_draw(&items);
        if self.order.dry_run || items.is_empty() {
            return Ok(());
        }
        let (monitor, run_id, at_us) = (self.monitor.spec.name.clone(), self.order.run.id.clone(), self.services.now_us());
        let batch = DrawBatch { monitor, run_id, at_us, items, baseline: Vec::new(), watermark: None, complete: false, again: true };
        Ok(self.services.store.record_draw(batch).await?)
    }

    /// Draws an item whatever was decided of it before.
    pub(super) async fn record_again(&self, item: NewItem) -> Result<(), Stopped> {
        let (monitor, run_id, at_us) = (self.monitor.spec.name.clone(), self.order.run.id.clone(), self.services.now_us());
        let items = vec![item];
        let batch = DrawBatch { monitor, run_id, at_us, items, baseline: Vec::new(), watermark: None, complete: true, again: true };
        Ok(self.services.store.record_draw(batch).await?)
    }

    /// The whole window was read: a resumed run draws nothing more.
    pub(super) async fn complete(&self) -> Result<(), Stopped> {
        if self.order.dry_run { Ok(()) } else { self.record_draw(Vec::new(), Vec::new(), None, true).await }
    }

    pub(super) fn bare_outcome(&self, key: ItemKey, item_id: &str, item_us: i64, trace: Option<&Trace>) -> ItemOutcome {
        ItemOutcome {
            monitor: self.monitor.spec.name.clone(),
            run_id: self.order.run.id.clone(),
            key,
            item_id: item_id.to_owned(),
            item_us,
            trace_id: Some(trace.map_or(item_id, Trace::scored_trace).to_owned()),
            observation_id: trace.and_then(Trace::observation_place).map(|(_, observation)| observation.to_owned()),
            environment: trace.and_then(|trace| trace.environment.clone()).or_else(|| self.monitor.spec.environment.clone()),
            url: trace.and_then(|trace| trace.url.clone()),
            at_us: self.services.now_us(),
            scores: Vec::new(),
            values: Vec::new(),
            stale: Vec::new(),
            queues: Arc::clone(&self.queues),
            body: None,
            end: None,
        }
    }

    /// Deferred judgements are no scores; what waits is the item.
    pub(super) fn outcome(&self, item: &Drawn, scores: Vec<NewScore>, end: Option<ItemEnd>) -> ItemOutcome {
        let bare = self.bare_outcome(item.key, &item.trace.id, item.trace.timestamp.as_microsecond(), Some(&item.trace));
        for (reason, wait) in
            scores.iter().filter_map(|score| if let Outcome::Deferred { reason, wait } = &score.outcome { Some((reason, wait)) } else { None })
        {
            let mut tally = self.tally();
            match wait {
                Wait::Judge => drop(tally.judge_blocked.get_or_insert_with(|| reason.clone())),
                Wait::Budget => drop(tally.over_budget.get_or_insert_with(|| reason.clone())),
                Wait::Gate => {}
            }
            tally.first_failure.get_or_insert_with(|| reason.clone());
        }
        let body = self.body(item).filter(|_| !scores.is_empty());
        let values = self.monitor.dimensions.iter().map(|dimension| dimension.of(item)).collect();
        ItemOutcome { values, scores: scores.into_iter().filter(|score| !matches!(score.outcome, Outcome::Deferred { .. })).collect(), body, end, ..bare }
    }

    /// The item for the sinks that want it.
    fn body(&self, item: &Drawn) -> Option<(BodyKey, String)> {
        self.queues.iter().any(|queue| queue.wants_item).then_some(())?;
        let content_hash = content_hash(&item.case);
        let key = BodyKey::new(item.key, &content_hash);
        let item = Item { trace: Arc::clone(&item.trace), case: item.case.clone(), content_hash, about: Arc::clone(&self.monitor.about) };
        // Plain data: it always serialises.
        Some((key, serde_json::to_string(&item).ok()?))
    }

    pub(super) fn count(&self, outcome: &ItemOutcome) {
        self.count_as(outcome, outcome.end.as_ref());
    }

    /// Counts the item by how it ended, which may not be what is stored.
    pub(super) fn count_as(&self, outcome: &ItemOutcome, end: Option<&ItemEnd>) {
        self.note(&outcome.scores);
        if let Some(end) = end {
            let mut tally = self.tally();
            tally.counts.add(end.decision, 1);
            if end.decision == Decision::Failed {
                tally.first_failure.get_or_insert_with(|| end.reason.clone());
            }
        }
        self.tell_progress();
    }

    /// What was paid for something else than a score.
    pub(super) fn spent(&self, usd: Option<f64>) {
        self.tally().cost_usd += usd.unwrap_or(0.0);
    }

    pub(super) fn note(&self, scores: &[NewScore]) {
        let mut tally = self.tally();
        for score in scores {
            tally.cost_usd += score.usage.cost_usd.unwrap_or(0.0);
            if let Outcome::Failed { reason } = &score.outcome {
                tally.first_failure.get_or_insert_with(|| format!("{}: {reason}", score.metric));
            }
            let metric = tally.metrics.entry(score.metric.to_string()).or_default();
            match &score.outcome {
                Outcome::Scored { value, passed, .. } => {
                    metric.n += 1;
                    metric.sum += value;
                    metric.verdicts += u64::from(passed.is_some());
                    metric.passed += u64::from(*passed == Some(true));
                }
                Outcome::Failed { .. } => metric.failed += 1,
                Outcome::NotApplicable { .. } | Outcome::Deferred { .. } => {}
            }
        }
    }

    fn tell_progress(&self) {
        let Some(progress) = &self.order.progress else { return };
        let tally = self.tally();
        let counts = &tally.counts;
        progress.send_replace(Progress {
            fetched: counts.fetched,
            drawn: tally.drawn,
            decided: counts.scored + counts.failed + counts.deferred + counts.not_applicable,
        });
    }

    pub(super) fn report(&self, stopped: Option<Stopped>, started: Timestamp) -> RunReport {
        let tally = self.tally();
        let counts = tally.counts;
        let judgements_failed = tally.metrics.values().map(|metric| metric.failed).sum::<u64>();
        // A filter or an extract that fits nothing has switched the monitor off.
        let all_unfit = tally.looked_at > 0 && tally.unfit == tally.looked_at;
        let cut_short = tally.backfill.as_ref().and_then(|backfill| backfill.stopped.clone());
        let status = if stopped.is_some() || all_unfit || counts.scored == 0 && (tally.judge_blocked.is_some() || judgements_failed > 0) {
            RunStatus::Failed
        } else if counts.failed + counts.deferred > 0 || cut_short.is_some() {
            RunStatus::Partial
        } else {
            RunStatus::Succeeded
        };
        let error = stopped.map(|stopped| stopped.to_string()).or(cut_short).or_else(|| tally.first_failure.clone()).filter(|_| status != RunStatus::Succeeded);
        let named = self.metrics.iter().flat_map(|judge| match &judge.gives {
            Gives::One => vec![judge.name.to_string()],
            Gives::Parts(parts) => parts.iter().map(|part| format!("{}.{part}", judge.name)).collect(),
            Gives::Unknown => Vec::new(),
        });
        let mut metrics: BTreeMap<String, MetricSummary> = named.map(|name| (name, MetricSummary::default())).collect();
        metrics.extend(tally.metrics.iter().map(|(name, metric)| (name.clone(), summary(metric))));
        let slot = Timestamp::from_microsecond(self.order.run.slot_us).unwrap_or(started);
        RunReport {
            error: error.map(|error| crate::util::text::one_line(&error, 500)),
            counts,
            metrics,
            cost_usd: tally.cost_usd,
            judge_blocked: tally.judge_blocked.clone(),
            over_budget: tally.over_budget.clone(),
            prompts: self.metrics.iter().filter_map(|judge| Some((judge.name.to_string(), judge.prompt.clone()?))).collect(),
            gate: tally.gate.clone(),
            backlog_seconds: tally.watermark.filter(|_| tally.full).map(|us| u64::try_from((self.services.now_us() - us) / 1_000_000).unwrap_or(0)),
            backfill: tally.backfill.clone(),
            duration_ms: u64::try_from(self.services.clock.now().duration_since(started).as_millis()).unwrap_or(0),
            ..RunReport::empty(self.order.run.id.clone(), self.monitor.spec.name.clone(), slot, self.order.run.trigger, status)
        }
    }
}

fn before(at: Timestamp, by: crate::util::duration::Human) -> Timestamp {
    at.checked_sub(SignedDuration::from_millis(by.millis())).unwrap_or(Timestamp::MIN)
}

fn summary(metric: &MetricTally) -> MetricSummary {
    if metric.n == 0 {
        return MetricSummary { failed: metric.failed, ..MetricSummary::default() };
    }
    let n = real(metric.n);
    let Interval { low, high } = wilson(metric.sum, metric.n, None, SHOWN);
    MetricSummary {
        n: metric.n,
        mean: Some(metric.sum / n),
        pass_rate: (metric.verdicts > 0).then(|| real(metric.passed) / real(metric.verdicts)),
        failed: metric.failed,
        low: Some(low),
        high: Some(high),
    }
}
