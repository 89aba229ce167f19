//! Which items of a page are to be decided: those that are new, and those that changed since they were decided.

use std::collections::HashSet;

use super::books::Books;
use crate::{
    config::Rejudge,
    model::{GivenHash, ItemKey},
    sources::Fetched,
    store::{Baseline, Known},
};

/// An item that is to be decided.
pub(super) struct Open {
    pub key: ItemKey,
    pub item: Fetched,
    pub given: Option<GivenHash>,
    /// The ledger has it already: there may be scores of it.
    pub known: bool,
    /// Attempts it has used up, where it comes back after it failed before the draw.
    pub failed: Option<u32>,
}

/// What dedup makes of a page.
pub(super) struct Fresh {
    pub open: Vec<Open>,
    /// Known without their content's hash.
    pub baseline: Vec<Baseline>,
    /// The run has as many new items as it takes.
    pub full: bool,
}

/// Of items with the same id, where content matters, the newest: pages go forward in time. The others count as duplicates.
pub(super) fn newest_of_each(books: &Books<'_>, mut page: Vec<Fetched>) -> Vec<Fetched> {
    if books.monitor.spec.source.rejudge == Rejudge::Never {
        return page;
    }
    let before = page.len();
    page.reverse();
    let mut seen = HashSet::new();
    page.retain(|item| seen.insert(item.id.clone()));
    page.reverse();
    let older = u64::try_from(before - page.len()).unwrap_or(u64::MAX);
    let mut tally = books.tally();
    tally.counts.fetched += older;
    tally.counts.duplicate += older;
    page
}

/// Counts what is fetched, and leaves out what is known.
pub(super) async fn fresh(books: &Books<'_>, page: Vec<Fetched>) -> Result<Fresh, sqlx::Error> {
    let monitor = books.monitor;
    let keys: Vec<ItemKey> = page.iter().map(|item| ItemKey::new(&monitor.source_key, &monitor.spec.name, &item.id)).collect();
    let known = books.services.store.known(&keys).await?;
    let mut tally = books.tally();
    let mut room = monitor.spec.source.limit.saturating_sub(tally.new_items);
    let mut found = Fresh { open: Vec::new(), baseline: Vec::new(), full: room == 0 };
    for (key, item) in keys.into_iter().zip(page) {
        let item_us = item.timestamp.as_microsecond();
        let given = match monitor.spec.source.rejudge {
            Rejudge::Never => None,
            Rejudge::OnChange => Some(GivenHash::of(&item.body)),
        };
        tally.counts.fetched += 1;
        let before = known.get(&key);
        if !(tally.seen.get(&key).is_none_or(|at| *at < item_us) && is_open(before, given, &item)) {
            tally.counts.duplicate += 1;
            if let (Some(Known { given: None, .. }), Some(given)) = (before, given) {
                found.baseline.push(Baseline { key, given, item_us });
            }
            if given.is_some() {
                // Of two with one id and time the first counts, in this run as in the next.
                let at = tally.seen.entry(key).or_insert(item_us);
                *at = item_us.max(*at);
            }
            continue;
        }
        if room == 0 {
            tally.counts.fetched -= 1;
            found.full = true;
            break;
        }
        room -= 1;
        tally.new_items += 1;
        // What else comes of it is left to the next run: this one may be judging it by now.
        tally.seen.insert(key, i64::MAX);
        found.open.push(Open { key, item, given, known: before.is_some(), failed: None });
    }
    found.full |= room == 0;
    Ok(found)
}

/// New, or changed since it was decided. An older one of the same id is no change, or the two would take turns for ever.
fn is_open(known: Option<&Known>, given: Option<GivenHash>, item: &Fetched) -> bool {
    match (known, given) {
        (None, _) => true,
        (Some(Known { given: Some(before), item_us }), Some(now)) => *before != now && (!item.dated || *item_us <= item.timestamp.as_microsecond()),
        (Some(_), _) => false,
    }
}
