//! One outcome of several samples, and how far they were apart.

use super::verdict::Output;
use crate::{model::Outcome, util::text::figure};

/// A verdict, taken out of its outcome.
struct Vote {
    value: f64,
    raw: Option<f64>,
    label: Option<String>,
    passed: Option<bool>,
    reason: String,
}

/// Whether so many verdicts of so many samples make an outcome: more than half of them.
pub(super) fn suffice(verdicts: usize, samples: usize) -> bool {
    verdicts * 2 > samples
}

/// The mean of scores; of anything else the verdict given most often, of equally frequent ones the one with the lower
/// value (of categories with the same value the one named first). The reason is that of the sample nearest to the outcome,
/// and says what the samples were. What is no score is left out.
pub(super) fn combine(output: &Output, scored: Vec<Outcome>, samples: usize) -> Outcome {
    let mut votes: Vec<Vote> = scored.into_iter().filter_map(vote).collect();
    let count = if votes.len() == samples { samples.to_string() } else { format!("{} of {samples}", votes.len()) };
    let said = match output {
        Output::Score { .. } => {
            let values = || votes.iter().map(|vote| vote.value);
            let spread = values().fold(0.0, f64::max) - values().fold(1.0, f64::min);
            format!("{}; spread {}", values().map(figure).collect::<Vec<_>>().join(", "), figure(spread))
        }
        _ => votes.iter().map(word).collect::<Vec<_>>().join(", "),
    };
    let chosen = match output {
        Output::Score { .. } => mean(&mut votes),
        Output::Boolean {} => majority(&mut votes, &[]),
        Output::Categories { categories, .. } => majority(&mut votes, categories),
    };
    let Some(Vote { value, raw, label, passed, reason }) = chosen else {
        return Outcome::Failed { reason: "the judge gave no verdict".to_owned() };
    };
    let reason = if samples == 1 { reason } else { format!("{reason} ({count} samples: {said})") };
    Outcome::Scored { value, raw, label, passed, reason }
}

fn vote(outcome: Outcome) -> Option<Vote> {
    match outcome {
        Outcome::Scored { value, raw, label, passed, reason } => Some(Vote { value, raw, label, passed, reason }),
        _ => None,
    }
}

fn word(vote: &Vote) -> &str {
    vote.label.as_deref().unwrap_or(if vote.passed == Some(true) { "yes" } else { "no" })
}

#[expect(clippy::cast_precision_loss, reason = "a handful of samples")]
fn mean(votes: &mut Vec<Vote>) -> Option<Vote> {
    let n = votes.len() as f64;
    let value = (votes.iter().map(|vote| vote.value).sum::<f64>() / n).clamp(0.0, 1.0);
    let raw = votes.iter().map(|vote| vote.raw).sum::<Option<f64>>().map(|sum| sum / n);
    let nearest = (0..votes.len()).min_by(|a, b| (votes[*a].value - value).abs().total_cmp(&(votes[*b].value - value).abs()))?;
    Some(Vote { value, raw, ..votes.swap_remove(nearest) })
}

fn majority(votes: &mut Vec<Vote>, categories: &[String]) -> Option<Vote> {
    let frequency = |vote: &Vote| votes.iter().filter(|other| word(other) == word(vote)).count();
    let place = |vote: &Vote| categories.iter().position(|label| label == word(vote));
    let by_rank = |a: &Vote, b: &Vote| frequency(b).cmp(&frequency(a)).then(a.value.total_cmp(&b.value)).then(place(a).cmp(&place(b)));
    let first = (0..votes.len()).min_by(|a, b| by_rank(&votes[*a], &votes[*b]))?;
    Some(votes.swap_remove(first))
}
