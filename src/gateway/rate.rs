//! So much a minute, spread evenly: a pure rule, told the time.
//!
//! The generic cell rate algorithm (ITU-T I.371) with a second's share as its tolerance. Not governor's: what a call takes
//! is known only after it, and its bucket can neither be given back what was taken too much nor be charged later.

use std::time::Duration;

use tokio::time::Instant;

/// At most this time's share goes at once.
const BURST: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Rate {
    /// The time that one unit takes.
    unit: Duration,
    /// When all that was taken so far is paid off.
    free: Option<Instant>,
}

impl Rate {
    pub(super) fn per_minute(limit: u32) -> Self {
        Self { unit: Duration::from_mins(1) / limit.max(1), free: None }
    }

    /// How long until units may be used at once.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.start(now).saturating_duration_since(now)
    }

    /// Takes units, whether their time has come or not.
    pub(super) fn take(&mut self, now: Instant, units: u64) {
        self.free = self.start(now).checked_add(self.time(units));
    }

    /// What was taken turned out to be more or less.
    pub(super) fn correct(&mut self, taken: u64, used: u64) {
        self.free = self.free.and_then(|free| if used > taken { free.checked_add(self.time(used - taken)) } else { free.checked_sub(self.time(taken - used)) });
    }

    fn start(&self, now: Instant) -> Instant {
        let earliest = now.checked_sub(BURST.saturating_sub(self.unit)).unwrap_or(now);
        self.free.map_or(earliest, |free| free.max(earliest))
    }

    fn time(&self, units: u64) -> Duration {
        // A day is as good as never.
        self.unit.checked_mul(u32::try_from(units).unwrap_or(u32::MAX)).unwrap_or(Duration::MAX).min(Duration::from_hours(24))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How long to wait for units that are taken now.
    fn taken(rate: &mut Rate, now: Instant, units: u64) -> Duration {
        let wait = rate.wait(now);
        rate.take(now, units);
        wait
    }

    #[test]
    fn a_seconds_share_at_once_and_the_rest_evenly() {
        let now = Instant::now();
        let mut rate = Rate::per_minute(600);
        let waits: Vec<u128> = (0..14).map(|_| taken(&mut rate, now, 1).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 200, 300, 400]);
    }

    #[test]
    fn what_was_taken_too_much_comes_back() {
        let now = Instant::now();
        let mut rate = Rate::per_minute(60_000);
        assert_eq!(taken(&mut rate, now, 5_000), Duration::ZERO);
        assert_eq!(taken(&mut rate, now, 1), Duration::from_millis(4_001), "a large call is a debt for the next one");
        rate.correct(5_000, 1_000);
        assert_eq!(taken(&mut rate, now, 1), Duration::from_millis(2));
        rate.correct(1, 1_000);
        assert_eq!(taken(&mut rate, now, 1), Duration::from_millis(1_002));
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_its_share(limit in 1u32..6_000, gaps in proptest::collection::vec(0u64..500, 1..200)) {
            let begin = Instant::now();
            let (mut rate, mut now, mut used) = (Rate::per_minute(limit), begin, Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                used.push(now + taken(&mut rate, now, 1));
            }
            let share = |seconds: f64| f64::from(limit) / 60.0 * seconds;
            for (i, from) in used.iter().enumerate() {
                for (j, to) in used.iter().enumerate().skip(i) {
                    let seconds = (*to - *from).as_secs_f64();
                    #[expect(clippy::cast_precision_loss, reason = "few calls")]
                    let calls = (j - i + 1) as f64;
                    // A second's share beforehand, and the call that the window begins with.
                    prop_assert!(calls <= share(seconds + 1.0) + 1.001, "{calls} calls within {seconds} s of {limit} a minute");
                }
            }
        }
    }
}
