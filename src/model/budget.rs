//! How much may be spent, in billionths of a USD: fine enough for one token of the cheapest model.

use jiff::{Timestamp, ToSpan, civil::Weekday, tz::TimeZone};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nano-USD in a USD.
const NANO: f64 = 1e9;

/// Of the UTC calendar; a week begins on Monday (ISO 8601).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    Run,
    Day,
    Week,
    Month,
}

impl Per {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// Begin of the period that `now` lies in; the epoch for a run, which has no calendar.
    #[must_use]
    pub fn start(self, now: Timestamp) -> Timestamp {
        let today = now.to_zoned(TimeZone::UTC).date();
        let first = match self {
            Self::Run => return Timestamp::UNIX_EPOCH,
            Self::Day => today,
            // Days since Monday never lead out of the calendar that a timestamp covers.
            Self::Week => today.checked_sub(i64::from(today.weekday().since(Weekday::Monday)).days()).unwrap_or(today),
            Self::Month => today.first_of_month(),
        };
        first.to_zoned(TimeZone::UTC).map_or(now, |midnight| midnight.timestamp())
    }
}

/// USD over a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "Written")]
pub struct Budget {
    pub nano_usd: i64,
    pub per: Per,
}

/// A budget as it is written.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Budget")]
struct Written {
    /// What may be spent in the period.
    usd: f64,
    /// run | day | week | month, of the UTC calendar.
    per: Per,
}

impl TryFrom<Written> for Budget {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        Self::new(written.usd, written.per)
    }
}

impl JsonSchema for Budget {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Written::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Written::json_schema(generator)
    }
}

impl Budget {
    /// # Errors
    /// When `usd` is no amount of money.
    pub fn new(usd: f64, per: Per) -> Result<Self, &'static str> {
        // A billion a day is a slip of the keyboard; and far beyond, the sums would no longer fit.
        if (0.0..=1e9).contains(&usd) { Ok(Self { nano_usd: nano_usd(usd), per }) } else { Err("`usd` is an amount from 0 to 1,000,000,000") }
    }

    #[must_use]
    pub fn usd(&self) -> f64 {
        usd(self.nano_usd)
    }
}

/// Rounded up: a budget is never overspent by a fraction.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "saturates, and a price that large is refused by every budget")]
pub fn nano_usd(usd: f64) -> i64 {
    // What a product of floats is too much in its last digits is no cent.
    (usd * NANO - 1e-6).ceil() as i64
}

#[must_use]
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
pub fn usd(nano_usd: i64) -> f64 {
    nano_usd as f64 / NANO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_begin_by_the_utc_calendar() {
        let start = |per: Per, now: &str| per.start(now.parse().unwrap()).to_string();
        let now = "2026-03-01T23:59:59Z"; // a Sunday
        assert_eq!(start(Per::Day, now), "2026-03-01T00:00:00Z");
        assert_eq!(start(Per::Week, now), "2026-02-23T00:00:00Z");
        assert_eq!(start(Per::Month, now), "2026-03-01T00:00:00Z");
        assert_eq!(start(Per::Week, "2026-03-02T00:00:00Z"), "2026-03-02T00:00:00Z");
        assert_eq!(start(Per::Run, now), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn money_rounds_up_and_never_by_a_float_s_dust() {
        assert_eq!((nano_usd(0.03), nano_usd(1e-9), nano_usd(1.2e-9), nano_usd(0.0)), (30_000_000, 1, 2, 0));
        assert!(Budget::new(-1.0, Per::Day).is_err() && Budget::new(f64::NAN, Per::Day).is_err());
    }
}
