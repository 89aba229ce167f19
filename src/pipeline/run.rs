//! The order of a run. Read [`work`] first: it is the pipeline.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::Instrument;

use super::{
    Monitor, Services,
    books::Books,
    evaluate::{Drawn, Judging},
    extract::NoCase,
    measure,
    sample::{self, Reservoir, Rule},
    view,
};
use crate::{
    config::Rejudge,
    metrics::Price,
    model::{Decision, GivenHash, ItemKey, PublishedCounts, RunReport, Score, Trace},
    sources::{Fetched, Pages, SourceError},
    store::{Closed, ItemEnd, ItemOutcome, NewItem, NewScore, Pending, RunRow},
    telemetry,
    util::text,
};

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub struct Order {
    pub run: RunRow,
    /// Overrides the watermark; such a run moves none.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Judges nothing and writes nothing.
    pub dry_run: bool,
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
    Timeout(crate::util::duration::Human),
}

/// Pages held between the source and the draw: one in hand, one on its way.
const PAGES: usize = 1;
/// Children fetched at the same time.
const COMPLETIONS: usize = 8;
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
    let timeout = monitor.spec.schedule.timeout;
    // Every line that is logged below says whose it is.
    let span = tracing::info_span!("run", monitor = %monitor.spec.name, run = %order.run.id);
    // A dry run judges nothing, so it needs no prompts. Metrics that are asked who they are take of the run's own time.
    let pinned =
        if order.dry_run { Some(Arc::clone(&monitor.metrics)) } else { tokio::time::timeout(timeout.0, monitor.pinned().instrument(span.clone())).await.ok() };
    let in_time = pinned.is_some();
    let books = Books::new(monitor, pinned.unwrap_or_else(|| Arc::clone(&monitor.metrics)), services, order);
    let worked = match timeout.0.checked_sub(since.elapsed()).filter(|_| in_time) {
        Some(left) => tokio::time::timeout(left, work(&books).instrument(span)).await.unwrap_or(Err(Stopped::Timeout(timeout))),
        None => Err(Stopped::Timeout(timeout)),
    };
    if matches!(worked, Err(Stopped::Closed(_))) {
        return Err(Closed);
    }
    let mut report = books.report(worked.err(), started);
    if order.dry_run {
        return Ok(report);
    }
    let period = order.period.unwrap_or(measure::UNKNOWN_PERIOD.0);
    let new_items = books.tally().new_items;
    let moved = match measure::alerts(monitor, services, &report, new_items, period).await {
        Ok(moved) => moved,
        Err(error) => {
            tracing::error!(monitor = %monitor.spec.name, %error, "alerts could not be evaluated");
            measure::Moved::default()
        }
    };
    report.alerts = moved.lines;
    let now = services.clock.now();
    services.store.finish_run(report.run_id.clone(), new_items, report.clone(), now.as_microsecond(), moved.rows, moved.notices).await?;
    services.outbox.send_replace(());
    report.published = published(services, &report.run_id, monitor).await;
    telemetry::run_finished(&report, now.as_duration().as_secs_f64());
    Ok(report)
}

/// The pipeline.
async fn work<'a>(books: &'a Books<'a>) -> Result<(), Stopped> {
    // What an earlier run drew and did not finish, then what waits for another try.
    if !books.order.dry_run {
        leftovers(books, false, u64::MAX).await?;
        leftovers(books, true, (books.monitor.spec.source.limit / 2).max(1)).await?;
    }
    if books.order.run.drawn {
        return Ok(());
    }
    let Some(window) = books.window().await? else { return Ok(()) };
    let (pages, received) = Pages::channel(PAGES);
    let fetch = async {
        let fetched = books.monitor.source.fetch(window, &pages).await;
        drop(pages);
        fetched
    };
    let (fetched, judged) = tokio::join!(fetch, draw_and_judge(books, received));
    judged?;
    fetched?;
    books.complete().await
}

/// New items as they come: dedup -> observations -> filter -> extract -> sample -> evaluate -> record.
async fn draw_and_judge<'a>(books: &'a Books<'a>, mut pages: mpsc::Receiver<Vec<Fetched>>) -> Result<(), Stopped> {
    let concurrency = books.monitor.spec.evaluation.concurrency.max(1);
    match Rule::new(&books.monitor.spec.sampling, books.order.run.seed) {
        Rule::Share(share) => {
            // Drawn and stored ahead of the judges, so that a free place never waits for the disk.
            let (ready, mut drawn) = mpsc::channel(1);
            let items = stream::poll_fn(move |cx| drawn.poll_recv(cx)).flat_map(stream::iter);
            let (drawn, judged) = tokio::join!(draw_pages(books, pages, share, ready), judge_all(books, items, concurrency));
            judged?;
            drawn
        }
        Rule::Smallest { n, by } => {
            let mut reservoir = Reservoir::new(n, by);
            let mut batch = Vec::new();
            let mut always = Vec::new();
            let mut baseline = Vec::new();
            let mut watermark = None;
            while let Some(page) = pages.recv().await {
                let candidates = candidates(books, page).await?;
                watermark = watermark.max(candidates.watermark);
                batch.extend(candidates.decided);
                baseline.extend(candidates.baseline);
                for candidate in candidates.open {
                    if candidate.always {
                        always.push(candidate);
                        continue;
                    }
                    let (id, at_us) = (candidate.fetched_id.clone(), candidate.item_us);
                    if let Some(out) = reservoir.offer(&id, at_us, candidate) {
                        batch.push(out.sampled_out());
                    }
                }
                if candidates.full {
                    pages.close();
                }
            }
            let drawn: Vec<Candidate> = reservoir.into_drawn().chain(always).collect();
            let reason = if n == usize::MAX { "drawn".to_owned() } else { format!("drawn: {by:?}, n = {n}") };
            batch.extend(drawn.iter().map(|candidate| candidate.drawn(&reason)));
            books.record_draw(batch, baseline, watermark, true).await?;
            let items = drawn.into_iter().map(|candidate| candidate.into_drawn(books.services.now_us()));
            judge_all(books, stream::iter(items.collect::<Vec<_>>()), concurrency).await
        }
    }
}

/// Items drawn at a time: enough to share a commit, few enough that the first are judged soon.
const DRAW: usize = 100;

/// Draws page after page by each item's own hash. What was drawn before a failure is judged.
async fn draw_pages(books: &Books<'_>, mut pages: mpsc::Receiver<Vec<Fetched>>, share: f64, ready: mpsc::Sender<Vec<Drawn>>) -> Result<(), Stopped> {
    while let Some(mut page) = pages.recv().await {
        while !page.is_empty() {
            let rest = page.split_off(page.len().min(DRAW));
            let (drawn, full) = draw(books, std::mem::replace(&mut page, rest), share).await?;
            // Nobody judges any more: the reason is the judges' to tell.
            if ready.send(drawn).await.is_err() || full {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Judges, records, counts.
async fn judge_all<'a>(books: &'a Books<'a>, items: impl futures_util::Stream<Item = Drawn> + Send + 'a, concurrency: usize) -> Result<(), Stopped> {
    if books.order.dry_run {
        // Consumed all the same: pages are pulled through it.
        items.for_each(|_| std::future::ready(())).await;
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
async fn record(books: &Books<'_>, judged: Result<ItemOutcome, Stopped>) -> Result<(), Stopped> {
    let judged = judged?;
    books.count(&judged);
    books.services.store.record_outcome(judged).await?;
    books.services.outbox.send_replace(());
    Ok(())
}

/// One item by all its metrics. What is known is recorded before the next paid question; the rest comes back to be
/// recorded with the item's end.
async fn judge(books: &Books<'_>, item: Drawn) -> Result<ItemOutcome, Stopped> {
    let run_id = &books.order.run.id;
    let mut judging = Judging::new(books.monitor, run_id, &item);
    let mut scores: Vec<NewScore> = Vec::with_capacity(books.metrics.len());
    let mut stale = Vec::new();
    for (at, judge) in books.metrics.iter().enumerate() {
        if judge.price == Price::Paid {
            // An answer that cannot be stored would be paid for twice.
            books.services.store.wait_until_well().await?;
        }
        let found = judging.by(judge).await;
        stale.extend(found.stale);
        let judged = found.scores;
        if judged.is_empty() {
            continue;
        }
        judged.iter().for_each(|score| telemetry::judged(&books.monitor.spec.name, &score.metric, score.outcome.kind()));
        scores.extend(judged);
        if judge.price == Price::Paid && judging.pays_after(at) {
            let scores = std::mem::take(&mut scores);
            books.note(&scores);
            let outcome = books.outcome(&item, scores, None);
            books.services.store.record_outcome(ItemOutcome { stale: std::mem::take(&mut stale), ..outcome }).await?;
        }
    }
    let end = judging.end(books.services.now_us());
    Ok(ItemOutcome { stale, ..books.outcome(&item, scores, Some(end)) })
}

/// Items that were drawn before and are not decided: `retries` for those that failed or were deferred.
async fn leftovers<'a>(books: &'a Books<'a>, retries: bool, limit: u64) -> Result<(), Stopped> {
    let name = &books.monitor.spec.name;
    let (mut after, mut taken) = ((i64::MIN, i64::MIN), 0);
    while taken < limit {
        let page = u32::try_from(limit - taken).unwrap_or(u32::MAX).min(LEFTOVERS);
        let rows = books.services.store.pending(name, after, page, retries).await?;
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
        outcome.end = Some(ItemEnd { decision, reason, comes_back: false, counts: true });
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
    let recorded = books.services.store.scores_of(pending.key).await?;
    Ok(Ok(Drawn { key: pending.key, trace: Arc::new(trace), view, case, attempts: pending.attempts, first_us: pending.first_us, recorded }))
}

/// A page of new items, decided as far as that goes without the draw.
struct Candidates {
    decided: Vec<NewItem>,
    open: Vec<Candidate>,
    /// Known without their content's hash.
    baseline: Vec<(ItemKey, GivenHash)>,
    /// The newest dated item seen.
    watermark: Option<i64>,
    /// The run has as many new items as it takes.
    full: bool,
}

/// An item that may be drawn.
struct Candidate {
    key: ItemKey,
    fetched_id: String,
    item_us: i64,
    trace: Arc<Trace>,
    view: minijinja::Value,
    case: crate::model::Case,
    always: bool,
    given: Option<GivenHash>,
    /// What was judged of it before it changed.
    recorded: Vec<Score>,
}

impl Candidate {
    fn sampled_out(&self) -> NewItem {
        self.item(Decision::SampledOut, "not drawn", None)
    }

    fn drawn(&self, reason: &str) -> NewItem {
        let reason = if self.always { "drawn: always" } else { reason };
        self.item(Decision::Drawn, reason, serde_json::to_string(&*self.trace).ok())
    }

    fn item(&self, decision: Decision, reason: &str, trace: Option<String>) -> NewItem {
        NewItem { key: self.key, item_id: self.fetched_id.clone(), item_us: self.item_us, decision, reason: reason.into(), trace, given: self.given }
    }

    fn into_drawn(self, first_us: i64) -> Drawn {
        Drawn { key: self.key, trace: self.trace, view: self.view, case: self.case, attempts: 0, first_us, recorded: self.recorded }
    }
}

/// Draws, and stores the draw. True when the run has all it takes.
async fn draw(books: &Books<'_>, page: Vec<Fetched>, share: f64) -> Result<(Vec<Drawn>, bool), Stopped> {
    let Candidates { decided: mut batch, open, baseline, watermark, full } = candidates(books, page).await?;
    let mut drawn = Vec::with_capacity(open.len());
    for candidate in open {
        if candidate.always || sample::in_share(share, &candidate.fetched_id) {
            batch.push(candidate.drawn("drawn"));
            drawn.push(candidate);
        } else {
            batch.push(candidate.sampled_out());
        }
    }
    books.record_draw(batch, baseline, watermark, false).await?;
    let now_us = books.services.now_us();
    Ok((drawn.into_iter().map(|candidate| candidate.into_drawn(now_us)).collect(), full))
}

/// Dedup, observations, filter, extract.
async fn candidates(books: &Books<'_>, mut page: Vec<Fetched>) -> Result<Candidates, Stopped> {
    let monitor = books.monitor;
    let keys: Vec<ItemKey> = page.iter().map(|item| ItemKey::new(&monitor.source_key, &monitor.spec.name, &item.id)).collect();
    let known = books.services.store.known(&keys).await?;
    let given: HashMap<ItemKey, GivenHash> = match monitor.spec.source.rejudge {
        Rejudge::Never => HashMap::new(),
        Rejudge::OnChange => keys.iter().zip(&page).filter_map(|(key, item)| Some((*key, GivenHash::new(item.body.as_ref().ok()?)))).collect(),
    };
    let mut baseline = Vec::new();
    // New, or changed since it was decided.
    let mut is_open = |key: &ItemKey| match (known.get(key), given.get(key)) {
        (None, _) => true,
        (Some(Some(before)), Some(now)) => before != now,
        (Some(None), Some(now)) => {
            baseline.push((*key, *now));
            false
        }
        (Some(_), None) => false,
    };
    let full = {
        let mut tally = books.tally();
        let mut keys = keys.iter();
        let mut room = monitor.spec.source.limit.saturating_sub(tally.new_items);
        let mut full = false;
        page.retain(|_| {
            let fresh = keys.next().is_some_and(|key| is_open(key) && tally.seen.insert(*key));
            if full {
                return false;
            }
            tally.counts.fetched += 1;
            if !fresh {
                tally.counts.duplicate += 1;
                return false;
            }
            if room == 0 {
                full = true;
                tally.counts.fetched -= 1;
                return false;
            }
            room -= 1;
            tally.new_items += 1;
            true
        });
        full || room == 0
    };
    let watermark = page.iter().filter(|item| item.dated).map(|item| item.timestamp.as_microsecond()).max();
    let page = complete(books, page).await?;

    let mut found = Candidates { decided: Vec::new(), open: Vec::with_capacity(page.len()), baseline, watermark, full };
    for item in page {
        let key = ItemKey::new(&monitor.source_key, &monitor.spec.name, &item.id);
        let item_us = item.timestamp.as_microsecond();
        let given = given.get(&key).copied();
        let decided = |decision, reason: String| NewItem { key, item_id: item.id.clone(), item_us, decision, reason: reason.into(), trace: None, given };
        let trace = match item.body {
            Ok(trace) => trace,
            Err(reason) => {
                found.decided.push(decided(Decision::Failed, reason));
                continue;
            }
        };
        if let Some(reason) = monitor.spec.source.scope.leaves_out(&trace) {
            found.decided.push(decided(Decision::Filtered, reason));
            continue;
        }
        let view = view::trace(&trace, &monitor.patterns);
        let context = minijinja::context! { trace => view.clone() };
        match monitor.filter.as_ref().map(|filter| (filter, filter.is_true(&context))) {
            Some((filter, Ok(false))) => {
                found.decided.push(decided(Decision::Filtered, format!("`{}` is false", filter.source())));
                continue;
            }
            // Not silently filtered: a filter that does not fit the data would switch the monitor off.
            Some((_, Err(error))) => {
                found.decided.push(decided(Decision::Failed, format!("filter: {error}")));
                continue;
            }
            _ => {}
        }
        match monitor.extract.case(&view) {
            Ok(case) => {
                let always = monitor.always.as_ref().is_some_and(|always| always.is_true(&context).unwrap_or(false));
                // What was paid for is not paid again where the change is in nothing that is judged.
                let recorded = if known.contains_key(&key) { books.services.store.scores_of(key).await? } else { Vec::new() };
                found.open.push(Candidate { key, fetched_id: item.id, item_us, trace, view, case, always, given, recorded });
            }
            Err(NoCase::NotApplicable(reason)) => found.decided.push(decided(Decision::NotApplicable, reason)),
            Err(NoCase::Failed(reason)) => found.decided.push(decided(Decision::Failed, reason)),
        }
    }
    Ok(found)
}

/// Observations, where the monitor uses them.
async fn complete(books: &Books<'_>, page: Vec<Fetched>) -> Result<Vec<Fetched>, SourceError> {
    if !books.monitor.wants_observations {
        return Ok(page);
    }
    let mut completed = Vec::with_capacity(page.len());
    let mut page = page.into_iter().peekable();
    while page.peek().is_some() {
        let mut requests = Vec::with_capacity(COMPLETIONS);
        for item in page.by_ref().take(COMPLETIONS) {
            requests.push(complete_one(books, item));
        }
        for item in futures_util::future::join_all(requests).await {
            completed.push(item?);
        }
    }
    Ok(completed)
}

async fn complete_one(books: &Books<'_>, item: Fetched) -> Result<Fetched, SourceError> {
    Ok(match item.body {
        Ok(trace) => Fetched { body: Ok(books.monitor.source.complete(trace).await?), ..item },
        Err(_) => item,
    })
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
