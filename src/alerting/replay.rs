//! Which alerts would have fired in the past: the runs that are stored, one after the other, through the code that decides today.
//!
//! It begins without a memory. What cannot be known afterwards is left out: who was muted, and the evidence of other alerts that
//! share a promise.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    baseline::Learned,
    condition::Condition,
    evidence::{Ask, step_on_evidence},
    machine::{AlertMemory, Observed, Rule, Step, Verdict, step},
};
use crate::{
    model::{AlertEventKind, AlertState, Judged, PastJudgement, PastRun, RunMean, Tally},
    statistics::{evidence::Promise, real},
};

/// An alert as it is to be tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    pub rule: Rule,
    pub condition: Condition,
    pub min_samples: u64,
    pub looks: Looks,
    /// How long a level is learned, where the condition compares with one; microseconds.
    pub learns_us: i64,
}

/// What it goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Looks {
    Evidence(Promise),
    /// The figure of a window; while it fires, `end` says when it is over.
    Window {
        reach: Reach,
        end: Option<Condition>,
    },
}

/// How far back a window reaches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reach {
    Time(Duration),
    /// The run itself included.
    Runs(usize),
}

/// One firing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Firing {
    pub at: Timestamp,
    /// `None` while it fires.
    pub resolved: Option<Timestamp>,
}

/// When the alert would have fired, over runs in the order in which they ended.
#[must_use]
pub fn replay(alert: &Tried, runs: &[PastRun]) -> Vec<Firing> {
    let mut life = Life::new(alert, runs);
    let mut firings: Vec<Firing> = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        let Step { memory, verdict } = life.after(at);
        life.memory = memory;
        match verdict {
            Verdict::Notify(AlertEventKind::Firing, _) => firings.push(Firing { at: run.ended, resolved: None }),
            Verdict::Notify(AlertEventKind::Resolved, _) => {
                if let Some(last) = firings.last_mut() {
                    last.resolved = Some(run.ended);
                }
            }
            _ => {}
        }
    }
    firings
}

struct Life<'a> {
    alert: &'a Tried,
    runs: &'a [PastRun],
    memory: AlertMemory,
    learned: Option<Learned>,
    means: Vec<RunMean>,
}

impl<'a> Life<'a> {
    fn new(alert: &'a Tried, runs: &'a [PastRun]) -> Self {
        Self { alert, runs, memory: AlertMemory::default(), learned: None, means: Vec::new() }
    }

    fn after(&mut self, at: usize) -> Step {
        let run = &self.runs[at];
        // Items that were asked for by name say nothing about the rest.
        let drawn: Vec<Judged> = run.judged.iter().filter(|past| !past.chosen).map(|past| past.judged).collect();
        let condition = match self.condition(run, &drawn) {
            Ok(condition) => condition,
            Err(progress) => return self.step(&Observed::Learning(progress), run),
        };
        match self.alert.looks {
            Looks::Evidence(promise) => {
                let ask = Ask { condition, promise, min_samples: self.alert.min_samples, about: "", shared: None };
                match step_on_evidence(&self.memory, &self.alert.rule, &ask, &drawn, run.slot.as_second(), run.ended, &run.id) {
                    Ok((step, _)) => step,
                    Err(message) => self.step(&Observed::Error(message), run),
                }
            }
            Looks::Window { reach, end } => {
                let measured = condition.statistic.of(&tally(self.window(reach, at)));
                let firing = self.memory.state == AlertState::Firing;
                let observed = match (condition.observe(&measured, self.alert.min_samples), end, measured.value) {
                    (Observed::Breached(_), Some(end), Some(value)) if firing => Observed::Breached(!end.holds(value)),
                    (observed, ..) => observed,
                };
                self.step(&observed, run)
            }
        }
    }

    fn step(&self, observed: &Observed, run: &PastRun) -> Step {
        step(&self.memory, &self.alert.rule, observed, run.ended, &run.id)
    }

    /// With a number in it, or how far learning is.
    fn condition(&mut self, run: &PastRun, drawn: &[Judged]) -> Result<Condition, String> {
        let condition = self.alert.condition;
        if !condition.baseline {
            return Ok(condition);
        }
        let slot_us = run.slot.as_microsecond();
        let mut learned = Learned::carried(self.learned.as_ref(), "", slot_us);
        if let Some(level) = learned.level {
            return Ok(condition.against(&level));
        }
        let numbers = condition.numbers(drawn);
        if !numbers.is_empty() {
            let n = numbers.len() as u64;
            self.means.push(RunMean { slot_us, mean: numbers.iter().sum::<f64>() / real(n), n });
        }
        // The run that completes it is not compared with it.
        let progress = learned.learn(&self.means, self.alert.learns_us).map_or_else(|progress| progress, |_| "learned what is normal".to_owned());
        self.learned = Some(learned);
        Err(progress)
    }

    fn window(&self, reach: Reach, at: usize) -> impl Iterator<Item = &PastJudgement> {
        let from = match reach {
            Reach::Runs(runs) => (at + 1).saturating_sub(runs.max(1)),
            Reach::Time(time) => {
                let now = self.runs[at].ended;
                let since = jiff::SignedDuration::try_from(time).ok().and_then(|time| now.checked_sub(time).ok()).unwrap_or(Timestamp::MIN);
                self.runs[..=at].partition_point(|run| run.ended < since)
            }
        };
        self.runs[from.min(at)..=at].iter().flat_map(|run| &run.judged)
    }
}

fn tally<'a>(judged: impl Iterator<Item = &'a PastJudgement>) -> Tally {
    let mut tally = Tally::default();
    for PastJudgement { judged: Judged { value, passed, latency_ms }, cost_usd, .. } in judged {
        match value {
            Some(value) => tally.values.push(*value),
            None => tally.failed += 1,
        }
        tally.with_verdict += u64::from(passed.is_some());
        tally.passed += u64::from(*passed == Some(true));
        tally.latencies_ms.extend(latency_ms);
        if let Some(cost) = cost_usd {
            tally.cost_usd = Some(tally.cost_usd.unwrap_or(0.0) + cost);
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{alerting::Hold, util::duration::Human};

    const RULE: Rule = Rule { hold: Hold::Runs(1), repeat: Human::hours(4), keep: Human::secs(0) };
    const HOURLY: Promise = Promise { confidence: 0.99, interval: 3600.0 };

    /// Hourly runs of ten, of which so many are good.
    fn runs(good: impl IntoIterator<Item = u32>) -> Vec<PastRun> {
        let run = |(hour, good): (usize, u32)| {
            let at = Timestamp::from_second(3600 * i64::try_from(hour).unwrap()).unwrap();
            let judged =
                |item: u32| PastJudgement { judged: Judged { value: Some(f64::from(u8::from(item < good))), ..Judged::default() }, ..PastJudgement::default() };
            PastRun { id: hour.to_string(), slot: at, ended: at, judged: (0..10).map(judged).collect() }
        };
        good.into_iter().enumerate().map(run).collect()
    }

    fn tried(condition: &str, looks: Looks) -> Tried {
        Tried { rule: RULE, condition: condition.parse().unwrap(), min_samples: 1, looks, learns_us: 86_400_000_000 }
    }

    fn hours(firings: &[Firing]) -> Vec<(i64, Option<i64>)> {
        let hour = |at: Timestamp| at.as_second() / 3600;
        firings.iter().map(|firing| (hour(firing.at), firing.resolved.map(hour))).collect()
    }

    const RUN: Looks = Looks::Window { reach: Reach::Runs(1), end: None };

    #[test]
    fn a_plain_threshold_cries_wolf_where_evidence_waits() {
        let luck = runs((0..100).map(|hour| if hour == 50 { 7 } else { 9 }));
        assert_eq!(hours(&replay(&tried("mean < 0.8", RUN), &luck)), [(50, Some(51))]);
        assert_eq!(replay(&tried("mean < 0.8", Looks::Evidence(HOURLY)), &luck), []);
        let fall = runs((0..200).map(|hour| if (100..140).contains(&hour) { 5 } else { 9 }));
        let [(fired, Some(resolved))] = hours(&replay(&tried("mean < 0.8", Looks::Evidence(HOURLY)), &fall))[..] else { panic!("once") };
        assert!((101..110).contains(&fired) && (141..180).contains(&resolved), "{fired} {resolved}");
    }

    #[test]
    fn windows_reach_back_by_time_or_by_runs_and_end_where_they_are_told() {
        let dip = runs([9, 9, 1, 9, 9, 9, 9, 9]);
        let window = |reach, end: Option<&str>| Looks::Window { reach, end: end.map(|end| end.parse().unwrap()) };
        let of = |looks| hours(&replay(&tried("mean < 0.8", looks), &dip));
        assert_eq!(of(window(Reach::Runs(3), None)), [(2, Some(5))]);
        assert_eq!(of(window(Reach::Time(Duration::from_secs(2 * 3600)), None)), [(2, Some(5))], "what is just as old is inside");
        assert_eq!(of(window(Reach::Runs(3), Some("mean >= 0.95"))), [(2, None)]);
    }

    #[test]
    fn a_level_is_learned_before_anything_is_compared_with_it() {
        let fall = runs((0..120).map(|hour| if hour < 80 { 9 } else { 4 }));
        assert_eq!(hours(&replay(&tried("mean < baseline - 0.1", RUN), &fall)), [(80, None)]);
    }

    proptest! {
        #[test]
        fn firings_are_in_order_and_each_is_over_before_the_next(good in proptest::collection::vec(0u32..=10, 0..80), evidence: bool) {
            let looks = if evidence { Looks::Evidence(HOURLY) } else { RUN };
            let firings = replay(&tried("mean < 0.6", looks), &runs(good));
            for pair in firings.windows(2) {
                prop_assert!(pair[0].resolved.is_some_and(|resolved| pair[0].at < resolved && resolved < pair[1].at));
            }
        }
    }
}
