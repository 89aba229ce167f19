//! What the labels say of the judge.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::{Drawn, labels::Labels};
use crate::{
    cli::table,
    statistics::{
        Interval,
        interval::{SHOWN, Stratum, stratified, wilson},
        judge::{Confusion, Scale, Weights, cohen_kappa, krippendorff, ppi_mean, rogan_gladen},
    },
    util::text::{figure, one_line},
};

/// What the judge said; 1 is good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged {
    pub value: f64,
    pub passed: bool,
}

/// An item that people and the judge have spoken of; 1 is good.
pub(super) struct Pair<'a> {
    pub item_id: &'a str,
    /// By rater.
    pub labels: &'a BTreeMap<String, f64>,
    pub judge: Judged,
    /// Untrusted text.
    pub reason: &'a str,
}

impl Pair<'_> {
    /// The mean of the raters.
    fn people(&self) -> f64 {
        let sum: f64 = self.labels.values().sum();
        sum / crate::statistics::real(self.labels.len() as u64)
    }
}

#[derive(Serialize)]
pub(super) struct Report {
    metric: String,
    /// Items with labels and a verdict, labelled items that the judge has not seen, judged items without a label.
    labelled: usize,
    not_judged: usize,
    unlabelled: usize,
    /// Passed or not by both.
    agreement: f64,
    agreement_interval: Interval,
    /// Cohen's, of people against the judge; quadratic weights on a scale. `None` where chance alone would agree.
    kappa: Option<f64>,
    kappa_interval: Option<Interval>,
    /// Krippendorff's, of all raters and the judge.
    alpha: Option<f64>,
    confusion: Table,
    judge_mean: f64,
    /// What people would have given of all items.
    corrected: Option<Corrected>,
    disagreements: Vec<Disagreement>,
}

#[derive(Serialize)]
struct Table {
    good_passed: u64,
    good_failed: u64,
    bad_passed: u64,
    bad_failed: u64,
}

#[derive(Serialize)]
struct Corrected {
    method: &'static str,
    mean: f64,
    interval: Interval,
}

#[derive(Serialize)]
struct Disagreement {
    item_id: String,
    people: f64,
    judge: f64,
    reason: String,
}

impl Report {
    /// `rest` are the judge's words on items without labels.
    pub(super) fn new(metric: &str, pairs: &[Pair<'_>], rest: &[Judged], labels: &Labels, drawn: Drawn) -> Self {
        let good = |pair: &Pair<'_>| pair.people() >= 0.5;
        let passed = |pair: &Pair<'_>| pair.judge.passed;
        let count = |good_: bool, passed_: bool| pairs.iter().filter(|pair| good(pair) == good_ && passed(pair) == passed_).count() as u64;
        let confusion =
            Table { good_passed: count(true, true), good_failed: count(true, false), bad_passed: count(false, true), bad_failed: count(false, false) };
        let agreed = confusion.good_passed + confusion.bad_failed;
        let graded = pairs.iter().any(|pair| pair.labels.values().any(|label| !matches!(*label, 0.0 | 1.0)));
        let kappa = kappa(pairs, &confusion, graded);
        let mut disagreements: Vec<Disagreement> = pairs
            .iter()
            .filter(|pair| if graded { (pair.people() - pair.judge.value).abs() >= 0.25 } else { good(pair) != passed(pair) })
            .map(|pair| Disagreement { item_id: pair.item_id.to_owned(), people: pair.people(), judge: pair.judge.value, reason: pair.reason.to_owned() })
            .collect();
        disagreements.sort_by(|a, b| (b.people - b.judge).abs().total_cmp(&(a.people - a.judge).abs()));
        let all: Vec<f64> = pairs.iter().map(|pair| pair.judge.value).chain(rest.iter().map(|judged| judged.value)).collect();
        Self {
            metric: metric.to_owned(),
            labelled: pairs.len(),
            not_judged: labels.items.len() - pairs.len(),
            unlabelled: rest.len(),
            agreement: crate::statistics::real(agreed) / crate::statistics::real(pairs.len() as u64),
            agreement_interval: wilson(crate::statistics::real(agreed), pairs.len() as u64, None, SHOWN),
            kappa: kappa.map(|kappa| kappa.kappa),
            kappa_interval: kappa.map(|kappa| kappa.interval),
            alpha: alpha(pairs, labels, graded),
            judge_mean: all.iter().sum::<f64>() / crate::statistics::real(all.len() as u64),
            corrected: corrected(pairs, rest, &confusion, drawn),
            confusion,
            disagreements,
        }
    }

    pub(super) fn render(&self, show: usize) -> String {
        let mut out = String::new();
        let between = |interval: Interval| format!("{} to {}", figure(round(interval.low)), figure(round(interval.high)));
        let _ = writeln!(
            out,
            "{}: {} items labelled and judged, {} labelled and not judged, {} judged without a label",
            self.metric, self.labelled, self.not_judged, self.unlabelled
        );
        let _ = writeln!(out, "agreement {} ({})", figure(round(self.agreement)), between(self.agreement_interval));
        match (self.kappa, self.kappa_interval) {
            (Some(kappa), Some(interval)) => {
                let _ = writeln!(out, "Cohen's kappa {} ({}): {}", figure(round(kappa)), between(interval), words(kappa));
            }
            _ => {
                let _ = writeln!(out, "Cohen's kappa: not known, since all labels or all verdicts are the same");
            }
        }
        if let Some(alpha) = self.alpha {
            let _ = writeln!(out, "Krippendorff's alpha {}", figure(round(alpha)));
        }
        let mut confusion = table(&["", "judge: passed", "judge: failed"]);
        confusion.add_row(["people: good".to_owned(), self.confusion.good_passed.to_string(), self.confusion.good_failed.to_string()]);
        confusion.add_row(["people: bad".to_owned(), self.confusion.bad_passed.to_string(), self.confusion.bad_failed.to_string()]);
        let _ = writeln!(out, "{confusion}");
        let _ = writeln!(out, "the judge's mean is {}", figure(round(self.judge_mean)));
        match &self.corrected {
            Some(corrected) => {
                let _ = writeln!(out, "people would give {} ({}), by {}", figure(round(corrected.mean)), between(corrected.interval), corrected.method);
            }
            None => {
                let _ = writeln!(out, "what people would give cannot be told: the judge hardly tells good from bad, or there are too few labels of one kind");
            }
        }
        if !self.disagreements.is_empty() {
            let mut rows = table(&["item", "people", "judge", "the judge's reason"]);
            for item in self.disagreements.iter().take(show) {
                rows.add_row([one_line(&item.item_id, 60), figure(round(item.people)), figure(round(item.judge)), one_line(&item.reason, 160)]);
            }
            let _ = writeln!(out, "they disagree on {}:\n{rows}", self.disagreements.len());
        }
        out
    }
}

fn round(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}

/// How Landis and Koch (1977) call it.
fn words(kappa: f64) -> &'static str {
    match kappa {
        k if k < 0.0 => "worse than chance",
        k if k < 0.2 => "slight",
        k if k < 0.4 => "fair",
        k if k < 0.6 => "moderate",
        k if k < 0.8 => "substantial",
        _ => "almost perfect",
    }
}

/// Of pass and fail; of five steps where labels are graded.
fn kappa(pairs: &[Pair<'_>], confusion: &Table, graded: bool) -> Option<crate::statistics::judge::Kappa> {
    if !graded {
        let counts = vec![vec![confusion.good_passed, confusion.good_failed], vec![confusion.bad_passed, confusion.bad_failed]];
        return cohen_kappa(&counts, Weights::Unweighted, SHOWN);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 4")]
    let step = |x: f64| (x * 4.0).round().clamp(0.0, 4.0) as usize;
    let mut counts = vec![vec![0; 5]; 5];
    for pair in pairs {
        counts[step(pair.people())][step(pair.judge.value)] += 1;
    }
    cohen_kappa(&counts, Weights::Quadratic, SHOWN)
}

fn alpha(pairs: &[Pair<'_>], labels: &Labels, graded: bool) -> Option<f64> {
    let judge = |judged: Judged| if graded { judged.value } else { f64::from(u8::from(judged.passed)) };
    let mut ratings: Vec<Vec<Option<f64>>> =
        labels.raters().into_iter().map(|rater| pairs.iter().map(|pair| pair.labels.get(rater).copied()).collect()).collect();
    ratings.push(pairs.iter().map(|pair| Some(judge(pair.judge))).collect());
    krippendorff(&ratings, if graded { Scale::Interval } else { Scale::Nominal })
}

fn corrected(pairs: &[Pair<'_>], rest: &[Judged], confusion: &Table, drawn: Drawn) -> Option<Corrected> {
    match drawn {
        Drawn::Random => {
            let (people, judge): (Vec<f64>, Vec<f64>) = pairs.iter().map(|pair| (pair.people(), pair.judge.value)).unzip();
            let rest: Vec<f64> = rest.iter().map(|judged| judged.value).collect();
            let found = ppi_mean(&people, &judge, &rest, SHOWN)?;
            Some(Corrected { method: "PPI++", mean: found.mean, interval: found.interval })
        }
        Drawn::Verdict => {
            // Of each verdict, as many as there are in all, and what people say of those they were shown.
            let stratum = |passed: bool| {
                let scores: Vec<f64> = pairs.iter().filter(|pair| pair.judge.passed == passed).map(Pair::people).collect();
                let unlabelled = rest.iter().filter(|judged| judged.passed == passed).count();
                Stratum { population: (scores.len() + unlabelled) as u64, scores }
            };
            let strata: Vec<Stratum> = [stratum(true), stratum(false)].into_iter().filter(|stratum| stratum.population > 0).collect();
            if strata.iter().any(|stratum| stratum.scores.len() < 2) {
                return None;
            }
            let found = stratified(&strata, SHOWN);
            Some(Corrected { method: "the share of each verdict", mean: found.mean, interval: found.interval })
        }
        Drawn::Hand => {
            let all = pairs.iter().map(|pair| pair.judge).chain(rest.iter().copied());
            let (passed, judged) = all.fold((0, 0), |(passed, judged), one| (passed + u64::from(one.passed), judged + 1));
            let Table { good_passed, good_failed, bad_passed, bad_failed } = *confusion;
            let labels = Confusion { good: good_passed + good_failed, good_passed, bad: bad_passed + bad_failed, bad_failed };
            let (mean, interval) = rogan_gladen(passed, judged, labels, SHOWN)?;
            Some(Corrected { method: "Rogan-Gladen (share of good answers)", mean, interval })
        }
    }
}
