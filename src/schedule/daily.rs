//! Once a day, at a time of a place: pure.

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Time},
    tz::TimeZone,
};

use super::plan::{ScheduleFault, fault, unknown_zone};

/// A time of day in a zone.
#[derive(Debug, Clone)]
pub struct Daily {
    at: Time,
    zone: TimeZone,
}

/// A day and what it looks back on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day {
    /// In the zone.
    pub date: Date,
    /// The time of the day before, and of the one before that: days follow on each other without gap.
    pub before: Timestamp,
    pub from: Timestamp,
    /// The time of this day.
    pub to: Timestamp,
}

impl Daily {
    /// `at` like `08:00`; without a zone UTC.
    ///
    /// # Errors
    /// The key that is wrong, and what with it.
    pub fn new(at: &str, zone: Option<&str>) -> Result<Self, ScheduleFault> {
        let sound = |text: &str| text.len() == 5 && text.as_bytes()[2] == b':';
        let time = at.parse().ok().filter(|_| sound(at)).ok_or_else(|| fault("at", "a time of day is written like `08:00`"))?;
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| fault("timezone", unknown_zone(name)))?,
        };
        Ok(Self { at: time, zone })
    }

    /// The day of `now` in the zone, once its time has come. A time that is skipped comes an hour later, one that comes twice
    /// counts once.
    #[must_use]
    pub fn due(&self, now: Timestamp) -> Option<Day> {
        let date = now.to_zoned(self.zone.clone()).date();
        let on = |days: i64| Some(date.checked_sub(days.days()).ok()?.to_datetime(self.at).to_zoned(self.zone.clone()).ok()?.timestamp());
        let to = on(0).filter(|to| *to <= now)?;
        Some(Day { date, before: on(2)?, from: on(1)?, to })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_day_is_due_from_its_time_on() {
        let daily = Daily::new("08:00", Some("Europe/Berlin")).unwrap();
        assert_eq!(daily.due(at("2026-07-01T05:59:59Z")), None);
        let day = daily.due(at("2026-07-01T06:00:00Z")).unwrap();
        assert_eq!((day.date.to_string().as_str(), day.from, day.to), ("2026-07-01", at("2026-06-30T06:00:00Z"), at("2026-07-01T06:00:00Z")));
        assert_eq!(daily.due(at("2026-07-01T21:59:59Z")), Some(day), "a daemon that comes late sends the same");
        assert_eq!(daily.due(at("2026-07-01T22:00:00Z")), None, "that day is over");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        for wrong in ["8", "8:00", "24:00", "08:00:00", "aa:bb", ""] {
            assert_eq!(Daily::new(wrong, None).unwrap_err().key, "at", "{wrong}");
        }
        let error = Daily::new("08:00", Some("Europe/Berln")).unwrap_err();
        assert_eq!((error.key, error.message.contains("`Europe/Berlin`")), ("timezone", true));
    }

    proptest! {
        #[test]
        fn days_follow_on_each_other(
            hour in 0u8..24, minute in 0u8..60, zone in prop_oneof![Just("Europe/Berlin"), Just("America/New_York"), Just("Pacific/Apia"), Just("UTC")],
            from in 1_600_000_000i64..1_900_000_000,
        ) {
            let daily = Daily::new(&format!("{hour:02}:{minute:02}"), Some(zone)).unwrap();
            let mut last: Option<Day> = None;
            // Looked at every half hour for a week, round both changes of the clocks where the dice fall so.
            for step in 0..336 {
                let now = Timestamp::from_second(from + step * 1_800).unwrap();
                let Some(day) = daily.due(now) else { continue };
                prop_assert!(day.before < day.from && day.from < day.to && day.to <= now);
                if let Some(last) = last.filter(|last| last.date != day.date) {
                    prop_assert_eq!(day.from, last.to);
                    prop_assert_eq!(day.before, last.from);
                }
                last = Some(day);
            }
        }
    }
}
