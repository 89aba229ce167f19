use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{
    machine::Observed,
    measure::{Measured, Statistic},
};
use crate::{
    statistics::{Interval, baseline::Level, evidence::THRESHOLDS},
    util::text::{bound, figure, nearest},
};

/// `mean < 0.8`: what an alert's `when` says. It holds while something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Condition {
    pub statistic: Statistic,
    pub comparison: Comparison,
    /// In the statistic's unit; finite and within what the statistic can be. With `baseline`: how far from the learned level,
    /// negative below it.
    pub threshold: f64,
    /// Compares with a level that is learned (`mean < baseline - 0.02`).
    pub baseline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Less,
    AtMost,
    AtLeast,
    Greater,
}

impl Comparison {
    /// Two-character signs first, so that `<=` is not read as `<`.
    const ALL: [Self; 4] = [Self::AtMost, Self::AtLeast, Self::Less, Self::Greater];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::AtLeast => ">=",
            Self::Greater => ">",
        }
    }

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Less => "below",
            Self::AtMost => "at or below",
            Self::AtLeast => "at or above",
            Self::Greater => "above",
        }
    }

    #[must_use]
    pub fn of(self, x: f64, threshold: f64) -> bool {
        match self {
            Self::Less => x < threshold,
            Self::AtMost => x <= threshold,
            Self::AtLeast => x >= threshold,
            Self::Greater => x > threshold,
        }
    }
}

/// Differences below this share of the threshold (of 1 for smaller ones) are rounding: the mean of ten times 0.8 is
/// 0.7999999999999999 in binary arithmetic, and that is not below 0.8.
const TOLERANCE: f64 = 1e-9;

impl Condition {
    /// The comparison with a learned level, as one with a number; any other stays as it is. Starts from the bound of the
    /// level that makes it no stricter than what was promised.
    #[must_use]
    pub fn against(self, level: &Level) -> Self {
        if !self.baseline {
            return self;
        }
        let from = if matches!(self.comparison, Comparison::Less | Comparison::AtMost) { level.low } else { level.high };
        let (low, high) = (*THRESHOLDS.start(), *THRESHOLDS.end());
        Self { threshold: (from + self.threshold).clamp(low, high), baseline: false, ..self }
    }

    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        let slack = TOLERANCE * self.threshold.abs().max(1.0);
        let inclusive = matches!(self.comparison, Comparison::AtMost | Comparison::AtLeast);
        let near = (value - self.threshold).abs() <= slack;
        if near { inclusive } else { self.comparison.of(value, self.threshold) }
    }

    /// What the state machine is told. A statistic that is itself a count (`n`, `cost_usd`) is sound however few scores
    /// there are; every other one needs `min_samples` (at least 1).
    #[must_use]
    pub fn observe(&self, measured: &Measured, min_samples: u64) -> Observed {
        let need = if self.statistic.needs_samples() { min_samples.max(1) } else { 0 };
        match measured.value {
            _ if measured.n == 0 && need > 0 => Observed::NoData,
            _ if measured.n < need => Observed::Insufficient { n: measured.n, need },
            Some(value) if value.is_finite() => Observed::Breached(self.holds(value)),
            _ => Observed::NoData,
        }
    }

    /// One sentence with the figures: `helpful: mean 0.71 over 130 answers, below 0.8`. `subject` is the metric, or the
    /// monitor for a condition about the run.
    #[must_use]
    pub fn summary(&self, subject: &str, measured: &Measured) -> String {
        let n = measured.n;
        let answers = if n == 1 { "answer" } else { "answers" };
        let (Some(value), true) = (measured.value, n > 0 || !self.statistic.needs_samples()) else {
            return format!("{subject}: no {} yet, there is nothing to measure", self.statistic);
        };
        let threshold = figure(self.threshold);
        // A value that rounds to the threshold would read "0.8, below 0.8".
        let shown = Some(figure(value)).filter(|shown| *shown != threshold || !self.holds(value)).unwrap_or_else(|| value.to_string());
        let shown = match measured.interval {
            Some(Interval { low, high }) => format!("{shown} ({} to {})", bound(low), bound(high)),
            None => shown,
        };
        let over = if self.statistic == Statistic::N { String::new() } else { format!(" over {n} {answers}") };
        let not = if self.holds(value) { "" } else { "not " };
        let relation = self.comparison.word();
        format!("{subject}: {} {shown}{over}, {not}{relation} {threshold}", self.statistic)
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some(at) = text.find(['<', '>', '=', '!']) else {
            return Err(format!("`{text}` has no comparison; write it like `mean < 0.8`, with <, <=, > or >="));
        };
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let statistic = name.parse()?;
        let Some(comparison) = Comparison::ALL.into_iter().find(|sign| rest.starts_with(sign.as_str())) else {
            return Err(format!("`{text}`: the comparison is one of <, <=, > and >="));
        };
        let number = rest[comparison.as_str().len()..].trim();
        let Some(offset) = number.strip_prefix("baseline") else {
            return Ok(Self { statistic, comparison, threshold: threshold(statistic, number)?, baseline: false });
        };
        Ok(Self { statistic, comparison, threshold: offset_from_baseline(statistic, comparison, offset.trim())?, baseline: true })
    }
}

/// What follows `baseline`: nothing, `- 0.02` or `+ 0.02`.
fn offset_from_baseline(statistic: Statistic, comparison: Comparison, text: &str) -> Result<f64, String> {
    if !matches!(statistic, Statistic::Mean | Statistic::PassRate | Statistic::FailedRate) {
        return Err(format!("{statistic} has no baseline; only mean, pass_rate and failed_rate are learned"));
    }
    let (sign, digits) = match text.chars().next() {
        None => return Ok(0.0),
        Some('-') => (-1.0, &text[1..]),
        Some('+') => (1.0, &text[1..]),
        Some(_) => return Err(format!("`baseline {text}`: after `baseline` comes nothing, or a distance such as `- 0.02`")),
    };
    let distance: f64 = digits
        .trim()
        .parse()
        .ok()
        .filter(|number| (0.0..1.0).contains(number))
        .ok_or_else(|| format!("`{text}` is no distance from the baseline; write it like `mean < baseline - 0.02`"))?;
    let looks_below = matches!(comparison, Comparison::Less | Comparison::AtMost);
    if distance > 0.0 && looks_below != (sign < 0.0) {
        return Err(format!("`{} baseline {text}` is what is normal; write `< baseline - {distance}` or `> baseline + {distance}`", comparison.as_str()));
    }
    Ok(sign * distance + 0.0)
}

fn threshold(statistic: Statistic, text: &str) -> Result<f64, String> {
    let number: f64 = match text.parse() {
        Ok(number) => number,
        Err(_) if text.ends_with('%') => return Err(format!("`{text}` is not a number; write a share between 0 and 1, like 0.2 for 20 %")),
        Err(_) if text.is_empty() => return Err("there is no number after the comparison; write it like `mean < 0.8`".to_owned()),
        Err(_) => {
            let hint = nearest(text, ["baseline"]).map(|_| ", did you mean `baseline`?").unwrap_or_default();
            return Err(format!("`{text}` is not a number{hint}; write it like `mean < 0.8`"));
        }
    };
    let (low, high) = statistic.range();
    if !number.is_finite() || number < low || number > high {
        let range = if high.is_finite() { format!("between {low} and {high}") } else { format!("at least {low}") };
        return Err(format!("{statistic} is {}, so the threshold has to be {range}, not {text}", statistic.meaning()));
    }
    // -0 is in range and would print as `-0`.
    Ok(number + 0.0)
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (statistic, comparison, threshold) = (self.statistic, self.comparison.as_str(), self.threshold);
        match self.baseline {
            false => write!(f, "{statistic} {comparison} {threshold}"),
            true if threshold == 0.0 => write!(f, "{statistic} {comparison} baseline"),
            true => write!(f, "{statistic} {comparison} baseline {} {}", if threshold < 0.0 { '-' } else { '+' }, threshold.abs()),
        }
    }
}

impl TryFrom<String> for Condition {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Condition> for String {
    fn from(condition: Condition) -> Self {
        condition.to_string()
    }
}

impl JsonSchema for Condition {
    fn schema_name() -> Cow<'static, str> {
        "Condition".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = Statistic::ALL.map(Statistic::as_str).join("|");
        json_schema!({
            "type": "string",
            "description": "A statistic, a comparison and a number or a learned level: mean < 0.8, mean < baseline - 0.02",
            "examples": ["mean < 0.8", "failed_rate > 0.2", "mean < baseline - 0.02"],
            "pattern": format!("^\\s*({names})\\s*(<=|>=|<|>)\\s*([0-9.eE+-]+|baseline(\\s*[+-]\\s*[0-9.]+)?)\\s*$"),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn condition(text: &str) -> Condition {
        text.parse().unwrap()
    }

    fn measured(value: Option<f64>, n: u64) -> Measured {
        Measured { value, n, interval: None }
    }

    fn error(text: &str) -> String {
        text.parse::<Condition>().unwrap_err()
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(statistic in 0usize..9, comparison in 0usize..4, threshold in 0.0f64..=1.0) {
            let condition = Condition { statistic: Statistic::ALL[statistic], comparison: Comparison::ALL[comparison], threshold, baseline: false };
            prop_assert_eq!(condition.to_string().parse::<Condition>(), Ok(condition));
            let json = serde_json::to_string(&condition).unwrap();
            prop_assert_eq!(serde_json::from_str::<Condition>(&json).unwrap(), condition);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            drop(text.parse::<Condition>());
        }
    }

    #[test]
    fn spaces_do_not_matter() {
        assert_eq!(condition("mean<0.8"), condition("  mean  <  0.8 "));
        assert_eq!(condition("p10 <= .25").to_string(), "p10 <= 0.25");
        assert_eq!(condition("mean<baseline-.02").to_string(), "mean < baseline - 0.02");
        assert_eq!(condition("mean < baseline").to_string(), "mean < baseline");
        assert_eq!(condition("failed_rate > baseline + 0.05"), condition("failed_rate > baseline +0.05"));
        assert_eq!(condition("latency_p95 > 2e3").threshold.to_bits(), 2000f64.to_bits());
    }

    #[test]
    fn mistakes_are_explained() {
        insta::assert_snapshot!(
            ["", "mean", "maen < 0.8", "median < 0.8", "mean == 0.8", "mean < ", "mean < 80%", "mean < 4", "mean < NaN", "cost_usd > -1", "p10 < baseline - 0.02", "mean < baseline + 0.02", "mean < baseline x", "mean < baseline - 2", "mean < basline", "banana > 1"]
                .map(|text| format!("{text:<24}{}", error(text)))
                .join("\n"),
            @"
                                `` has no comparison; write it like `mean < 0.8`, with <, <=, > or >=
        mean                    `mean` has no comparison; write it like `mean < 0.8`, with <, <=, > or >=
        maen < 0.8              unknown statistic `maen`, did you mean `mean`? (known are mean, pass_rate, failed_rate, p10, p50, p90, n, cost_usd, latency_p95)
        median < 0.8            unknown statistic `median`, did you mean `p50`? (known are mean, pass_rate, failed_rate, p10, p50, p90, n, cost_usd, latency_p95)
        mean == 0.8             `mean == 0.8`: the comparison is one of <, <=, > and >=
        mean <                  there is no number after the comparison; write it like `mean < 0.8`
        mean < 80%              `80%` is not a number; write a share between 0 and 1, like 0.2 for 20 %
        mean < 4                mean is a score, which is normalised to [0, 1], so the threshold has to be between 0 and 1, not 4
        mean < NaN              mean is a score, which is normalised to [0, 1], so the threshold has to be between 0 and 1, not NaN
        cost_usd > -1           cost_usd is what the judgements cost, in USD, so the threshold has to be at least 0, not -1
        p10 < baseline - 0.02   p10 has no baseline; only mean, pass_rate and failed_rate are learned
        mean < baseline + 0.02  `< baseline + 0.02` is what is normal; write `< baseline - 0.02` or `> baseline + 0.02`
        mean < baseline x       `baseline x`: after `baseline` comes nothing, or a distance such as `- 0.02`
        mean < baseline - 2     `- 2` is no distance from the baseline; write it like `mean < baseline - 0.02`
        mean < basline          `basline` is not a number, did you mean `baseline`?; write it like `mean < 0.8`
        banana > 1              unknown statistic `banana` (known are mean, pass_rate, failed_rate, p10, p50, p90, n, cost_usd, latency_p95)
        ");
    }

    #[test]
    fn rounding_is_not_a_breach() {
        let mean = (0..10).map(|_| 0.8).sum::<f64>() / 10.0;
        assert!(mean < 0.8, "the case this guards against");
        assert!(!condition("mean < 0.8").holds(mean));
        assert!(condition("mean <= 0.8").holds(mean));
        assert!(condition("mean < 0.8").holds(0.799_999));
        assert!(!condition("cost_usd > 5").holds(5.0));
    }

    #[test]
    fn few_samples_are_no_evidence_but_a_count_is() {
        let few = measured(Some(0.1), 3);
        assert_eq!(condition("mean < 0.8").observe(&few, 30), Observed::Insufficient { n: 3, need: 30 });
        assert_eq!(condition("mean < 0.8").observe(&few, 3), Observed::Breached(true));
        assert_eq!(condition("mean < 0.8").observe(&measured(None, 0), 0), Observed::NoData);
        assert_eq!(condition("n < 5").observe(&measured(Some(0.0), 0), 30), Observed::Breached(true));
        assert_eq!(condition("mean < 0.8").observe(&measured(Some(f64::NAN), 9), 1), Observed::NoData);
    }

    #[test]
    fn a_summary_reads_as_a_sentence() {
        let summary = |text: &str, value: Option<f64>, n| condition(text).summary("helpful", &measured(value, n));
        insta::assert_snapshot!(
            [
                summary("mean < 0.8", Some(0.712_345_6), 130),
                summary("mean < 0.8", Some(0.83), 1),
                summary("mean < 0.8", Some(0.799_99), 130),
                summary("n < 5", Some(2.0), 2),
                summary("mean < 0.8", None, 0),
                condition("mean < 0.8").summary("helpful", &Measured { interval: Some(Interval { low: 0.628, high: 0.7834 }), ..measured(Some(0.71), 130) }),
            ]
            .join("\n"),
            @"
        helpful: mean 0.7123 over 130 answers, below 0.8
        helpful: mean 0.83 over 1 answer, not below 0.8
        helpful: mean 0.79999 over 130 answers, below 0.8
        helpful: n 2, below 5
        helpful: no mean yet, there is nothing to measure
        helpful: mean 0.71 (0.63 to 0.78) over 130 answers, below 0.8
        ");
    }
}
