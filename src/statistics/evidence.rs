//! Evidence that a mean lies on the wrong side of a threshold, gathered run by run.
//!
//! Eight gamblers bet at fair odds that the mean is below the threshold, each with another stake. Every run gives each
//! of them a further stake, and all stakes made so far are multiplied by the outcome. While the mean is at the
//! threshold or better no way of betting wins on average, so their mean wealth, the evidence E, seldom reaches 1; once
//! it is worse, wealth grows exponentially. Small stakes find small drops, large ones sudden drops: nothing is tuned.
//!
//! Guarantee: while the mean of every run is at the threshold or better, the expected time to the first false alarm is
//! at least the budget 86400 / (1 - confidence) seconds, and the chance of one within s seconds at most s / budget. It
//! holds for any scores in [0, 1], any (also changing) number of items, and samples without replacement.
//!
//! A mixture of Shiryaev-Roberts e-detectors: Shin, Ramdas, Rinaldo: E-detectors, NEJSDS 2024, arXiv 2203.03532.

use serde::{Deserialize, Serialize};

use super::{log_add, log_mean, real};

/// Shares of the largest stake that can never be lost whole. Fixed: stakes fitted to the run itself would void the
/// guarantee.
pub const FRACTIONS: [f64; 8] = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.56, 0.90];

/// Thresholds that may be asked about: outside, a stake could not be told from none.
pub const THRESHOLDS: std::ops::RangeInclusive<f64> = 0.001..=0.999;

/// On which side of its threshold a mean is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Below,
    Above,
}

/// "Is the mean on this side of the threshold?"
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Question {
    pub side: Side,
    /// Within [`THRESHOLDS`].
    pub threshold: f64,
}

impl Question {
    /// Whether the mean is back on the good side.
    #[must_use]
    pub fn opposite(self) -> Self {
        Self { side: if self.side == Side::Below { Side::Above } else { Side::Below }, ..self }
    }

    /// "Above t" is "below 1 - t" of 1 - x, and the other way round.
    fn turned(self, x: f64) -> f64 {
        if self.side == Side::Below { x } else { 1.0 - x }
    }
}

/// How often an alarm may be false.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Promise {
    /// In (0, 1).
    pub confidence: f64,
    /// Seconds between two runs.
    pub interval: f64,
}

impl Promise {
    /// Seconds in which one false alarm may be expected at most.
    #[must_use]
    pub fn budget(self) -> f64 {
        86_400.0 / (1.0 - self.confidence)
    }

    /// The stake of a run, `a`; `None` where there are too few runs for the confidence.
    #[must_use]
    pub fn stake(self) -> Option<f64> {
        let stake = self.interval / self.budget();
        (stake > 0.0 && stake < 0.5).then_some(stake)
    }
}

/// The stake of a run that looks for the end of trouble: a false "resolved" may come ten times as often.
#[must_use]
pub fn recovery(stake: f64) -> f64 {
    (10.0 * stake).min(0.5)
}

/// One of the eight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
struct Gambler {
    /// ln of all that its stakes have become; minus infinity before the first run.
    log_wealth: f64,
    /// What betting has won since trouble may have begun; at most 0 where it has not.
    gain: f64,
    streak: Streak,
}

/// The runs since trouble seems to have begun.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Streak {
    /// When its first run was, in the unit of [`Evidence::count`].
    pub since: i64,
    pub runs: u64,
    /// Scores, and their sum.
    pub n: u64,
    pub sum: f64,
}

/// As it is stored: no names, and `null` in place of minus infinity, which JSON lacks.
type Row = (Option<f64>, f64, i64, u64, u64, f64);

impl From<Row> for Gambler {
    fn from((log_wealth, gain, since, runs, n, sum): Row) -> Self {
        Self { log_wealth: log_wealth.unwrap_or(f64::NEG_INFINITY), gain, streak: Streak { since, runs, n, sum } }
    }
}

impl From<Gambler> for Row {
    fn from(Gambler { log_wealth, gain, streak }: Gambler) -> Self {
        (log_wealth.is_finite().then_some(log_wealth), gain, streak.since, streak.runs, streak.n, streak.sum)
    }
}

/// What the runs so far say. Under a kilobyte; restarting from what was stored gives the same bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    gamblers: [Gambler; FRACTIONS.len()],
}

impl Default for Evidence {
    fn default() -> Self {
        Self { gamblers: [Gambler { log_wealth: f64::NEG_INFINITY, gain: 0.0, streak: Streak::default() }; FRACTIONS.len()] }
    }
}

impl Evidence {
    /// Counts a run's scores, in [0, 1] and in stored order; `at` names the run for [`streak`](Self::streak). A run without
    /// scores says nothing and changes nothing. To be called once a run: the caller compares its id.
    pub fn count(&mut self, question: Question, stake: f64, scores: &[f64], at: i64) {
        if scores.is_empty() {
            return;
        }
        let threshold = question.turned(question.threshold);
        let sum: f64 = scores.iter().sum();
        for (gambler, fraction) in self.gamblers.iter_mut().zip(FRACTIONS) {
            let won = log_product(scores.iter().map(|score| question.turned(*score)), threshold, fraction / (1.0 - threshold));
            gambler.log_wealth = log_add(gambler.log_wealth, stake.ln()) + won;
            if gambler.gain <= 0.0 {
                gambler.gain = 0.0;
                gambler.streak = Streak { since: at, ..Streak::default() };
            }
            gambler.gain += won;
            gambler.streak.runs += 1;
            gambler.streak.n += scores.len() as u64;
            gambler.streak.sum += sum;
        }
    }

    /// ln E: an alarm at 0 or more; minus infinity before the first run.
    #[must_use]
    pub fn ln(&self) -> f64 {
        log_mean(&self.gamblers.map(|gambler| gambler.log_wealth))
    }

    /// How close to an alarm: 0 nothing, 1 alarm.
    #[must_use]
    pub fn level(&self, stake: f64) -> f64 {
        let ln = self.ln();
        if ln.is_finite() { (1.0 - ln / stake.ln()).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Whether the next run should look closer: half of the way to an alarm, and not there yet.
    #[must_use]
    pub fn in_doubt(&self, stake: f64) -> bool {
        let ln = self.ln();
        ln < 0.0 && ln >= 0.5 * stake.ln()
    }

    /// Where the trouble seems to have begun: of the gambler who won most. For messages; its mean leans to the bad side,
    /// since the beginning is an estimate. `None` before the first run.
    #[must_use]
    pub fn streak(&self) -> Option<Streak> {
        let most = self.gamblers.iter().map(|gambler| gambler.log_wealth).fold(f64::NEG_INFINITY, f64::max);
        self.gamblers.iter().find(|gambler| gambler.log_wealth >= most && gambler.streak.n > 0).map(|gambler| gambler.streak)
    }

    /// Goes on under another confidence: the stakes made so far become what they would have been.
    pub fn restake(&mut self, before: f64, now: f64) {
        let factor = ((1.0 - now) / (1.0 - before)).ln();
        for gambler in &mut self.gamblers {
            gambler.log_wealth += factor;
        }
    }
}

impl Streak {
    /// The mean of its scores; `NaN` of none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / real(self.n)
    }
}

/// Factors that are multiplied before a logarithm is taken: between 0.1 and 900 each, so 32 stay well within an f64.
const CHUNK: usize = 32;

/// The sum of ln(1 + stake (threshold - x)), with a logarithm for every [`CHUNK`] of them.
fn log_product(scores: impl Iterator<Item = f64>, threshold: f64, stake: f64) -> f64 {
    let (mut sum, mut product, mut factors) = (0.0, 1.0, 0);
    for score in scores {
        product *= 1.0 + stake * (threshold - score);
        factors += 1;
        if factors == CHUNK {
            sum += f64::ln(product);
            (product, factors) = (1.0, 0);
        }
    }
    sum + product.ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::statistics::vectors::{close, flag, group, items, list, lists, natural, real, text};

    fn question(case: &serde_json::Value) -> Question {
        let side = if case.get("direction").is_some_and(|side| side == "above") { Side::Above } else { Side::Below };
        Question { side, threshold: real(case, "tau") }
    }

    #[test]
    fn stats_vectors_budget() {
        for case in group("budget") {
            let promise = Promise { confidence: real(&case, "confidence"), interval: real(&case, "interval_s") };
            close(promise.budget(), real(&case, "budget_s"), &case);
            let stake = promise.stake().unwrap();
            close(stake, real(&case, "a"), &case);
            close(recovery(stake), real(&case, "a_recover"), &case);
        }
    }

    #[test]
    fn stats_vectors_evidence() {
        for case in group("evidence") {
            let (question, stake) = (question(&case), real(&case, "a"));
            let mut evidence = Evidence::default();
            for (at, (scores, step)) in lists(&case, "runs").iter().zip(items(&case, "steps")).enumerate() {
                evidence.count(question, stake, scores, i64::try_from(at).unwrap());
                close(evidence.ln(), step["log_evidence"].as_f64().unwrap_or(f64::NEG_INFINITY), &step);
                assert_eq!(evidence.in_doubt(stake), flag(&step, "boost"), "{step}");
                assert_eq!(evidence.ln() >= 0.0, flag(&step, "fired"), "{step}");
                if flag(&step, "fired") {
                    let streak = evidence.streak().unwrap();
                    assert_eq!(u64::try_from(streak.since).unwrap(), natural(&step, "since_run"), "{step}");
                    assert_eq!(streak.n, natural(&step, "since_n"), "{step}");
                    close(streak.mean(), real(&step, "since_mean"), &step);
                    evidence = Evidence::default();
                }
            }
            for (gambler, expected) in evidence.gamblers.iter().zip(items(&case, "final_log_r")) {
                close(gambler.log_wealth, expected.as_f64().unwrap_or(f64::NEG_INFINITY), &expected);
            }
        }
    }

    #[test]
    fn stats_vectors_evidence_long() {
        for case in group("evidence_long") {
            let (question, stake, n) = (question(&case), real(&case, "a"), natural(&case, "n"));
            let mut evidence = Evidence::default();
            let mut fired = Vec::new();
            for (at, passes) in list(&case, "passes").into_iter().enumerate() {
                let scores: Vec<f64> = (0..n).map(|item| f64::from(u8::from(super::real(item) < passes))).collect();
                evidence.count(question, stake, &scores, i64::try_from(at).unwrap());
                if evidence.ln() >= 0.0 {
                    fired.push(super::real(at as u64));
                    evidence = Evidence::default();
                }
            }
            assert_eq!(fired, list(&case, "fired_at"));
            for (gambler, expected) in evidence.gamblers.iter().zip(list(&case, "final_log_r")) {
                close(gambler.log_wealth, expected, &case["final_log_r"]);
            }
            close(evidence.ln(), real(&case, "final_log_evidence"), &case["final_log_evidence"]);
        }
    }

    /// Pass and fail at a mean: how many of 1,000 streams gave an alarm within the horizon, and after how many runs.
    #[test]
    fn stats_vectors_monte_carlo() {
        for (seed, case) in group("monte_carlo").into_iter().enumerate() {
            let (question, stake, good, n) = (question(&case), real(&case, "a"), real(&case, "mean"), natural(&case, "n"));
            let delays = text(&case, "kind") == "delay_runs";
            let horizon = if delays { 100_000 } else { natural(&case, "horizon") };
            let mut chance = StdRng::seed_from_u64(20_261_121 + seed as u64);
            let mut fired_after = Vec::new();
            for _ in 0..1000 {
                let mut evidence = Evidence::default();
                for run in 1..=horizon {
                    let scores: Vec<f64> = (0..n).map(|_| f64::from(u8::from(chance.random_bool(good)))).collect();
                    evidence.count(question, stake, &scores, 0);
                    if evidence.ln() >= 0.0 {
                        fired_after.push(super::real(run));
                        break;
                    }
                }
            }
            let fired = super::real(fired_after.len() as u64);
            let (found, expected) =
                if delays { (fired_after.iter().sum::<f64>() / fired, real(&case, "mean_delay")) } else { (fired / 1000.0, real(&case, "share")) };
            assert!((found - expected).abs() <= 4.0 * real(&case, "se_for_1000_streams"), "{found} instead of {case}");
            if !delays {
                assert!(found <= real(&case, "bound"), "the promise is broken: {found}, {case}");
            }
        }
    }

    fn runs() -> impl Strategy<Value = Vec<Vec<f64>>> {
        proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(0.0), Just(1.0), 0.0..=1.0f64], 0..80), 1..30)
    }

    fn asked() -> impl Strategy<Value = (Question, f64)> {
        (any::<bool>(), THRESHOLDS, 1e-6..0.49f64)
            .prop_map(|(below, threshold, stake)| (Question { side: if below { Side::Below } else { Side::Above }, threshold }, stake))
    }

    fn after(question: Question, stake: f64, runs: &[Vec<f64>]) -> Evidence {
        let mut evidence = Evidence::default();
        for (at, run) in runs.iter().enumerate() {
            evidence.count(question, stake, run, i64::try_from(at).unwrap());
        }
        evidence
    }

    fn same(a: f64, b: f64) -> bool {
        a == b || (a - b).abs() <= 1e-9 + 1e-8 * a.abs().max(b.abs())
    }

    proptest! {
        #[test]
        fn the_order_within_a_run_plays_no_role((question, stake) in asked(), runs in runs(), seed in any::<u64>()) {
            use rand::seq::SliceRandom;
            let mut shuffled = runs.clone();
            let mut chance = StdRng::seed_from_u64(seed);
            shuffled.iter_mut().for_each(|run| run.shuffle(&mut chance));
            let (a, b) = (after(question, stake, &runs).ln(), after(question, stake, &shuffled).ln());
            prop_assert!(same(a, b), "{a} {b}");
        }

        #[test]
        fn scores_at_the_threshold_add_one_stake_a_run((question, stake) in asked(), sizes in proptest::collection::vec(1usize..80, 1..30)) {
            let runs: Vec<Vec<f64>> = sizes.iter().map(|n| vec![question.threshold; *n]).collect();
            let found = after(question, stake, &runs).ln().exp();
            prop_assert!((found / (stake * real_len(&runs)) - 1.0).abs() < 1e-9, "{found}");
        }

        #[test]
        fn worse_scores_never_lower_the_evidence((question, stake) in asked(), runs in runs(), by in 0.0..=1.0f64) {
            let worse = |x: &f64| if question.side == Side::Below { x * (1.0 - by) } else { x + (1.0 - x) * by };
            let worsened: Vec<Vec<f64>> = runs.iter().map(|run| run.iter().map(worse).collect()).collect();
            let (a, b) = (after(question, stake, &runs).ln(), after(question, stake, &worsened).ln());
            prop_assert!(b >= a || same(a, b), "{a} {b}");
        }

        #[test]
        fn a_restart_from_what_was_stored_is_no_restart((question, stake) in asked(), runs in runs()) {
            let (mut going_on, mut restarted) = (Evidence::default(), Evidence::default());
            for (at, run) in runs.iter().enumerate() {
                going_on.count(question, stake, run, i64::try_from(at).unwrap());
                restarted.count(question, stake, run, i64::try_from(at).unwrap());
                let stored = serde_json::to_string(&restarted).unwrap();
                prop_assert!(stored.len() < 1024, "{} bytes: {stored}", stored.len());
                restarted = serde_json::from_str(&stored).unwrap();
                prop_assert_eq!(&going_on, &restarted);
            }
        }

        #[test]
        fn above_is_below_in_a_mirror((question, stake) in asked(), runs in runs()) {
            let mirrored: Vec<Vec<f64>> = runs.iter().map(|run| run.iter().map(|x| 1.0 - x).collect()).collect();
            let other = Question { threshold: 1.0 - question.threshold, ..question.opposite() };
            let (a, b) = (after(question, stake, &runs).ln(), after(other, stake, &mirrored).ln());
            prop_assert!(same(a, b), "{a} {b}");
        }
    }

    fn real_len<T>(list: &[T]) -> f64 {
        super::super::len(list)
    }

    #[test]
    fn another_confidence_moves_the_evidence_by_what_its_stakes_would_have_been() {
        let question = Question { side: Side::Below, threshold: 0.8 };
        let runs: Vec<Vec<f64>> = (0..20).map(|run| vec![0.7 + f64::from(run) / 100.0; 10]).collect();
        let (strict, loose) = (Promise { confidence: 0.99, interval: 3600.0 }, Promise { confidence: 0.95, interval: 3600.0 });
        let mut moved = after(question, strict.stake().unwrap(), &runs);
        moved.restake(strict.confidence, loose.confidence);
        let expected = after(question, loose.stake().unwrap(), &runs).ln();
        assert!((moved.ln() - expected).abs() < 1e-9, "{} {expected}", moved.ln());
    }

    #[test]
    fn a_run_without_scores_says_nothing() {
        let question = Question { side: Side::Below, threshold: 0.8 };
        let mut evidence = Evidence::default();
        evidence.count(question, 0.01, &[], 1);
        assert_eq!((evidence.ln(), evidence.level(0.01), evidence.streak()), (f64::NEG_INFINITY, 0.0, None));
        assert!(Promise { confidence: 0.5, interval: 86_400.0 }.stake().is_none(), "one run a day is too few for one false alarm in two days");
    }
}
