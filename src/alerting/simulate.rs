//! What an alert would do, told by trying it on runs that are drawn by chance: how often it fires while all is well, and
//! how long a fall goes unseen. The alert itself is the one that runs every day; only the runs are made up.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};
use rand::{Rng, RngExt};

use super::{
    condition::{Comparison, Condition},
    evidence::{Ask, step_on_evidence},
    machine::{AlertMemory, Observed, Rule, Verdict, step},
};
use crate::{
    model::{AlertEventKind, Judged, Tally},
    statistics::{
        evidence::Promise,
        interval::{SHOWN, wilson},
        real,
    },
};

/// An alert to be tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    pub rule: Rule,
    pub looks: Looks,
}

/// What it goes by.
#[derive(Debug, Clone, PartialEq)]
pub enum Looks {
    /// All runs so far, as evidence. In doubt a run draws `boost` times as many items.
    Evidence { condition: Condition, promise: Promise, min_samples: u64, boost: u32 },
    /// The figure of the last `runs` runs.
    Window { condition: Condition, end: Option<Condition>, min_samples: u64, runs: usize },
    /// Whether the 95 % interval of the run's mean lies beyond the threshold: what many take for sound.
    Interval { condition: Condition },
}

/// The runs it is tried on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Runs<'a> {
    /// What a judgement may be, each as likely as the other; not empty.
    pub judged: &'a [Judged],
    /// Judgements a run.
    pub n: usize,
    /// Seconds between two runs.
    pub interval: f64,
}

/// A figure by simulation, and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Simulated {
    pub mean: f64,
    pub se: f64,
    /// Judgements made, as a multiple of what is usual.
    pub effort: f64,
}

/// One life of the alert.
struct Life<'a> {
    candidate: &'a Candidate,
    memory: AlertMemory,
    window: VecDeque<Vec<Judged>>,
    run: u32,
    judged: u64,
}

impl<'a> Life<'a> {
    fn new(candidate: &'a Candidate) -> Self {
        Self { candidate, memory: AlertMemory::default(), window: VecDeque::new(), run: 0, judged: 0 }
    }

    /// With a window that is full of what is usual. Whatever was said while it filled is forgotten.
    fn begun(candidate: &'a Candidate, usual: Runs<'_>, chance: &mut impl Rng) -> Self {
        let lead = match candidate.looks {
            Looks::Window { runs, .. } => runs.saturating_sub(1),
            _ => 0,
        };
        let mut life = Self::new(candidate);
        for _ in 0..lead {
            life.fires(usual, chance);
        }
        Self { memory: AlertMemory::default(), judged: 0, ..life }
    }

    /// Another run; true when the alert fires by it.
    fn fires(&mut self, runs: Runs<'_>, chance: &mut impl Rng) -> bool {
        let boost = match self.candidate.looks {
            Looks::Evidence { boost, .. } if self.memory.in_doubt() => usize::try_from(boost).unwrap_or(1),
            _ => 1,
        };
        let drawn: Vec<Judged> = (0..runs.n * boost).map(|_| runs.judged[chance.random_range(0..runs.judged.len())]).collect();
        self.judged += drawn.len() as u64;
        self.run += 1;
        let seconds = runs.interval * f64::from(self.run);
        let now = SignedDuration::try_from_secs_f64(seconds).ok().and_then(|passed| Timestamp::UNIX_EPOCH.checked_add(passed).ok()).unwrap_or(Timestamp::MAX);
        let id = self.run.to_string();
        let rule = &self.candidate.rule;
        let next = match &self.candidate.looks {
            Looks::Evidence { condition, promise, min_samples, .. } => {
                let ask = Ask { condition: *condition, promise: *promise, min_samples: *min_samples, about: "", shared: None };
                match step_on_evidence(&self.memory, rule, &ask, &drawn, now.as_second(), now, &id) {
                    Ok((next, _)) => next,
                    Err(message) => step(&self.memory, rule, &Observed::Error(message), now, &id),
                }
            }
            Looks::Window { condition, end, min_samples, runs } => {
                self.window.push_back(drawn);
                if self.window.len() > (*runs).max(1) {
                    self.window.pop_front();
                }
                let measured = condition.statistic.of(&tally(self.window.iter().flatten()));
                let firing = self.memory.state == crate::model::AlertState::Firing;
                let observed = match (condition.observe(&measured, *min_samples), end, measured.value) {
                    (Observed::Breached(_), Some(end), Some(value)) if firing => Observed::Breached(!end.holds(value)),
                    (observed, ..) => observed,
                };
                step(&self.memory, rule, &observed, now, &id)
            }
            Looks::Interval { condition } => {
                let numbers = condition.numbers(&drawn);
                let found = wilson(numbers.iter().sum(), numbers.len() as u64, None, SHOWN);
                let beyond = match condition.comparison {
                    Comparison::Less | Comparison::AtMost => found.high < condition.threshold,
                    Comparison::Greater | Comparison::AtLeast => found.low > condition.threshold,
                };
                step(&self.memory, rule, &Observed::Breached(beyond), now, &id)
            }
        };
        self.memory = next.memory;
        matches!(next.verdict, Verdict::Notify(AlertEventKind::Firing, _))
    }
}

fn tally<'a>(judged: impl Iterator<Item = &'a Judged>) -> Tally {
    let mut tally = Tally::default();
    for Judged { value, passed, latency_ms } in judged {
        match value {
            Some(value) => tally.values.push(*value),
            None => tally.failed += 1,
        }
        tally.with_verdict += u64::from(passed.is_some());
        tally.passed += u64::from(*passed == Some(true));
        tally.latencies_ms.extend(latency_ms);
    }
    tally
}

/// How often the alert fires within `horizon` runs, on average over `lives`.
#[must_use]
pub fn alarms(candidate: &Candidate, runs: Runs<'_>, horizon: u32, lives: u32, chance: &mut impl Rng) -> Simulated {
    let usual = f64::from(horizon) * real(runs.n as u64);
    let lived: Vec<(f64, f64)> = (0..lives)
        .map(|_| {
            let mut life = Life::begun(candidate, runs, chance);
            let fired = (0..horizon).filter(|_| life.fires(runs, chance)).count();
            (real(fired as u64), real(life.judged) / usual)
        })
        .collect();
    summary(&lived)
}

/// How many runs after its beginning a change is told of, on average over `lives`: `before` is what was usual for as long as a
/// window reaches, `after` what it is from then on. `None` where some life saw nothing within `patience` runs.
#[must_use]
pub fn delay(candidate: &Candidate, before: Runs<'_>, after: Runs<'_>, patience: u32, lives: u32, chance: &mut impl Rng) -> Option<Simulated> {
    let lived: Option<Vec<(f64, f64)>> = (0..lives)
        .map(|_| {
            let mut life = Life::begun(candidate, before, chance);
            let told = (1..=patience).find(|_| life.fires(after, chance))?;
            Some((f64::from(told), 1.0))
        })
        .collect();
    Some(summary(&lived?))
}

fn summary(lived: &[(f64, f64)]) -> Simulated {
    let n = real(lived.len() as u64);
    let mean = lived.iter().map(|(value, _)| value).sum::<f64>() / n;
    let variance = lived.iter().map(|(value, _)| (value - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    Simulated { mean, se: (variance / n).sqrt(), effort: lived.iter().map(|(_, effort)| effort).sum::<f64>() / n }
}

/// Judgements as they would be once the mean has fallen to `fallen` (risen, where more is worse): a share of them is replaced
/// by the worst tenth. `None` where the mean is there already.
#[must_use]
pub fn fallen(judged: &[Judged], fallen: f64, worse_is_less: bool, chance: &mut impl Rng) -> Option<Vec<Judged>> {
    let mut scored: Vec<Judged> = judged.iter().copied().filter(|judged| judged.value.is_some()).collect();
    let value = |judged: &Judged| judged.value.unwrap_or_default();
    scored.sort_by(|a, b| if worse_is_less { value(a).total_cmp(&value(b)) } else { value(b).total_cmp(&value(a)) });
    let mean = |list: &[Judged]| list.iter().map(value).sum::<f64>() / real(list.len() as u64);
    let usual = mean(&scored);
    let worst = scored.get(..scored.len().div_ceil(10))?;
    let extreme = [Judged { value: Some(if worse_is_less { 0.0 } else { 1.0 }), passed: Some(false), latency_ms: None }];
    let beyond = if worse_is_less { mean(worst) < fallen } else { mean(worst) > fallen };
    let worst = if beyond { worst } else { &extreme };
    let share = (usual - fallen) / (usual - mean(worst));
    if !(0.0..=1.0).contains(&share) || share == 0.0 {
        return None;
    }
    // A hundred times as many, so that the share is met closely.
    let replaced = |judged: &Judged, chance: &mut _| if pick(chance, share) { worst[chance_index(chance, worst.len())] } else { *judged };
    Some((0..100).flat_map(|_| scored.iter()).map(|judged| replaced(judged, chance)).collect())
}

fn pick(chance: &mut impl Rng, share: f64) -> bool {
    chance.random_bool(share.clamp(0.0, 1.0))
}

fn chance_index(chance: &mut impl Rng, len: usize) -> usize {
    chance.random_range(0..len)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{alerting::Hold, util::duration::Human};

    const AT_ONCE: Rule = Rule { hold: Hold::Runs(1), repeat: Human::hours(100_000), keep: Human::secs(0) };

    fn pass_and_fail(mean: f64) -> Vec<Judged> {
        (0..1000).map(|item| Judged { value: Some(f64::from(u8::from(f64::from(item) < mean * 1000.0))), ..Judged::default() }).collect()
    }

    fn hourly(judged: &[Judged]) -> Runs<'_> {
        Runs { judged, n: 10, interval: 3600.0 }
    }

    fn below(runs: usize) -> Looks {
        Looks::Window { condition: "mean < 0.8".parse().unwrap(), end: None, min_samples: 1, runs }
    }

    fn evidence() -> Candidate {
        let promise = Promise { confidence: 0.99, interval: 3600.0 };
        Candidate { rule: AT_ONCE, looks: Looks::Evidence { condition: "mean < 0.8".parse().unwrap(), promise, min_samples: 0, boost: 1 } }
    }

    /// Rows that others measured: a month of hourly runs of ten, pass and fail.
    #[test]
    fn plain_thresholds_cry_wolf_as_often_as_others_measured() {
        let mut chance = StdRng::seed_from_u64(1);
        for (looks, hold, mean, expected) in [(below(1), 1, 0.80, 157.0), (below(1), 3, 0.85, 3.5), (below(24), 1, 0.82, 21.0)] {
            let candidate = Candidate { rule: Rule { hold: Hold::Runs(hold), ..AT_ONCE }, looks };
            let judged = pass_and_fail(mean);
            let found = alarms(&candidate, hourly(&judged), 720, 60, &mut chance);
            assert!((found.mean - expected).abs() < 4.0 * found.se + 0.05 * expected, "{found:?} instead of {expected}: {candidate:?}");
        }
    }

    #[test]
    fn evidence_cries_wolf_less_often_than_it_promised_and_sees_a_fall() {
        let mut chance = StdRng::seed_from_u64(2);
        let (good, bad) = (pass_and_fail(0.80), pass_and_fail(0.65));
        let found = alarms(&evidence(), hourly(&good), 720, 100, &mut chance);
        assert!(found.mean <= 0.3 + 4.0 * found.se, "at most one in a hundred days: {found:?}");
        let found = delay(&evidence(), hourly(&good), hourly(&bad), 1000, 100, &mut chance).unwrap();
        assert!((found.mean - 14.0).abs() < 4.0 * found.se + 1.0, "others measured 14 runs: {found:?}");
    }

    #[test]
    fn a_fall_is_made_of_the_worst_answers() {
        let mut chance = StdRng::seed_from_u64(3);
        let graded: Vec<Judged> = (0..100).map(|item| Judged { value: Some(0.5 + f64::from(item) / 200.0), ..Judged::default() }).collect();
        let mean = |list: &[Judged]| list.iter().filter_map(|judged| judged.value).sum::<f64>() / real(list.len() as u64);
        let fell = fallen(&graded, 0.6, true, &mut chance).unwrap();
        assert!((mean(&fell) - 0.6).abs() < 0.02, "{}", mean(&fell));
        let deep = fallen(&graded, 0.3, true, &mut chance).unwrap();
        assert!((mean(&deep) - 0.3).abs() < 0.02, "below the worst tenth, by zeros: {}", mean(&deep));
        assert_eq!(fallen(&graded, 0.9, true, &mut chance), None, "that is no fall");
    }
}
