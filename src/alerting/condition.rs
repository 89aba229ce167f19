use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{
    machine::Observed,
    measure::{Measured, Statistic},
};
use crate::util::text::{figure, nearest};

/// `mean < 0.8`: what an alert's `when` says. It holds while something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Condition {
    pub statistic: Statistic,
    pub comparison: Comparison,
    /// In the statistic's unit; finite and within what the statistic can be.
    pub threshold: f64,
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
}

/// Differences below this share of the threshold (of 1 for smaller ones) are rounding: the mean of ten times 0.8 is
/// 0.7999999999999999 in binary arithmetic, and that is not below 0.8.
const TOLERANCE: f64 = 1e-9;

impl Condition {
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        let slack = TOLERANCE * self.threshold.abs().max(1.0);
        match self.comparison {
            Comparison::Less => value < self.threshold - slack,
            Comparison::AtMost => value <= self.threshold + slack,
            Comparison::AtLeast => value >= self.threshold - slack,
            Comparison::Greater => value > self.threshold + slack,
        }
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
        let over = if self.statistic == Statistic::N { String::new() } else { format!(" over {n} {answers}") };
        let not = if self.holds(value) { "" } else { "not " };
        let relation = match self.comparison {
            Comparison::Less => "below",
            Comparison::AtMost => "at or below",
            Comparison::AtLeast => "at or above",
            Comparison::Greater => "above",
        };
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
        let threshold = threshold(statistic, number)?;
        Ok(Self { statistic, comparison, threshold })
    }
}

fn threshold(statistic: Statistic, text: &str) -> Result<f64, String> {
    if text.contains("baseline") {
        return Err("a comparison with a baseline is not supported yet; compare with a number, like `mean < 0.8`".to_owned());
    }
    let number: f64 = match text.parse() {
        Ok(number) => number,
        Err(_) if text.ends_with('%') => return Err(format!("`{text}` is not a number; write a share between 0 and 1, like 0.2 for 20 %")),
        Err(_) if text.is_empty() => return Err("there is no number after the comparison; write it like `mean < 0.8`".to_owned()),
        Err(_) => {
            let hint = nearest(text, ["baseline"]).map(|_| " (a comparison with a baseline is not supported yet)").unwrap_or_default();
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
        write!(f, "{} {} {}", self.statistic, self.comparison.as_str(), self.threshold)
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
            "description": "A statistic, a comparison and a number: mean < 0.8",
            "examples": ["mean < 0.8", "failed_rate > 0.2"],
            "pattern": format!("^\\s*({names})\\s*(<=|>=|<|>)\\s*[0-9.eE+-]+\\s*$"),
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

    fn error(text: &str) -> String {
        text.parse::<Condition>().unwrap_err()
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(statistic in 0usize..9, comparison in 0usize..4, threshold in 0.0f64..=1.0) {
            let condition = Condition { statistic: Statistic::ALL[statistic], comparison: Comparison::ALL[comparison], threshold };
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
        assert_eq!(condition("latency_p95 > 2e3").threshold.to_bits(), 2000f64.to_bits());
    }

    #[test]
    fn mistakes_are_explained() {
        insta::assert_snapshot!(
            ["", "mean", "maen < 0.8", "median < 0.8", "mean == 0.8", "mean < ", "mean < 80%", "mean < 4", "mean < NaN", "cost_usd > -1", "mean < baseline - 0.02", "banana > 1"]
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
        mean < baseline - 0.02  a comparison with a baseline is not supported yet; compare with a number, like `mean < 0.8`
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
        let few = Measured { value: Some(0.1), n: 3 };
        assert_eq!(condition("mean < 0.8").observe(&few, 30), Observed::Insufficient { n: 3, need: 30 });
        assert_eq!(condition("mean < 0.8").observe(&few, 3), Observed::Breached(true));
        assert_eq!(condition("mean < 0.8").observe(&Measured { value: None, n: 0 }, 0), Observed::NoData);
        assert_eq!(condition("n < 5").observe(&Measured { value: Some(0.0), n: 0 }, 30), Observed::Breached(true));
        assert_eq!(condition("mean < 0.8").observe(&Measured { value: Some(f64::NAN), n: 9 }, 1), Observed::NoData);
    }

    #[test]
    fn a_summary_reads_as_a_sentence() {
        let summary = |text: &str, value: Option<f64>, n| condition(text).summary("helpful", &Measured { value, n });
        insta::assert_snapshot!(
            [
                summary("mean < 0.8", Some(0.712_345_6), 130),
                summary("mean < 0.8", Some(0.83), 1),
                summary("mean < 0.8", Some(0.799_99), 130),
                summary("n < 5", Some(2.0), 2),
                summary("mean < 0.8", None, 0),
            ]
            .join("\n"),
            @"
        helpful: mean 0.7123 over 130 answers, below 0.8
        helpful: mean 0.83 over 1 answer, not below 0.8
        helpful: mean 0.79999 over 130 answers, below 0.8
        helpful: n 2, below 5
        helpful: no mean yet, there is nothing to measure
        ");
    }
}
