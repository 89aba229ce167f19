//! What providers and the proxies before them say when they do not answer.

use std::time::Duration;

use reqwest::header::HeaderValue;
use serde_json::Value;

use super::ProviderError;
use crate::util::{http::HttpError, text};

/// Characters of it that people see.
const MAX_MESSAGE: usize = 500;

/// Why there is no answer, as far as it can be read. Providers and the proxies before them word it differently:
/// `{"error": {"message", "type", "param", "code", "details": {"error_code"}, "innererror": {"code"}}}`, `{"error": "..."}`,
/// `{"statusCode", "message"}`, `{"message": "..."}`, text.
#[derive(Debug)]
pub(super) struct Complaint {
    /// 0 where there was no answer.
    pub status: u16,
    /// To look for words in. Untrusted, and as long as it came; people get [`Complaint::shown`].
    pub message: String,
    pub param: Option<String>,
    pub retry_after: Option<Duration>,
    /// `type`, `code`, `details.error_code` and `innererror.code`.
    codes: Vec<String>,
    kind: &'static str,
    retryable: bool,
    /// What to do about it.
    hint: Option<String>,
}

impl Complaint {
    pub(super) fn read(error: &HttpError) -> Self {
        let mut complaint = Self {
            status: error.status().unwrap_or(0),
            message: error.to_string(),
            param: None,
            hint: None,
            retry_after: error.retry_after(),
            codes: Vec::new(),
            kind: error.kind(),
            retryable: error.is_retryable(),
        };
        let HttpError::Status { status, body, headers, .. } = error else { return complaint };
        // The server knows best: the providers' own clients obey this header before any rule of theirs.
        match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
            Some(b"true") => complaint.retryable = true,
            Some(b"false") => complaint.retryable = false,
            _ => {}
        }
        // The body is clipped, so it may be half a document; then its text is all there is.
        let Ok(body) = serde_json::from_str::<Value>(body) else { return complaint };
        let error = body.get("error").unwrap_or(&body);
        if let Some(message) = error.as_str().or_else(|| error.get("message")?.as_str()) {
            complaint.message = format!("HTTP {status}: {message}");
        }
        complaint.param = error.get("param").and_then(Value::as_str).map(str::to_owned);
        let codes = [error.get("type"), error.get("code"), error.pointer("/details/error_code"), error.pointer("/innererror/code")];
        complaint.codes = codes.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        complaint.retry_after = complaint.retry_after.or_else(|| told_wait(&body, &complaint.message));
        complaint
    }

    /// Whether it carries one of these codes; where no code could be read, whether its text has one.
    pub(super) fn has_code(&self, codes: &[&str]) -> bool {
        codes.iter().any(|code| self.codes.iter().any(|own| own == code) || (self.codes.is_empty() && self.message.contains(code)))
    }

    /// Whether the request was found wrong and one of these words is in the reason.
    pub(super) fn names(&self, words: &[&str]) -> bool {
        matches!(self.status, 400 | 422)
            && words.iter().any(|word| self.message.contains(word) || self.param.as_deref().is_some_and(|param| param.contains(word)))
    }

    /// Whether it says that the model or the server does not know, or not take, this parameter.
    pub(super) fn refuses(&self, parameter: &str) -> bool {
        const PHRASES: [&str; 8] = ["nsupported", "not support", "nrecognized", "nknown", "not permitted", "not allowed", "deprecated", "xtra inputs"];
        self.names(&[parameter])
            && (self.has_code(&["unsupported_parameter", "unsupported_value", "unknown_parameter"])
                || PHRASES.iter().any(|phrase| self.message.contains(phrase)))
    }

    /// Like [`Complaint::refuses`], for a parameter whose name is a common word.
    pub(super) fn refuses_exactly(&self, parameter: &str) -> bool {
        let quoted = ["'", "\"", "`"].iter().any(|quote| self.message.contains(&format!("{quote}{parameter}{quote}")));
        (quoted || self.param.as_deref() == Some(parameter)) && self.refuses(parameter)
    }

    /// With what to do about it.
    pub(super) fn hinting(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// For people: one line, not too long.
    pub(super) fn shown(&self) -> String {
        let message = text::one_line(&self.message, MAX_MESSAGE);
        self.hint.as_ref().map_or_else(|| message.clone(), |hint| format!("{message} ({hint})"))
    }

    /// The class that callers see. `capped`: the provider's own way of saying that money or quota is used up.
    pub(super) fn into_error(self, capped: bool) -> ProviderError {
        let message = self.shown();
        let blocked = |kind, what: &str| ProviderError::Blocked { kind, message: format!("{what}: {message}") };
        match self.status {
            _ if capped => blocked("billing", "quota or credit is used up"),
            401 => blocked("auth", "key refused"),
            402 => blocked("billing", "billing"),
            403 => blocked("forbidden", "not permitted"),
            404 => blocked("not_found", "no such model or address"),
            _ if self.retryable => ProviderError::Transient { kind: self.kind, message, retry_after: self.retry_after },
            413 => ProviderError::Rejected { kind: "too_large", message },
            _ if self.kind == "too_large" => ProviderError::Rejected { kind: "too_large", message },
            _ if self.has_code(&["content_filter", "ResponsibleAIPolicyViolation"]) => ProviderError::Rejected { kind: "filtered", message },
            _ => ProviderError::Rejected { kind: "bad_request", message },
        }
    }
}

/// How long to wait where only the body tells: a model that is being loaded at HuggingFace (`estimated_time`, seconds),
/// Azure's "Please retry after 7 seconds."
fn told_wait(body: &Value, message: &str) -> Option<Duration> {
    let seconds = body.get("estimated_time").and_then(Value::as_f64).or_else(|| {
        let (_, rest) = message.split_once("retry after ")?;
        let (number, unit) = rest.split_once(' ')?;
        unit.starts_with("second").then(|| number.parse().ok()).flatten()
    })?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderMap, HeaderName};

    use super::*;

    fn complaint(status: u16, body: &str) -> Complaint {
        Complaint::read(&HttpError::Status { status, body: body.to_owned(), retry_after: None, headers: Box::default() })
    }

    #[test]
    fn a_complaint_is_read_in_every_shape() {
        let table = [
            (r#"{"error":{"message":"m","type":"t","param":"p","code":"c"}}"#, "HTTP 400: m"),
            (r#"{"type":"error","error":{"type":"t","message":"m"}}"#, "HTTP 400: m"),
            (r#"{"error":"m"}"#, "HTTP 400: m"),
            (r#"{"message":"m"}"#, "HTTP 400: m"),
            (r#"{"error":{"message":"m","#, r#"HTTP 400: {"error":{"message":"m","#),
            ("[1]", "HTTP 400: [1]"),
        ];
        for (body, message) in table {
            assert_eq!(complaint(400, body).message, message, "{body}");
        }
        let cut = complaint(429, r#"{"error":{"code":"insufficient_quota","message":"m…"#);
        assert!(cut.has_code(&["insufficient_quota"]));
    }

    #[test]
    fn a_refused_parameter_is_told_from_a_wrong_value() {
        let refused = complaint(400, r#"{"error":{"message":"Unsupported value","param":"temperature","code":"unsupported_value"}}"#);
        assert!(refused.refuses("temperature") && !refused.refuses("max_tokens"));
        assert!(complaint(400, r#"{"error":{"message":"temperature: Extra inputs are not permitted"}}"#).refuses("temperature"));
        let wrong =
            complaint(400, r#"{"error":{"message":"max_tokens is too large: 9. This model supports at most 4.","param":"max_tokens","code":"invalid_value"}}"#);
        assert!(!wrong.refuses("max_tokens"));
    }

    #[test]
    fn the_header_decides_whether_to_try_again() {
        let with = |status, word: &'static str| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static("x-should-retry"), HeaderValue::from_static(word))]);
            Complaint::read(&HttpError::Status { status, body: String::new(), retry_after: None, headers: Box::new(headers) }).into_error(false)
        };
        assert!(matches!(with(500, "false"), ProviderError::Rejected { .. }));
        assert!(matches!(with(400, "true"), ProviderError::Transient { .. }));
        assert!(matches!(with(401, "true"), ProviderError::Blocked { .. }));
    }
}
