//! A level that was learned, in place of one that was promised.

use super::{len, mean, real, t_quantile};

/// How sure the learned level is.
pub const CONFIDENCE: f64 = 0.95;
/// Runs and items without which nothing is learned.
pub const MIN_RUNS: u64 = 24;
pub const MIN_ITEMS: u64 = 200;

/// A level, from the means of the runs that it was learned of.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Level {
    pub mean: f64,
    /// The mean is at least this, with [`CONFIDENCE`]. Rules start from here: starting from the mean itself breaks the
    /// promise, since half of all learned means are too high.
    pub low: f64,
    /// The same from above, for figures where more is worse.
    pub high: f64,
}

/// One-sided t bounds of the mean of run means. `None` of fewer than two.
#[must_use]
pub fn learn(run_means: &[f64], confidence: f64) -> Option<Level> {
    if run_means.len() < 2 {
        return None;
    }
    let (runs, middle) = (len(run_means), mean(run_means));
    let spread = (run_means.iter().map(|run| (run - middle).powi(2)).sum::<f64>() / (runs - 1.0)).sqrt();
    let half = t_quantile(confidence, real(run_means.len() as u64 - 1)) * spread / runs.sqrt();
    Some(Level { mean: middle, low: middle - half, high: middle + half })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::vectors::{close, group, list, real};

    #[test]
    fn stats_vectors_baseline() {
        for case in group("baseline") {
            let level = learn(&list(&case, "run_means"), real(&case, "confidence")).unwrap();
            close(level.mean, real(&case, "mean"), &case);
            close(level.low, real(&case, "low"), &case);
            close(level.low - real(&case, "by"), real(&case, "tau"), &case);
        }
    }

    #[test]
    fn one_run_teaches_nothing() {
        assert_eq!(learn(&[0.9], CONFIDENCE), None);
    }
}
