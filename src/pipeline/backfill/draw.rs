//! The draw of items that no run has looked at: as the runs of their time would have drawn them, so many of each slot.

use std::collections::HashSet;

use jiff::Timestamp;

use crate::{
    model::{ItemKey, Trigger, run_id},
    pipeline::{
        books::Books,
        candidates::{Candidate, Candidates},
        run::Stopped,
        sample::{self, By, Reservoir, Rule},
    },
    schedule::plan::Plan,
    store::NewItem,
};

pub(super) struct Draw<'a> {
    books: &'a Books<'a>,
    plan: Option<Plan>,
    /// Of the slot that items are coming of; items come in order.
    group: Option<Group>,
}

/// Items of one slot.
struct Group {
    /// Of its first item.
    first: Timestamp,
    /// The next slot; `None` where there is none.
    end: Option<Timestamp>,
    reservoir: Reservoir<Candidate>,
    chosen: Vec<Candidate>,
    out: Vec<NewItem>,
    keys: Vec<ItemKey>,
}

impl<'a> Draw<'a> {
    pub(super) fn new(books: &'a Books<'a>) -> Self {
        let spec = &books.monitor.spec;
        Self { books, plan: Plan::new(&spec.schedule, &spec.name).ok(), group: None }
    }

    /// Takes items in; returns those that are drawn by now, the draw stored.
    pub(super) async fn offer(&mut self, found: Candidates) -> Result<Vec<Candidate>, Stopped> {
        let Candidates { decided, open, .. } = found;
        self.store(decided).await?;
        let mut drawn = Vec::new();
        match Rule::new(&self.books.monitor.spec.sampling, 0) {
            Rule::Share(share) => {
                let mut batch = Vec::with_capacity(open.len());
                for candidate in open {
                    if sample::in_share(share, &candidate.fetched_id) {
                        batch.push(candidate.drawn(REASON));
                    } else if candidate.always {
                        batch.push(candidate.chosen());
                    } else {
                        batch.push(candidate.sampled_out());
                        continue;
                    }
                    drawn.push(candidate);
                }
                self.store(batch).await?;
            }
            Rule::Smallest { .. } => {
                for candidate in open {
                    drawn.extend(self.put(candidate).await?);
                }
            }
        }
        Ok(drawn)
    }

    /// Returns what a slot before drew, where the item is the first of the next.
    async fn put(&mut self, candidate: Candidate) -> Result<Vec<Candidate>, Stopped> {
        let at = Timestamp::from_microsecond(candidate.item_us).unwrap_or_default();
        let over = self.group.as_ref().is_some_and(|group| group.end.is_some_and(|end| at >= end));
        let drawn = if over { self.finish().await? } else { Vec::new() };
        let group = match &mut self.group {
            Some(group) => group,
            none => none.insert(Group::begun(self.books, self.plan.as_ref(), at)),
        };
        group.keys.push(candidate.key());
        let (id, item_us) = (candidate.fetched_id.clone(), candidate.item_us);
        match group.reservoir.offer(&id, item_us, candidate) {
            Some(out) if out.always => group.chosen.push(out),
            Some(out) => group.out.push(out.sampled_out()),
            None => {}
        }
        Ok(drawn)
    }

    /// Draws what is left: there are no more items.
    pub(super) async fn finish(&mut self) -> Result<Vec<Candidate>, Stopped> {
        let Some(group) = self.group.take() else { return Ok(Vec::new()) };
        let mut drawn: Vec<Candidate> = group.reservoir.into_drawn().collect();
        let mut batch = group.out;
        batch.extend(drawn.iter().map(|candidate| candidate.drawn(REASON)));
        batch.extend(group.chosen.iter().map(Candidate::chosen));
        drawn.extend(group.chosen);
        drawn.sort_by_key(|candidate| candidate.item_us);
        self.store(batch).await?;
        Ok(drawn)
    }

    /// Forgets items whose slot is not over, and that they were seen; the time of the first of them.
    pub(super) fn give_up(&mut self, seen: &mut HashSet<ItemKey>) -> Option<Timestamp> {
        let group = self.group.take()?;
        seen.retain(|key| !group.keys.contains(key));
        self.books.tally().counts.fetched -= group.keys.len() as u64;
        Some(group.first)
    }

    /// What is drawn does not wait in the ledger: this backfill judges it, or the next one.
    async fn store(&self, items: Vec<NewItem>) -> Result<(), Stopped> {
        let items = items.into_iter().map(|item| NewItem { trace: None, ..item }).collect();
        self.books.record_past(items).await
    }
}

/// In the ledger.
const REASON: &str = "drawn by a backfill";

impl Group {
    fn begun(books: &Books<'_>, plan: Option<&Plan>, at: Timestamp) -> Self {
        let spec = &books.monitor.spec;
        let slot = plan.and_then(|plan| plan.latest_at(at)).unwrap_or(at);
        let end = plan.and_then(|plan| plan.next_after(at));
        let seed = sample::seed(&spec.sampling, &run_id(&spec.name, slot, Trigger::Schedule));
        let (n, by) = match Rule::new(&spec.sampling, seed) {
            Rule::Smallest { n, by } => (n, by),
            Rule::Share(_) => (usize::MAX, By::Oldest),
        };
        Self { first: at, end, reservoir: Reservoir::new(n, by), chosen: Vec::new(), out: Vec::new(), keys: Vec::new() }
    }
}
