//! Which items are judged. Pure: an item's place in the draw depends on its id, its time and the seed alone, so the same
//! items are drawn whatever order the pages came in.

use std::collections::BTreeMap;

use crate::config::{SamplingSpec, Strategy};

/// How a run draws.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// Every item on its own: those whose hash lies under the share. 1.0 draws all.
    Share(f64),
    /// The `n` smallest places of all candidates; known only when all are in.
    Smallest { n: usize, by: By },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Chance { seed: i64 },
    Newest,
    Oldest,
}

impl Rule {
    pub(super) fn new(spec: &SamplingSpec, seed: i64) -> Self {
        let smallest = |by| Self::Smallest { n: spec.n.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX)), by };
        match spec.strategy {
            Strategy::All => Self::Share(1.0),
            Strategy::Rate => Self::Share(spec.rate.unwrap_or(1.0)),
            Strategy::Random => smallest(By::Chance { seed }),
            Strategy::MostRecent => smallest(By::Newest),
            Strategy::Oldest => smallest(By::Oldest),
        }
    }
}

impl Rule {
    /// Draws so many times as many items; what is not drawn by chance stays as it is.
    pub(super) fn times(self, boost: u32) -> Self {
        match self {
            Self::Share(share) => Self::Share((share * f64::from(boost)).min(1.0)),
            Self::Smallest { n, by: by @ By::Chance { .. } } => Self::Smallest { n: n.saturating_mul(usize::try_from(boost).unwrap_or(usize::MAX)), by },
            Self::Smallest { .. } => self,
        }
    }
}

/// The seed of a run's draw: the same for whatever run has this id.
#[must_use]
pub fn seed(spec: &SamplingSpec, run_id: &str) -> i64 {
    let of_run = || {
        let mut head = [0; 8];
        head.copy_from_slice(&blake3::hash(run_id.as_bytes()).as_bytes()[..8]);
        i64::from_le_bytes(head)
    };
    spec.seed.map_or_else(of_run, |seed| i64::from_ne_bytes(seed.to_ne_bytes()))
}

/// Whether an item lies in the share: by its id alone, so monitors with the same rate judge the same items.
pub(super) fn in_share(share: f64, item_id: &str) -> bool {
    unit(blake3::hash(item_id.as_bytes())) < share
}

/// The first 53 bits as a number in [0, 1).
#[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
fn unit(hash: blake3::Hash) -> f64 {
    let mut head = [0; 8];
    head.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(head) >> 11) as f64 / (1_u64 << 53) as f64
}

/// An item's place: smaller is drawn first. The hash breaks ties, so that no two items share a place.
type Place = (i64, [u8; 32]);

impl By {
    fn place(self, item_id: &str, item_us: i64) -> Place {
        let hash = |seed: i64| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes()).update(item_id.as_bytes());
            *hasher.finalize().as_bytes()
        };
        match self {
            Self::Chance { seed } => (0, hash(seed)),
            Self::Newest => (item_us.saturating_neg(), hash(0)),
            Self::Oldest => (item_us, hash(0)),
        }
    }
}

/// Keeps the `n` first of a stream, holding no more than `n`.
#[derive(Debug)]
pub(super) struct Reservoir<T> {
    n: usize,
    by: By,
    kept: BTreeMap<Place, T>,
}

impl<T> Reservoir<T> {
    pub(super) fn new(n: usize, by: By) -> Self {
        Self { n, by, kept: BTreeMap::new() }
    }

    /// Takes an item in; gives back the one that is certainly not drawn.
    pub(super) fn offer(&mut self, item_id: &str, item_us: i64, item: T) -> Option<T> {
        self.kept.insert(self.by.place(item_id, item_us), item);
        if self.kept.len() > self.n { self.kept.pop_last().map(|(_, item)| item) } else { None }
    }

    /// The drawn ones, in the order of their places.
    pub(super) fn into_drawn(self) -> impl Iterator<Item = T> {
        self.kept.into_values()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draw(by: By, n: usize, items: &[(String, i64)]) -> Vec<String> {
        let mut reservoir = Reservoir::new(n, by);
        for (id, at) in items {
            reservoir.offer(id, *at, id.clone());
        }
        let mut drawn: Vec<String> = reservoir.into_drawn().collect();
        drawn.sort();
        drawn
    }

    proptest! {
        #[test]
        fn the_draw_does_not_depend_on_the_order_of_arrival(ids in proptest::collection::hash_set("[a-z]{1,6}", 0..40), n in 0usize..20, seed: i64) {
            let mut items: Vec<(String, i64)> = ids.into_iter().enumerate().map(|(at, id)| (id, i64::try_from(at).unwrap() % 7)).collect();
            for by in [By::Chance { seed }, By::Newest, By::Oldest] {
                let forwards = draw(by, n, &items);
                items.reverse();
                prop_assert_eq!(&forwards, &draw(by, n, &items));
                prop_assert_eq!(forwards.len(), n.min(items.len()));
            }
        }

        #[test]
        fn a_larger_share_keeps_what_a_smaller_one_drew(id in ".{0,20}", a in 0.0f64..1.0, b in 0.0f64..1.0) {
            let (small, large) = (a.min(b), a.max(b));
            prop_assert!(!in_share(small, &id) || in_share(large, &id));
            prop_assert!(in_share(1.0, &id) && !in_share(0.0, &id));
        }
    }

    #[test]
    fn the_newest_are_the_newest() {
        let items: Vec<(String, i64)> = (0..10).map(|at| (format!("i{at}"), at)).collect();
        assert_eq!(draw(By::Newest, 2, &items), ["i8", "i9"]);
        assert_eq!(draw(By::Oldest, 2, &items), ["i0", "i1"]);
    }

    #[test]
    fn a_share_of_many_ids_is_about_that_share() {
        let n = (0..10_000).filter(|at| in_share(0.2, &format!("trace-{at}"))).count();
        // Four standard deviations of a binomial: sqrt(10000 * 0.2 * 0.8) = 40.
        assert!((1840..=2160).contains(&n), "{n}");
    }
}
