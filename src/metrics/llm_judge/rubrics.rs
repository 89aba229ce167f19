//! The built-in rubrics: prompts in files beside the code, each with its source in the literature.

use super::Output;

pub(super) struct Rubric {
    pub name: &'static str,
    text: &'static str,
    pub output: Output,
    /// The case has to have a context, or an expected answer.
    pub needs: Option<&'static str>,
}

impl Rubric {
    /// The prompt, without the note on its source.
    pub fn prompt(&self) -> &'static str {
        self.text.split_once("-->\n").map_or(self.text, |(_, prompt)| prompt)
    }
}

macro_rules! rubric {
    ($name:literal, $output:expr, $needs:expr) => {
        Rubric { name: $name, text: include_str!(concat!("rubrics/", $name, ".md")), output: $output, needs: $needs }
    };
}

const ONE_TO_FIVE: Output = Output::Score { min: 1.0, max: 5.0 };

pub(super) static RUBRICS: [Rubric; 8] = [
    rubric!("faithfulness", ONE_TO_FIVE, Some("context")),
    rubric!("answer_relevancy", ONE_TO_FIVE, None),
    rubric!("helpfulness", ONE_TO_FIVE, None),
    rubric!("hallucination", Output::Boolean {}, None),
    rubric!("toxicity", ONE_TO_FIVE, None),
    rubric!("refusal", Output::Boolean {}, None),
    rubric!("conciseness", ONE_TO_FIVE, None),
    rubric!("correctness", ONE_TO_FIVE, Some("expected")),
];

pub(super) fn find(name: &str) -> Option<&'static Rubric> {
    RUBRICS.iter().find(|rubric| rubric.name == name)
}
