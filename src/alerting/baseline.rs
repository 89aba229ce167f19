//! A level that is learned before anything is compared with it.
//!
//! It is learned of the first runs, frozen, and learned anew only where what is judged changed: a level that moves with the
//! scores would swallow a slow decay.

use serde::{Deserialize, Serialize};

use crate::{
    model::RunMean,
    statistics::{
        baseline::{CONFIDENCE, Level, MIN_ITEMS, MIN_RUNS, learn},
        real,
    },
};

/// What was learned, or how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// What it is the level of: statistic, metric's revision, sampling, length.
    about: String,
    /// The first run it is learned of; microseconds.
    since_us: i64,
    pub level: Option<Level>,
}

const DAY_US: i64 = 86_400_000_000;

impl Learned {
    /// What may be kept of the last evaluation: all of it while it is about the same, else learning begins with this run.
    #[must_use]
    pub fn carried(kept: Option<&Self>, about: &str, slot_us: i64) -> Self {
        kept.filter(|kept| kept.about == about).cloned().unwrap_or_else(|| Self { about: about.to_owned(), since_us: slot_us, level: None })
    }

    /// What it is the level of.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Runs from here on are learned of; microseconds.
    #[must_use]
    pub fn since_us(&self) -> i64 {
        self.since_us
    }

    /// Learns of the runs since the beginning, oldest first, once they cover `window_us` and are enough. Runs of whole days
    /// where it covers days, so that day and night weigh equally.
    ///
    /// # Errors
    /// A sentence on how far it is.
    pub fn learn(&mut self, runs: &[RunMean], window_us: i64) -> Result<Level, String> {
        let covered = runs.last().map_or(0, |run| run.slot_us - self.since_us);
        let end = if window_us >= DAY_US { self.since_us + covered.div_euclid(DAY_US) * DAY_US } else { self.since_us + covered };
        // The run at the end of a whole day belongs to the next one.
        let counted: Vec<&RunMean> = runs.iter().filter(|run| run.slot_us < end && run.n > 0).collect();
        let items: u64 = counted.iter().map(|run| run.n).sum();
        let means: Vec<f64> = counted.iter().map(|run| run.mean).collect();
        if covered < window_us || (counted.len() as u64) < MIN_RUNS || items < MIN_ITEMS {
            let (all, seen): (u64, u64) = (runs.iter().filter(|run| run.n > 0).count() as u64, runs.iter().map(|run| run.n).sum());
            let share = (real(u64::try_from(covered).unwrap_or(0)) / real(u64::try_from(window_us).unwrap_or(1).max(1)) * 100.0).clamp(0.0, 100.0).floor();
            return Err(format!("learning what is normal: {share} % of the time, {all} of at least {MIN_RUNS} runs, {seen} of at least {MIN_ITEMS} scores"));
        }
        let level = learn(&means, CONFIDENCE).ok_or("learning what is normal")?;
        self.level = Some(level);
        Ok(level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = DAY_US / 24;

    fn runs(n: i64, items: u64) -> Vec<RunMean> {
        (0..n).map(|run| RunMean { slot_us: run * HOUR_US, mean: if run % 2 == 0 { 0.9 } else { 0.8 }, n: items }).collect()
    }

    fn learned(runs: &[RunMean], days: i64) -> Result<Level, String> {
        Learned::carried(None, "a", 0).learn(runs, days * DAY_US)
    }

    #[test]
    fn it_takes_the_whole_window_and_enough_of_everything() {
        assert_eq!(learned(&runs(169, 10), 7).map(|level| (level.mean * 100.0).round()), Ok(85.0));
        assert_eq!(learned(&runs(168, 10), 7).unwrap_err(), "learning what is normal: 99 % of the time, 168 of at least 24 runs, 1680 of at least 200 scores");
        assert_eq!(learned(&runs(169, 1), 7).unwrap_err(), "learning what is normal: 100 % of the time, 169 of at least 24 runs, 169 of at least 200 scores");
    }

    #[test]
    fn a_day_that_is_not_over_is_left_out() {
        let mut runs = runs(48, 10);
        runs.extend((48..60).map(|run| RunMean { slot_us: run * HOUR_US, mean: 0.0, n: 10 }));
        assert_eq!(learned(&runs, 2).map(|level| (level.mean * 100.0).round()), Ok(85.0));
    }

    #[test]
    fn it_begins_anew_where_what_is_judged_changed() {
        let before = Learned { about: "r1".to_owned(), since_us: 5, level: learned(&runs(169, 10), 7).ok() };
        assert_eq!(Learned::carried(Some(&before), "r1", 9), before);
        assert_eq!(Learned::carried(Some(&before), "r2", 9), Learned { about: "r2".to_owned(), since_us: 9, level: None });
    }
}
