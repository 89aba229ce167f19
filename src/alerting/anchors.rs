//! "Did the product get worse, or the judge change?" Items with known labels, the anchors, never change: only the judge can move what it
//! says of them. The whole set is judged once, at the start; then a few of it, drawn at random, in each run, and the evidence that the
//! judge agrees with fewer labels than at the start is gathered as that of any other alert.

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    condition::{Comparison, Condition},
    measure::Statistic,
};
use crate::{
    statistics::{
        evidence::{Promise, Streak, THRESHOLDS},
        real,
    },
    util::text::figure,
};

/// The alert's name in silences and routes.
pub const JUDGE_CHANGED: &str = "judge-changed";

/// How much less often a judge may agree before that counts as a change: it judges some anchors one way today and the other tomorrow.
const DROP: f64 = 0.05;
/// How far a value may be from its label.
const NEAR: f64 = 0.1;

/// What is known of an anchor.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub enum Label {
    Pass,
    Fail,
    /// In [0, 1].
    Value(f64),
}

impl TryFrom<serde_json::Value> for Label {
    type Error = String;

    fn try_from(label: serde_json::Value) -> Result<Self, String> {
        match (label.as_str(), label.as_f64()) {
            (Some("pass"), _) => Ok(Self::Pass),
            (Some("fail"), _) => Ok(Self::Fail),
            (_, Some(value)) if (0.0..=1.0).contains(&value) => Ok(Self::Value(value)),
            _ => Err("a label is `pass`, `fail` or a number between 0 and 1".to_owned()),
        }
    }
}

impl Label {
    /// Whether a judge's value and verdict say the same; `None` where the label is a verdict and the judge gave none.
    #[must_use]
    pub fn agrees(self, value: f64, passed: Option<bool>) -> Option<bool> {
        match self {
            Self::Pass => passed,
            Self::Fail => passed.map(|passed| !passed),
            // 0.8 and 0.7 are further apart in binary than 0.1.
            Self::Value(label) => Some((value - label).abs() <= NEAR + 1e-9),
        }
    }
}

/// What a judge said of the whole set at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Anchors with a verdict, and those of them that it agreed with.
    pub n: u64,
    pub agreed: u64,
}

impl Start {
    /// What the alert asks; the mean is the share of the anchors that the judge agrees with. `n` is not 0.
    #[must_use]
    pub fn condition(self) -> Condition {
        let threshold = (real(self.agreed) / real(self.n) - DROP).clamp(*THRESHOLDS.start(), *THRESHOLDS.end());
        Condition { statistic: Statistic::Mean, comparison: Comparison::Less, threshold, baseline: false }
    }

    fn describe(self) -> String {
        format!("it agreed with {} % of {} at the start", percent(real(self.agreed) / real(self.n)), self.n)
    }
}

fn percent(share: f64) -> String {
    figure((share * 1000.0).round() / 10.0)
}

/// "helpful agrees with 60 % of the 25 anchors judged since Tue 3 Nov 14:00 UTC (5 runs)"
fn describe(metric: &str, streak: Streak) -> String {
    let since = Timestamp::from_second(streak.since).unwrap_or(Timestamp::UNIX_EPOCH).strftime("%a %-d %b %H:%M UTC");
    let runs = if streak.runs == 1 { "1 run".to_owned() } else { format!("{} runs", streak.runs) };
    format!("{metric} agrees with {} % of the {} anchors judged since {since} ({runs})", percent(streak.mean()), streak.n)
}

/// What people are told when the alert fires.
#[must_use]
pub fn firing_sentence(metric: &str, start: Start, promise: Promise, streak: Streak) -> String {
    let days = figure((promise.budget() / 8640.0).round() / 10.0);
    let promised = format!("Had it not changed, an alert like this would come at most once in {days} days.");
    format!("the judge changed: {}; {}. {promised}", describe(metric, streak), start.describe())
}

/// What people are told when it is over.
#[must_use]
pub fn resolved_sentence(metric: &str, start: Start, streak: Streak) -> String {
    format!("the judge is as it was: {}; {}", describe(metric, streak), start.describe())
}

/// What is shown otherwise: the run's anchors, and how much evidence there is.
#[must_use]
pub fn quiet_sentence(metric: &str, start: Start, judged: u64, agreed: u64, firing: bool, level: f64) -> String {
    let (what, level) = (if firing { "that it is as it was" } else { "that it changed" }, figure((level * 100.0).floor()));
    let run =
        if judged == 0 { "no anchor was judged in this run".to_owned() } else { format!("{metric} agrees with {agreed} of the {judged} anchors of this run") };
    format!("{run}; {}; evidence {what}: {level} %", start.describe())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_verdict_or_a_value() {
        let label = |json: serde_json::Value| Label::try_from(json);
        assert_eq!(label("pass".into()).unwrap().agrees(0.1, Some(true)), Some(true));
        assert_eq!(label("fail".into()).unwrap().agrees(0.1, Some(true)), Some(false));
        assert_eq!(label("fail".into()).unwrap().agrees(0.1, None), None, "without a threshold there is no verdict");
        for (value, agrees) in [(0.7, true), (0.9, true), (0.69, false), (0.91, false)] {
            assert_eq!(label(0.8.into()).unwrap().agrees(value, None), Some(agrees), "{value}");
        }
        for wrong in [serde_json::json!("good"), serde_json::json!(1.1), serde_json::json!(true), serde_json::json!(null)] {
            assert!(label(wrong).is_err());
        }
    }

    #[test]
    fn the_question_can_be_asked_of_any_start() {
        for (agreed, n, threshold) in [(19, 20, 0.9), (20, 20, 0.95), (0, 20, 0.001)] {
            let condition = Start { n, agreed }.condition();
            assert!((condition.threshold - threshold).abs() < 1e-9 && condition.question().is_ok(), "{condition}");
        }
    }

    #[test]
    fn sentences_can_be_checked() {
        let streak = Streak { since: 1_767_225_600 + 14 * 3600, runs: 5, n: 25, sum: 15.0 };
        let (start, promise) = (Start { n: 40, agreed: 38 }, Promise { confidence: 0.99, interval: 3600.0 });
        insta::assert_snapshot!(
            [
                firing_sentence("helpful", start, promise, streak),
                resolved_sentence("helpful", start, Streak { runs: 1, n: 5, sum: 5.0, ..streak }),
                quiet_sentence("helpful", start, 5, 4, false, 0.126),
                quiet_sentence("helpful", start, 0, 0, true, 0.0),
            ]
            .join("\n"),
            @"
        the judge changed: helpful agrees with 60 % of the 25 anchors judged since Thu 1 Jan 14:00 UTC (5 runs); it agreed with 95 % of 40 at the start. Had it not changed, an alert like this would come at most once in 100 days.
        the judge is as it was: helpful agrees with 100 % of the 5 anchors judged since Thu 1 Jan 14:00 UTC (1 run); it agreed with 95 % of 40 at the start
        helpful agrees with 4 of the 5 anchors of this run; it agreed with 95 % of 40 at the start; evidence that it changed: 12 %
        no anchor was judged in this run; it agreed with 95 % of 40 at the start; evidence that it is as it was: 0 %
        ");
    }
}
