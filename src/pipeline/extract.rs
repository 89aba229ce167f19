//! Trace -> case.

use std::collections::BTreeMap;

use minijinja::Value;

use crate::{
    config::{ExtractSpec, OnMissing},
    model::Case,
    util::template::{Template, TemplateError},
};

/// `extract:`, compiled.
#[derive(Debug)]
pub(super) struct Extract {
    input: Template,
    output: Template,
    context: Template,
    expected: Template,
    metadata: BTreeMap<String, Template>,
    details: Vec<(&'static str, Template)>,
    on_missing: OnMissing,
}

/// Why an item has no case.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoCase {
    /// A variable is missing, and the monitor skips such items.
    NotApplicable(String),
    Failed(String),
}

impl Extract {
    /// # Errors
    /// The first template that does not compile, by its key.
    pub(super) fn new(spec: &ExtractSpec) -> Result<Self, String> {
        let template = |key: &str, source: &str| Template::new(source).map_err(|error| format!("extract.{key}: {error}"));
        Ok(Self {
            input: template("input", &spec.input)?,
            output: template("output", &spec.output)?,
            context: template("context", &spec.context)?,
            expected: template("expected", &spec.expected)?,
            metadata: spec.metadata.iter().map(|(key, source)| Ok((key.clone(), template(key, source)?))).collect::<Result<_, String>>()?,
            details: spec.details().map(|(key, source)| Ok((key, template(key, source)?))).collect::<Result<_, String>>()?,
            on_missing: spec.on_missing,
        })
    }

    /// Those that are there: a metric that needs one says so itself.
    fn details(&self, context: &Value) -> Result<BTreeMap<String, serde_json::Value>, NoCase> {
        let mut details = BTreeMap::new();
        for (key, template) in &self.details {
            match template.value(context) {
                Ok(value) => drop(details.insert((*key).to_owned(), value)),
                Err(TemplateError::Missing(_)) => {}
                Err(error) => return Err(NoCase::Failed(format!("extract.{key}: {error}"))),
            }
        }
        Ok(details)
    }

    /// Pure. `trace` is the trace's view.
    pub(super) fn case(&self, trace: &Value) -> Result<Case, NoCase> {
        let context = minijinja::context! { trace => trace.clone() };
        let render = |key: &str, template: &Template| {
            template.render(&context).map_err(|error| match (error, self.on_missing) {
                (TemplateError::Missing(error), OnMissing::Skip) => NoCase::NotApplicable(format!("extract.{key}: {error}")),
                (error, _) => NoCase::Failed(format!("extract.{key}: {error}")),
            })
        };
        Ok(Case {
            input: render("input", &self.input)?,
            output: render("output", &self.output)?,
            context: render("context", &self.context)?,
            expected: render("expected", &self.expected)?,
            metadata: self.metadata.iter().map(|(key, template)| Ok((key.clone(), render(key, template)?))).collect::<Result<_, NoCase>>()?,
            details: self.details(&context)?,
        })
    }
}
