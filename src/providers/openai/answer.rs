//! What comes back, in the shapes that the family's servers give it.

use std::fmt;

use reqwest::header::HeaderMap;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::{
    providers::{ChatAnswer, Stop, Tokens, wire},
    util::http::{self, HttpError},
};

#[derive(Deserialize)]
struct Completion<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default, borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default, borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    /// Azure leaves it out where its filter took the answer.
    #[serde(default, borrow)]
    message: Option<WireMessage<'a>>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct WireMessage<'a> {
    #[serde(default, deserialize_with = "content")]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default, borrow)]
    tool_calls: Option<Vec<ToolCall<'a>>>,
}

#[derive(Deserialize)]
struct ToolCall<'a> {
    #[serde(borrow)]
    function: Called<'a>,
}

#[derive(Deserialize)]
struct Called<'a> {
    /// JSON in a string, or, from some servers, the JSON itself.
    #[serde(borrow)]
    arguments: &'a RawValue,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireUsage {
    #[serde(default, deserialize_with = "wire::count")]
    prompt_tokens: Option<u64>,
    #[serde(default, deserialize_with = "wire::count")]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Deserialize)]
struct PromptDetails {
    #[serde(default, deserialize_with = "wire::count")]
    cached_tokens: Option<u64>,
    #[serde(default, deserialize_with = "wire::count")]
    cache_write_tokens: Option<u64>,
}

pub(super) fn read(answer: &http::Answer, asked_model: &str) -> Result<ChatAnswer, HttpError> {
    let completion: Completion<'_> = http::json(answer)?;
    if let Some(error) = completion.error {
        return Err(late_error(error, &answer.headers));
    }
    let Some(choice) = completion.choices.unwrap_or_default().into_iter().next() else {
        return Err(HttpError::NotJson("the answer has no `choices`".to_owned()));
    };
    if choice.message.is_none() && choice.finish_reason.is_none() {
        return Err(HttpError::NotJson("the answer's choice has no `message`".to_owned()));
    }
    let message = choice.message.unwrap_or_default();
    let called = message.tool_calls.unwrap_or_default().into_iter().next().map(|call| arguments(call.function.arguments));
    let said = Said { refusal: message.refusal, content: message.content, called, finish: choice.finish_reason };
    let (text, stop) = said.read();
    let model = completion.model.filter(|model| !model.is_empty()).unwrap_or_else(|| asked_model.to_owned());
    let tokens = completion.usage.map(WireUsage::tokens).unwrap_or_default();
    Ok(ChatAnswer { text, stop, model, tokens, id: completion.id, headroom: wire::headroom(&answer.headers) })
}

/// What a model said, whether at once or in pieces.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub refusal: Option<String>,
    pub content: Option<String>,
    /// The arguments of the first function that it called.
    pub called: Option<String>,
    pub finish: Option<String>,
}

impl Said {
    pub(super) fn read(self) -> (String, Stop) {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let refusal = some(self.refusal);
        let stop = match self.finish.as_deref() {
            _ if refusal.is_some() => Stop::Refusal,
            Some("content_filter") => Stop::Refusal,
            Some("length") => Stop::Length,
            _ => Stop::End,
        };
        (refusal.or(some(self.content)).or(self.called).unwrap_or_default(), stop)
    }
}

impl WireUsage {
    pub(super) fn tokens(self) -> Tokens {
        let details = self.prompt_tokens_details.as_ref();
        Tokens {
            input: self.prompt_tokens,
            output: self.completion_tokens,
            cached_input: details.and_then(|details| details.cached_tokens),
            cache_write: details.and_then(|details| details.cache_write_tokens),
        }
    }
}

/// `OpenRouter` and some gateways find out too late and put an error into a 200, as every server does in a stream; its
/// `code` is then the true status, where it is a number.
pub(super) fn late_error(error: &RawValue, headers: &HeaderMap) -> HttpError {
    #[derive(Deserialize)]
    struct Coded {
        #[serde(default)]
        code: Value,
        #[serde(default, rename = "type")]
        kind: Value,
    }
    let coded = serde_json::from_str::<Coded>(error.get()).ok();
    let status = coded.and_then(|coded| {
        let number = coded.code.as_u64().or_else(|| coded.code.as_str()?.parse().ok());
        let number = number.and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code));
        number.or_else(|| [&coded.code, &coded.kind].into_iter().filter_map(Value::as_str).find_map(status_of))
    });
    let body = format!(r#"{{"error":{}}}"#, error.get());
    HttpError::Status { status: status.unwrap_or(502), body, retry_after: http::retry_after(headers), headers: Box::new(headers.clone()) }
}

/// The status that the error of this code or type has where it is told in time.
fn status_of(code: &str) -> Option<u16> {
    Some(match code {
        "rate_limit_exceeded" | "rate_limit_error" | "insufficient_quota" | "too_many_requests" => 429,
        "overloaded" | "overloaded_error" | "slow_down" | "service_unavailable" => 503,
        "invalid_api_key" | "authentication_error" => 401,
        "model_not_found" | "not_found_error" => 404,
        "invalid_request_error" | "BadRequestError" | "content_filter" | "context_length_exceeded" => 400,
        _ => return None,
    })
}

fn arguments(raw: &RawValue) -> String {
    serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
}

/// `content`: a text, null, or a list of parts of which those with a `text` count (Mistral sends its thoughts as others).
pub(super) fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        text: Option<String>,
    }

    struct Content;

    impl<'de> Visitor<'de> for Content {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of parts")
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(text.to_owned()))
        }

        fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
            Ok(Some(text))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
            let mut whole = String::new();
            while let Some(part) = parts.next_element::<Part>()? {
                whole.push_str(part.text.as_deref().unwrap_or_default());
            }
            Ok(Some(whole))
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }

    deserializer.deserialize_any(Content)
}
