//! What scores prove, and how often that may be wrong. Pure formulas over numbers in [0, 1]: no clock, no store, no
//! chance, nothing of assayd. Every formula names its source; docs/alerts.md says what they promise a user.
//!
//! | file | question |
//! | --- | --- |
//! | [`evidence`] | did the mean fall below what was promised? (asked after every run, for ever) |
//! | [`baseline`] | which level was learned? |
//! | [`decide`] | is this fixed set at the threshold or better? (asked after every item, until it is known) |
//! | [`interval`] | how far off may a mean be that is shown? |
//! | [`many`] | which of many alarms stand up together? |
//! | [`judge`] | does the judge agree with people, and what would they have said? |
//! | [`expect`] | how long will a fall go unseen? |
//!
//! Absent on purpose: windows, states, messages. Those are `alerting`'s.

pub mod baseline;
pub mod decide;
pub mod evidence;
pub mod expect;
pub mod interval;
pub mod judge;
pub mod many;
mod quantile;
#[cfg(test)]
pub(crate) mod vectors;

pub use quantile::{normal_quantile, t_quantile};

/// Two bounds of a figure, `low <= high`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// `middle ± half`, within [0, 1].
    fn around(middle: f64, half: f64) -> Self {
        Self { low: (middle - half).clamp(0.0, 1.0), high: (middle + half).clamp(0.0, 1.0) }
    }
}

/// A count as a number.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
#[must_use]
pub fn real(count: u64) -> f64 {
    count as f64
}

/// The length of a list as a number.
fn len<T>(list: &[T]) -> f64 {
    real(list.len() as u64)
}

/// The mean; `NaN` of nothing.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / len(values)
}

/// ln(e^a + e^b), also of minus infinity.
fn log_add(a: f64, b: f64) -> f64 {
    let (most, least) = if a >= b { (a, b) } else { (b, a) };
    if least == f64::NEG_INFINITY { most } else { most + (least - most).exp().ln_1p() }
}

/// ln of the mean of e^v; minus infinity where all are.
fn log_mean(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !most.is_finite() {
        return most;
    }
    most + (values.iter().map(|value| (value - most).exp()).sum::<f64>() / len(values)).ln()
}
