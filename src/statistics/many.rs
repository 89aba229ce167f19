//! Many questions at once: which answers stand up together.

use super::real;

/// e-BH: of the streams' current ln E, those that fire together so that the expected share of false ones among the
/// alarms keeps one promise for all. `watched` is how many streams there are, those that fire already included.
/// Valid under any dependence. Wang, Ramdas: False discovery rate control with e-values, JRSS-B 2022, arXiv 2009.02824.
///
/// Gives the indices that fire, ascending.
#[must_use]
pub fn e_bh(log_evidence: &[f64], watched: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..log_evidence.len()).collect();
    order.sort_by(|a, b| log_evidence[*b].total_cmp(&log_evidence[*a]));
    let stands = |place: usize| log_evidence[order[place]] >= (real(watched) / real(place as u64 + 1)).ln();
    let fire = (0..order.len()).rev().find(|place| stands(*place)).map_or(0, |place| place + 1);
    order.truncate(fire);
    order.sort_unstable();
    order
}

/// Benjamini-Hochberg: p-values adjusted so that rejecting those at or below alpha keeps the share of false rejections
/// at alpha (Benjamini, Hochberg 1995). For a report that compares slices once; never for what is looked at again.
#[must_use]
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    let mut adjusted = vec![0.0; p.len()];
    let mut least = 1.0_f64;
    for (from_the_end, index) in order.into_iter().enumerate() {
        let rank = real((p.len() - from_the_end) as u64);
        least = least.min(p[index] * real(p.len() as u64) / rank);
        adjusted[index] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::vectors::{close, group, items, list, real};

    #[test]
    fn stats_vectors_e_bh() {
        for case in group("e_bh") {
            let log_evidence = list(&case, "log_evidence");
            let expected: Vec<usize> = items(&case, "fires").iter().map(|index| usize::try_from(index.as_u64().unwrap()).unwrap()).collect();
            assert_eq!(e_bh(&log_evidence, log_evidence.len() as u64), expected, "{case}");
        }
    }

    #[test]
    fn stats_vectors_bh() {
        for case in group("bh") {
            let adjusted = benjamini_hochberg(&list(&case, "p"));
            for ((found, expected), rejected) in adjusted.iter().zip(list(&case, "adjusted")).zip(items(&case, "rejected")) {
                close(*found, expected, &case);
                assert_eq!(*found <= real(&case, "alpha"), rejected.as_bool().unwrap(), "{case}");
            }
        }
    }
}
