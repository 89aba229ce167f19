//! inactive -> pending -> firing -> resolved -> inactive, after the Prometheus rule engine, with three differences:
//! `for` may count runs; too few samples or none keep a firing alert firing; and `resolved` is shown until the next
//! evaluation, so that a person who looks after the message finds what the message said.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{baseline::Learned, evidence::Gathered};
use crate::{
    model::{AlertEventKind, AlertState, PromptUse},
    util::duration::Human,
};

/// How an alert turns observations into messages. Not part of its identity: editing a rule leaves its memory valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub hold: Hold,
    /// Said again this often while the condition is seen to hold.
    pub repeat: Human,
    /// Goes on firing for this long after the condition was last seen to hold (`keep_firing_for`).
    pub keep: Human,
}

/// How long a condition has to hold before the alert fires (`for`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Runs in a row; 0 and 1 fire at once.
    Runs(u32),
    /// Since the condition first held, at every evaluation.
    Time(Human),
}

/// What an evaluation saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Measured on enough samples; `true` when something is wrong.
    Breached(bool),
    /// Too little to go by.
    Insufficient { n: u64, need: u64 },
    /// The window is empty.
    NoData,
    /// What is normal is not known yet: a sentence on how far it is.
    Learning(String),
    /// It could not be evaluated.
    Error(String),
}

/// What is kept of an alert between evaluations, per monitor and alert name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AlertMemory {
    /// What people are shown. `Firing` exactly while the alert fires, whatever was seen last.
    pub state: AlertState,
    /// The evaluation that brought the state.
    pub changed_at: Option<Timestamp>,
    /// First evaluation of the streak in which the condition held; the "since" of messages.
    pub since: Option<Timestamp>,
    /// Runs of that streak, before it fires.
    pub hits: u32,
    /// When it began to fire; kept while the alert is shown as resolved.
    pub firing_since: Option<Timestamp>,
    /// When the condition was last seen to hold while it fired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_at: Option<Timestamp>,
    /// When the last message of this firing was decided on (its delivery is the outbox's).
    pub last_sent_at: Option<Timestamp>,
    /// How often this alert has fired.
    pub firings: u64,
    /// It fires, and nobody was told: something mutes it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untold: bool,
    /// The run that was counted last.
    pub last_run: Option<String>,
    /// The prompt that people know of: of the last message, or the first that was judged with.
    pub prompt: Option<PromptUse>,
    /// Of an alert with `confidence`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Gathered>,
    /// Of an alert that compares with a level it has learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Learned>,
    /// Of an alert with `by`, and of `judge-changed`, which is one for each metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<OfValue>,
}

/// Which of the alerts that `by` makes of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfValue {
    /// The expression; of `judge-changed`, which judge and anchors it looks at.
    pub by: String,
    /// Untrusted text.
    pub value: String,
}

impl AlertMemory {
    /// What a message has to say of the prompt that is judged with now: `prompt judge v7 -> v8`. To be asked before the
    /// message, which makes it known.
    #[must_use]
    pub fn prompt_changed(&self, now: Option<&PromptUse>) -> Option<String> {
        let (before, now) = (self.prompt.as_ref()?, now?);
        if before == now {
            return None;
        }
        Some(if before.name == now.name { format!("prompt {} v{} -> v{}", now.name, before.version, now.version) } else { format!("prompt {before} -> {now}") })
    }

    /// The prompt of this evaluation: known from the first one, or once people are told.
    pub fn see_prompt(&mut self, now: Option<&PromptUse>, told: bool) {
        if (told || self.prompt.is_none())
            && let Some(now) = now
        {
            self.prompt = Some(now.clone());
        }
    }
}

/// What an evaluation led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// To be stored in the transaction that stores the message.
    pub memory: AlertMemory,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Notify(AlertEventKind, Reason),
    Quiet(Reason),
}

impl Verdict {
    #[must_use]
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Notify(_, reason) | Self::Quiet(reason) => reason,
        }
    }
}

/// Why people are told, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Fires on the first breach, since the rule asks for no more.
    FirstBreach,
    HeldLongEnough(Hold),
    /// Pending: not yet for as long as `for` asks. Runs so far, or the time since the first of them.
    StillHolding {
        so_far: Hold,
        need: Hold,
    },
    RepeatDue,
    RepeatNotDue,
    /// Was firing.
    BackInBounds,
    /// Is firing, the condition no longer holds, `keep_firing_for` has not passed.
    KeptFiring {
        left: Human,
    },
    /// Was pending: nobody was told, nobody is.
    EndedBeforeFiring,
    InBounds,
    NotEnoughSamples {
        n: u64,
        need: u64,
    },
    NoData,
    Learning(String),
    CouldNotEvaluate(String),
    /// By a silence, or by an alert that explains this one.
    Muted(String),
    NoLongerMuted,
    NobodyWasTold,
    /// A run counts once, however often it is evaluated.
    RunCountedBefore,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs(1) => f.write_str("1 run"),
            Self::Runs(runs) => write!(f, "{runs} runs"),
            Self::Time(time) => write!(f, "{time}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstBreach => f.write_str("the condition holds"),
            Self::HeldLongEnough(Hold::Runs(runs)) => write!(f, "the condition held {runs} runs in a row"),
            Self::HeldLongEnough(hold) => write!(f, "the condition held for {hold}"),
            Self::StillHolding { so_far: Hold::Runs(runs), need } => write!(f, "the condition has held for {runs} of {need}"),
            Self::StillHolding { so_far, need } => write!(f, "the condition has held for {so_far} of {need}"),
            Self::RepeatDue => f.write_str("still firing, and due to be said again"),
            Self::RepeatNotDue => f.write_str("still firing, said before"),
            Self::BackInBounds => f.write_str("the condition no longer holds"),
            Self::KeptFiring { left } => write!(f, "the condition no longer holds, but the alert is kept firing for another {left}"),
            Self::EndedBeforeFiring => f.write_str("the condition no longer holds and had not held for long enough to fire"),
            Self::InBounds => f.write_str("the condition does not hold"),
            Self::NotEnoughSamples { n, need } => write!(f, "{n} of {need} samples"),
            Self::NoData => f.write_str("no data in the window"),
            Self::Learning(progress) => f.write_str(progress),
            Self::CouldNotEvaluate(error) => write!(f, "could not be evaluated: {error}"),
            Self::Muted(by) => write!(f, "muted: {by}"),
            Self::NoLongerMuted => f.write_str("still firing, and no longer muted"),
            Self::NobodyWasTold => f.write_str("it ended before anybody was told"),
            Self::RunCountedBefore => f.write_str("this run was counted before"),
        }
    }
}

impl AlertMemory {
    /// Names one firing, so that its messages find each other; the same from the first message to the resolve.
    #[must_use]
    pub fn fingerprint(&self, monitor: &str, alert: &str) -> String {
        let began = self.firing_since.map_or(0, Timestamp::as_millisecond);
        format!("{monitor}/{alert}/{began}-{}", self.firings)
    }

    fn show(&mut self, state: AlertState, now: Timestamp) {
        if self.state != state {
            self.state = state;
            self.changed_at = Some(now);
        }
    }

    fn forget_streak(&mut self) {
        self.since = None;
        self.hits = 0;
    }

    /// The end of what is kept for the messages of a firing, once it was shown as resolved.
    fn forget_firing(&mut self) {
        self.firing_since = None;
        self.last_sent_at = None;
    }
}

/// One evaluation. The same `run_id` twice changes nothing the second time; an evaluation without a run needs an id of
/// its own.
///
/// Lengthening `for` does not take back an alert that fires: people were told. An evaluation that sees too few samples,
/// no data or an error never resolves, and repeats nothing, as it has nothing new to say.
#[must_use]
pub fn step(memory: &AlertMemory, rule: &Rule, observed: &Observed, now: Timestamp, run_id: &str) -> Step {
    let mut memory = memory.clone();
    if memory.last_run.as_deref() == Some(run_id) {
        return Step { memory, verdict: Verdict::Quiet(Reason::RunCountedBefore) };
    }
    let verdict = match observed {
        Observed::Breached(true) if memory.state == AlertState::Firing => still_firing(&mut memory, rule, now),
        Observed::Breached(true) => breached(&mut memory, rule, now),
        Observed::Breached(false) => in_bounds(&mut memory, rule, now),
        Observed::Insufficient { n, need } => {
            Verdict::Quiet(unknown(&mut memory, AlertState::Insufficient, Reason::NotEnoughSamples { n: *n, need: *need }, now))
        }
        Observed::NoData => Verdict::Quiet(unknown(&mut memory, AlertState::NoData, Reason::NoData, now)),
        Observed::Learning(progress) => Verdict::Quiet(unknown(&mut memory, AlertState::Learning, Reason::Learning(progress.clone()), now)),
        Observed::Error(error) => {
            // The streak stays as it was, and the run may still be evaluated: an error is no observation.
            if memory.state != AlertState::Firing {
                memory.show(AlertState::Error, now);
            }
            return Step { memory, verdict: Verdict::Quiet(Reason::CouldNotEvaluate(error.clone())) };
        }
    };
    memory.last_run = Some(run_id.to_owned());
    Step { memory, verdict }
}

fn still_firing(memory: &mut AlertMemory, rule: &Rule, now: Timestamp) -> Verdict {
    memory.held_at = Some(now);
    // A clock that was ahead and was set back must not keep the alert quiet until it has caught up.
    let last = memory.last_sent_at.map_or(now, |last| last.min(now));
    if elapsed(last, now) >= rule.repeat.0 {
        memory.last_sent_at = Some(now);
        Verdict::Notify(AlertEventKind::Repeat, Reason::RepeatDue)
    } else {
        memory.last_sent_at = Some(last);
        Verdict::Quiet(Reason::RepeatNotDue)
    }
}

fn breached(memory: &mut AlertMemory, rule: &Rule, now: Timestamp) -> Verdict {
    let first = memory.hits == 0;
    // Outside a streak, what is kept belongs to the last firing; a clock that was set back must not delay this one.
    let since = memory.since.filter(|_| !first).map_or(now, |since| since.min(now));
    memory.since = Some(since);
    memory.hits = memory.hits.saturating_add(1);
    let so_far = match rule.hold {
        Hold::Runs(_) => Hold::Runs(memory.hits),
        Hold::Time(_) => Hold::Time(Human(elapsed(since, now))),
    };
    let enough = match rule.hold {
        Hold::Runs(runs) => memory.hits >= runs,
        Hold::Time(time) => elapsed(since, now) >= time.0,
    };
    if !enough {
        memory.forget_firing();
        memory.show(AlertState::Pending, now);
        return Verdict::Quiet(Reason::StillHolding { so_far, need: rule.hold });
    }
    memory.show(AlertState::Firing, now);
    memory.hits = 0;
    memory.firing_since = Some(now);
    memory.held_at = Some(now);
    memory.last_sent_at = Some(now);
    memory.firings += 1;
    Verdict::Notify(AlertEventKind::Firing, if first { Reason::FirstBreach } else { Reason::HeldLongEnough(so_far) })
}

fn in_bounds(memory: &mut AlertMemory, rule: &Rule, now: Timestamp) -> Verdict {
    if memory.state == AlertState::Firing {
        let quiet_for = memory.held_at.map_or(rule.keep.0, |held_at| elapsed(held_at, now));
        if quiet_for < rule.keep.0 {
            return Verdict::Quiet(Reason::KeptFiring { left: Human(rule.keep.0.saturating_sub(quiet_for)) });
        }
        // `since` and `firing_since` stay: the message says how long it lasted and goes where the first one went.
        memory.hits = 0;
        memory.last_sent_at = Some(now);
        memory.show(AlertState::Resolved, now);
        return Verdict::Notify(AlertEventKind::Resolved, Reason::BackInBounds);
    }
    let was_pending = memory.hits > 0;
    memory.forget_streak();
    memory.forget_firing();
    memory.show(AlertState::Inactive, now);
    Verdict::Quiet(if was_pending { Reason::EndedBeforeFiring } else { Reason::InBounds })
}

/// Too few samples or none: a firing alert stays as it is, a pending one starts anew.
fn unknown(memory: &mut AlertMemory, shown: AlertState, reason: Reason, now: Timestamp) -> Reason {
    if memory.state != AlertState::Firing {
        memory.forget_streak();
        memory.forget_firing();
        memory.show(shown, now);
    }
    reason
}

/// Zero where the clock was set back.
fn elapsed(from: Timestamp, to: Timestamp) -> std::time::Duration {
    to.duration_since(from).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REPEAT: Human = Human::hours(4);
    const NONE: Human = Human::secs(0);

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + minute * 60).unwrap()
    }

    /// Evaluations a minute apart, each of its own run; every line is what a person would see.
    fn story(rule: Rule, seen: &[Observed]) -> String {
        let mut memory = AlertMemory::default();
        let mut lines = Vec::new();
        for (minute, observed) in seen.iter().enumerate() {
            let next = step(&memory, &rule, observed, at(minute.try_into().unwrap()), &format!("run-{minute}"));
            let told = match &next.verdict {
                Verdict::Notify(kind, _) => format!("{kind:?}"),
                Verdict::Quiet(_) => "-".to_owned(),
            };
            lines.push(format!("{minute} {:<13}{told:<9}{}", next.memory.state.as_str(), next.verdict.reason()));
            memory = next.memory;
        }
        lines.join("\n")
    }

    use Observed::{Breached, Error, Insufficient, NoData};

    #[test]
    fn a_changed_prompt_is_told_once() {
        let v = |version| Some(PromptUse { name: "judge".to_owned(), version });
        let mut memory = AlertMemory::default();
        assert_eq!(memory.prompt_changed(v(7).as_ref()), None, "the first one is no change");
        memory.see_prompt(v(7).as_ref(), false);
        memory.see_prompt(v(8).as_ref(), false);
        memory.see_prompt(None, true);
        assert_eq!(memory.prompt_changed(v(9).as_ref()).as_deref(), Some("prompt judge v7 -> v9"));
        memory.see_prompt(v(9).as_ref(), true);
        assert_eq!(memory.prompt_changed(v(9).as_ref()), None);
        let other = PromptUse { name: "tone".to_owned(), version: 1 };
        assert_eq!(memory.prompt_changed(Some(&other)).as_deref(), Some("prompt judge v9 -> tone v1"));
    }

    #[test]
    fn two_runs_in_a_row_fire_and_one_good_run_resolves() {
        let few = Insufficient { n: 3, need: 30 };
        let seen = [
            Breached(true),
            Breached(false),
            Breached(true),
            Breached(true),
            Breached(true),
            few,
            NoData,
            Error("no such table".into()),
            Breached(false),
            Breached(false),
        ];
        insta::assert_snapshot!(story(Rule { hold: Hold::Runs(2), repeat: REPEAT, keep: NONE }, &seen), @"
        0 pending      -        the condition has held for 1 of 2 runs
        1 inactive     -        the condition no longer holds and had not held for long enough to fire
        2 pending      -        the condition has held for 1 of 2 runs
        3 firing       Firing   the condition held 2 runs in a row
        4 firing       -        still firing, said before
        5 firing       -        3 of 30 samples
        6 firing       -        no data in the window
        7 firing       -        could not be evaluated: no such table
        8 resolved     Resolved the condition no longer holds
        9 inactive     -        the condition does not hold
        ");
    }

    #[test]
    fn time_is_counted_from_the_first_breach() {
        let seen = [
            Breached(true),
            Breached(true),
            Error("busy".into()),
            Breached(true),
            NoData,
            Breached(true),
            Breached(true),
            Breached(true),
            Breached(true),
            NoData,
            Breached(false),
            Breached(true),
        ];
        insta::assert_snapshot!(story(Rule { hold: Hold::Time(Human::mins(3)), repeat: Human::mins(2), keep: NONE }, &seen), @"
        0 pending      -        the condition has held for 0s of 3m
        1 pending      -        the condition has held for 1m of 3m
        2 error        -        could not be evaluated: busy
        3 firing       Firing   the condition held for 3m
        4 firing       -        no data in the window
        5 firing       Repeat   still firing, and due to be said again
        6 firing       -        still firing, said before
        7 firing       Repeat   still firing, and due to be said again
        8 firing       -        still firing, said before
        9 firing       -        no data in the window
        10 resolved     Resolved the condition no longer holds
        11 pending      -        the condition has held for 0s of 3m
        ");
    }

    #[test]
    fn an_alert_is_kept_firing_for_a_while_after_the_condition_last_held() {
        let seen = [Breached(true), Breached(false), Breached(true), Breached(false), NoData, Breached(false), Breached(false), Breached(false)];
        insta::assert_snapshot!(story(Rule { hold: Hold::Runs(1), repeat: REPEAT, keep: Human::mins(3) }, &seen), @"
        0 firing       Firing   the condition holds
        1 firing       -        the condition no longer holds, but the alert is kept firing for another 2m
        2 firing       -        still firing, said before
        3 firing       -        the condition no longer holds, but the alert is kept firing for another 2m
        4 firing       -        no data in the window
        5 resolved     Resolved the condition no longer holds
        6 inactive     -        the condition does not hold
        7 inactive     -        the condition does not hold
        ");
    }

    #[test]
    fn what_is_still_learned_neither_fires_nor_resolves() {
        let learning = Observed::Learning("learning: 3 of 24 runs".to_owned());
        let seen = [learning.clone(), Breached(true), learning.clone(), Breached(false)];
        insta::assert_snapshot!(story(Rule { hold: Hold::Runs(1), repeat: REPEAT, keep: NONE }, &seen), @"
        0 learning     -        learning: 3 of 24 runs
        1 firing       Firing   the condition holds
        2 firing       -        learning: 3 of 24 runs
        3 resolved     Resolved the condition no longer holds
        ");
    }

    #[test]
    fn a_firing_keeps_its_name_until_it_is_resolved_and_the_next_has_another() {
        let rule = Rule { hold: Hold::Runs(1), repeat: REPEAT, keep: NONE };
        let mut memory = AlertMemory::default();
        let mut names = Vec::new();
        for (minute, bad) in [(0, true), (1, true), (2, false), (3, true), (4, false)] {
            memory = step(&memory, &rule, &Breached(bad), at(minute), &minute.to_string()).memory;
            names.push(memory.fingerprint("support", "low"));
        }
        assert_eq!(names[0], "support/low/1767225600000-1");
        assert!(names[..3].iter().all(|name| *name == names[0]));
        assert_ne!(names[3], names[0]);
        assert_eq!(names[3], names[4]);
        assert_eq!(memory.since, Some(at(3)), "the second firing has its own beginning");
    }

    #[test]
    fn a_clock_set_back_neither_silences_nor_delays() {
        let rule = Rule { hold: Hold::Time(Human::mins(5)), repeat: Human::mins(10), keep: NONE };
        let mut memory = step(&AlertMemory::default(), &rule, &Breached(true), at(1_000), "a").memory;
        memory = step(&memory, &rule, &Breached(true), at(0), "b").memory;
        let fired = step(&memory, &rule, &Breached(true), at(5), "c");
        assert!(matches!(fired.verdict, Verdict::Notify(AlertEventKind::Firing, _)));
        let back = step(&fired.memory, &rule, &Breached(true), at(-100), "d").memory;
        assert!(matches!(step(&back, &rule, &Breached(true), at(-90), "e").verdict, Verdict::Notify(AlertEventKind::Repeat, _)));
    }

    fn observed() -> impl Strategy<Value = Observed> {
        prop_oneof![
            4 => Just(Breached(true)),
            3 => Just(Breached(false)),
            1 => Just(Insufficient { n: 1, need: 2 }),
            1 => Just(NoData),
            1 => Just(Error("x".into())),
        ]
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let hold = prop_oneof![(0u32..4).prop_map(Hold::Runs), (0u64..20).prop_map(|mins| Hold::Time(Human::mins(mins)))];
        (hold, 0u64..30).prop_map(|(hold, repeat)| Rule { hold, repeat: Human::mins(repeat), keep: NONE })
    }

    proptest! {
        #[test]
        fn messages_come_in_pairs_and_only_on_evidence(rule in rule(), seen in proptest::collection::vec((observed(), -3i64..10), 1..60)) {
            let (mut memory, mut restarted) = (AlertMemory::default(), AlertMemory::default());
            let (mut open, mut minute, mut streak) = (false, 0, 0);
            for (run, (observed, pause)) in seen.into_iter().enumerate() {
                minute += pause;
                let run = run.to_string();
                let next = step(&memory, &rule, &observed, at(minute), &run);
                match observed {
                    Breached(true) => streak += 1,
                    Error(_) => {}
                    _ => streak = 0,
                }
                match &next.verdict {
                    Verdict::Notify(AlertEventKind::Firing, _) => {
                        prop_assert!(!open && observed == Breached(true));
                        if let Hold::Runs(runs) = rule.hold {
                            prop_assert_eq!(streak, runs.max(1));
                        }
                        open = true;
                    }
                    Verdict::Notify(AlertEventKind::Repeat, _) => prop_assert!(open && observed == Breached(true)),
                    Verdict::Notify(AlertEventKind::Notice, _) => prop_assert!(false, "an alert is over or under way"),
                    Verdict::Notify(AlertEventKind::Resolved, _) => {
                        prop_assert!(open && observed == Breached(false));
                        open = false;
                    }
                    Verdict::Quiet(_) => {}
                }
                prop_assert_eq!(next.memory.state == AlertState::Firing, open);

                // The same run again: nothing changes, nobody is told. (An error is no observation, and says so again.)
                let again = step(&next.memory, &rule, &observed, at(minute + 500), &run);
                prop_assert_eq!(&again.memory, &next.memory);
                prop_assert!(matches!(again.verdict, Verdict::Quiet(_)));

                // A process that kept nothing but what was stored goes on in the same way.
                restarted = serde_json::from_str(&serde_json::to_string(&restarted).unwrap()).unwrap();
                let other = step(&restarted, &rule, &observed, at(minute), &run);
                prop_assert_eq!(&other, &next);
                restarted = other.memory;
                memory = next.memory;
            }
        }
    }
}
