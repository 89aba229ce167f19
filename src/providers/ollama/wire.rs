//! Ollama's requests and answers.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Api, Format, KeepAlive, OllamaConfig, Quirks, Think, late_error};
use crate::{
    providers::{
        ChatAnswer, ChatRequest, Headroom, ProviderError, Role, Stop, Tokens,
        streaming::{Assembler, Step},
        wire::{self, count},
    },
    util::http::{self, HttpError},
};

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(flatten)]
    prompt: Prompt<'a>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<FormatField<'a>>,
    options: Options<'a>,
    /// An error where the prompt does not fit, in place of a shorter prompt.
    truncate: bool,
    /// An end where the answer does not fit, in place of a forgotten beginning.
    shift: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_alive: Option<&'a KeepAlive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    think: Option<Think>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Prompt<'a> {
    Chat {
        messages: Vec<Message<'a>>,
    },
    Generate {
        prompt: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        system: Option<&'a str>,
    },
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum FormatField<'a> {
    Word(&'static str),
    Schema(&'a Value),
}

#[derive(Serialize)]
struct Options<'a> {
    num_ctx: u32,
    num_predict: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
}

pub(super) fn body(request: &ChatRequest, quirks: Quirks, config: &OllamaConfig, streamed: bool) -> Result<Vec<u8>, ProviderError> {
    let system = wire::told_in_words(request.system.as_deref(), request.schema.as_deref());
    let prompt = match config.api {
        Api::Chat => {
            let system = system.as_deref().map(|content| Message { role: "system", content });
            let messages = request.messages.iter().map(|message| Message { role: message.role.as_str(), content: &message.text });
            Prompt::Chat { messages: system.into_iter().chain(messages).collect() }
        }
        Api::Generate => Prompt::Generate { prompt: one_prompt(request), system: system.as_deref() },
    };
    let format = match (quirks.format, request.schema.as_deref()) {
        (Format::Schema, Some(schema)) => Some(FormatField::Schema(schema)),
        (Format::Json, Some(_)) => Some(FormatField::Word("json")),
        _ => None,
    };
    let options =
        Options { num_ctx: config.num_ctx, num_predict: request.max_tokens, temperature: request.temperature, top_p: request.top_p, stop: &request.stop };
    let body = Body {
        model: &request.model,
        prompt,
        stream: streamed,
        format,
        options,
        truncate: false,
        shift: false,
        keep_alive: config.keep_alive.as_ref(),
        think: config.think.filter(|_| quirks.think),
    };
    wire::body(&body, request.bytes() + 4096)
}

/// What was said so far as one text: `/api/generate` knows no roles.
fn one_prompt(request: &ChatRequest) -> String {
    if let [only] = request.messages.as_slice() {
        return only.text.clone();
    }
    let said = |message: &crate::providers::Message| match message.role {
        Role::User => format!("User: {}", message.text),
        Role::Assistant => format!("Assistant: {}", message.text),
    };
    request.messages.iter().map(said).collect::<Vec<_>>().join("\n\n")
}

/// An answer, or a part of one in a stream.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    message: Option<Said>,
    #[serde(default)]
    response: Option<String>,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    done_reason: Option<String>,
    #[serde(default, deserialize_with = "count")]
    prompt_eval_count: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    eval_count: Option<u64>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    content: Option<String>,
}

impl Document {
    /// Its text; what it thought is none.
    ///
    /// # Errors
    /// What it complains of.
    fn text(&mut self) -> Result<Option<String>, HttpError> {
        if let Some(error) = &self.error {
            return Err(late_error(error));
        }
        Ok(self.message.take().map(|message| message.content.unwrap_or_default()).or(self.response.take()))
    }

    fn answer(self, text: String, asked_model: &str) -> ChatAnswer {
        let stop = if self.done_reason.as_deref() == Some("length") { Stop::Length } else { Stop::End };
        // 0 stands for a prompt that was still in memory, not for an empty one.
        let tokens = Tokens { input: self.prompt_eval_count.filter(|count| *count > 0), output: self.eval_count, ..Tokens::default() };
        let model = self.model.filter(|model| !model.is_empty()).unwrap_or_else(|| asked_model.to_owned());
        ChatAnswer { text, stop, model, tokens, id: None, headroom: Headroom::default() }
    }
}

pub(super) fn read(answer: &http::Answer, asked_model: &str) -> Result<ChatAnswer, HttpError> {
    let mut document: Document = http::json(answer)?;
    let Some(text) = document.text()? else { return Err(HttpError::NotJson("the answer has neither `message` nor `response`".to_owned())) };
    if !document.done {
        return Err(HttpError::Cut("the answer ended before it was done".to_owned()));
    }
    Ok(document.answer(text, asked_model))
}

/// What has come of a stream.
pub(super) struct Documents {
    model: String,
    text: String,
    last: Option<Document>,
}

impl Documents {
    pub(super) fn new(asked_model: &str) -> Self {
        Self { model: asked_model.to_owned(), text: String::new(), last: None }
    }
}

impl Assembler for Documents {
    fn take(&mut self, document: &str) -> Result<Step, HttpError> {
        let mut document: Document = wire::document(document)?;
        let text = document.text()?.unwrap_or_default();
        self.text.push_str(&text);
        if !document.done {
            return Ok(Step::Text(text));
        }
        self.last = Some(document);
        Ok(Step::End(text))
    }

    fn finish(&mut self) -> Result<ChatAnswer, HttpError> {
        let last = self.last.take().ok_or_else(|| HttpError::Cut("the stream ended before it was done".to_owned()))?;
        Ok(last.answer(std::mem::take(&mut self.text), &self.model))
    }
}

#[derive(Serialize)]
pub(super) struct EmbedBody<'a> {
    pub model: &'a str,
    pub input: &'a [String],
    pub truncate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<&'a KeepAlive>,
}

#[derive(Deserialize)]
pub(super) struct Embedded {
    #[serde(default)]
    pub model: Option<String>,
    pub embeddings: Vec<Vec<f32>>,
    #[serde(default, deserialize_with = "count")]
    pub prompt_eval_count: Option<u64>,
}

impl Embedded {
    /// # Errors
    /// When there is not one vector for each of `count` texts.
    pub(super) fn of(self, count: usize) -> Result<Self, HttpError> {
        let complete = self.embeddings.len() == count && self.embeddings.iter().all(|vector| !vector.is_empty());
        if complete { Ok(self) } else { Err(HttpError::NotJson(format!("not one vector for each of {count} texts"))) }
    }
}

#[derive(Deserialize)]
pub(super) struct Tags {
    #[serde(default)]
    pub models: Vec<Tag>,
}

#[derive(Deserialize)]
pub(super) struct Tag {
    pub name: String,
}
