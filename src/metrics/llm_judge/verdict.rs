//! What a judge gives: how it is asked for, and how a reply is read as it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answer::{self, REASONS};
use crate::{
    model::Outcome,
    providers::{Reply, Stop},
    util::text,
};

/// What a judge gives, always with a reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "OutputFile")]
#[schemars(with = "OutputFile")]
pub(super) enum Output {
    /// Normalised to (raw - min) / (max - min).
    Score { min: f64, max: f64 },
    /// Yes is 1 and passes.
    Boolean {},
    /// One of these; its value is 1 or 0 by `passing`, or else its place in the list, from 0 to 1.
    Categories { categories: Vec<String>, passing: Vec<String> },
}

/// `output:` as written.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OutputFile {
    kind: OutputKind,
    /// Of a score. Default 1.
    min: Option<f64>,
    /// Of a score. Default 5.
    max: Option<f64>,
    /// Worst first, unless `passing` says which are good.
    #[serde(default)]
    categories: Vec<String>,
    /// Categories that pass.
    #[serde(default)]
    passing: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum OutputKind {
    Score,
    Boolean,
    Categories,
}

impl TryFrom<OutputFile> for Output {
    type Error = String;

    fn try_from(file: OutputFile) -> Result<Self, String> {
        match file.kind {
            OutputKind::Score => {
                let (min, max) = (file.min.unwrap_or(1.0), file.max.unwrap_or(5.0));
                if min.is_finite() && max.is_finite() && min < max {
                    Ok(Self::Score { min, max })
                } else {
                    Err("`min` has to be smaller than `max`".to_owned())
                }
            }
            OutputKind::Boolean => Ok(Self::Boolean {}),
            OutputKind::Categories if file.categories.len() < 2 => Err("`categories` needs at least two".to_owned()),
            OutputKind::Categories => match file.passing.iter().find(|label| !file.categories.contains(label)) {
                Some(strange) => Err(format!("`passing` names `{strange}`, which is not among the categories")),
                None => Ok(Self::Categories { categories: file.categories, passing: file.passing }),
            },
        }
    }
}

/// Why a reply is no verdict. The words continue "the judge's answer ..".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Form(String),
    #[error("was cut off: raise max_tokens")]
    Cut,
    #[error("is a refusal: {0}")]
    Refused(String),
}

impl Output {
    /// What the answer has to look like, in words for the model.
    pub fn form(&self) -> String {
        format!(r#"{{"reason": "<one or two sentences>", "{}": {}}}"#, self.keys()[0], self.blank())
    }

    /// What stands for the verdict in [`Output::form`].
    pub fn blank(&self) -> String {
        match self {
            Self::Score { min, max } => format!("<a number from {min} to {max}>"),
            Self::Boolean {} => "<true for yes, false for no>".to_owned(),
            Self::Categories { categories, .. } => format!("<one of {}>", json!(categories)),
        }
    }

    /// In the subset that strict modes take: every property required, no bounds (they stand in the description).
    pub fn schema(&self) -> Value {
        let key = self.keys()[0];
        let mut properties = Map::from_iter([("reason".to_owned(), json!({ "type": "string", "description": "one or two sentences" }))]);
        properties.insert(key.to_owned(), self.verdict_schema());
        json!({ "type": "object", "properties": properties, "required": ["reason", key], "additionalProperties": false })
    }

    /// Of the verdict alone.
    pub fn verdict_schema(&self) -> Value {
        match self {
            Self::Score { min, max } => json!({ "type": "number", "description": format!("from {min} to {max}") }),
            Self::Boolean {} => json!({ "type": "boolean", "description": "true for yes, false for no" }),
            Self::Categories { categories, .. } => json!({ "type": "string", "enum": categories }),
        }
    }

    /// The words under which models give a verdict; the first is the one that is asked for. It sorts behind `reason`: a model
    /// that is held to a schema fills it in from top to bottom, and should have thought before it judges.
    fn keys(&self) -> &'static [&'static str] {
        match self {
            Self::Score { .. } => &["score", "rating", "value"],
            Self::Boolean {} => &["verdict", "passed", "answer", "value"],
            Self::Categories { .. } => &["verdict", "label", "category", "value"],
        }
    }

    /// # Errors
    /// Why the reply holds no verdict.
    pub fn read(&self, reply: &Reply) -> Result<Outcome, Fault> {
        let text = text_of(reply)?;
        let found = answer::object(text, self.keys()).ok_or_else(|| Fault::Form(format!("holds no verdict: `{}`", text::one_line(text, 120))))?;
        let verdict = answer::get(&found.object, self.keys()).unwrap_or(&Value::Null);
        self.verdict(verdict, answer::get(&found.object, &REASONS), found.repaired, text)
    }

    /// `repaired`: the object was not valid JSON as it stood in `text`.
    ///
    /// # Errors
    /// Why the verdict is none.
    pub fn verdict(&self, verdict: &Value, reason: Option<&Value>, repaired: bool, text: &str) -> Result<Outcome, Fault> {
        let reason = reason.and_then(Value::as_str).map(str::trim).filter(|reason| !reason.is_empty());
        let reason = reason.unwrap_or("the judge gave no reason").to_owned();
        let unreadable = || Fault::Form(format!("has the verdict `{}`, which is not what was asked for", text::one_line(&verdict.to_string(), 60)));
        match self {
            Self::Score { min, max } => {
                let raw = number(verdict, *max).ok_or_else(unreadable)?;
                if (repaired || !verdict.is_number()) && !stands_in(text, raw) {
                    return Err(unreadable());
                }
                if !(*min..=*max).contains(&raw) {
                    return Err(Fault::Form(format!("has the score {raw}, which is out of range, {min} to {max}")));
                }
                Ok(Outcome::Scored { value: (raw - min) / (max - min), raw: Some(raw), label: None, passed: None, reason })
            }
            Self::Boolean {} => {
                let passed = truth(verdict).ok_or_else(unreadable)?;
                Ok(Outcome::Scored { value: f64::from(u8::from(passed)), raw: None, label: None, passed: Some(passed), reason })
            }
            Self::Categories { categories, passing } => {
                let given = verdict.as_str().map(bare).ok_or_else(unreadable)?;
                let place =
                    categories.iter().position(|label| label == given).or_else(|| categories.iter().position(|label| label.eq_ignore_ascii_case(given)));
                let place = place.ok_or_else(unreadable)?;
                let label = &categories[place];
                let passed = (!passing.is_empty()).then(|| passing.contains(label));
                #[expect(clippy::cast_precision_loss, reason = "a handful of categories")]
                let by_place = place as f64 / (categories.len() - 1) as f64;
                let value = passed.map_or(by_place, |passed| f64::from(u8::from(passed)));
                Ok(Outcome::Scored { value, raw: None, label: Some(label.clone()), passed, reason })
            }
        }
    }
}

/// An answer that may be read.
///
/// # Errors
/// Why it may not.
pub(super) fn text_of(reply: &Reply) -> Result<&str, Fault> {
    match reply.stop {
        // Even where it looks complete: what was cut off may have been the answer, and this its draft.
        Stop::Length => Err(Fault::Cut),
        Stop::Refusal => Err(Fault::Refused(text::one_line(&reply.text, 200))),
        Stop::End if reply.text.trim().is_empty() => Err(Fault::Form("is empty".to_owned())),
        Stop::End => Ok(&reply.text),
    }
}

/// Without Markdown's signs around it.
fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| c.is_whitespace() || matches!(c, '*' | '_' | '`'))
}

/// `4`, `"4"`, `"**4**"`, `"4,5"`; of a scale that ends at `max` also `"4/5"`, `"4 out of 5"` and, if that is 100, `"80%"`.
/// A number of another scale is none: to convert it would be to invent one.
fn number(verdict: &Value, max: f64) -> Option<f64> {
    let number = match verdict {
        Value::String(word) => {
            let (number, scale) = split(bare(word));
            decimal(number).filter(|_| scale.is_none_or(|scale| decimal(scale) == Some(max)))
        }
        verdict => verdict.as_f64(),
    };
    number.filter(|number: &f64| number.is_finite())
}

/// A number and the end of its scale.
fn split(word: &str) -> (&str, Option<&str>) {
    let parts = ["/", " out of ", " of "].iter().find_map(|sign| word.split_once(sign));
    match (parts, word.strip_suffix('%')) {
        (Some((number, scale)), _) => (number, Some(scale)),
        (None, Some(number)) => (number, Some("100")),
        (None, None) => (word, None),
    }
}

/// With a point, or with a comma before one or two digits (before three it may part thousands).
fn decimal(word: &str) -> Option<f64> {
    let word = bare(word);
    match word.split_once(',') {
        Some((whole, part)) if (1..=2).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit()) => format!("{whole}.{part}").parse().ok(),
        Some(_) => None,
        None => word.parse().ok(),
    }
}

/// Whether the text has this number in digits: what repair found and the text does not say was invented.
fn stands_in(text: &str, number: f64) -> bool {
    text.split(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ','))).any(|digits| {
        let digits = digits.trim_matches(['.', ',']);
        digits.parse() == Ok(number.abs()) || decimal(digits) == Some(number.abs())
    })
}

fn truth(verdict: &Value) -> Option<bool> {
    match verdict {
        Value::Bool(truth) => Some(*truth),
        Value::String(word) => match bare(word).to_lowercase().as_str() {
            "yes" | "true" | "pass" | "passed" => Some(true),
            "no" | "false" | "fail" | "failed" => Some(false),
            _ => None,
        },
        Value::Number(number) => match number.as_f64() {
            Some(1.0) => Some(true),
            Some(0.0) => Some(false),
            _ => None,
        },
        _ => None,
    }
}
