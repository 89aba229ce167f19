//! Items of the past, judged by the monitor as it is now.
//!
//! It keeps no place of its own: the source is read again from the beginning, and what has its scores is passed over. So a kill
//! at any moment loses the calls that are under way and nothing else, and whatever is begun again goes on where it was.
//! What a run drew once is judged again by chance's old decision; what no run has looked at is drawn as the runs of its time
//! would have drawn it, and that draw is stored before anything is judged.
//!
//! The monitor's own runs go on beside it: what they wait for or will still take is theirs. Nothing of it waits in the ledger.

mod draw;
mod place;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use self::{
    draw::{Draw, Placed},
    place::{Place, place},
};
use super::{
    Monitor,
    books::Books,
    candidates::{Candidate, Candidates, candidates},
    dedup::Open,
    monitor::Judge,
    run::{Stopped, judge},
};
use crate::{
    config::{MetricSpec, Rejudge},
    model::{Backfill, BackfillReport, Budget, Decision, GivenHash, ItemKey, Per},
    sources::{Fetched, Pages, Window},
    store::{ItemEnd, RunRow, Standing},
};

/// What is asked, and the way to end it early.
#[derive(Debug, Clone)]
pub struct Task {
    pub asked: Backfill,
    /// True: items under way are judged, no further ones are begun.
    pub stop: watch::Receiver<bool>,
    /// As if nothing was known: for a look at what the runs of that time would have done.
    pub afresh: bool,
}

impl Task {
    /// Names all that does the same work, and shares its money: the same items by the same revisions.
    pub(super) fn id(&self, run: &RunRow, metrics: &[Judge]) -> String {
        let of: Vec<_> = metrics.iter().map(|judge| (&*judge.name, &*judge.revision)).collect();
        let work = format!("{}\0{:?}\0{:?}\0{}\0{of:?}", run.monitor, run.since_us, run.until_us, self.asked.rejudge);
        blake3::hash(work.as_bytes()).to_hex()[..16].to_owned()
    }

    pub(super) fn budget(&self) -> Option<Budget> {
        // The command refused what is no amount of money.
        self.asked.max_usd.and_then(|usd| Budget::new(usd, Per::Run).ok())
    }
}

/// The metrics of these names, with those that they need; all without a name.
pub(super) fn asked_for(monitor: &Monitor, metrics: &Arc<[Judge]>, names: &[String]) -> Arc<[Judge]> {
    if names.is_empty() {
        return Arc::clone(metrics);
    }
    let specs = &monitor.spec.metrics;
    let mut wanted: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).filter(|name| names.iter().any(|asked| asked == name)).collect();
    loop {
        let before = wanted.len();
        let needed = specs.iter().filter(|spec| wanted.contains(spec.name.as_str())).flat_map(|spec| needs(spec, specs)).collect::<Vec<_>>();
        wanted.extend(needed);
        if wanted.len() == before {
            break;
        }
    }
    metrics.iter().filter(|judge| wanted.contains(&*judge.name)).cloned().collect()
}

/// Metrics whose outcomes this one looks at.
fn needs<'a>(spec: &'a MetricSpec, all: &'a [MetricSpec]) -> impl Iterator<Item = &'a str> {
    let texts = || spec.when.as_deref().into_iter().chain(spec.config.templates()).filter(|text| text.contains("scores"));
    let named = move |name: &str| texts().any(|text| text.contains(name)) || spec.config.parts().iter().any(|part| part.split('.').next() == Some(name));
    all.iter().map(|other| other.name.as_str()).filter(move |name| *name != spec.name && named(name))
}

/// An item to be judged.
struct Taken {
    candidate: Candidate,
    /// The ledger says that it is scored: that stays so, whatever comes of it now.
    scored: bool,
}

/// A part of the window, as far as it was looked at.
struct Stretch {
    taken: Vec<Taken>,
    /// Where the next one begins; `None` at the end of the window.
    next: Option<Timestamp>,
}

pub(super) async fn backfill<'a>(books: &'a Books<'a>, task: &'a Task) -> Result<(), Stopped> {
    let window = window(books);
    let mut looked = Look::new(books, task).await?;
    books.tally().backfill = Some(BackfillReport { from: Some(window.from), to: Some(window.to), max_usd: task.asked.max_usd, ..BackfillReport::default() });
    let before = spent(books).await?;
    let done = stretches(books, task, window, &mut looked).await;
    let cost = books.cost_usd();
    if let Some(report) = &mut books.tally().backfill {
        report.spent_usd = before.map(|before| before + cost);
    }
    done
}

/// What was spent of its own money before; known where there is a limit.
async fn spent(books: &Books<'_>) -> Result<Option<f64>, sqlx::Error> {
    let Some(background) = books.background().filter(|background| background.budget.is_some()) else { return Ok(None) };
    let committed = books.services.store.budget(&background.account(), 0).await?;
    Ok(Some(crate::model::usd(committed)))
}

fn window(books: &Books<'_>) -> Window {
    let now = books.services.clock.now();
    let at = |us: Option<i64>| us.and_then(|us| Timestamp::from_microsecond(us).ok());
    let run = &books.order.run;
    // What is not settled yet would be judged by half.
    let settled = books.settled();
    Window { from: at(run.since_us).unwrap_or(now), to: at(run.until_us).map_or(settled, |to| to.min(settled)) }
}

async fn stretches<'a>(books: &'a Books<'a>, task: &Task, window: Window, look: &mut Look<'a>) -> Result<(), Stopped> {
    let mut pace = Pace::new(task.asked.per_minute);
    let mut from = Some(window.from).filter(|from| *from < window.to);
    while let Some(begin) = from {
        let Stretch { taken, next } = look.at(Window { from: begin, to: window.to }).await?;
        if books.order.dry_run {
            for Taken { candidate, .. } in taken {
                let missing: HashSet<Arc<str>> = missing(books, &candidate).map(|judge| Arc::clone(&judge.name)).collect();
                books.would_judge(&candidate.into_drawn(0), |judge| missing.contains(&judge.name));
            }
        } else if let Some((why, at)) = judge_all(books, task, taken, &mut pace).await? {
            // Asked to stop when all was done, it is done.
            if let (Some(at), Some(report)) = (at.or(next), &mut books.tally().backfill) {
                (report.stopped, report.goes_on_at) = (Some(why), Some(at));
            }
            return Ok(());
        }
        from = next;
    }
    Ok(())
}

/// Metrics that have not judged the item as they are now.
fn missing<'a>(books: &'a Books<'_>, candidate: &'a Candidate) -> impl Iterator<Item = &'a Judge> {
    books.metrics.iter().filter(|judge| !candidate.is_judged_by(&books.monitor.spec.name, judge))
}

/// At most so many items a minute, evenly.
struct Pace {
    every: Duration,
    next: Instant,
}

impl Pace {
    fn new(per_minute: Option<f64>) -> Self {
        let every = per_minute.and_then(|rate| Duration::try_from_secs_f64(60.0 / rate).ok()).unwrap_or_default();
        Self { every, next: Instant::now() }
    }

    /// An item begins. Time that was not used is not caught up.
    fn begin(&mut self) {
        self.next = self.next.max(Instant::now()) + self.every;
    }
}

/// Judges them, oldest first. Why no further ones were begun, and the time of the oldest that was not judged, where one was not.
async fn judge_all<'a>(books: &'a Books<'a>, task: &Task, taken: Vec<Taken>, pace: &mut Pace) -> Result<Option<(String, Option<Timestamp>)>, Stopped> {
    let mut stop = task.stop.clone();
    let mut waiting = taken.into_iter();
    let (mut stopped, mut oldest): (Option<String>, Option<i64>) = (None, None);
    let mut under_way = stream::FuturesUnordered::new();
    let concurrency = books.monitor.spec.evaluation.concurrency.max(1);
    loop {
        if *stop.borrow() {
            stopped.get_or_insert_with(|| "it was asked to stop".to_owned());
        }
        let more = stopped.is_none() && under_way.len() < concurrency && waiting.len() > 0;
        if !more && under_way.is_empty() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep_until(pace.next), if more => {
                pace.begin();
                if let Some(item) = waiting.next() {
                    under_way.push(one(books, item));
                }
            }
            Some(done) = under_way.next() => {
                if let Some((why, item_us)) = done? {
                    stopped.get_or_insert(why);
                    oldest = Some(oldest.map_or(item_us, |oldest| oldest.min(item_us)));
                }
            }
            Ok(_) = stop.wait_for(|stop| *stop), if more => {}
        }
    }
    let left = waiting.map(|item| item.candidate.item_us).min();
    let at = [oldest, left].into_iter().flatten().min().and_then(|us| Timestamp::from_microsecond(us).ok());
    Ok(stopped.map(|why| (why, at)))
}

/// One item. Why it waits, where it does, and its time: nothing of it is decided then.
fn one<'a>(books: &'a Books<'a>, Taken { mut candidate, scored }: Taken) -> BoxFuture<'a, Result<Option<(String, i64)>, Stopped>> {
    Box::pin(async move {
        let item_us = candidate.item_us;
        // What an earlier revision said is no answer to the question of today.
        candidate.keep_recorded(|score| {
            let its = |judge: &Judge| judge.gives.may_give(&judge.name, &score.metric) || *judge.name == score.metric;
            books.metrics.iter().any(|judge| its(judge) && *judge.revision == *score.metric_revision)
        });
        let mut judged = judge(books, candidate.into_drawn(books.services.now_us())).await?;
        let end = judged.end.take();
        let waits = end.as_ref().filter(|end| end.decision == Decision::Deferred).map(|end| (end.reason.clone(), item_us));
        let counted = end.clone();
        // A later run of the monitor must find nothing of it waiting.
        judged.end = end.filter(|_| !scored && waits.is_none()).map(|end| ItemEnd { comes_back: false, ..end });
        books.count_as(&judged, counted.as_ref());
        books.services.store.record_outcome(judged).await?;
        books.services.outbox.send_replace(());
        Ok(waits)
    })
}

/// Which items of the window are to be judged.
struct Look<'a> {
    books: &'a Books<'a>,
    rejudge: bool,
    afresh: bool,
    /// What is younger and undecided, the monitor's next run takes.
    runs_from_us: i64,
    draw: Draw<'a>,
    /// Items that were dealt with: a stretch may begin before the last one's end.
    seen: HashSet<ItemKey>,
}

/// Items looked at together.
const TOGETHER: usize = 100;

impl<'a> Look<'a> {
    async fn new(books: &'a Books<'a>, task: &Task) -> Result<Self, sqlx::Error> {
        let runs_from_us = if task.afresh { i64::MAX } else { books.runs_from().await?.as_microsecond() };
        Ok(Self { books, rejudge: task.asked.rejudge, afresh: task.afresh, runs_from_us, draw: Draw::new(books), seen: HashSet::new() })
    }

    /// As much of the window as holds the items of one run. The source is read to there and let go, however long judging takes.
    async fn at(&mut self, window: Window) -> Result<Stretch, Stopped> {
        let source = Arc::clone(&self.books.monitor.source);
        let (pages, received) = Pages::channel(1);
        let fetch = async move { source.fetch(window, &pages).await };
        let (fetched, looked) = tokio::join!(fetch, self.take(received));
        let stretch = looked?;
        fetched?;
        Ok(stretch)
    }

    async fn take(&mut self, mut pages: tokio::sync::mpsc::Receiver<Vec<Fetched>>) -> Result<Stretch, Stopped> {
        let limit = usize::try_from(self.books.monitor.spec.source.limit).unwrap_or(usize::MAX).max(1);
        let mut taken = Vec::new();
        while let Some(mut page) = pages.recv().await {
            while !page.is_empty() {
                let rest = page.split_off(page.len().min(TOGETHER));
                let Some(last) = page.last().map(|item| item.timestamp) else { break };
                self.sort(page, &mut taken).await?;
                page = rest;
                if taken.len() >= limit {
                    // Of a draw that is not complete nothing is known yet: its items are looked at again.
                    let next = self.draw.give_up(&mut self.seen).map_or(last, |first| first.min(last));
                    return Ok(Stretch { taken, next: Some(next) });
                }
            }
        }
        let drawn = self.draw.finish().await?;
        taken.extend(drawn.into_iter().map(|candidate| Taken { candidate, scored: false }));
        Ok(Stretch { taken, next: None })
    }

    /// A few items, by what the ledger knows of them.
    async fn sort(&mut self, page: Vec<Fetched>, taken: &mut Vec<Taken>) -> Result<(), Stopped> {
        let monitor = self.books.monitor;
        let keyed = page.into_iter().filter(|item| item.dated).map(|item| (ItemKey::new(&monitor.source_key, &monitor.spec.name, &item.id), item));
        let new: Vec<(ItemKey, Fetched)> = keyed.filter(|(key, _)| self.seen.insert(*key)).collect();
        let keys: Vec<ItemKey> = new.iter().map(|(key, _)| *key).collect();
        let standing = if self.afresh { HashMap::new() } else { self.books.services.store.standing(&keys).await? };
        let (mut scored, mut drawn, mut open) = (Vec::new(), Vec::new(), Vec::new());
        let mut placed = Vec::new();
        for (key, item) in new {
            self.books.tally().counts.fetched += 1;
            let of = standing.get(&key);
            let place = place(of, item.timestamp.as_microsecond() < self.runs_from_us, self.rejudge);
            // Where nothing is drawn anew, nothing is drawn beside it.
            if self.rejudge && matches!(place, Place::Scored | Place::Drawn) {
                placed.push(Placed { id: item.id.clone(), item_us: item.timestamp.as_microsecond() });
            }
            let candidate = |item| Open { key, item, given: None, known: of.is_some(), failed: None };
            match place {
                Place::OfRuns => self.report(|report| report.left_to_runs += 1),
                Place::LeftOut => self.report(|report| report.left_out += 1),
                Place::Scored => scored.push(candidate(item)),
                Place::Drawn => drawn.push(candidate(item)),
                Place::Open => {
                    let given = (monitor.spec.source.rejudge == Rejudge::OnChange).then(|| GivenHash::of(&item.body));
                    open.push(Open { given: given.filter(|_| of.is_none()), ..candidate(item) });
                }
            }
        }
        self.decided(scored, true, taken).await?;
        self.decided(drawn, false, taken).await?;
        let found = candidates(self.books, open, Vec::new()).await?;
        let drawn = self.draw.offer(found, placed).await?;
        taken.extend(drawn.into_iter().map(|candidate| Taken { candidate, scored: false }));
        Ok(())
    }

    /// Items that are drawn: those that the settings of today leave out stay as they are.
    async fn decided(&self, items: Vec<Open>, scored: bool, taken: &mut Vec<Taken>) -> Result<(), Stopped> {
        let Candidates { decided, open, .. } = candidates(self.books, items, Vec::new()).await?;
        decided.iter().for_each(|item| self.books.tally().counts.add(item.decision, 1));
        for candidate in open {
            if missing(self.books, &candidate).next().is_none() {
                self.books.tally().counts.duplicate += 1;
                self.report(|report| report.already_scored += 1);
                continue;
            }
            taken.push(Taken { candidate, scored });
        }
        Ok(())
    }

    fn report(&self, change: impl FnOnce(&mut BackfillReport)) {
        if let Some(report) = &mut self.books.tally().backfill {
            change(report);
        }
    }
}
