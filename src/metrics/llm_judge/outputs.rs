//! All that one answer of a judge gives: a verdict, or several by name.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    answer, samples,
    verdict::{Fault, Output, text_of},
};
use crate::{metrics::Named, model::Outcome, providers::Reply, util::text};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outputs {
    One(Output),
    /// Each with a reason of its own, in the order of their names.
    Named(BTreeMap<String, Output>),
}

impl Outputs {
    /// All that decides how an answer is read.
    pub fn revision(&self) -> String {
        match self {
            Self::One(output) => format!("{output:?}"),
            Self::Named(outputs) => format!("{outputs:?}"),
        }
    }

    /// What the answer has to look like, in words for the model.
    pub fn form(&self) -> String {
        match self {
            Self::One(output) => output.form(),
            Self::Named(outputs) => {
                let part = |(name, output): (&String, &Output)| format!(r#""{name}_reason": "<one or two sentences>", "{name}_verdict": {}"#, output.blank());
                format!("{{{}}}", outputs.iter().map(part).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// In the subset that strict modes take, as [`Output::schema`].
    pub fn schema(&self) -> Value {
        match self {
            Self::One(output) => output.schema(),
            Self::Named(outputs) => {
                let mut properties = Map::new();
                for (name, output) in outputs {
                    properties.insert(format!("{name}_reason"), json!({ "type": "string", "description": "one or two sentences" }));
                    // Sorts behind its reason, as in `Output::schema`.
                    properties.insert(format!("{name}_verdict"), output.verdict_schema());
                }
                let required: Vec<&String> = properties.keys().collect();
                json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false })
            }
        }
    }

    /// One verdict each.
    ///
    /// # Errors
    /// Why the reply does not hold all of them.
    pub fn read(&self, reply: &Reply) -> Result<Vec<Outcome>, Fault> {
        let outputs = match self {
            Self::One(output) => return output.read(reply).map(|outcome| vec![outcome]),
            Self::Named(outputs) => outputs,
        };
        let text = text_of(reply)?;
        let keys = |name: &str| [format!("{name}_verdict"), name.to_owned()];
        let names: Vec<String> = outputs.keys().flat_map(|name| keys(name)).collect();
        let found = answer::object(text, &names.iter().map(String::as_str).collect::<Vec<_>>())
            .ok_or_else(|| Fault::Form(format!("holds no verdict: `{}`", text::one_line(text, 120))))?;
        let of = |(name, output): (&String, &Output)| {
            let [asked, bare] = keys(name);
            let verdict = answer::get(&found.object, &[&asked, &bare]).ok_or_else(|| Fault::Form(format!("has no `{asked}`")))?;
            output.verdict(verdict, answer::get(&found.object, &[&format!("{name}_reason")]), found.repaired, text)
        };
        outputs.iter().map(of).collect()
    }

    /// One outcome each of several samples.
    pub fn combined(&self, scored: &[Vec<Outcome>], samples: usize) -> Vec<Named> {
        let column = |at: usize| scored.iter().filter_map(|sample| sample.get(at).cloned()).collect();
        match self {
            Self::One(output) => vec![Named { part: None, outcome: samples::combine(output, column(0), samples) }],
            Self::Named(outputs) => {
                let one = |(at, (name, output)): (usize, (&String, &Output))| Named {
                    part: Some(name.clone()),
                    outcome: samples::combine(output, column(at), samples),
                };
                outputs.iter().enumerate().map(one).collect()
            }
        }
    }

    /// The same for each.
    pub fn all(&self, outcome: Outcome) -> Vec<Named> {
        match self {
            Self::One(_) => vec![Named { part: None, outcome }],
            Self::Named(outputs) => outputs.keys().map(|name| Named { part: Some(name.clone()), outcome: outcome.clone() }).collect(),
        }
    }
}
