//! The alerts that every monitor has without being asked (SPEC 1, promise 3). Their names are what silences, routes and `watch`
//! hang on: they never change.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    machine::{Hold, Observed, Rule},
    watch::{self, Behind, Oldest},
};
use crate::{
    model::{Coverage, Severity},
    util::{
        duration::Human,
        text::{figure, one_line},
    },
};

/// How a monitor is doing, in plain figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    pub now: Timestamp,
    /// Between two slots.
    pub period: Duration,
    /// Finished runs that failed, counted back from the newest until one that did not.
    pub failed_in_a_row: u32,
    /// Whether any run ever succeeded, in part or in full.
    pub ever_succeeded: bool,
    /// Of the newest failed run; untrusted text.
    pub last_error: Option<String>,
    /// Begin of the monitor's first run; `None` before it.
    pub first_run_at: Option<Timestamp>,
    /// When a run last fetched an item that was not known before.
    pub last_new_item_at: Option<Timestamp>,
    /// Judgements of the last 24 h with a result, and those that failed.
    pub scored: u64,
    pub failed: u64,
    /// Why judgements of the last run wait for a judge that refuses every call; untrusted text.
    pub judge_blocked: Option<String>,
    /// Why judgements of the last run wait for money.
    pub over_budget: Option<String>,
    /// Rows that sinks refused for good: in the last 24 h, and all that are kept.
    pub dead_rows_new: u64,
    pub dead_rows: u64,
    /// Of the last 24 h.
    pub coverage: Coverage,
    /// The item that has waited longest for its scores.
    pub oldest: Option<Oldest>,
    /// Of a run that left items to its source; `None` where it took all that there was.
    pub behind: Option<Behind>,
}

/// An alert that is on by default.
#[derive(Debug, Clone, Copy)]
pub struct Builtin {
    pub name: &'static str,
    pub severity: Severity,
    pub rule: Rule,
    /// What it looks at, for messages.
    pub window: Option<&'static str>,
}

impl Builtin {
    const fn new(name: &'static str, severity: Severity) -> Self {
        Self { name, severity, rule: RULE, window: None }
    }

    /// Over the last day.
    const fn daily(name: &'static str, severity: Severity) -> Self {
        Self { window: Some("24h"), ..Self::new(name, severity) }
    }
}

/// What an alert looks at, and what it finds.
pub type Check = fn(&Health) -> Finding;

/// What a built-in alert saw, with what its message needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub observed: Observed,
    /// One sentence with the figures.
    pub summary: String,
    pub value: Option<f64>,
    pub threshold: Option<f64>,
    pub n: Option<u64>,
}

impl Finding {
    pub(super) fn new(observed: Observed, summary: String) -> Self {
        Self { observed, summary, value: None, threshold: None, n: None }
    }
}

/// Fires at once: each check knows itself how much it takes. Repeats daily, since mending these takes a person.
const RULE: Rule = Rule { hold: Hold::Runs(1), repeat: Human::hours(24), keep: Human::secs(0) };

use Severity::{Critical, Warning};

/// Those that are evaluated when a run ends.
pub const AFTER_RUN: [(Builtin, Check); 9] = [
    (Builtin::new("runs-failing", Critical), runs_failing),
    (Builtin::new("no-data", Warning), no_data),
    (Builtin::daily("judgements-failed", Warning), judgements_failed),
    (Builtin::new("judge-blocked", Critical), judge_blocked),
    (Builtin::new("budget-spent", Warning), budget_spent),
    (Builtin::daily("dead-rows", Warning), dead_rows),
    (Builtin::daily("coverage-low", Warning), watch::coverage_low),
    (Builtin::new("items-waiting", Warning), watch::items_waiting),
    (Builtin::new("watermark-lag", Warning), watch::watermark_lag),
];

/// Evaluated between runs, since it has to be seen though no run ends.
pub const STALLED: Builtin = Builtin::new("stalled", Critical);

/// Of the daemon, which goes on with the last good version of a monitor.
pub const FILE_REFUSED: Builtin = Builtin::new("file-refused", Warning);

/// Whether an alert of this name is evaluated between runs.
#[must_use]
pub fn between_runs(name: &str) -> bool {
    name == STALLED.name || name == FILE_REFUSED.name
}

/// The names of those that a monitor can switch off.
pub fn of_monitors() -> impl Iterator<Item = &'static str> {
    AFTER_RUN.iter().map(|(builtin, _)| builtin.name).chain([STALLED.name])
}

/// With a next slot this far off, the first failure is told: the second would come too late.
const SELDOM: Duration = Duration::from_hours(1);

/// Two failures in a row, since one is often over by the next slot. One is enough where no run ever succeeded (a mistake
/// in the settings does not go away) and where runs are rare.
fn runs_failing(health: &Health) -> Finding {
    let failed = health.failed_in_a_row;
    let enough = if health.ever_succeeded && health.period < SELDOM { 2 } else { 1 };
    let observed = if health.first_run_at.is_none() { Observed::NoData } else { Observed::Breached(failed >= enough) };
    let runs = match failed {
        0 => return Finding::new(observed, "the last run did its work".to_owned()),
        1 => "the last run failed".to_owned(),
        _ => format!("the last {failed} runs failed"),
    };
    let never = if health.ever_succeeded { "" } else { ", none has ever succeeded" };
    let error = health.last_error.as_deref().map(|error| format!(": {}", one_line(error, 200))).unwrap_or_default();
    Finding { value: Some(f64::from(failed)), threshold: Some(f64::from(enough)), ..Finding::new(observed, format!("{runs}{never}{error}")) }
}

/// Nothing new for three slots and at least an hour: shorter gaps are a quiet night, not a broken source. While runs
/// fail nobody knows what the source holds, and `runs-failing` says so already.
fn no_data(health: &Health) -> Finding {
    let patience = health.period.saturating_mul(3).max(Duration::from_hours(1));
    let Some(since) = health.last_new_item_at.or(health.first_run_at) else {
        return Finding::new(Observed::NoData, "it has not run yet".to_owned());
    };
    if health.failed_in_a_row > 0 {
        let unknown = "the last run failed, so what the source holds is unknown".to_owned();
        return Finding::new(Observed::Error(unknown.clone()), unknown);
    }
    let quiet: Duration = health.now.duration_since(since).try_into().unwrap_or_default();
    // Whole minutes: a message that says `1h 0m 13s 207ms` is hard to read.
    let minutes = Human::mins(quiet.as_secs() / 60);
    let what = if health.last_new_item_at.is_some() { "no new item for" } else { "no item at all since the first run," };
    let summary = if quiet < Duration::from_mins(1) { "new items arrived within the last minute".to_owned() } else { format!("{what} {minutes}") };
    Finding::new(Observed::Breached(quiet >= patience), summary)
}

/// Share of failed judgements that is told (issue: over 20 %).
const FAILED_SHARE: f64 = 0.2;
/// With fewer judgements a single failure would be more than the share.
const FAILED_MIN: u64 = 5;

fn judgements_failed(health: &Health) -> Finding {
    let (failed, judged) = (health.failed, health.failed.saturating_add(health.scored));
    if judged == 0 {
        return Finding::new(Observed::NoData, "no judgements in the last 24h".to_owned());
    }
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    let share = failed as f64 / judged as f64;
    let observed = if judged < FAILED_MIN { Observed::Insufficient { n: judged, need: FAILED_MIN } } else { Observed::Breached(share > FAILED_SHARE) };
    let summary = format!("{failed} of {judged} judgements failed in the last 24h ({} %)", figure((share * 1000.0).round() / 10.0));
    Finding { observed, summary, value: Some(share), threshold: Some(FAILED_SHARE), n: Some(judged) }
}

/// Waiting items come back with every run, so a run in which none waits is the end of it.
fn judge_blocked(health: &Health) -> Finding {
    waiting(health.judge_blocked.as_deref(), "no judgement waits for its judge")
}

fn budget_spent(health: &Health) -> Finding {
    waiting(health.over_budget.as_deref(), "no judgement waits for money")
}

fn waiting(reason: Option<&str>, calm: &str) -> Finding {
    let summary = reason.map_or_else(|| calm.to_owned(), |reason| format!("judgements wait: {}", one_line(reason, 300)));
    Finding::new(Observed::Breached(reason.is_some()), summary)
}

/// Rows that died in the last 24 h, not all dead ones: a row stays dead until somebody drops it, and an alert that
/// nothing can resolve is soon ignored. `assayd status` goes on showing all of them.
fn dead_rows(health: &Health) -> Finding {
    let (new, all) = (health.dead_rows_new, health.dead_rows.max(health.dead_rows_new));
    let rows = if new == 1 { "row was" } else { "rows were" };
    let summary = if new == 0 {
        "no row was refused by a sink in the last 24h".to_owned()
    } else {
        format!("{new} {rows} refused for good by a sink in the last 24h ({all} in all)")
    };
    Finding { n: Some(new), ..Finding::new(Observed::Breached(new > 0), summary) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    pub(in crate::alerting) fn healthy() -> Health {
        let now = Timestamp::from_second(1_767_225_600).unwrap();
        Health {
            now,
            period: 15 * MINUTE,
            failed_in_a_row: 0,
            ever_succeeded: true,
            last_error: None,
            first_run_at: Some(now - 3000 * MINUTE),
            last_new_item_at: Some(now - 10 * MINUTE),
            scored: 100,
            failed: 2,
            judge_blocked: None,
            over_budget: None,
            dead_rows_new: 0,
            dead_rows: 17,
            coverage: Coverage { judged: 100, ..Coverage::default() },
            oldest: None,
            behind: None,
        }
    }

    pub(in crate::alerting) fn check(name: &str, health: &Health) -> Finding {
        AFTER_RUN.iter().find(|(builtin, _)| builtin.name == name).unwrap().1(health)
    }

    /// (what was observed, the sentence)
    pub(in crate::alerting) fn seen(name: &str, health: &Health) -> (Observed, String) {
        let finding = check(name, health);
        (finding.observed, finding.summary)
    }

    #[test]
    fn a_healthy_monitor_is_left_alone() {
        for (builtin, check) in AFTER_RUN {
            assert_eq!(check(&healthy()).observed, Observed::Breached(false), "{}", builtin.name);
        }
    }

    #[test]
    fn a_monitor_that_never_ran_fires_nothing() {
        let fresh =
            Health { ever_succeeded: false, first_run_at: None, last_new_item_at: None, scored: 0, failed: 0, coverage: Coverage::default(), ..healthy() };
        for (builtin, check) in AFTER_RUN {
            assert_ne!(check(&fresh).observed, Observed::Breached(true), "{}", builtin.name);
        }
    }

    #[test]
    fn one_failure_is_a_hiccup_unless_it_is_the_first_run_or_runs_are_rare() {
        let one = Health { failed_in_a_row: 1, ..healthy() };
        assert_eq!(check("runs-failing", &one).observed, Observed::Breached(false));
        assert_eq!(check("runs-failing", &Health { period: Duration::from_hours(24), ..one.clone() }).observed, Observed::Breached(true));
        assert_eq!(
            seen("runs-failing", &Health { ever_succeeded: false, last_error: Some("HTTP 401:\n\x1b[31mno".into()), ..one }),
            (Observed::Breached(true), "the last run failed, none has ever succeeded: HTTP 401:  [31mno".into())
        );
        assert_eq!(seen("runs-failing", &Health { failed_in_a_row: 2, ..healthy() }), (Observed::Breached(true), "the last 2 runs failed".into()));
    }

    #[test]
    fn silence_is_three_slots_and_at_least_an_hour() {
        let quiet = |minutes: u32, period: u32| {
            let health = healthy();
            seen("no-data", &Health { last_new_item_at: Some(health.now - minutes * MINUTE), period: period * MINUTE, ..health })
        };
        assert_eq!(quiet(59, 1).0, Observed::Breached(false));
        assert_eq!(quiet(60, 1), (Observed::Breached(true), "no new item for 1h".into()));
        assert_eq!(quiet(89, 30).0, Observed::Breached(false));
        assert_eq!(quiet(90, 30).0, Observed::Breached(true));
        assert_eq!(
            seen("no-data", &Health { last_new_item_at: None, ..healthy() }),
            (Observed::Breached(true), "no item at all since the first run, 2d 2h".into())
        );
        let failing = Health { failed_in_a_row: 1, last_new_item_at: None, ..healthy() };
        assert!(matches!(check("no-data", &failing).observed, Observed::Error(_)), "a failing source is another alert");
    }

    #[test]
    fn failed_judgements_are_watched_by_their_share() {
        let share = |failed, scored| seen("judgements-failed", &Health { scored, failed, ..healthy() });
        assert_eq!(share(20, 80).0, Observed::Breached(false), "exactly 20 % is not over 20 %");
        assert_eq!(share(21, 79), (Observed::Breached(true), "21 of 100 judgements failed in the last 24h (21 %)".into()));
        assert_eq!(share(4, 0).0, Observed::Insufficient { n: 4, need: 5 });
        assert_eq!(share(0, 0).0, Observed::NoData);
        assert_eq!(share(u64::MAX, u64::MAX).0, Observed::Breached(true));
    }

    #[test]
    fn what_waits_is_told_with_its_reason() {
        let blocked = Health { judge_blocked: Some("openai/m: key refused".into()), ..healthy() };
        assert_eq!(seen("judge-blocked", &blocked), (Observed::Breached(true), "judgements wait: openai/m: key refused".into()));
        let spent = Health { over_budget: Some("over the budget".into()), ..healthy() };
        assert_eq!(seen("budget-spent", &spent), (Observed::Breached(true), "judgements wait: over the budget".into()));
    }

    #[test]
    fn dead_rows_are_told_and_fall_silent_after_a_day() {
        assert_eq!(
            seen("dead-rows", &Health { dead_rows_new: 3, ..healthy() }),
            (Observed::Breached(true), "3 rows were refused for good by a sink in the last 24h (17 in all)".into())
        );
        assert_eq!(check("dead-rows", &healthy()).observed, Observed::Breached(false));
    }
}
