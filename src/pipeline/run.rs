//! The order of a run. Read [`work`] first: it is the pipeline.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;
use tracing::Instrument;

use super::{
    Monitor, Services,
    again::Beyond,
    alerts::{self, Ended, Moved, UNKNOWN_PERIOD},
    anchors,
    backfill::{self, Task},
    books::Books,
    candidates::{Candidate, Candidates, comes_back, recorded},
    evaluate::{Drawn, Judging},
    extract::NoCase,
    gate,
    offers::Offers,
    sample::{self, Reservoir, Rule},
    view,
};
use crate::{
    metrics::Price,
    model::{Decision, Gate, PublishedCounts, RunReport, RunStatus, Trace},
    sources::{Fetched, Pages, SourceError, Window},
    store::{Closed, FinishedRun, ItemEnd, ItemOutcome, NewScore, Pending, RunRow, Stage},
    telemetry,
    util::{duration::Human, text},
};

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct Order {
    pub run: RunRow,
    /// Judges nothing and writes nothing.
    pub dry_run: bool,
    /// A release check in place of the usual work.
    pub gate: Option<Gate>,
    /// Items of the past in place of the usual work.
    pub backfill: Option<Task>,
    /// Between two slots; what `no-data` counts by.
    pub period: Option<Duration>,
    pub progress: Option<tokio::sync::watch::Sender<Progress>>,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    pub fetched: u64,
    pub drawn: u64,
    pub decided: u64,
}

/// Why a run could not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    #[error("source: {0}")]
    Source(#[from] SourceError),
    #[error("store: {0}")]
    Store(#[from] sqlx::Error),
    #[error("{0}")]
    Closed(#[from] Closed),
    #[error("not finished within {0}")]
    Timeout(Human),
}

/// Pages held between the source and the draw: one in hand, one on its way.
const PAGES: usize = 1;
/// Outcomes on their way to the disk, beside those being judged: an fsync never holds a judge's place.
const RECORDING: usize = 256;
/// Waiting items read back at a time: their traces may be large.
const LEFTOVERS: u32 = 50;

/// Runs a monitor once and records the run. The caller has begun the run in the store (not for a dry run).
///
/// # Errors
/// When the store has closed: the process is going down, the run stays open and is finished after the restart.
// Boxed so that the proof that a run may move between threads is made here, where its lifetimes are known.
#[must_use]
pub fn run<'a>(monitor: &'a Monitor, services: &'a Services, order: &'a Order) -> BoxFuture<'a, Result<RunReport, Closed>> {
    Box::pin(run_once(monitor, services, order))
}

async fn run_once(monitor: &Monitor, services: &Services, order: &Order) -> Result<RunReport, Closed> {
    let (started, since) = (services.clock.now(), tokio::time::Instant::now());
    // A backfill takes as long as it takes: whoever asked for it ends it.
    let timeout = if order.backfill.is_some() { Human(Duration::MAX) } else { monitor.spec.schedule.timeout };
    // Every line that is logged below says whose it is.
    let span = tracing::info_span!("run", monitor = %monitor.spec.name, run = %order.run.id);
    // A dry run judges nothing, so it needs no prompts, unless it has to know what is judged already. Metrics that are asked who they are take of the run's own time.
    let pinned = if order.dry_run && order.backfill.as_ref().is_none_or(|task| task.afresh) {
        Some(Arc::clone(&monitor.metrics))
    } else {
        tokio::time::timeout(timeout.0, monitor.pinned().instrument(span.clone())).await.ok()
    };
    let in_time = pinned.is_some();
    let mut metrics = pinned.unwrap_or_else(|| Arc::clone(&monitor.metrics));
    if let Some(task) = &order.backfill {
        metrics = backfill::asked_for(monitor, &metrics, &task.asked.metrics);
    }
    let books = Books::new(monitor, metrics, services, order);
    let worked = match timeout.0.checked_sub(since.elapsed()).filter(|_| in_time) {
        Some(left) => tokio::time::timeout(left, work(&books).instrument(span)).await.unwrap_or(Err(Stopped::Timeout(timeout))),
        None => Err(Stopped::Timeout(timeout)),
    };
    if matches!(worked, Err(Stopped::Closed(_))) {
        return Err(Closed);
    }
    if worked.is_ok() {
        held_against_anchors(&books, timeout.0.saturating_sub(since.elapsed())).await?;
    }
    let mut report = books.report(worked.err(), started);
    if order.dry_run {
        report.would = books.would().await.ok();
        return Ok(report);
    }
    let period = order.period.unwrap_or(UNKNOWN_PERIOD.0);
    let new_items = books.tally().new_items;
    let looked = books.tally().anchors.take();
    let ended = Ended { monitor, metrics: &books.metrics, services, report: &report, now: services.clock.now(), anchors: looked.as_ref() };
    // A release check stops when it knows enough, which alerts must not take for the usual draw; a backfill is of the past.
    let moved = if order.run.trigger.speaks() { alerts::after_run_surely(ended, new_items, period).await } else { Ok(Moved::default()) };
    let Moved { rows, removed, notices, lines } = match moved {
        Ok(moved) => moved,
        Err(error) => {
            tracing::error!(monitor = %monitor.spec.name, %error, "alerts could not be evaluated");
            Moved::default()
        }
    };
    report.alerts = lines;
    let now = services.clock.now();
    // What others do with the monitor says nothing of what its runs were.
    let version = order.run.trigger.speaks().then(|| (monitor.spec.fingerprint.clone(), serde_json::to_string(&monitor.spec.parts).unwrap_or_default()));
    let finished = FinishedRun { new_items, report: report.clone(), at_us: now.as_microsecond(), alerts: rows, removed_alerts: removed, notices, version };
    services.store.finish_run(finished).await?;
    services.outbox.send_replace(());
    report.published = published(services, &report.run_id, monitor).await;
    telemetry::run_finished(&report, now.as_duration().as_secs_f64());
    Ok(report)
}

/// The pipeline.
async fn work<'a>(books: &'a Books<'a>) -> Result<(), Stopped> {
    if let Some(gate) = &books.order.gate {
        let found = gate::gate(books, gate).await?;
        books.tally().gate = Some(found);
        return Ok(());
    }
    if let Some(task) = &books.order.backfill {
        return backfill::backfill(books, task).await;
    }
    items(books).await
}

/// Asks judges about their anchors, after the items: what a budget and the time leave is the items' first. What does not come to an
/// end is left out of this run, and makes no failure of it.
async fn held_against_anchors(books: &Books<'_>, left: std::time::Duration) -> Result<(), Closed> {
    if !books.order.run.trigger.speaks() {
        return Ok(());
    }
    let name = &books.monitor.spec.name;
    match tokio::time::timeout(left, anchors::judge(books)).await {
        Ok(Ok(())) => {}
        Ok(Err(Stopped::Closed(_))) => return Err(Closed),
        Ok(Err(stopped)) => tracing::warn!(monitor = %name, %stopped, "anchors are left out of this run"),
        Err(_) => tracing::warn!(monitor = %name, "anchors are left out of this run: its time is over"),
    }
    Ok(())
}

async fn items<'a>(books: &'a Books<'a>) -> Result<(), Stopped> {
    // What an earlier run drew and did not finish, then what waits for another try.
    if !books.order.dry_run {
        leftovers(books, Stage::Drawn, u64::MAX).await?;
        // A release check that was interrupted leaves to runs what is theirs.
        if books.order.run.trigger.speaks() {
            leftovers(books, Stage::Judged, (books.monitor.spec.source.limit / 2).max(1)).await?;
        }
    }
    if books.order.run.drawn {
        return Ok(());
    }
    let Some(window) = books.window().await? else { return Ok(()) };
    let (pages, received) = Pages::channel(PAGES);
    let (fetched, judged) = tokio::join!(fetch(books, window, pages), draw_and_judge(books, received));
    judged?;
    fetched?;
    books.complete().await
}

async fn fetch(books: &Books<'_>, window: Window, pages: Pages) -> Result<(), SourceError> {
    // The pages end with this call.
    books.monitor.source.fetch(window, &pages).await
}

/// All that a window holds.
pub(super) async fn fetch_all(books: &Books<'_>, window: Window) -> Result<Vec<Vec<Fetched>>, SourceError> {
    let (pages, mut received) = Pages::channel(PAGES);
    let gather = async {
        let mut all = Vec::new();
        while let Some(page) = received.recv().await {
            all.push(page);
        }
        all
    };
    let (fetched, all) = tokio::join!(fetch(books, window, pages), gather);
    fetched.map(|()| all)
}

/// New items as they come: dedup -> observations -> filter -> extract -> sample -> evaluate -> record.
async fn draw_and_judge<'a>(books: &'a Books<'a>, pages: mpsc::Receiver<Vec<Fetched>>) -> Result<(), Stopped> {
    let concurrency = books.monitor.spec.evaluation.concurrency.max(1);
    let mut offers = Offers::new(books, pages);
    match Rule::new(&books.monitor.spec.sampling, books.order.run.seed).times(books.boost().await?) {
        Rule::Share(share) => {
            // Drawn and stored ahead of the judges, so that a free place never waits for the disk.
            let (ready, mut drawn) = mpsc::channel(1);
            let items = stream::poll_fn(move |cx| drawn.poll_recv(cx)).flat_map(stream::iter);
            let (drawn, judged) = tokio::join!(draw_few_by_few(books, offers, share, ready), judge_all(books, items, concurrency));
            judged?;
            drawn
        }
        Rule::Smallest { n, by } => {
            let mut reservoir = Reservoir::new(n, by);
            let mut batch = Vec::new();
            let mut chosen = Vec::new();
            let mut baseline = Vec::new();
            let mut watermark = None;
            while let Some(candidates) = offers.next().await? {
                watermark = watermark.max(candidates.watermark);
                batch.extend(candidates.decided);
                baseline.extend(candidates.baseline);
                // All of them, or those that are drawn would speak only for the ones that nobody asked for.
                for candidate in candidates.open {
                    let (id, at_us) = (candidate.fetched_id.clone(), candidate.item_us);
                    match reservoir.offer(&id, at_us, candidate) {
                        Some(out) if out.always => chosen.push(out),
                        Some(out) => batch.push(out.sampled_out()),
                        None => {}
                    }
                }
            }
            let drawn: Vec<Candidate> = reservoir.into_drawn().collect();
            let reason = if n == usize::MAX { "drawn".to_owned() } else { format!("drawn: {by:?}, n = {n}") };
            batch.extend(drawn.iter().map(|candidate| candidate.drawn(&reason)));
            batch.extend(chosen.iter().map(Candidate::chosen));
            books.record_draw(batch, baseline, watermark, true).await?;
            let items = drawn.into_iter().chain(chosen).map(|candidate| candidate.into_drawn(books.services.now_us()));
            judge_all(books, stream::iter(items.collect::<Vec<_>>()), concurrency).await
        }
    }
}

/// Draws by each item's own hash. What was drawn before a failure is judged.
async fn draw_few_by_few(books: &Books<'_>, mut offers: Offers<'_>, share: f64, ready: mpsc::Sender<Vec<Drawn>>) -> Result<(), Stopped> {
    while let Some(candidates) = offers.next().await? {
        // Nobody judges any more: the reason is the judges' to tell.
        if ready.send(draw(books, candidates, share).await?).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Draws, and stores the draw.
async fn draw(books: &Books<'_>, candidates: Candidates, share: f64) -> Result<Vec<Drawn>, Stopped> {
    let Candidates { decided: mut batch, open, baseline, watermark } = candidates;
    let mut drawn = Vec::with_capacity(open.len());
    for candidate in open {
        if sample::in_share(share, &candidate.fetched_id) {
            batch.push(candidate.drawn("drawn"));
        } else if candidate.always {
            batch.push(candidate.chosen());
        } else {
            batch.push(candidate.sampled_out());
            continue;
        }
        drawn.push(candidate);
    }
    books.record_draw(batch, baseline, watermark, false).await?;
    let now_us = books.services.now_us();
    Ok(drawn.into_iter().map(|candidate| candidate.into_drawn(now_us)).collect())
}

/// Judges, records, counts.
async fn judge_all<'a>(books: &'a Books<'a>, items: impl futures_util::Stream<Item = Drawn> + Send + 'a, concurrency: usize) -> Result<(), Stopped> {
    if books.order.dry_run {
        // Consumed all the same: pages are pulled through it.
        items
            .for_each(|item| {
                books.would_judge(&item, |_| true);
                std::future::ready(())
            })
            .await;
        return Ok(());
    }
    // Boxed, one allocation an item: the compiler cannot else see that a run may move between threads.
    let judged = items.map(move |item| -> BoxFuture<'a, _> {
        let span = tracing::info_span!("item", item = %text::one_line(&item.trace.id, 128));
        Box::pin(judge(books, item).instrument(span))
    });
    let judged = judged.buffer_unordered(concurrency);
    let recorded = judged.map(move |judged| -> BoxFuture<'a, _> { Box::pin(record(books, judged)) }).buffer_unordered(RECORDING);
    let mut recorded: BoxStream<'a, Result<(), Stopped>> = Box::pin(recorded);
    while let Some(done) = recorded.next().await {
        done?;
    }
    Ok(())
}

/// Puts an item's outcome on disk and tells the outbox.
pub(super) async fn record(books: &Books<'_>, judged: Result<ItemOutcome, Stopped>) -> Result<(), Stopped> {
    let judged = judged?;
    books.count(&judged);
    books.services.store.record_outcome(judged).await?;
    books.services.outbox.send_replace(());
    Ok(())
}

/// One item by all its metrics. What is known is recorded before the next paid question; the rest comes back to be
/// recorded with the item's end.
pub(super) async fn judge(books: &Books<'_>, item: Drawn) -> Result<ItemOutcome, Stopped> {
    let run_id = &books.order.run.id;
    let mut judging = Judging::new(books.monitor, run_id, &item, books.background());
    let beyond = Beyond::of(books.monitor, &item.trace, &item.case);
    let mut scores: Vec<NewScore> = Vec::with_capacity(books.metrics.len());
    let mut stale = Vec::new();
    for (at, judge) in books.metrics.iter().enumerate() {
        if judge.price == Price::Paid {
            // An answer that cannot be stored would be paid for twice.
            books.services.store.wait_until_well().await?;
        }
        let found = judging.by(judge).await;
        stale.extend(found.stale);
        let mut judged = found.scores;
        if judged.is_empty() {
            continue;
        }
        if let Some(beyond) = &beyond {
            beyond.told_apart(&mut judged);
        }
        judged.iter().for_each(|score| telemetry::judged(&books.monitor.spec.name, &score.metric, score.outcome.kind()));
        scores.extend(judged);
        if judge.price == Price::Paid && books.pays_after(at) {
            let scores = std::mem::take(&mut scores);
            books.note(&scores);
            let outcome = books.outcome(&item, scores, None);
            books.services.store.record_outcome(ItemOutcome { stale: std::mem::take(&mut stale), ..outcome }).await?;
        }
    }
    let end = judging.end(books.services.now_us());
    Ok(ItemOutcome { stale, ..books.outcome(&item, scores, Some(end)) })
}

/// Items that were drawn before and are not decided. A run that publishes nothing leaves alone what is to be published.
async fn leftovers<'a>(books: &'a Books<'a>, stage: Stage, limit: u64) -> Result<(), Stopped> {
    let name = &books.monitor.spec.name;
    let (mut after, mut taken) = ((i64::MIN, i64::MIN), 0);
    while taken < limit {
        let page = u32::try_from(limit - taken).unwrap_or(u32::MAX).min(LEFTOVERS);
        let rows = books.services.store.pending(name, stage, books.order.run.publish, after, page).await?;
        let Some((_, last)) = rows.last() else { break };
        (after, taken) = (*last, taken + rows.len() as u64);
        let mut items = Vec::with_capacity(rows.len());
        for (pending, _) in rows {
            match restore(books, &pending).await? {
                Ok(item) => items.push(item),
                Err(outcome) => {
                    books.count(&outcome);
                    books.services.store.record_outcome(*outcome).await?;
                }
            }
        }
        judge_all(books, stream::iter(items), books.monitor.spec.evaluation.concurrency.max(1)).await?;
    }
    Ok(())
}

/// A waiting item, ready to be judged by today's settings; or the outcome that says why it cannot be.
async fn restore(books: &Books<'_>, pending: &Pending) -> Result<Result<Drawn, Box<ItemOutcome>>, sqlx::Error> {
    let monitor = books.monitor;
    let unfit = |trace: Option<&Trace>, decision, reason: String| {
        let mut outcome = books.bare_outcome(pending.key, &pending.item_id, pending.item_us, trace);
        let comes_back = trace.is_some() && decision == Decision::Failed && comes_back(monitor, pending.attempts);
        outcome.end = Some(ItemEnd { decision, reason, comes_back, counts: true });
        Err(Box::new(outcome))
    };
    let trace: Trace = match serde_json::from_str(&pending.trace) {
        Ok(trace) => trace,
        Err(error) => return Ok(unfit(None, Decision::Failed, format!("the stored trace no longer reads: {error}"))),
    };
    let view = view::trace(&trace, &monitor.patterns);
    let case = match monitor.extract.case(&view) {
        Ok(case) => case,
        Err(NoCase::NotApplicable(reason)) => return Ok(unfit(Some(&trace), Decision::NotApplicable, reason)),
        Err(NoCase::Failed(reason)) => return Ok(unfit(Some(&trace), Decision::Failed, reason)),
    };
    let recorded = recorded(books, pending.key, &trace, &case).await?;
    Ok(Ok(Drawn { key: pending.key, trace: Arc::new(trace), view, case, attempts: pending.attempts, first_us: pending.first_us, recorded }))
}

/// Ends a backfill that a process before this one began: whoever asked for it begins it again.
///
/// # Errors
/// `Closed`.
pub async fn end_interrupted(services: &Services, run: &RunRow) -> Result<(), Closed> {
    let slot = jiff::Timestamp::from_microsecond(run.slot_us).unwrap_or_default();
    let mut report = RunReport::empty(run.id.clone(), run.monitor.clone(), slot, run.trigger, RunStatus::Failed);
    report.error = Some("interrupted; begun again with the same arguments it goes on".to_owned());
    let finished =
        FinishedRun { new_items: 0, report, at_us: services.now_us(), alerts: Vec::new(), removed_alerts: Vec::new(), notices: Vec::new(), version: None };
    services.store.finish_run(finished).await
}

/// Delivered and waiting rows of a run, by queue; a queue of the monitor that has none yet is there with zeros.
pub async fn published(services: &Services, run_id: &str, monitor: &Monitor) -> BTreeMap<String, PublishedCounts> {
    let mut published: BTreeMap<String, PublishedCounts> = monitor.queues.iter().map(|queue| (queue.name.clone(), PublishedCounts::default())).collect();
    // Figures for a reader; the outbox itself is what counts.
    for (queue, delivered, pending) in services.store.published(run_id).await.unwrap_or_default() {
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        published.insert(queue, PublishedCounts { delivered: count(delivered), pending: count(pending) });
    }
    published
}
