//! An alert with `by`: one alert for each value of an expression, each with a state of its own. Which values have one.
//!
//! A value that fires or is pending keeps its place, whatever comes. The other places go to the values with the most judgements in
//! the window, where those of a value that has a place count double: so a place changes hands when another value is clearly more
//! frequent, and not because of a few items. What finds no place is judged together, as the value [`OTHERS`].

use std::collections::{BTreeMap, BTreeSet};

/// The value of an item for which the expression gives nothing.
pub const NONE: &str = "none";
/// The alert of all values that have none of their own.
pub const OTHERS: &str = "others";
/// A value that was not seen in so many windows, while others were, is gone.
pub const WINDOWS: u32 = 3;

/// A value among the judgements of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub value: String,
    /// Judgements.
    pub n: u64,
    /// The newest of them; microseconds.
    pub last_us: i64,
}

/// The values that have an alert of their own now. `placed` are those that had one, with whether they fire or are pending; of them only
/// those count that are not gone.
#[must_use]
pub fn watched(seen: &[Seen], placed: &BTreeMap<&str, bool>, limit: usize) -> BTreeSet<String> {
    let mut watched: BTreeSet<String> = placed.iter().filter(|(_, active)| **active).map(|(value, _)| (*value).to_owned()).collect();
    let rank = |value: &str| {
        let (n, last_us) = seen.iter().find(|seen| seen.value == value).map_or((0, i64::MIN), |seen| (seen.n, seen.last_us));
        let has_place = placed.contains_key(value);
        (n.saturating_mul(1 + u64::from(has_place)), has_place, last_us)
    };
    let values: BTreeSet<&str> = seen.iter().map(|seen| seen.value.as_str()).chain(placed.keys().copied()).filter(|value| *value != OTHERS).collect();
    let mut waiting: Vec<_> = values.into_iter().filter(|value| !watched.contains(*value)).collect();
    // Stable: of equals the first by name.
    waiting.sort_by_cached_key(|value| std::cmp::Reverse(rank(value)));
    let free = limit.saturating_sub(watched.len());
    watched.extend(waiting.into_iter().take(free).map(str::to_owned));
    watched.remove(OTHERS);
    watched
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(values: &[(&str, u64)]) -> Vec<Seen> {
        values.iter().map(|(value, n)| Seen { value: (*value).to_owned(), n: *n, last_us: 0 }).collect()
    }

    fn names(watched: &BTreeSet<String>) -> Vec<&str> {
        watched.iter().map(String::as_str).collect()
    }

    #[test]
    fn places_go_to_the_most_frequent_and_change_hands_seldom() {
        let now = seen(&[("a", 10), ("b", 9), ("c", 1), (OTHERS, 50)]);
        assert_eq!(names(&watched(&now, &BTreeMap::new(), 2)), ["a", "b"]);
        assert_eq!(names(&watched(&now, &BTreeMap::from([("b", false), ("c", false)]), 2)), ["a", "b"], "ten times as many");
        let close = seen(&[("a", 10), ("b", 9), ("c", 6)]);
        assert_eq!(names(&watched(&close, &BTreeMap::from([("b", false), ("c", false)]), 2)), ["b", "c"], "not twice as many");
        assert_eq!(names(&watched(&close, &BTreeMap::from([("x", true), ("y", true), ("z", true)]), 2)), ["x", "y", "z"], "people were told");
        assert_eq!(names(&watched(&[], &BTreeMap::from([("b", false)]), 2)), ["b"], "a quiet window");
    }

    proptest! {
        #[test]
        fn who_fires_keeps_its_place_and_no_place_is_wasted(
            counts in proptest::collection::btree_map("[a-h]", 0u64..50, 0..8),
            placed in proptest::collection::btree_map("[a-h]", any::<bool>(), 0..6),
            limit in 1usize..6,
        ) {
            let seen: Vec<Seen> = counts.iter().map(|(value, n)| Seen { value: value.clone(), n: *n, last_us: 1 }).collect();
            let placed: BTreeMap<&str, bool> = placed.iter().map(|(value, active)| (value.as_str(), *active)).collect();
            let chosen = watched(&seen, &placed, limit);
            let active: Vec<_> = placed.iter().filter(|(_, active)| **active).map(|(value, _)| (*value).to_owned()).collect();
            prop_assert!(active.iter().all(|value| chosen.contains(value)));
            let all: BTreeSet<&str> = counts.keys().map(String::as_str).chain(placed.keys().copied()).collect();
            prop_assert_eq!(chosen.len(), all.len().min(limit.max(active.len())));
            // What was chosen is chosen again: nothing moves where nothing changed.
            let kept: BTreeMap<&str, bool> = chosen.iter().map(|value| (value.as_str(), placed.get(value.as_str()).copied().unwrap_or(false))).collect();
            prop_assert_eq!(watched(&seen, &kept, limit), chosen.clone());
        }
    }
}
