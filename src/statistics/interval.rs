//! The interval shown with a mean. For reading: alerts and gates never decide by it, since an interval that is looked
//! at after every run is not covered by its confidence.

use statrs::distribution::{Beta, ContinuousCDF};

use super::{Interval, mean, normal_quantile, real};

/// The confidence of intervals that are shown.
pub const SHOWN: f64 = 0.95;

/// Wilson's score interval (Wilson 1927; Brown, Cai, DasGupta 2001) for a mean of `n` scores in [0, 1] that add up to
/// `sum`, drawn from `population` where it is known (a whole population leaves nothing open). Graded scores too: their
/// variance is at most that of pass and fail with the same mean, so it errs on the wide side. [0, 1] where n = 0.
#[must_use]
pub fn wilson(sum: f64, n: u64, population: Option<u64>, confidence: f64) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let p = (sum / real(n)).clamp(0.0, 1.0);
    let effective = match population {
        Some(population) if population <= n => return Interval { low: p, high: p },
        Some(population) => real(n) * real(population - 1) / real(population - n),
        None => real(n),
    };
    let z = two_sided(confidence);
    let scale = 1.0 + z * z / effective;
    let centre = (p + z * z / (2.0 * effective)) / scale;
    let half = z * (p * (1.0 - p) / effective + z * z / (4.0 * effective * effective)).sqrt() / scale;
    Interval::around(centre, half)
}

/// The exact interval for `passed` of `n` (Clopper, Pearson 1934): wider than Wilson's, for an audit.
#[must_use]
pub fn clopper_pearson(passed: u64, n: u64, confidence: f64) -> Interval {
    let tail = (1.0 - confidence) / 2.0;
    let beta = |a: u64, b: u64, p: f64| Beta::new(real(a), real(b)).map_or(f64::NAN, |beta| beta.inverse_cdf(p));
    Interval {
        low: if passed == 0 { 0.0 } else { beta(passed, n - passed + 1, tail) },
        high: if passed >= n { 1.0 } else { beta(passed + 1, n - passed, 1.0 - tail) },
    }
}

/// Scores of one stratum, and how many items it has in all.
#[derive(Debug, Clone, PartialEq)]
pub struct Stratum {
    pub population: u64,
    /// In [0, 1]; not empty.
    pub scores: Vec<f64>,
}

/// A mean and how far off it may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub mean: f64,
    /// Standard error.
    pub se: f64,
    pub interval: Interval,
}

/// The mean of a population from a sample of each of its strata, weighted by their sizes, with the correction for
/// finite strata (Cochran: Sampling Techniques, 5.3 to 5.5). A stratum with one score adds no variance: nothing is
/// known of it.
#[must_use]
pub fn stratified(strata: &[Stratum], confidence: f64) -> Estimate {
    let all: f64 = strata.iter().map(|stratum| real(stratum.population)).sum();
    let (mut total, mut variance) = (0.0, 0.0);
    for Stratum { population, scores } in strata {
        let (weight, n, middle) = (real(*population) / all, super::len(scores), mean(scores));
        total += weight * middle;
        if scores.len() > 1 {
            let spread = scores.iter().map(|score| (score - middle).powi(2)).sum::<f64>() / (n - 1.0);
            variance += weight * weight * (1.0 - n / real(*population)) * spread / n;
        }
    }
    let se = variance.max(0.0).sqrt();
    Estimate { mean: total, se, interval: Interval::around(total, two_sided(confidence) * se) }
}

/// How many standard errors lie on either side.
pub(super) fn two_sided(confidence: f64) -> f64 {
    normal_quantile(1.0 - (1.0 - confidence) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::vectors::{bounds, close, group, items, list, maybe_count, natural, real};

    #[test]
    fn stats_vectors_wilson() {
        for case in group("wilson") {
            let found = wilson(real(&case, "sum"), natural(&case, "n"), maybe_count(&case, "population"), real(&case, "confidence"));
            bounds(found, &case);
        }
    }

    #[test]
    fn stats_vectors_clopper_pearson() {
        for case in group("clopper_pearson") {
            bounds(clopper_pearson(natural(&case, "sum"), natural(&case, "n"), real(&case, "confidence")), &case);
        }
    }

    #[test]
    fn stats_vectors_stratified() {
        for case in group("stratified") {
            let strata: Vec<Stratum> =
                items(&case, "strata").iter().map(|stratum| Stratum { population: natural(stratum, "population"), scores: list(stratum, "scores") }).collect();
            let found = stratified(&strata, real(&case, "confidence"));
            close(found.mean, real(&case, "mean"), &case);
            close(found.se, real(&case, "se"), &case);
            bounds(found.interval, &case);
        }
    }

    #[test]
    fn nothing_is_known_of_nothing() {
        assert_eq!(wilson(0.0, 0, None, SHOWN), Interval { low: 0.0, high: 1.0 });
    }
}
