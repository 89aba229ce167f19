//! What assayd watches of itself beside its runs: whether they come, whether they keep up, and whether its files read.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    builtin::{Finding, Health},
    machine::Observed,
};
use crate::{
    model::Coverage,
    util::{
        duration::Human,
        text::{figure, one_line},
    },
};

/// The item that has waited longest for its scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oldest {
    /// Untrusted text.
    pub item_id: String,
    pub since: Timestamp,
    /// How many wait, this one included.
    pub waiting: u64,
}

/// How far a run that took as many new items as it may (`source.limit`) is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// From the watermark to now.
    pub lag: Duration,
    /// Younger traces are left to the next run anyhow.
    pub settle: Duration,
    /// The lag of an earlier one of the runs in a row that left items, and how long ago that was.
    pub before: Option<(Duration, Duration)>,
}

/// When a monitor's runs are missed.
#[derive(Debug, Clone, PartialEq)]
pub struct Stall {
    pub now: Timestamp,
    /// Since when a success is waited for: the last one, or what came later, the daemon's start or the schedule.
    pub since: Timestamp,
    pub last_success: Option<Timestamp>,
    /// By when one should have come; `None` where the schedule has no two slots more.
    pub due: Option<Timestamp>,
    /// It fires, and no run has succeeded since it began to.
    pub fires: bool,
    pub doing: Doing,
}

/// What the monitor's runs are at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// A run has been under way since.
    Runs(Timestamp),
    /// The last one failed; the reason is untrusted text.
    Failed(String),
    /// None is under way.
    Nothing,
}

/// Share of the items that has to be judged.
const COVERED: f64 = 0.9;
/// With fewer items a single one would be a tenth.
const COVERED_MIN: u64 = 20;

pub(super) fn coverage_low(health: &Health) -> Finding {
    let Coverage { judged, failed, deferred, waiting } = health.coverage;
    let n = [failed, deferred, waiting].into_iter().fold(judged, u64::saturating_add);
    if n == 0 {
        return Finding::new(Observed::NoData, "no item was drawn in the last 24h".to_owned());
    }
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let share = judged as f64 / n as f64;
    let observed = if n < COVERED_MIN { Observed::Insufficient { n, need: COVERED_MIN } } else { Observed::Breached(share < COVERED) };
    let shown = figure((share * 1000.0).floor() / 10.0);
    let summary = format!("{judged} of {n} items drawn in the last 24h were judged ({shown} %): {deferred} deferred, {failed} failed, {waiting} waiting");
    Finding { observed, summary, value: Some(share), threshold: Some(COVERED), n: Some(n) }
}

/// Six slots and at least an hour: what fails once or waits for the next period of an hourly budget is not told.
fn patience(period: Duration) -> Duration {
    period.saturating_mul(6).max(Duration::from_hours(1))
}

pub(super) fn items_waiting(health: &Health) -> Finding {
    let Some(Oldest { item_id, since, waiting }) = &health.oldest else {
        return Finding::new(Observed::Breached(false), "no item waits for its scores".to_owned());
    };
    let age = from_to(*since, health.now);
    let many = if *waiting == 1 { "it is the only one".to_owned() } else { format!("{waiting} wait") };
    let summary = format!("item `{}` has waited {} for its scores; {many}", one_line(item_id, 80), whole(age));
    Finding { n: Some(*waiting), ..Finding::new(Observed::Breached(age > patience(health.period)), summary) }
}

/// A run that leaves items and needs longer than this to catch up, at the pace of the last runs, does not.
const CATCH_UP: f64 = 24.0 * 3600.0;

/// A source that has no more is `no-data`'s; one that cannot be read `runs-failing`'s.
pub(super) fn watermark_lag(health: &Health) -> Finding {
    let Some(Behind { lag, settle, before }) = health.behind else {
        if health.failed_in_a_row > 0 {
            let unknown = "the last run failed, so what the source holds is unknown".to_owned();
            return Finding::new(Observed::Error(unknown.clone()), unknown);
        }
        return Finding::new(Observed::Breached(false), "the last run took all that its source had".to_owned());
    };
    let allowed = settle.saturating_add(patience(health.period));
    let over = lag.saturating_sub(allowed);
    let summary = format!("runs take all they may (`source.limit`) and are {} behind their source", whole(lag));
    if over.is_zero() {
        return Finding::new(Observed::Breached(false), summary);
    }
    // The first runs of a monitor begin a `lookback` behind: what counts is whether they come closer.
    let Some((was, ago)) = before else { return Finding::new(Observed::Breached(false), format!("{summary}; whether they catch up is not known yet")) };
    let pace = (was.as_secs_f64() - lag.as_secs_f64()) / ago.as_secs_f64().max(1.0);
    if pace > 0.0 && over.as_secs_f64() / pace <= CATCH_UP {
        return Finding::new(Observed::Breached(false), format!("{summary}; they catch up"));
    }
    let change = if was < lag { format!("up from {} {} ago", whole(was), whole(ago)) } else { format!("{} {} ago", whole(was), whole(ago)) };
    Finding::new(Observed::Breached(true), format!("{summary}, {change}"))
}

/// What is told of a monitor whose runs are missed.
#[must_use]
pub fn stalled(stall: &Stall) -> Finding {
    let Stall { now, since, last_success, due, fires, doing } = stall;
    let late = due.is_some_and(|due| *now > due);
    if !(late || *fires) {
        return Finding::new(Observed::Breached(false), "runs do their work".to_owned());
    }
    let from = last_success.unwrap_or(*since);
    let waited = whole(from_to(from, *now));
    let first =
        if last_success.is_some() { format!("the last run that did its work ended {waited} ago") } else { format!("no run has done its work for {waited}") };
    let doing = match doing {
        Doing::Runs(since) => format!("one has been under way for {}", whole(from_to(*since, *now))),
        Doing::Failed(error) => format!("the last one failed: {}", one_line(error, 200)),
        Doing::Nothing => "none is under way".to_owned(),
    };
    Finding::new(Observed::Breached(true), format!("{first}; {doing}"))
}

/// What is told of a file that is refused; `why` is what is wrong with it.
#[must_use]
pub fn file_refused(why: &str) -> Finding {
    Finding::new(Observed::Breached(true), format!("a file was refused, what was good before goes on: {}", one_line(why, 500)))
}

/// Zero where the clock was set back.
fn from_to(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

/// In whole minutes, or seconds where it is less than one.
fn whole(time: Duration) -> Human {
    if time < Duration::from_mins(1) { Human::secs(time.as_secs()) } else { Human::mins(time.as_secs() / 60) }
}

#[cfg(test)]
mod tests {
    use super::{
        super::builtin::tests::{healthy, seen},
        *,
    };

    const MINUTE: Duration = Duration::from_mins(1);
    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn coverage_is_the_share_of_the_drawn_items_that_were_judged() {
        let of = |judged, failed, deferred, waiting| {
            let coverage = Coverage { judged, failed, deferred, waiting };
            seen("coverage-low", &Health { coverage, ..healthy() })
        };
        assert_eq!(of(90, 10, 0, 0).0, Observed::Breached(false), "exactly 90 % is not under 90 %");
        assert_eq!(
            of(899, 1, 70, 30),
            (Observed::Breached(true), "899 of 1000 items drawn in the last 24h were judged (89.9 %): 70 deferred, 1 failed, 30 waiting".into())
        );
        assert_eq!(of(0, 19, 0, 0).0, Observed::Insufficient { n: 19, need: 20 });
        assert_eq!(of(0, 0, 0, 0).0, Observed::NoData);
        assert_eq!(of(0, 0, 20, 0).0, Observed::Breached(true));
        assert_eq!(of(u64::MAX, u64::MAX, 0, 0).0, Observed::Breached(false), "no count overflows");
    }

    #[test]
    fn an_item_may_wait_for_six_slots_and_at_least_an_hour() {
        let of = |minutes: u32, period: u32| {
            let health = healthy();
            let oldest = Oldest { item_id: "t\n1".into(), since: health.now - minutes * MINUTE, waiting: 3 };
            seen("items-waiting", &Health { oldest: Some(oldest), period: period * MINUTE, ..health })
        };
        assert_eq!(of(60, 1).0, Observed::Breached(false));
        assert_eq!(of(61, 1), (Observed::Breached(true), "item `t 1` has waited 1h 1m for its scores; 3 wait".into()));
        assert_eq!(of(180, 30).0, Observed::Breached(false));
        assert_eq!(of(181, 30).0, Observed::Breached(true));
    }

    #[test]
    fn a_run_that_leaves_items_and_comes_no_closer_lags() {
        let of = |lag: Duration, before: Option<(Duration, Duration)>| {
            let behind = Behind { lag, settle: 5 * MINUTE, before };
            seen("watermark-lag", &Health { behind: Some(behind), ..healthy() })
        };
        assert_eq!(of(95 * MINUTE, Some((95 * MINUTE, HOUR))).0, Observed::Breached(false), "settle and six slots");
        assert_eq!(
            of(96 * MINUTE, Some((90 * MINUTE, HOUR))),
            (Observed::Breached(true), "runs take all they may (`source.limit`) and are 1h 36m behind their source, up from 1h 30m 1h ago".into())
        );
        assert_eq!(of(96 * MINUTE, Some((96 * MINUTE, HOUR))).0, Observed::Breached(true));
        assert_eq!(of(20 * HOUR, None).0, Observed::Breached(false), "the first run of a monitor begins that far behind");
        assert_eq!(of(20 * HOUR, Some((22 * HOUR, HOUR))).0, Observed::Breached(false), "two hours an hour: caught up today");
        assert_eq!(of(100 * HOUR, Some((101 * HOUR, HOUR))).0, Observed::Breached(true), "four days more");
        let failing = Health { failed_in_a_row: 1, ..healthy() };
        assert!(matches!(seen("watermark-lag", &failing).0, Observed::Error(_)), "a failing source is another alert");
    }

    fn stall(due: i64, fires: bool, doing: Doing) -> Finding {
        let now = Timestamp::from_second(1_767_225_600).unwrap();
        let due = Some(now + jiff::SignedDuration::from_secs(due));
        stalled(&Stall { now, since: now - 90 * MINUTE, last_success: Some(now - 90 * MINUTE), due, fires, doing })
    }

    #[test]
    fn a_success_is_missed_once_it_is_due() {
        assert_eq!(stall(0, false, Doing::Nothing).observed, Observed::Breached(false));
        let late = stall(-1, false, Doing::Nothing);
        assert_eq!((late.observed, late.summary.as_str()), (Observed::Breached(true), "the last run that did its work ended 1h 30m ago; none is under way"));
        let since = Timestamp::from_second(1_767_225_600).unwrap() - 50 * MINUTE;
        assert!(stall(-1, false, Doing::Runs(since)).summary.ends_with("; one has been under way for 50m"));
        assert!(stall(-1, false, Doing::Failed("HTTP 500\n!".into())).summary.ends_with("; the last one failed: HTTP 500 !"));
    }

    #[test]
    fn it_fires_on_until_a_run_succeeds() {
        assert_eq!(stall(3600, true, Doing::Nothing).observed, Observed::Breached(true), "a daemon that has just begun has seen no success either");
    }
}
