//! The judge itself: how far it agrees with people, and what they would have said of answers that only it has seen.

use std::collections::BTreeMap;

use super::{Interval, interval::two_sided, len, mean, real};

/// A mean that was corrected by labels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Corrected {
    pub mean: f64,
    /// How far the judge is trusted: 0 the labels alone, 1 as far as can be.
    pub trust: f64,
    pub interval: Interval,
}

/// PPI++ (Angelopoulos, Duchi, Zrnic, arXiv 2311.01453): the mean that people would give, from `labels` of theirs, drawn at
/// random, the judge's scores of the same items, and its scores of the rest. All in [0, 1]. From 100 labels on; at 30 an
/// interval of 95 % covers 90 %. `None` of fewer than two labels, or with no rest.
#[must_use]
pub fn ppi_mean(labels: &[f64], judge_labelled: &[f64], judge_rest: &[f64], confidence: f64) -> Option<Corrected> {
    if labels.len() < 2 || labels.len() != judge_labelled.len() || judge_rest.is_empty() {
        return None;
    }
    let (n, rest) = (len(labels), len(judge_rest));
    let (label_mean, judge_mean) = (mean(labels), mean(judge_labelled));
    let covariance = labels.iter().zip(judge_labelled).map(|(label, judge)| (label - label_mean) * (judge - judge_mean)).sum::<f64>() / n;
    let together: Vec<f64> = judge_labelled.iter().chain(judge_rest).copied().collect();
    let spread = variance(&together) * len(&together) / (len(&together) - 1.0);
    // A judge that always says the same tells nothing.
    let trust = if spread > 0.0 { (covariance / ((1.0 + n / rest) * spread)).clamp(0.0, 1.0) } else { 0.0 };
    let differences: Vec<f64> = labels.iter().zip(judge_labelled).map(|(label, judge)| label - trust * judge).collect();
    let middle = trust * mean(judge_rest) + mean(&differences);
    let se = (trust * trust * variance(judge_rest) / rest + variance(&differences) / n).sqrt();
    Some(Corrected { mean: middle, trust, interval: Interval::around(middle, two_sided(confidence) * se) })
}

/// With 1/count.
fn variance(values: &[f64]) -> f64 {
    let middle = mean(values);
    values.iter().map(|value| (value - middle).powi(2)).sum::<f64>() / len(values)
}

/// How a judge of pass and fail did on labelled items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confusion {
    /// Labelled good, and those of them that it passed.
    pub good: u64,
    pub good_passed: u64,
    /// Labelled bad, and those of them that it failed.
    pub bad: u64,
    pub bad_failed: u64,
}

/// The share of good answers among `judged`, of which the judge passed `passed`: Rogan, Gladen 1978, with the interval of
/// Lang, Reiczigel 2014. For labels that were drawn by verdict or by hand, where [`ppi_mean`] would be biased. `None` for a judge
/// that tells good from bad hardly better than a coin (Youden's J under 0.2), or without labels of both kinds.
#[must_use]
pub fn rogan_gladen(passed: u64, judged: u64, labels: Confusion, confidence: f64) -> Option<(f64, Interval)> {
    let Confusion { good, good_passed, bad, bad_failed } = labels;
    if good == 0 || bad == 0 || judged == 0 {
        return None;
    }
    let z = two_sided(confidence);
    let (n, m1, m0) = (real(judged) + z * z, real(good) + 2.0, real(bad) + 2.0);
    let p = f64::midpoint(2.0 * real(passed), z * z) / n;
    let (q1, q0) = ((real(good_passed) + 1.0) / m1, (real(bad_failed) + 1.0) / m0);
    let j = q1 + q0 - 1.0;
    if j < 0.2 {
        return None;
    }
    let theta = (p + q0 - 1.0) / j;
    let (s1, s0) = (q1 * (1.0 - q1) / m1, q0 * (1.0 - q0) / m0);
    let shift = 2.0 * z * z * (theta * s1 - (1.0 - theta) * s0);
    let spread = p * (1.0 - p) / n + (1.0 - theta).powi(2) * s0 + theta.powi(2) * s1;
    let (sensitivity, specificity) = (real(good_passed) / real(good), real(bad_failed) / real(bad));
    let estimate = (real(passed) / real(judged) + specificity - 1.0) / (sensitivity + specificity - 1.0);
    Some((estimate.clamp(0.0, 1.0), Interval::around(theta + shift, z * spread.sqrt() / j)))
}

/// What a disagreement weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// All the same: for categories without an order.
    Unweighted,
    /// By distance.
    Linear,
    /// By its square: for scales.
    Quadratic,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kappa {
    /// 1 agreement, 0 what chance would give.
    pub kappa: f64,
    pub se: f64,
    /// Within [-1, 1].
    pub interval: Interval,
}

/// Cohen's kappa of two raters (Cohen 1960) with its asymptotic interval (Fleiss, Cohen, Everitt 1969). `table[i][j]` counts
/// the items that the first called i and the second j. `None` where chance alone would agree always.
#[must_use]
pub fn cohen_kappa(table: &[Vec<u64>], weights: Weights, confidence: f64) -> Option<Kappa> {
    let size = table.len();
    let all: f64 = table.iter().flatten().map(|count| real(*count)).sum();
    if size < 2 || all == 0.0 {
        return None;
    }
    let share = |i: usize, j: usize| real(table[i][j]) / all;
    let rows: Vec<f64> = (0..size).map(|i| (0..size).map(|j| share(i, j)).sum()).collect();
    let columns: Vec<f64> = (0..size).map(|j| (0..size).map(|i| share(i, j)).sum()).collect();
    let agreement = |i: usize, j: usize| {
        let distance = real(i.abs_diff(j) as u64) / real(size as u64 - 1);
        match weights {
            Weights::Unweighted => f64::from(u8::from(i == j)),
            Weights::Linear => 1.0 - distance,
            Weights::Quadratic => 1.0 - distance * distance,
        }
    };
    let over = |value: &dyn Fn(usize, usize) -> f64| (0..size).flat_map(|i| (0..size).map(move |j| (i, j))).map(|(i, j)| value(i, j)).sum::<f64>();
    let observed = over(&|i, j| agreement(i, j) * share(i, j));
    let expected = over(&|i, j| agreement(i, j) * rows[i] * columns[j]);
    if 1.0 - expected <= 1e-12 {
        return None;
    }
    let row_weight: Vec<f64> = (0..size).map(|i| (0..size).map(|j| agreement(i, j) * columns[j]).sum()).collect();
    let column_weight: Vec<f64> = (0..size).map(|j| (0..size).map(|i| agreement(i, j) * rows[i]).sum()).collect();
    let spread = over(&|i, j| share(i, j) * (agreement(i, j) * (1.0 - expected) - (row_weight[i] + column_weight[j]) * (1.0 - observed)).powi(2))
        - (observed * expected - 2.0 * expected + observed).powi(2);
    let kappa = (observed - expected) / (1.0 - expected);
    let se = (spread.max(0.0) / all).sqrt() / (1.0 - expected).powi(2);
    let half = two_sided(confidence) * se;
    Some(Kappa { kappa, se, interval: Interval { low: (kappa - half).max(-1.0), high: (kappa + half).min(1.0) } })
}

/// What a difference between two ratings means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Nominal,
    Ordinal,
    Interval,
}

/// Krippendorff's alpha (Krippendorff 2011): agreement of any number of raters with gaps. `ratings[rater][item]`. `None` where
/// no item has two ratings, or all are the same.
#[must_use]
pub fn krippendorff(ratings: &[Vec<Option<f64>>], scale: Scale) -> Option<f64> {
    // By total order, so that any number is a value of its own.
    let mut values: Vec<f64> = ratings.iter().flatten().flatten().copied().collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let place = |value: f64| values.partition_point(|known| *known < value);
    let mut together = vec![vec![0.0; values.len()]; values.len()];
    for item in 0..ratings.iter().map(Vec::len).max().unwrap_or(0) {
        let mut counts: BTreeMap<usize, f64> = BTreeMap::new();
        for value in ratings.iter().filter_map(|rater| *rater.get(item)?) {
            *counts.entry(place(value)).or_default() += 1.0;
        }
        let raters: f64 = counts.values().sum();
        if raters < 2.0 {
            continue;
        }
        for (c, many) in &counts {
            for (k, more) in &counts {
                together[*c][*k] += many * (more - f64::from(u8::from(c == k))) / (raters - 1.0);
            }
        }
    }
    let totals: Vec<f64> = together.iter().map(|row| row.iter().sum()).collect();
    let all: f64 = totals.iter().sum();
    let distance = |c: usize, k: usize| {
        let (from, to) = (c.min(k), c.max(k));
        let steps = match scale {
            Scale::Nominal => f64::from(u8::from(c != k)),
            Scale::Ordinal => totals[from..=to].iter().sum::<f64>() - f64::midpoint(totals[from], totals[to]),
            Scale::Interval => values[to] - values[from],
        };
        steps * steps
    };
    let (mut observed, mut expected) = (0.0, 0.0);
    for c in 0..values.len() {
        for k in 0..values.len() {
            observed += together[c][k] * distance(c, k);
            expected += totals[c] * totals[k] * distance(c, k);
        }
    }
    (expected > 0.0).then(|| 1.0 - (all - 1.0) * observed / expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::vectors::{bounds, close, group, items, list, natural, real};

    #[test]
    fn stats_vectors_ppi_mean() {
        for case in group("ppi_mean") {
            let found = ppi_mean(&list(&case, "labels"), &list(&case, "judge_labelled"), &list(&case, "judge_rest"), real(&case, "confidence")).unwrap();
            close(found.trust, real(&case, "lambda"), &case);
            close(found.mean, real(&case, "mean"), &case);
            bounds(found.interval, &case);
        }
    }

    #[test]
    fn stats_vectors_rogan_gladen() {
        for case in group("rogan_gladen") {
            let labels = Confusion {
                good: natural(&case, "good"),
                good_passed: natural(&case, "good_passed"),
                bad: natural(&case, "bad"),
                bad_failed: natural(&case, "bad_failed"),
            };
            let (estimate, interval) = rogan_gladen(natural(&case, "passed"), natural(&case, "judged"), labels, real(&case, "confidence")).unwrap();
            close(estimate, real(&case, "estimate"), &case);
            bounds(interval, &case);
        }
    }

    #[test]
    fn stats_vectors_kappa() {
        for case in group("kappa") {
            let table: Vec<Vec<u64>> = items(&case, "table").iter().map(|row| row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()).collect();
            for (name, weights) in [("unweighted", Weights::Unweighted), ("linear", Weights::Linear), ("quadratic", Weights::Quadratic)] {
                let (found, expected) = (cohen_kappa(&table, weights, 0.95).unwrap(), &case[name]);
                close(found.kappa, real(expected, "kappa"), &case);
                close(found.se, real(expected, "se"), &case);
                bounds(found.interval, expected);
            }
        }
    }

    #[test]
    fn stats_vectors_krippendorff() {
        for case in group("krippendorff") {
            let ratings: Vec<Vec<Option<f64>>> =
                items(&case, "ratings").iter().map(|rater| rater.as_array().unwrap().iter().map(serde_json::Value::as_f64).collect()).collect();
            for (name, scale) in [("nominal", Scale::Nominal), ("ordinal", Scale::Ordinal), ("interval", Scale::Interval)] {
                close(krippendorff(&ratings, scale).unwrap(), real(&case, name), &case);
            }
        }
    }

    #[test]
    fn what_cannot_be_known_is_not_said() {
        assert_eq!(cohen_kappa(&[vec![9, 0], vec![0, 0]], Weights::Unweighted, 0.95), None, "only one word was ever used");
        assert_eq!(krippendorff(&[vec![Some(1.0)], vec![None]], Scale::Nominal), None);
        let coin = Confusion { good: 100, good_passed: 50, bad: 100, bad_failed: 50 };
        assert_eq!(rogan_gladen(50, 100, coin, 0.95), None);
        assert_eq!(ppi_mean(&[1.0], &[1.0], &[1.0], 0.95), None);
    }
}
