//! An answer out of events.

use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{Said, StopDetails, WireUsage, late_error};
use crate::{
    providers::{
        ChatAnswer,
        streaming::{Assembler, Step},
        wire,
    },
    util::http::HttpError,
};

/// One event of any type; which fields it has depends on the type.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    message: Option<Message>,
    #[serde(default)]
    index: u32,
    #[serde(default)]
    content_block: Option<Block>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    partial_json: Option<String>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    stop_details: Option<StopDetails>,
}

/// What has come so far.
pub(super) struct Events {
    headers: HeaderMap,
    model: String,
    id: Option<String>,
    /// The answer is what a tool is given; what is said beside it is held back.
    by_tool: bool,
    /// The block with the tool's input: only the first one counts.
    tool: Option<u32>,
    said: Said,
    usage: WireUsage,
}

impl Events {
    pub(super) fn new(asked_model: &str, by_tool: bool, headers: &HeaderMap) -> Self {
        Self { headers: headers.clone(), model: asked_model.to_owned(), id: None, by_tool, tool: None, said: Said::default(), usage: WireUsage::default() }
    }

    fn start(&mut self, message: Message) {
        self.id = message.id;
        self.usage = message.usage.unwrap_or_default();
        if let Some(model) = message.model.filter(|model| !model.is_empty()) {
            self.model = model;
        }
    }

    fn block(&mut self, index: u32, block: Block) -> String {
        if block.kind == "tool_use" && self.tool.is_none() {
            self.tool = Some(index);
        }
        self.text(block.text)
    }

    fn delta(&mut self, index: u32, delta: Delta) -> String {
        if let Some(json) = delta.partial_json.filter(|json| self.tool == Some(index) && !json.is_empty()) {
            self.said.recorded.get_or_insert_default().push_str(&json);
            return json;
        }
        self.text(delta.text)
    }

    fn text(&mut self, text: Option<String>) -> String {
        let text = text.unwrap_or_default();
        self.said.text.push_str(&text);
        if self.by_tool { String::new() } else { text }
    }

    fn end(&mut self, delta: Option<Delta>, usage: Option<WireUsage>) {
        self.usage = self.usage.updated(usage.unwrap_or_default());
        if let Some(delta) = delta {
            self.said.stop_reason = delta.stop_reason.or(self.said.stop_reason.take());
            self.said.explanation = delta.stop_details.and_then(|details| details.explanation).or(self.said.explanation.take());
        }
    }
}

impl Assembler for Events {
    fn take(&mut self, document: &str) -> Result<Step, HttpError> {
        let event: Event<'_> = wire::document(document)?;
        let mut text = String::new();
        match (event.kind.as_str(), event.message, event.content_block, event.delta) {
            ("error", ..) => return Err(late_error(event.error.unwrap_or(RawValue::NULL), &self.headers)),
            ("message_stop", ..) => return Ok(Step::End(text)),
            ("message_start", Some(message), ..) => self.start(message),
            ("content_block_start", _, Some(block), _) => text = self.block(event.index, block),
            ("content_block_delta", .., Some(delta)) => text = self.delta(event.index, delta),
            ("message_delta", .., delta) => self.end(delta, event.usage),
            // `ping`, the ends of blocks, and what is not known yet.
            _ => {}
        }
        Ok(Step::Text(text))
    }

    fn finish(&mut self) -> Result<ChatAnswer, HttpError> {
        if self.said.stop_reason.is_none() {
            return Err(HttpError::NotJson("the stream has no `stop_reason`".to_owned()));
        }
        // A tool that is given nothing is given an empty object.
        if self.tool.is_some() && self.said.recorded.is_none() {
            self.said.recorded = Some("{}".to_owned());
        }
        let (text, stop) = std::mem::take(&mut self.said).read();
        let (model, headroom) = (std::mem::take(&mut self.model), wire::headroom(&self.headers));
        Ok(ChatAnswer { text, stop, model, tokens: self.usage.tokens(), id: self.id.take(), headroom })
    }
}
