//! Alerts with `confidence`: they fire when the evidence of all runs so far says so, and end when the evidence of the runs
//! since says that it is over. Which question a condition asks, and what of it is kept between runs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    condition::{Comparison, Condition},
    machine::{AlertMemory, Observed, Rule, Step, step},
    measure::Statistic,
};
use crate::{
    model::{AlertState, Judged},
    statistics::{
        evidence::{Evidence, Promise, Question, Side, Streak, THRESHOLDS, recovery},
        many::e_bh,
    },
    util::text::figure,
};

impl Condition {
    /// The condition as a question about a mean of numbers in [0, 1], which [`numbers`](Self::numbers) gives.
    ///
    /// Quantiles are shares in disguise: `p10 < t` says that more than a tenth lie below t.
    ///
    /// # Errors
    /// A sentence: no confidence can be given.
    pub fn question(&self) -> Result<Question, String> {
        let low = matches!(self.comparison, Comparison::Less | Comparison::AtMost);
        let side = if low { Side::Below } else { Side::Above };
        // The share of answers on the bad side that is normal: a tenth below p10, nine tenths above it.
        let share = |below: f64| Ok(Question { side: Side::Above, threshold: if low { below } else { 1.0 - below } });
        match self.statistic {
            Statistic::Mean | Statistic::PassRate | Statistic::FailedRate if THRESHOLDS.contains(&self.threshold) => {
                Ok(Question { side, threshold: self.threshold })
            }
            Statistic::Mean | Statistic::PassRate | Statistic::FailedRate => {
                Err(format!("with `confidence` the threshold has to be between {} and {}, not {}", THRESHOLDS.start(), THRESHOLDS.end(), self.threshold))
            }
            Statistic::P10 => share(0.10),
            Statistic::P50 => share(0.50),
            Statistic::P90 => share(0.90),
            Statistic::LatencyP95 => share(0.95),
            Statistic::N | Statistic::CostUsd => Err(format!("{} is a total, which is what it is: leave `confidence` out", self.statistic)),
        }
    }

    /// What a run's judgements say to that question, in their order.
    #[must_use]
    pub fn numbers(&self, judged: &[Judged]) -> Vec<f64> {
        let flag = |yes: bool| f64::from(u8::from(yes));
        let beyond = |x: f64| flag(self.comparison.of(x, self.threshold));
        let of = |judged: &Judged| match self.statistic {
            Statistic::Mean => judged.value,
            Statistic::PassRate => judged.passed.map(flag),
            Statistic::FailedRate => Some(flag(judged.value.is_none())),
            Statistic::P10 | Statistic::P50 | Statistic::P90 => judged.value.map(beyond),
            Statistic::LatencyP95 => judged.latency_ms.map(beyond),
            Statistic::N | Statistic::CostUsd => None,
        };
        judged.iter().filter_map(of).collect()
    }
}

/// What an alert with `confidence` asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask<'a> {
    /// With a number as its threshold.
    pub condition: Condition,
    pub promise: Promise,
    /// Scores since the last reset before which it does not fire.
    pub min_samples: u64,
    /// What the question is about, beside its threshold: the metric's revision and the sampling. Under another, what was
    /// gathered says nothing.
    pub about: &'a str,
    /// For a promise that is shared by all alerts of the project.
    pub shared: Option<Shared<'a>>,
}

/// The other alerts that share the promise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shared<'a> {
    /// The current evidence (ln E) of those that do not fire.
    pub others: &'a [f64],
    /// Of all of them, this one and those that fire included.
    pub watched: u64,
}

/// What was gathered, and for which question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gathered {
    about: String,
    question: Question,
    promise: Promise,
    /// Scores since the last reset.
    n: u64,
    /// When the last run was that was counted, in seconds.
    #[serde(default)]
    last_at: Option<i64>,
    /// That the mean is on the bad side; while the alert fires: that it is back on the good one.
    evidence: Evidence,
    /// The alert shares its promise with others.
    #[serde(default)]
    pub shared: bool,
}

/// What there is to be shown of the evidence after a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown {
    /// 0 nothing, 1 enough to fire, or to resolve while it fires.
    pub level: f64,
    /// Where it began, by the bettor who won most.
    pub streak: Option<Streak>,
    /// The next run should look closer.
    pub in_doubt: bool,
}

impl Gathered {
    fn new(ask: &Ask<'_>, question: Question) -> Self {
        Self { about: ask.about.to_owned(), question, promise: ask.promise, n: 0, last_at: None, evidence: Evidence::default(), shared: ask.shared.is_some() }
    }

    /// What may be kept under today's settings: nothing of another question, all of it under another interval, and what the
    /// stakes would have been under another confidence.
    fn carried(kept: Option<&Self>, ask: &Ask<'_>, question: Question) -> Self {
        let Some(kept) = kept.filter(|kept| kept.about == ask.about && kept.question == question) else { return Self::new(ask, question) };
        let mut carried = Self { promise: ask.promise, shared: ask.shared.is_some(), ..kept.clone() };
        if kept.promise.confidence.total_cmp(&ask.promise.confidence).is_ne() {
            carried.evidence.restake(kept.promise.confidence, ask.promise.confidence);
        }
        carried
    }

    /// Stake of a run: a false end may be ten times as frequent as a false alarm.
    fn stake(&self, firing: bool) -> f64 {
        // The settings were checked; under a schedule that has since become too coarse the largest stake that is sound.
        let stake = self.promise.stake().unwrap_or(0.499);
        if firing { recovery(stake) } else { stake }
    }

    fn shown(&self, firing: bool) -> Shown {
        let stake = self.stake(firing);
        Shown { level: self.evidence.level(stake), streak: self.evidence.streak(), in_doubt: !firing && self.evidence.in_doubt(stake) }
    }

    /// The stake of a run at this time: runs that come more often than the schedule says share a run's stake, or the promise would
    /// be one in as many runs instead of one in as many days.
    fn stake_at(&self, firing: bool, at: i64) -> f64 {
        let since = self.last_at.map_or(self.promise.interval, |last| Duration::from_secs(at.abs_diff(last)).as_secs_f64());
        self.stake(firing) * (since / self.promise.interval).clamp(1e-9, 1.0)
    }

    /// What it was gathered of.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.about
    }

    /// ln E, of an alert that does not fire.
    #[must_use]
    pub fn ln(&self) -> f64 {
        self.evidence.ln()
    }
}

impl AlertMemory {
    /// Whether the next run should judge more than usual: evidence has gathered, and not yet enough.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        let firing = self.state == AlertState::Firing;
        self.evidence.as_ref().is_some_and(|gathered| gathered.shown(firing).in_doubt)
    }

    /// The slot of the run whose scores were gathered last, in seconds.
    #[must_use]
    pub fn gathered_at(&self) -> Option<i64> {
        self.evidence.as_ref().and_then(|gathered| gathered.last_at)
    }
}

/// One evaluation of an alert with `confidence`: counts the run's scores (in [0, 1], in stored order), once, and lets
/// [`step`] decide. `at` is the run's slot, in seconds.
///
/// # Errors
/// As [`Condition::question`].
pub fn step_on_evidence(
    memory: &AlertMemory,
    rule: &Rule,
    ask: &Ask<'_>,
    judged: &[Judged],
    at: i64,
    now: Timestamp,
    run_id: &str,
) -> Result<(Step, Shown), String> {
    let question = ask.condition.question()?;
    let firing = memory.state == AlertState::Firing;
    let mut gathered = Gathered::carried(memory.evidence.as_ref(), ask, question);
    if memory.last_run.as_deref() == Some(run_id) {
        // A replay must not add evidence twice.
        return Ok((step(memory, rule, &Observed::NoData, now, run_id), gathered.shown(firing)));
    }
    let numbers = ask.condition.numbers(judged);
    gathered.n += numbers.len() as u64;
    let stake = gathered.stake_at(firing, at);
    gathered.evidence.count(if firing { question.opposite() } else { question }, stake, &numbers, at);
    if !numbers.is_empty() {
        gathered.last_at = Some(at);
    }
    let shown = gathered.shown(firing);
    let ln = gathered.evidence.ln();
    let enough = match ask.shared.filter(|_| !firing) {
        Some(Shared { others, watched }) => {
            let all: Vec<f64> = std::iter::once(ln).chain(others.iter().copied()).collect();
            e_bh(&all, watched).first() == Some(&0)
        }
        None => ln >= 0.0,
    };
    let observed = if numbers.is_empty() {
        Observed::NoData
    } else if !firing && gathered.n < ask.min_samples {
        Observed::Insufficient { n: gathered.n, need: ask.min_samples }
    } else {
        Observed::Breached(enough != firing)
    };
    let mut next = step(memory, rule, &observed, now, run_id);
    let turned = (next.memory.state == AlertState::Firing) != firing;
    // The run that turned it is counted for neither side.
    next.memory.evidence = Some(if turned { Gathered { last_at: gathered.last_at, ..Gathered::new(ask, question) } } else { gathered });
    Ok((next, shown))
}

/// "mean 0.71 over the 130 answers judged since Tue 3 Nov 14:00 UTC (13 runs)". It leans to the bad side, since the
/// beginning is an estimate: a description, and so without an interval.
fn describe(condition: &Condition, streak: Streak) -> String {
    let mean = streak.mean();
    let (n, runs) = (streak.n, if streak.runs == 1 { "1 run".to_owned() } else { format!("{} runs", streak.runs) });
    let since = Timestamp::from_second(streak.since).unwrap_or(Timestamp::UNIX_EPOCH).strftime("%a %-d %b %H:%M UTC");
    let percent = figure((mean * 1000.0).round() / 10.0);
    let found = match condition.statistic {
        Statistic::Mean => format!("mean {} over the {n} answers judged", figure((mean * 1000.0).round() / 1000.0)),
        Statistic::PassRate => format!("{percent} % of the {n} answers judged passed"),
        Statistic::FailedRate => format!("{percent} % of the {n} judgements failed"),
        Statistic::LatencyP95 => format!("{percent} % of the {n} judgements took {} {} ms", condition.comparison.word(), figure(condition.threshold)),
        _ => format!("{percent} % of the {n} answers judged are {} {}", condition.comparison.word(), figure(condition.threshold)),
    };
    format!("{found} since {since} ({runs})")
}

/// What people are told when the alert fires.
#[must_use]
pub fn firing_sentence(subject: &str, condition: &Condition, promise: Promise, streak: Streak, shared: Option<u64>) -> String {
    let days = figure((promise.budget() / 8640.0).round() / 10.0);
    let often = if days == "1" { "in a day".to_owned() } else { format!("in {days} days") };
    let promised = match shared {
        None => format!("Were it still {}, an alert like this would come at most once {often}.", good(condition)),
        Some(watched) => format!("Its confidence is shared by {watched} alerts: of all their alarms, few are false."),
    };
    format!(
        "{subject}: {} is {} {}: {}. {promised}",
        condition.statistic,
        condition.comparison.word(),
        figure(condition.threshold),
        describe(condition, streak)
    )
}

/// What people are told when it is over.
#[must_use]
pub fn resolved_sentence(subject: &str, condition: &Condition, streak: Streak) -> String {
    let back = match condition.comparison {
        Comparison::Less | Comparison::AtMost => "above",
        Comparison::Greater | Comparison::AtLeast => "below",
    };
    format!("{subject}: {} is back {back} {}: {}", condition.statistic, figure(condition.threshold), describe(condition, streak))
}

/// What would be well: "0.8 or better", "0.1 or less".
fn good(condition: &Condition) -> String {
    let than = match (condition.comparison, condition.statistic) {
        (Comparison::Less | Comparison::AtMost, Statistic::Mean | Statistic::PassRate) => "better",
        (Comparison::Less | Comparison::AtMost, _) => "more",
        (Comparison::Greater | Comparison::AtLeast, _) => "less",
    };
    format!("{} or {than}", figure(condition.threshold))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        alerting::{Hold, Verdict},
        model::AlertEventKind,
        statistics::vectors::{close, group, items, lists, natural, real, text},
        util::duration::Human,
    };

    const RULE: Rule = Rule { hold: Hold::Runs(1), repeat: Human::hours(1000), keep: Human::secs(0) };

    fn judged(values: &[f64]) -> Vec<Judged> {
        values.iter().map(|value| Judged { value: Some(*value), ..Judged::default() }).collect()
    }

    fn ask(condition: &str, promise: Promise) -> Ask<'static> {
        Ask { condition: condition.parse().unwrap(), promise, min_samples: 0, about: "r1", shared: None }
    }

    const HOURLY: Promise = Promise { confidence: 0.99, interval: 3600.0 };

    fn now(run: usize) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + 3600 * i64::try_from(run).unwrap()).unwrap()
    }

    #[test]
    fn stats_vectors_alert_state() {
        for case in group("alert_state") {
            let sign = if text(&case, "direction") == "below" { '<' } else { '>' };
            let ask = ask(&format!("mean {sign} {}", real(&case, "tau")), HOURLY);
            close(ask.promise.stake().unwrap(), real(&case, "a"), &case);
            let mut memory = AlertMemory::default();
            let mut events = items(&case, "events").into_iter();
            for (run, scores) in lists(&case, "runs").iter().enumerate() {
                let (next, shown) = step_on_evidence(&memory, &RULE, &ask, &judged(scores), now(run).as_second(), now(run), &run.to_string()).unwrap();
                if let Verdict::Notify(kind, _) = next.verdict {
                    let event = events.next().expect("no more than these");
                    let name = if kind == AlertEventKind::Firing { "fired" } else { "resolved" };
                    assert_eq!((run as u64, name.to_owned()), (natural(&event, "run"), text(&event, "event")));
                    let streak = shown.streak.unwrap();
                    let since_run = u64::try_from((streak.since - now(0).as_second()) / 3600).unwrap();
                    assert_eq!((since_run, streak.n), (natural(&event, "since_run"), natural(&event, "since_n")), "{event}");
                    close(streak.mean(), real(&event, "since_mean"), &event);
                } else {
                    close(
                        next.memory.evidence.as_ref().unwrap().ln(),
                        case["log_evidence"][run].as_f64().unwrap_or(f64::NEG_INFINITY),
                        &case["log_evidence"][run],
                    );
                }
                assert_eq!(next.memory.state == AlertState::Firing, case["states"][run] == "firing", "run {run}");
                memory = next.memory;
            }
            assert_eq!(events.next(), None);
        }
    }

    /// Runs of ten, until something is told: (after how many runs, what).
    fn until_told(memory: &mut AlertMemory, ask: &Ask<'_>, mean: f64, first: usize) -> Option<(usize, AlertEventKind)> {
        let run_scores: Vec<f64> = (0..10).map(|item| f64::from(u8::from(f64::from(item) < mean * 10.0))).collect();
        (first..first + 200).find_map(|run| {
            let (next, _) = step_on_evidence(memory, &RULE, ask, &judged(&run_scores), now(run).as_second(), now(run), &run.to_string()).unwrap();
            *memory = next.memory;
            match next.verdict {
                Verdict::Notify(kind, _) => Some((run, kind)),
                Verdict::Quiet(_) => None,
            }
        })
    }

    #[test]
    fn it_fires_when_the_product_gets_worse_and_ends_when_it_is_well_again() {
        let ask = ask("mean < 0.8", HOURLY);
        let mut memory = AlertMemory::default();
        assert_eq!(until_told(&mut memory, &ask, 0.9, 0), None, "all is well for 200 runs");
        let (fired, kind) = until_told(&mut memory, &ask, 0.6, 200).unwrap();
        assert!(kind == AlertEventKind::Firing && fired < 215, "{kind:?} at {fired}");
        let (resolved, kind) = until_told(&mut memory, &ask, 1.0, fired + 1).unwrap();
        assert!(kind == AlertEventKind::Resolved && resolved < fired + 20, "{kind:?} at {resolved}");
    }

    #[test]
    fn a_run_counts_once_and_one_without_scores_changes_nothing() {
        let ask = ask("mean < 0.8", HOURLY);
        let bad = judged(&[0.0; 3]);
        let (once, _) = step_on_evidence(&AlertMemory::default(), &RULE, &ask, &bad, 0, now(0), "a").unwrap();
        let (twice, _) = step_on_evidence(&once.memory, &RULE, &ask, &bad, 0, now(1), "a").unwrap();
        assert_eq!(once.memory, twice.memory);
        let (empty, _) = step_on_evidence(&once.memory, &RULE, &ask, &[], 0, now(1), "b").unwrap();
        assert_eq!(empty.memory.evidence, once.memory.evidence);
        assert_eq!(empty.memory.state, AlertState::NoData);
    }

    #[test]
    fn runs_that_come_more_often_than_planned_share_a_runs_stake() {
        let ask = ask("mean < 0.8", HOURLY);
        let at_threshold = judged(&[0.8; 10]);
        let after = |seconds: i64, runs: i64| {
            let mut memory = AlertMemory::default();
            for run in 0..runs {
                let (next, _) = step_on_evidence(&memory, &RULE, &ask, &at_threshold, run * seconds, now(0), &run.to_string()).unwrap();
                memory = next.memory;
            }
            memory.evidence.unwrap().ln().exp()
        };
        // At the threshold evidence grows by the stakes alone: as much in an hour, however often it was looked.
        assert!((after(60, 61) / after(3600, 2) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn another_question_starts_anew_and_another_confidence_goes_on() {
        let first = ask("mean < 0.8", HOURLY);
        let bad = judged(&[0.0, 1.0, 0.0, 1.0]);
        let (before, _) = step_on_evidence(&AlertMemory::default(), &RULE, &first, &bad, now(0).as_second(), now(0), "a").unwrap();
        let ln = |ask: &Ask<'_>| {
            let (next, _) = step_on_evidence(&before.memory, &RULE, ask, &judged(&[1.0]), now(1).as_second(), now(1), "b").unwrap();
            next.memory.evidence.unwrap().ln()
        };
        let fresh = |ask: &Ask<'_>| {
            let (next, _) = step_on_evidence(&AlertMemory::default(), &RULE, ask, &judged(&[1.0]), now(1).as_second(), now(1), "b").unwrap();
            next.memory.evidence.unwrap().ln()
        };
        for other in [ask("mean < 0.7", HOURLY), ask("mean > 0.8", HOURLY), Ask { about: "r2", ..first.clone() }] {
            assert_eq!(ln(&other), fresh(&other), "{other:?}");
        }
        assert!(ln(&first) > fresh(&first));
        let looser = ask("mean < 0.8", Promise { confidence: 0.95, ..HOURLY });
        assert!((ln(&looser) - ln(&first) - 5f64.ln()).abs() < 1e-9, "all stakes are five times as high");
    }

    #[test]
    fn quantiles_rates_and_latencies_are_shares() {
        let question = |text: &str| {
            let Question { side, threshold } = text.parse::<Condition>().unwrap().question().unwrap();
            format!("{side:?} {threshold:.2}")
        };
        let asked = ["mean < 0.8", "mean > 0.2", "pass_rate <= 0.9", "failed_rate > 0.1", "p10 < 0.5", "p90 > 0.3", "p50 >= 0.4", "latency_p95 > 8000"];
        insta::assert_snapshot!(asked.map(|text| format!("{text:<20}{}", question(text))).join("\n"), @"
        mean < 0.8          Below 0.80
        mean > 0.2          Above 0.20
        pass_rate <= 0.9    Below 0.90
        failed_rate > 0.1   Above 0.10
        p10 < 0.5           Above 0.10
        p90 > 0.3           Above 0.10
        p50 >= 0.4          Above 0.50
        latency_p95 > 8000  Above 0.05
        ");
        let run = [
            Judged { value: Some(0.4), passed: Some(false), latency_ms: Some(9000.0) },
            Judged { value: None, passed: None, latency_ms: Some(100.0) },
            Judged { value: Some(0.9), passed: None, latency_ms: None },
        ];
        let numbers = |text: &str| text.parse::<Condition>().unwrap().numbers(&run);
        assert_eq!(numbers("mean < 0.8"), [0.4, 0.9], "a failed judgement is no score");
        assert_eq!(numbers("pass_rate < 0.8"), [0.0]);
        assert_eq!(numbers("failed_rate > 0.1"), [0.0, 1.0, 0.0]);
        assert_eq!(numbers("p10 < 0.5"), [1.0, 0.0]);
        assert_eq!(numbers("latency_p95 > 8000"), [1.0, 0.0]);
        assert!("n < 5".parse::<Condition>().unwrap().question().is_err());
        assert!("mean < 1".parse::<Condition>().unwrap().question().is_err());
    }

    #[test]
    fn a_shared_promise_waits_for_more_or_for_company() {
        let alone = ask("mean < 0.8", HOURLY);
        let bad = judged(&[0.3; 10]);
        let runs = |ask: &Ask<'_>| {
            let mut memory = AlertMemory::default();
            (0..50).find(|run| {
                let (next, _) = step_on_evidence(&memory, &RULE, ask, &bad, now(*run).as_second(), now(*run), &run.to_string()).unwrap();
                memory = next.memory;
                memory.state == AlertState::Firing
            })
        };
        let quiet = [f64::NEG_INFINITY; 99];
        let one_of_many = Ask { shared: Some(Shared { others: &quiet, watched: 100 }), ..alone.clone() };
        let company = [50.0; 99];
        let all_of_many = Ask { shared: Some(Shared { others: &company, watched: 100 }), ..alone.clone() };
        assert!(runs(&one_of_many) > runs(&alone));
        assert_eq!(runs(&all_of_many), runs(&alone));
    }

    #[test]
    fn sentences_can_be_checked() {
        let streak = Streak { since: 1_767_225_600 + 14 * 3600, runs: 13, n: 130, sum: 92.3 };
        let condition = |text: &str| text.parse::<Condition>().unwrap();
        insta::assert_snapshot!(
            [
                firing_sentence("faithfulness", &condition("mean < 0.8"), HOURLY, streak, None),
                firing_sentence("faithfulness", &condition("p10 < 0.5"), HOURLY, streak, None),
                firing_sentence("toxicity", &condition("failed_rate > 0.1"), Promise { confidence: 0.95, ..HOURLY }, streak, Some(12)),
                resolved_sentence("faithfulness", &condition("mean < 0.8"), Streak { runs: 1, n: 9, sum: 8.2, ..streak }),
            ]
            .join("\n"),
            @"
        faithfulness: mean is below 0.8: mean 0.71 over the 130 answers judged since Thu 1 Jan 14:00 UTC (13 runs). Were it still 0.8 or better, an alert like this would come at most once in 100 days.
        faithfulness: p10 is below 0.5: 71 % of the 130 answers judged are below 0.5 since Thu 1 Jan 14:00 UTC (13 runs). Were it still 0.5 or more, an alert like this would come at most once in 100 days.
        toxicity: failed_rate is above 0.1: 71 % of the 130 judgements failed since Thu 1 Jan 14:00 UTC (13 runs). Its confidence is shared by 12 alerts: of all their alarms, few are false.
        faithfulness: mean is back above 0.8: mean 0.911 over the 9 answers judged since Thu 1 Jan 14:00 UTC (1 run)
        ");
    }

    proptest! {
        /// The stored memory after each run, read back, goes on in the same way.
        #[test]
        fn a_restart_changes_nothing(runs in proptest::collection::vec(proptest::collection::vec(0.0..=1.0f64, 0..12), 1..40)) {
            let ask = ask("mean < 0.6", Promise { confidence: 0.9, interval: 3600.0 });
            let (mut going_on, mut restarted) = (AlertMemory::default(), AlertMemory::default());
            for (run, scores) in runs.iter().enumerate() {
                restarted = serde_json::from_str(&serde_json::to_string(&restarted).unwrap()).unwrap();
                let at = now(run).as_second();
                going_on = step_on_evidence(&going_on, &RULE, &ask, &judged(scores), at, now(run), &run.to_string()).unwrap().0.memory;
                restarted = step_on_evidence(&restarted, &RULE, &ask, &judged(scores), at, now(run), &run.to_string()).unwrap().0.memory;
                prop_assert_eq!(&going_on, &restarted);
            }
        }
    }
}
