//! A pure rule from a schedule and an instant to the slots around it.
//!
//! `every` = multiples of the interval since the epoch; `cron` = instants of the pattern in its zone. Both are shifted
//! by the jitter, a hash of the monitor's name, so a restart neither bunches nor shifts runs.
//!
//! Daylight saving as vixie cron has it: a time that is skipped fires once, one that comes twice fires once (croner 4).

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use croner::Cron;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::util::{duration::Human, text};

/// `schedule:`; exactly one of every, cron and `interval_minutes`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleSpec {
    /// Interval, at least 1s: slots are its multiples since the epoch.
    pub every: Option<Human>,
    /// Interval in whole minutes, as the older tools write it.
    pub interval_minutes: Option<u64>,
    /// 5 fields, 6 with seconds first, or @hourly and kin.
    pub cron: Option<String>,
    /// IANA zone of the cron. Default UTC.
    pub timezone: Option<String>,
    /// Slots are shifted by a steady share of this, by the monitor's name. Default 0s.
    pub jitter: Human,
    /// Also run when the daemon starts. Default false.
    pub on_start: bool,
    /// A run that takes longer is ended as failed. Default 30m.
    pub timeout: Human,
    /// After downtime: `once` runs the latest missed slot (the default), `none` waits for the next.
    pub catch_up: CatchUp,
}

impl Default for ScheduleSpec {
    fn default() -> Self {
        Self {
            every: None,
            interval_minutes: None,
            cron: None,
            timezone: None,
            jitter: Human::secs(0),
            on_start: false,
            timeout: Human::mins(30),
            catch_up: CatchUp::Once,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    #[default]
    Once,
    None,
}

/// What is wrong with a schedule, and the key it hangs on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScheduleFault {
    pub key: &'static str,
    pub message: String,
}

pub(super) fn fault(key: &'static str, message: impl Into<String>) -> ScheduleFault {
    ScheduleFault { key, message: message.into() }
}

#[derive(Debug, Clone)]
enum Rule {
    /// In milliseconds.
    Every(i64),
    Cron(Arc<Cron>),
}

/// A schedule, checked and compiled.
#[derive(Debug, Clone)]
pub struct Plan {
    rule: Rule,
    zone: TimeZone,
    shift: SignedDuration,
}

/// Parsed patterns by their text: 5.5 KB each, and a thousand monitors say `0 * * * *`.
static PATTERNS: LazyLock<Mutex<HashMap<String, Weak<Cron>>>> = LazyLock::new(Mutex::default);

/// How far back `latest_at` looks for a cron's slot: a leap year's 29 February may lie eight years back.
const REACH_DAYS: [i64; 5] = [1, 32, 367, 1_500, 3_000];

impl Plan {
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(spec: &ScheduleSpec, monitor: &str) -> Result<Self, ScheduleFault> {
        if spec.timezone.is_some() && spec.cron.is_none() {
            return Err(fault("timezone", "`timezone` goes with `cron`; an interval has no zone"));
        }
        let zone = match &spec.timezone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| fault("timezone", unknown_zone(name)))?,
        };
        let rule = match (spec.every, spec.interval_minutes, &spec.cron) {
            (Some(every), None, None) if every < Human::secs(1) => return Err(fault("every", format!("`{every}` is too short, at least 1s"))),
            (Some(every), None, None) => Rule::Every(every.millis()),
            (None, Some(0), None) => return Err(fault("interval_minutes", "at least 1")),
            (None, Some(minutes), None) => {
                let ms = i64::try_from(minutes).ok().and_then(|minutes| minutes.checked_mul(60_000)).filter(|ms| *ms < 366 * 86_400_000);
                Rule::Every(ms.ok_or_else(|| fault("interval_minutes", "at most a year"))?)
            }
            (None, None, Some(pattern)) => Rule::Cron(cron(pattern, &zone)?),
            (None, None, None) => return Err(fault("every", "the schedule needs one of `every`, `cron` and `interval_minutes`")),
            _ => return Err(fault("every", "the schedule has more than one of `every`, `cron` and `interval_minutes`; keep one")),
        };
        let plan = Self { rule, zone, shift: SignedDuration::ZERO };
        let jitter = spec.jitter.millis();
        if let Rule::Every(ms) = plan.rule
            && jitter >= ms
        {
            return Err(fault("jitter", "the jitter has to be shorter than the interval"));
        }
        let hash = blake3::hash(monitor.as_bytes());
        let mut head = [0; 8];
        head.copy_from_slice(&hash.as_bytes()[..8]);
        let shift = i64::try_from(u64::from_le_bytes(head) % (jitter.unsigned_abs() + 1)).unwrap_or(0);
        Ok(Self { shift: SignedDuration::from_millis(shift), ..plan })
    }

    /// The first slot strictly after `t`; `None` past the calendar's end.
    #[must_use]
    pub fn next_after(&self, t: Timestamp) -> Option<Timestamp> {
        let unshifted = t.checked_sub(self.shift).ok()?;
        let slot = match &self.rule {
            Rule::Every(ms) => {
                let at = floor_ms(unshifted);
                Timestamp::from_millisecond((at.div_euclid(*ms) + 1).checked_mul(*ms)?).ok()?
            }
            Rule::Cron(cron) => cron.find_next_occurrence(&unshifted.to_zoned(self.zone.clone()), false).ok()?.timestamp(),
        };
        slot.checked_add(self.shift).ok()
    }

    /// The latest slot at or before `t`.
    #[must_use]
    pub fn latest_at(&self, t: Timestamp) -> Option<Timestamp> {
        let unshifted = t.checked_sub(self.shift).ok()?;
        let slot = match &self.rule {
            Rule::Every(ms) => Timestamp::from_millisecond(floor_ms(unshifted).div_euclid(*ms).checked_mul(*ms)?).ok()?,
            Rule::Cron(_) => return self.latest_by_search(t),
        };
        slot.checked_add(self.shift).ok()
    }

    /// croner looks forward only: find a stretch that holds a slot, then halve it.
    fn latest_by_search(&self, t: Timestamp) -> Option<Timestamp> {
        for days in REACH_DAYS {
            let from = t.checked_sub(SignedDuration::from_hours(24 * days)).ok()?;
            let Some(mut found) = self.next_after(from).filter(|slot| *slot <= t) else { continue };
            let mut end = t;
            while let Some(later) = self.next_after(found).filter(|slot| *slot <= t) {
                // Jump to the middle of what is left; when nothing lies behind it, look in front of it.
                let middle = later.checked_add(end.duration_since(later) / 2).ok()?;
                match self.next_after(middle).filter(|slot| *slot <= end) {
                    Some(slot) => found = slot,
                    None => (found, end) = (later, middle),
                }
            }
            return Some(found);
        }
        None
    }

    /// From the next slot after `at` to the one behind it.
    #[must_use]
    pub fn period(&self, at: Timestamp) -> Option<Duration> {
        let next = self.next_after(at)?;
        Duration::try_from(self.next_after(next)?.duration_since(next)).ok()
    }

    /// Seconds between two slots, on average over the hundred after `from`.
    #[must_use]
    pub fn mean_gap(&self, from: Timestamp) -> Option<f64> {
        const SLOTS: u32 = 100;
        if let Rule::Every(ms) = self.rule {
            return Some(SignedDuration::from_millis(ms).as_secs_f64());
        }
        let first = self.next_after(from)?;
        let mut last = first;
        let mut gaps = 0;
        while let (true, Some(next)) = (gaps < SLOTS, self.next_after(last)) {
            (last, gaps) = (next, gaps + 1);
        }
        (gaps > 0).then(|| last.duration_since(first).as_secs_f64() / f64::from(gaps))
    }

    /// The zone in which slots are shown.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }
}

fn floor_ms(t: Timestamp) -> i64 {
    // `as_millisecond` truncates towards zero; slots before 1970 want the floor.
    i64::try_from(t.as_nanosecond().div_euclid(1_000_000)).unwrap_or(i64::MAX)
}

fn cron(pattern: &str, zone: &TimeZone) -> Result<Arc<Cron>, ScheduleFault> {
    let mut patterns = PATTERNS.lock().unwrap_or_else(PoisonError::into_inner);
    let parsed = match patterns.get(pattern).and_then(Weak::upgrade) {
        Some(parsed) => parsed,
        None => {
            let parser = croner::parser::CronParser::builder().seconds(croner::parser::Seconds::Optional).build();
            let parsed = parser.parse(pattern).map_err(|error| fault("cron", format!("`{}` is no cron pattern: {error}", text::one_line(pattern, 60))))?;
            let parsed = Arc::new(parsed);
            patterns.retain(|_, pattern| pattern.strong_count() > 0);
            patterns.insert(pattern.to_owned(), Arc::downgrade(&parsed));
            parsed
        }
    };
    // 31 February parses and never comes.
    let from = Timestamp::UNIX_EPOCH.to_zoned(zone.clone());
    parsed.find_next_occurrence(&from, false).map_err(|_| fault("cron", format!("`{pattern}` never comes: there is no such date")))?;
    Ok(parsed)
}

/// A sentence for people who named a zone that is none.
#[must_use]
pub fn unknown_zone(name: &str) -> String {
    let zones: Vec<String> = jiff::tz::db().available().map(|zone| zone.as_str().to_owned()).collect();
    match text::nearest(name, zones.iter().map(String::as_str)) {
        Some(near) => format!("unknown time zone `{name}`, did you mean `{near}`?"),
        None => format!("unknown time zone `{name}`, expected an IANA name such as `Europe/Berlin`"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(spec: ScheduleSpec) -> Plan {
        Plan::new(&spec, "m").unwrap()
    }

    fn cron_plan(pattern: &str, zone: &str) -> Plan {
        plan(ScheduleSpec { cron: Some(pattern.to_owned()), timezone: Some(zone.to_owned()), ..ScheduleSpec::default() })
    }

    fn slots(plan: &Plan, from: &str, n: usize) -> Vec<String> {
        std::iter::successors(plan.next_after(from.parse().unwrap()), |slot| plan.next_after(*slot)).take(n).map(|slot| slot.to_string()).collect()
    }

    #[test]
    fn an_hour_that_comes_twice_fires_once_and_one_that_is_skipped_fires_once() {
        let berlin = cron_plan("30 2 * * *", "Europe/Berlin");
        assert_eq!(slots(&berlin, "2026-10-24T12:00:00Z", 3), ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z", "2026-10-27T01:30:00Z"]);
        assert_eq!(slots(&berlin, "2026-03-28T12:00:00Z", 2), ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        let london = cron_plan("0 0 0 * * *", "Europe/London");
        assert_eq!(slots(&london, "2026-03-28T12:00:00Z", 2), ["2026-03-29T00:00:00Z", "2026-03-29T23:00:00Z"]);
    }

    #[test]
    fn the_mean_gap_of_working_hours_is_longer_than_an_hour() {
        let every = ScheduleSpec { every: Some(Human::mins(15)), ..ScheduleSpec::default() };
        assert_eq!(plan(every).mean_gap(Timestamp::UNIX_EPOCH), Some(900.0));
        // Eight runs a day, five days a week: 40 in 168 hours.
        let office = cron_plan("0 9-16 * * 1-5", "UTC").mean_gap(Timestamp::UNIX_EPOCH).unwrap() / 3600.0;
        assert!((office - 4.2).abs() < 0.3, "{office}");
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_key_at_fault() {
        let refused = |spec: ScheduleSpec| Plan::new(&spec, "m").unwrap_err();
        let cron = |cron: &str| ScheduleSpec { cron: Some(cron.to_owned()), ..ScheduleSpec::default() };
        assert_eq!(refused(cron("0 0 31 2 *")).key, "cron");
        assert_eq!(refused(cron("61 * * * *")).key, "cron");
        let berlinn = refused(ScheduleSpec { timezone: Some("Europe/Berlinn".to_owned()), ..cron("@hourly") });
        assert_eq!((berlinn.key, berlinn.message.as_str()), ("timezone", "unknown time zone `Europe/Berlinn`, did you mean `Europe/Berlin`?"));
        assert_eq!(refused(ScheduleSpec { every: Some(Human(Duration::from_millis(500))), ..ScheduleSpec::default() }).key, "every");
        assert!(refused(ScheduleSpec { every: Some(Human::mins(1)), ..cron("@hourly") }).message.contains("more than one"));
    }

    fn any_plan() -> impl Strategy<Value = Plan> {
        let every = (1u64..100_000, 0u64..900).prop_map(|(secs, jitter_ms)| ScheduleSpec {
            every: Some(Human::secs(secs)),
            jitter: Human(Duration::from_millis(jitter_ms)),
            ..ScheduleSpec::default()
        });
        let patterns = vec!["*/5 * * * *", "30 2 * * *", "0 0 1 * *", "@weekly", "15 10 3 29 2 *"];
        let zones = vec!["UTC", "Europe/Berlin", "America/New_York"];
        let cron = (prop::sample::select(patterns), prop::sample::select(zones), 0u64..90_000).prop_map(|(cron, zone, jitter_ms)| ScheduleSpec {
            cron: Some(cron.to_owned()),
            timezone: Some(zone.to_owned()),
            jitter: Human(Duration::from_millis(jitter_ms)),
            ..ScheduleSpec::default()
        });
        (prop_oneof![every, cron], "[a-z]{1,8}").prop_map(|(spec, name)| Plan::new(&spec, &name).unwrap())
    }

    proptest! {
        #[test]
        fn the_slots_before_and_after_an_instant_are_neighbours(plan in any_plan(), secs in 1_600_000_000i64..1_900_000_000) {
            let t = Timestamp::from_second(secs).unwrap();
            let next = plan.next_after(t).unwrap();
            let latest = plan.latest_at(t).unwrap();
            prop_assert!(latest <= t && t < next);
            prop_assert_eq!(plan.next_after(latest), Some(next));
            prop_assert_eq!(plan.latest_at(latest), Some(latest));
        }
    }
}
