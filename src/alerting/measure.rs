use std::{fmt, str::FromStr};

use crate::{
    model::Tally,
    statistics::{
        Interval,
        interval::{SHOWN, wilson},
        real,
    },
    util::text::nearest,
};

/// What can be measured over an alert's window (SPEC 2, `when`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Statistic {
    Mean,
    PassRate,
    FailedRate,
    P10,
    P50,
    P90,
    N,
    CostUsd,
    LatencyP95,
}

impl Statistic {
    pub(super) const ALL: [Self; 9] = [Self::Mean, Self::PassRate, Self::FailedRate, Self::P10, Self::P50, Self::P90, Self::N, Self::CostUsd, Self::LatencyP95];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::PassRate => "pass_rate",
            Self::FailedRate => "failed_rate",
            Self::P10 => "p10",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::N => "n",
            Self::CostUsd => "cost_usd",
            Self::LatencyP95 => "latency_p95",
        }
    }

    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Mean | Self::P10 | Self::P50 | Self::P90 => "a score, which is normalised to [0, 1]",
            Self::PassRate => "the share of answers that passed",
            Self::FailedRate => "the share of judgements that failed",
            Self::N => "a number of scores",
            Self::CostUsd => "what the judgements cost, in USD",
            Self::LatencyP95 => "the time that judgements took, in milliseconds",
        }
    }

    /// Least and most that the statistic can be.
    pub(super) fn range(self) -> (f64, f64) {
        match self {
            Self::N | Self::CostUsd | Self::LatencyP95 => (0.0, f64::INFINITY),
            _ => (0.0, 1.0),
        }
    }

    /// Whether the figure means nothing without enough scores. A count or a sum is what it is.
    #[must_use]
    pub fn needs_samples(self) -> bool {
        !matches!(self, Self::N | Self::CostUsd)
    }

    /// Whether the condition is about one metric; `cost_usd` is about the run as a whole.
    #[must_use]
    pub fn needs_metric(self) -> bool {
        self != Self::CostUsd
    }

    /// The statistic of what lies in the window.
    #[must_use]
    pub fn of(self, tally: &Tally) -> Measured {
        let scored = tally.values.len() as u64;
        let judged = scored + tally.failed;
        let (value, n) = match self {
            Self::Mean => (mean(&tally.values), scored),
            Self::PassRate => (share(tally.passed, tally.with_verdict), tally.with_verdict),
            Self::FailedRate => (share(tally.failed, judged), judged),
            Self::P10 => (percentile(&tally.values, 10.0), scored),
            Self::P50 => (percentile(&tally.values, 50.0), scored),
            Self::P90 => (percentile(&tally.values, 90.0), scored),
            Self::N => (Some(real(scored)), scored),
            Self::CostUsd => (tally.cost_usd, judged),
            Self::LatencyP95 => (percentile(&tally.latencies_ms, 95.0), tally.latencies_ms.len() as u64),
        };
        // Of a share or a mean of figures in [0, 1] it is known how far off it may be.
        let known = matches!(self, Self::Mean | Self::PassRate | Self::FailedRate).then_some(value).flatten();
        let interval = known.filter(|_| n > 0).map(|value| wilson(value * real(n), n, None, SHOWN));
        Measured { value, n, interval }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Statistic {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|known| known.as_str() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str);
            let near = match name {
                // What people mean, and far from it in letters.
                "median" => Some("p50"),
                "average" | "avg" => Some("mean"),
                "count" => Some("n"),
                "cost" => Some("cost_usd"),
                _ => nearest(name, names),
            };
            let hint = near.map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
            format!("unknown statistic `{name}`{hint} (known are {})", names.join(", "))
        })
    }
}

/// A figure and what it rests on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// `None` where there is nothing to measure; never 0 in its place.
    pub value: Option<f64>,
    /// Scores (judgements for `failed_rate` and `cost_usd`) the figure rests on.
    pub n: u64,
    /// Where the value of a mean or a share lies with a confidence of 95 %, for reading.
    pub interval: Option<Interval>,
}

/// Arithmetic mean; `None` for nothing.
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / real(values.len() as u64))
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| real(part) / real(whole))
}

/// The `p`-th percentile (0 < p <= 100) by nearest rank: the smallest value such that at least `p` percent are at or
/// below it (Hyndman & Fan 1996, definition 1); `None` for nothing. Nearest rank, since judges answer on coarse scales:
/// interpolation would report scores that no answer got.
#[must_use]
pub fn percentile(values: &[f64], p: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank lies between 0 and the length")]
    // Multiplied first: 95 * 20 / 100 is exactly 19, 0.95 * 20 need not be.
    let rank = (p * real(sorted.len() as u64) / 100.0).ceil() as usize;
    let index = rank.saturating_sub(1).min(sorted.len().checked_sub(1)?);
    // Selecting is linear, sorting a window of a million scores is not.
    Some(*sorted.select_nth_unstable_by(index, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_percentile_is_one_of_the_values_and_has_its_share_below(values in proptest::collection::vec(0.0f64..1.0, 1..60), p in 1.0f64..=100.0) {
            let found = percentile(&values, p).unwrap();
            prop_assert!(values.contains(&found));
            let at_or_below = values.iter().filter(|value| **value <= found).count() as u64;
            let below = values.iter().filter(|value| **value < found).count() as u64;
            let asked = p * real(values.len() as u64) / 100.0;
            prop_assert!(real(at_or_below) >= asked);
            prop_assert!(real(below) < asked);
        }
    }

    #[test]
    fn failed_judgements_never_lower_the_mean() {
        let tally = Tally { values: vec![1.0, 0.5, 0.75], with_verdict: 3, passed: 2, failed: 1, cost_usd: Some(0.5), latencies_ms: vec![100.0, 300.0] };
        let of = |statistic: Statistic| (statistic.of(&tally).value.unwrap(), statistic.of(&tally).n);
        assert_eq!(of(Statistic::Mean), (0.75, 3));
        assert_eq!(of(Statistic::PassRate), (2.0 / 3.0, 3));
        assert_eq!(of(Statistic::FailedRate), (0.25, 4));
        assert_eq!(of(Statistic::P10), (0.5, 3));
        assert_eq!(of(Statistic::P50), (0.75, 3));
        assert_eq!(of(Statistic::N), (3.0, 3));
        assert_eq!(of(Statistic::CostUsd), (0.5, 4));
        assert_eq!(of(Statistic::LatencyP95), (300.0, 2));
    }

    #[test]
    fn nothing_is_not_zero() {
        for statistic in Statistic::ALL {
            let measured = statistic.of(&Tally::default());
            assert_eq!((measured.value, measured.n), ((statistic == Statistic::N).then_some(0.0), 0), "{statistic}");
        }
    }
}
