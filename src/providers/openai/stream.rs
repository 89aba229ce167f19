//! An answer out of chunks.

use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{self, Said, WireUsage, late_error};
use crate::{
    providers::{
        ChatAnswer, Tokens,
        streaming::{Assembler, Step},
        wire,
    },
    util::http::HttpError,
};

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default, deserialize_with = "answer::content")]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    function: Option<FunctionDelta>,
}

#[derive(Deserialize)]
struct FunctionDelta {
    #[serde(default)]
    arguments: Option<String>,
}

/// What has come so far.
pub(super) struct Chunks {
    headers: HeaderMap,
    model: String,
    id: Option<String>,
    said: Said,
    tokens: Tokens,
    /// A chunk that belongs to an answer has come: an end alone is none.
    begun: bool,
}

impl Chunks {
    pub(super) fn new(asked_model: &str, headers: &HeaderMap) -> Self {
        Self { headers: headers.clone(), model: asked_model.to_owned(), id: None, said: Said::default(), tokens: Tokens::default(), begun: false }
    }

    /// Adds what one chunk says; gives what of it is to be handed on.
    fn add(&mut self, choice: Choice) -> String {
        self.begun = true;
        self.said.finish = choice.finish_reason.or(self.said.finish.take());
        let Some(delta) = choice.delta else { return String::new() };
        let mut text = append(&mut self.said.refusal, delta.refusal);
        text.push_str(&append(&mut self.said.content, delta.content));
        for call in delta.tool_calls.into_iter().flatten().filter(|call| call.index == 0) {
            let arguments = append(&mut self.said.called, call.function.and_then(|function| function.arguments));
            // Beside a text, what was called does not count.
            if self.said.content.is_none() {
                text.push_str(&arguments);
            }
        }
        text
    }
}

/// Appends what there is, and gives it back.
fn append(whole: &mut Option<String>, part: Option<String>) -> String {
    let part = part.unwrap_or_default();
    if !part.is_empty() {
        whole.get_or_insert_default().push_str(&part);
    }
    part
}

impl Assembler for Chunks {
    fn take(&mut self, document: &str) -> Result<Step, HttpError> {
        if document.trim() == "[DONE]" {
            return Ok(Step::End(String::new()));
        }
        let chunk: Chunk<'_> = wire::document(document)?;
        if let Some(error) = chunk.error {
            return Err(late_error(error, &self.headers));
        }
        self.id = self.id.take().or(chunk.id.filter(|id| !id.is_empty()));
        if let Some(model) = chunk.model.filter(|model| !model.is_empty()) {
            self.model = model;
        }
        if let Some(usage) = chunk.usage {
            self.tokens = usage.tokens();
        }
        // The first chunk may be about the prompt alone (Azure), the last one about tokens.
        let choice = chunk.choices.unwrap_or_default().into_iter().find(|choice| choice.index == 0);
        Ok(Step::Text(choice.map(|choice| self.add(choice)).unwrap_or_default()))
    }

    fn finish(&mut self) -> Result<ChatAnswer, HttpError> {
        if !self.begun {
            return Err(HttpError::NotJson("the stream has no `choices`".to_owned()));
        }
        let (text, stop) = std::mem::take(&mut self.said).read();
        let (model, headroom) = (std::mem::take(&mut self.model), wire::headroom(&self.headers));
        Ok(ChatAnswer { text, stop, model, tokens: self.tokens, id: self.id.take(), headroom })
    }
}
