//! Durations as people write them: `90s`, `15m`, `1h 30m`, `7d`, `500ms`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration in a settings file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Human(pub Duration);

impl Human {
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    #[must_use]
    pub const fn mins(mins: u64) -> Self {
        Self::secs(mins * 60)
    }

    #[must_use]
    pub const fn hours(hours: u64) -> Self {
        Self::mins(hours * 60)
    }

    #[must_use]
    pub const fn days(days: u64) -> Self {
        Self::hours(days * 24)
    }

    /// Whole milliseconds.
    #[must_use]
    pub fn millis(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }
}

const UNITS: [(&str, u64); 17] = [
    ("ms", 1),
    ("s", 1_000),
    ("sec", 1_000),
    ("second", 1_000),
    ("seconds", 1_000),
    ("m", 60_000),
    ("min", 60_000),
    ("minute", 60_000),
    ("minutes", 60_000),
    ("h", 3_600_000),
    ("hour", 3_600_000),
    ("hours", 3_600_000),
    ("d", 86_400_000),
    ("day", 86_400_000),
    ("days", 86_400_000),
    ("w", 604_800_000),
    ("weeks", 604_800_000),
];

/// # Errors
/// A sentence saying what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let fail = || format!("`{text}` is not a duration; write it like `30s`, `15m`, `1h 30m` or `7d`");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(fail());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let tail = tail.trim_start();
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| fail())?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(fail)?;
        total = number.checked_mul(*factor).and_then(|ms| total.checked_add(ms)).ok_or_else(fail)?;
        rest = tail.trim_start();
    }
    // A thousand years: far past any use, and safely inside every date type.
    if total > 1_000 * 366 * 86_400_000 {
        return Err(fail());
    }
    Ok(Duration::from_millis(total))
}

impl fmt::Display for Human {
    /// The largest units first: `1h 30m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return f.write_str("0s");
        }
        let mut gap = "";
        for (unit, factor) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if ms >= factor {
                write!(f, "{gap}{}{unit}", ms / factor)?;
                ms %= factor;
                gap = " ";
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Human {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Human {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl schemars::JsonSchema for Human {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "A duration: 30s, 15m, 1h 30m, 7d", "pattern": "^\\s*([0-9]+\\s*[a-z]+\\s*)+$" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_shown_reads_back(ms in 0u64..10_000_000_000) {
            let human = Human(Duration::from_millis(ms));
            prop_assert_eq!(parse(&human.to_string()), Ok(human.0));
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        for text in ["", "15", "m", "1.5h", "-3m", "15 parsecs", "99999999999999999999d", "18446744073709551615w"] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("15m"), "{error}");
        }
    }
}
