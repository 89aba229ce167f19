//! What comes back.

use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    providers::{ChatAnswer, Stop, Tokens, wire},
    util::http::{self, HttpError},
};

#[derive(Deserialize)]
struct WireAnswer<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default, borrow)]
    content: Option<Vec<Block<'a>>>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    stop_details: Option<StopDetails>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

/// One block of any type; which fields it has depends on the type.
#[derive(Deserialize)]
struct Block<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default, borrow)]
    input: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct StopDetails {
    #[serde(default)]
    pub explanation: Option<String>,
}

#[expect(clippy::struct_field_names, reason = "Anthropic's names")]
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct WireUsage {
    #[serde(deserialize_with = "wire::count")]
    input_tokens: Option<u64>,
    #[serde(deserialize_with = "wire::count")]
    output_tokens: Option<u64>,
    #[serde(deserialize_with = "wire::count")]
    cache_creation_input_tokens: Option<u64>,
    #[serde(deserialize_with = "wire::count")]
    cache_read_input_tokens: Option<u64>,
}

pub(super) fn read(answer: &http::Answer, asked_model: &str) -> Result<ChatAnswer, HttpError> {
    let (headers, headroom) = (&answer.headers, wire::headroom(&answer.headers));
    let answer: WireAnswer<'_> = http::json(answer)?;
    // Proxies that find out too late put the error into a 200.
    if let Some(error) = answer.error {
        return Err(late_error(error, headers));
    }
    let Some(content) = answer.content else { return Err(HttpError::NotJson("the answer has no `content`".to_owned())) };
    let mut said = Said { stop_reason: answer.stop_reason, explanation: answer.stop_details.and_then(|details| details.explanation), ..Said::default() };
    // By type and not by place: thoughts come before the text.
    for block in content {
        match block.kind.as_str() {
            "text" => said.text.push_str(block.text.as_deref().unwrap_or_default()),
            "tool_use" if said.recorded.is_none() => said.recorded = block.input.map(|input| input.get().to_owned()),
            _ => {}
        }
    }
    let (text, stop) = said.read();
    let model = answer.model.filter(|model| !model.is_empty()).unwrap_or_else(|| asked_model.to_owned());
    Ok(ChatAnswer { text, stop, model, tokens: answer.usage.unwrap_or_default().tokens(), id: answer.id, headroom })
}

/// What a model said, whether at once or in pieces.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub text: String,
    /// The input of the first tool that it used.
    pub recorded: Option<String>,
    pub stop_reason: Option<String>,
    pub explanation: Option<String>,
}

impl Said {
    pub(super) fn read(self) -> (String, Stop) {
        let stop = match self.stop_reason.as_deref() {
            Some("max_tokens" | "model_context_window_exceeded") => Stop::Length,
            Some("refusal") => Stop::Refusal,
            _ => Stop::End,
        };
        let mut text = self.recorded.unwrap_or(self.text);
        if text.is_empty() && stop == Stop::Refusal {
            text = self.explanation.unwrap_or_default();
        }
        (text, stop)
    }
}

impl WireUsage {
    pub(super) fn tokens(self) -> Tokens {
        let cached = [self.cache_creation_input_tokens, self.cache_read_input_tokens].into_iter().flatten().sum::<u64>();
        Tokens {
            // Anthropic counts only what is neither read from nor written to its cache.
            input: self.input_tokens.map(|input| input + cached),
            output: self.output_tokens,
            cached_input: self.cache_read_input_tokens,
            cache_write: self.cache_creation_input_tokens,
        }
    }

    /// With what a later count says; it says only what has changed.
    pub(super) fn updated(self, later: Self) -> Self {
        Self {
            input_tokens: later.input_tokens.or(self.input_tokens),
            output_tokens: later.output_tokens.or(self.output_tokens),
            cache_creation_input_tokens: later.cache_creation_input_tokens.or(self.cache_creation_input_tokens),
            cache_read_input_tokens: later.cache_read_input_tokens.or(self.cache_read_input_tokens),
        }
    }
}

/// An error after a 200, with the status that it has where it is told in time.
pub(super) fn late_error(error: &RawValue, headers: &HeaderMap) -> HttpError {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(default, rename = "type")]
        kind: Option<String>,
    }
    let kind = serde_json::from_str::<Typed>(error.get()).ok().and_then(|typed| typed.kind);
    let status = match kind.as_deref().unwrap_or_default() {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => 500,
    };
    let body = format!(r#"{{"error":{}}}"#, error.get());
    HttpError::Status { status, body, retry_after: http::retry_after(headers), headers: Box::new(headers.clone()) }
}
