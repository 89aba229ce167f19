//! What a run draws from: items that failed before the draw of an earlier run, then what the source gives.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{
    books::Books,
    candidates::{Candidates, candidates},
    dedup::{self, Open},
    run::Stopped,
};
use crate::{
    model::Trace,
    sources::Fetched,
    store::{Pending, Stage},
};

/// Items looked at together: enough to share a commit, few enough that the first are judged soon.
const TOGETHER: usize = 100;
/// Waiting items read back at a time: their traces may be large.
const WAITING: u32 = 50;

pub(super) struct Offers<'a> {
    books: &'a Books<'a>,
    pages: mpsc::Receiver<Vec<Fetched>>,
    /// Of a page, what is not looked at yet.
    rest: Vec<Fetched>,
    /// Where the waiting ones go on, and how many more are taken; `None` when that is over.
    waiting: Option<((i64, i64), u64)>,
    full: bool,
}

impl<'a> Offers<'a> {
    pub(super) fn new(books: &'a Books<'a>, pages: mpsc::Receiver<Vec<Fetched>>) -> Self {
        // As many as of those that wait for their next judgement, so that new ones are not starved.
        let most = (books.monitor.spec.source.limit / 2).max(1);
        let waiting = (!books.order.dry_run).then_some(((i64::MIN, i64::MIN), most));
        Self { books, pages, rest: Vec::new(), waiting, full: false }
    }

    /// The next few, decided as far as that goes without the draw; `None` when there are no more, or the run has all it takes.
    pub(super) async fn next(&mut self) -> Result<Option<Candidates>, Stopped> {
        if let Some(waiting) = self.waiting().await? {
            return Ok(Some(candidates(self.books, waiting, Vec::new()).await?));
        }
        if self.full {
            return Ok(None);
        }
        while self.rest.is_empty() {
            let Some(page) = self.pages.recv().await else { return Ok(None) };
            self.rest = dedup::newest_of_each(self.books, page);
        }
        let rest = self.rest.split_off(self.rest.len().min(TOGETHER));
        let page = std::mem::replace(&mut self.rest, rest);
        let dedup::Fresh { open, baseline, full } = dedup::fresh(self.books, page).await?;
        if full {
            self.full = true;
            self.books.tally().full = true;
            // The source may stop.
            self.pages.close();
        }
        Ok(Some(candidates(self.books, open, baseline).await?))
    }

    async fn waiting(&mut self) -> Result<Option<Vec<Open>>, sqlx::Error> {
        let Some((after, left)) = self.waiting.take().filter(|(_, left)| *left > 0) else { return Ok(None) };
        let Books { monitor, services, order, .. } = self.books;
        let page = u32::try_from(left).unwrap_or(u32::MAX).min(WAITING);
        let rows = services.store.pending(&monitor.spec.name, Stage::Undrawn, order.run.publish, after, page).await?;
        let Some((_, last)) = rows.last() else { return Ok(None) };
        self.waiting = Some((*last, left - rows.len() as u64));
        let mut tally = self.books.tally();
        // One that changed since is taken as it was, and as it is by the next run.
        tally.seen.extend(rows.iter().map(|(pending, _)| (pending.key, i64::MAX)));
        Ok(Some(rows.into_iter().map(|(pending, _)| back(pending)).collect()))
    }
}

fn back(pending: Pending) -> Open {
    let Pending { key, item_id, item_us, attempts, trace, .. } = pending;
    let body = serde_json::from_str::<Trace>(&trace).map(Arc::new).map_err(|error| format!("the stored trace no longer reads: {error}"));
    let timestamp = jiff::Timestamp::from_microsecond(item_us).unwrap_or_default();
    // Without a say in the watermark, which has gone past it.
    let item = Fetched { id: item_id, timestamp, dated: false, body };
    Open { key, item, given: None, known: true, failed: Some(attempts) }
}
