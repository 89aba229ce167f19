//! Times of the week at which nobody is told. An alert's state goes on, as in a silence.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp, ToSpan, civil, tz::TimeZone};

use super::silence::Matcher;

/// Begins at a time of day, on some days of the week.
#[derive(Debug, Clone)]
pub struct Maintenance {
    /// In `zone`; one that a change of clocks skips begins that much later.
    pub start: civil::Time,
    /// At most a week.
    pub duration: Duration,
    /// Empty: every day.
    pub every: Vec<civil::Weekday>,
    pub zone: TimeZone,
    /// All have to fit; empty for all alerts.
    pub matchers: Vec<Matcher>,
}

impl Maintenance {
    /// Until when an alert with these labels is muted; `None` where it is not.
    #[must_use]
    pub fn mutes(&self, labels: &BTreeMap<String, String>, now: Timestamp) -> Option<Timestamp> {
        self.matchers.iter().all(|matcher| matcher.fits(labels)).then(|| self.until(now)).flatten()
    }

    /// When the window that holds `now` ends.
    fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        let reach = i64::try_from(self.duration.as_secs() / 86_400).unwrap_or(7) + 1;
        // One that began days ago may last until now; of several, the last to end.
        (0..=reach).filter_map(|days| self.from(today.checked_sub(days.days()).ok()?, now)).max()
    }

    fn from(&self, day: civil::Date, now: Timestamp) -> Option<Timestamp> {
        if !self.every.is_empty() && !self.every.contains(&day.weekday()) {
            return None;
        }
        let begin = self.zone.to_timestamp(day.to_datetime(self.start)).ok()?;
        let end = begin.checked_add(SignedDuration::try_from(self.duration).ok()?).ok()?;
        (begin <= now && now < end).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(start: &str, hours: u64, every: &[civil::Weekday], zone: &str) -> Maintenance {
        let zone = TimeZone::get(zone).unwrap();
        Maintenance { start: start.parse().unwrap(), duration: Duration::from_hours(hours), every: every.to_vec(), zone, matchers: Vec::new() }
    }

    fn until(window: &Maintenance, now: &str) -> Option<String> {
        window.mutes(&BTreeMap::new(), now.parse().unwrap()).map(|until| until.to_string())
    }

    #[test]
    fn a_window_begins_at_a_local_time_and_may_reach_into_the_next_day() {
        let nightly = window("22:00", 4, &[], "Europe/Berlin");
        assert_eq!(until(&nightly, "2026-01-10T20:59:59Z"), None);
        assert_eq!(until(&nightly, "2026-01-10T21:00:00Z").as_deref(), Some("2026-01-11T01:00:00Z"));
        assert_eq!(until(&nightly, "2026-01-11T00:59:59Z").as_deref(), Some("2026-01-11T01:00:00Z"));
        assert_eq!(until(&nightly, "2026-01-11T01:00:00Z"), None);
        assert_eq!(until(&nightly, "2026-07-10T20:00:00Z").as_deref(), Some("2026-07-11T00:00:00Z"), "an hour earlier in summer");
    }

    #[test]
    fn the_day_is_that_on_which_it_begins() {
        let weekend = window("22:00", 6, &[civil::Weekday::Saturday], "UTC");
        assert!(until(&weekend, "2026-01-11T03:00:00Z").is_some(), "Sunday morning belongs to Saturday's window");
        assert!(until(&weekend, "2026-01-10T03:00:00Z").is_none() && until(&weekend, "2026-01-11T23:00:00Z").is_none());
    }

    #[test]
    fn only_alerts_that_fit_are_muted() {
        let mut window = window("00:00", 24, &[], "UTC");
        window.matchers = vec!["team=support".parse().unwrap()];
        let labels = |team: &str| BTreeMap::from([("team".to_owned(), team.to_owned())]);
        let now = "2026-01-10T12:00:00Z".parse().unwrap();
        assert!(window.mutes(&labels("support"), now).is_some() && window.mutes(&labels("search"), now).is_none());
    }

    proptest! {
        #[test]
        fn the_end_lies_ahead_and_within_the_windows_length(second in 1_700_000_000_i64..1_900_000_000, hour in 0_i8..24, hours in 1_u64..168) {
            let now = Timestamp::from_second(second).unwrap();
            let window = Maintenance { start: civil::time(hour, 30, 0, 0), ..window("00:00", hours, &[], "America/New_York") };
            match window.mutes(&BTreeMap::new(), now) {
                Some(end) => prop_assert!(end > now && end.duration_since(now).as_hours() <= i64::try_from(hours).unwrap()),
                None => prop_assert!(hours < 25, "windows longer than any day leave no gap"),
            }
        }
    }
}
