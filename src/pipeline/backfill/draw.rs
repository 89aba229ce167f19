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
    /// Places of a slot that was given up.
    again: Vec<Placed>,
}

/// An item that was drawn once: it has its place in its slot's draw, or what is drawn beside it would be too much.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub id: String,
    pub item_us: i64,
}

/// Items of one slot.
struct Group {
    /// Of its first item.
    first: Timestamp,
    /// The next slot; `None` where there is none.
    end: Option<Timestamp>,
    /// `None`: the place of an item that was drawn once.
    reservoir: Reservoir<Option<Candidate>>,
    placed: Vec<Placed>,
    chosen: Vec<Candidate>,
    out: Vec<NewItem>,
    keys: Vec<ItemKey>,
}

impl<'a> Draw<'a> {
    pub(super) fn new(books: &'a Books<'a>) -> Self {
        let spec = &books.monitor.spec;
        Self { books, plan: Plan::new(&spec.schedule, &spec.name).ok(), group: None, again: Vec::new() }
    }

    /// Takes items in, and the places of those that were drawn once; returns what is drawn by now, the draw stored.
    pub(super) async fn offer(&mut self, found: Candidates, placed: Vec<Placed>) -> Result<Vec<Candidate>, Stopped> {
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
                let mut placed: Vec<Placed> = self.again.drain(..).chain(placed).collect();
                placed.sort_by_key(|placed| placed.item_us);
                let mut placed = placed.into_iter().peekable();
                for candidate in open {
                    while let Some(placed) = placed.next_if(|placed| placed.item_us <= candidate.item_us) {
                        drawn.extend(self.place(placed).await?);
                    }
                    drawn.extend(self.put(candidate).await?);
                }
                for placed in placed {
                    drawn.extend(self.place(placed).await?);
                }
            }
        }
        Ok(drawn)
    }

    /// Returns what a slot before drew, where the item is the first of the next.
    async fn put(&mut self, candidate: Candidate) -> Result<Vec<Candidate>, Stopped> {
        let (group, drawn) = self.group_of(candidate.item_us).await?;
        group.keys.push(candidate.key());
        let (id, item_us) = (candidate.fetched_id.clone(), candidate.item_us);
        group.offer(&id, item_us, Some(candidate));
        Ok(drawn)
    }

    async fn place(&mut self, placed: Placed) -> Result<Vec<Candidate>, Stopped> {
        let (group, drawn) = self.group_of(placed.item_us).await?;
        group.offer(&placed.id, placed.item_us, None);
        group.placed.push(placed);
        Ok(drawn)
    }

    /// The slot of an item, and what the one before it drew, where that is over.
    async fn group_of(&mut self, item_us: i64) -> Result<(&mut Group, Vec<Candidate>), Stopped> {
        let at = Timestamp::from_microsecond(item_us).unwrap_or_default();
        let over = self.group.as_ref().is_some_and(|group| group.end.is_some_and(|end| at >= end));
        let drawn = if over { self.finish().await? } else { Vec::new() };
        let group = match &mut self.group {
            Some(group) => group,
            none => none.insert(Group::begun(self.books, self.plan.as_ref(), at)),
        };
        Ok((group, drawn))
    }

    /// Draws what is left: there are no more items.
    pub(super) async fn finish(&mut self) -> Result<Vec<Candidate>, Stopped> {
        let Some(group) = self.group.take() else { return Ok(Vec::new()) };
        let mut drawn: Vec<Candidate> = group.reservoir.into_drawn().flatten().collect();
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
        self.again.extend(group.placed);
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
        Self { first: at, end, reservoir: Reservoir::new(n, by), placed: Vec::new(), chosen: Vec::new(), out: Vec::new(), keys: Vec::new() }
    }

    fn offer(&mut self, id: &str, item_us: i64, candidate: Option<Candidate>) {
        match self.reservoir.offer(id, item_us, candidate).flatten() {
            Some(out) if out.always => self.chosen.push(out),
            Some(out) => self.out.push(out.sampled_out()),
            None => {}
        }
    }
}
