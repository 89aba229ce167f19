use std::sync::Arc;

use async_trait::async_trait;
use regex_automata::nfa::thompson::{Compiler, Config};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuildError, DataType, Field, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, revision, verdict};
use crate::util::{plugin, text};

/// Passes when a regular expression matches the text.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexConfig {
    /// input | output | context | expected | metadata.KEY. Default output.
    #[serde(default)]
    field: Field,
    /// Linear-time syntax of Rust's regex crate; `(?i)` ignores case.
    pattern: String,
    /// Passes when it does not match. Default false.
    #[serde(default)]
    invert: bool,
}

inventory::submit! {
    MetricKind {
        name: "regex",
        example: "field: output\npattern: \"(?i)as an ai\"\ninvert: true\n",
        schema: plugin::schema::<RegexConfig>,
        parse: |node, faults| plugin::parse::<RegexConfig>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

/// Bytes of a compiled regex at most: the regex crate's default.
const SIZE: usize = 10 * (1 << 20);

impl MetricConfig for RegexConfig {
    fn build(&self, _: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        let regex = regex::RegexBuilder::new(&self.pattern)
            .size_limit(SIZE)
            .build()
            .map_err(|error| BuildError::at("pattern", format!("no regular expression: {}", text::one_line(&error.to_string(), 300))))?;
        Ok(Arc::new(Matcher { regex, field: self.field.clone(), invert: self.invert }))
    }

    /// Compiles to the automaton that all of the regex crate's engines are made from, under the crate's own limit of size,
    /// and makes none of them.
    fn check(&self, cx: &MetricBuildCx<'_>) -> Result<(), BuildError> {
        let compiler = Compiler::new().configure(Config::new().nfa_size_limit(Some(SIZE))).build(&self.pattern);
        // What is wrong is said by the crate that builds.
        compiler.map(drop).or_else(|_| self.build(cx).map(drop))
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        revision("regex", self)
    }
}

struct Matcher {
    regex: regex::Regex,
    field: Field,
    invert: bool,
}

#[async_trait]
impl Metric for Matcher {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let text = match self.field.require(cx.case) {
            Ok(text) => text,
            Err(outcome) => return outcome.into(),
        };
        let outcome = match self.regex.find(text) {
            Some(found) => {
                let at = text[..found.start()].chars().count() + 1;
                verdict(!self.invert, format!("matched `{}` at character {at}", text::one_line(found.as_str(), 80)))
            }
            None => verdict(self.invert, "no match"),
        };
        outcome.into()
    }

    fn data_type(&self) -> DataType {
        DataType::Boolean
    }
}
