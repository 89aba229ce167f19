//! The one HTTP client and the one retry loop around it.
//!
//! A plug-in says what to send and reads what came; waiting, trying again and bounding the answer's size happen here.
//! Reading the body is part of an attempt, so a connection cut half-way is tried again like one that was never made.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{RequestBuilder, StatusCode, header::HeaderMap};

use super::{backoff::{self, Policy}, text};

/// An answer below 400, read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpError {
    /// The server answered with an error status. `body` is its text, clipped; untrusted.
    #[error("HTTP {status}: {body}")]
    Status { status: u16, body: String, retry_after: Option<Duration>, headers: Box<HeaderMap> },
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Refused, reset, cut half-way, no such host.
    #[error("connection failed: {0}")]
    Connect(String),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// 200, but not what was asked for (an HTML page of a proxy, half a document).
    #[error("the answer is not the JSON that was expected: {0}")]
    NotJson(String),
}

impl HttpError {
    /// 408, 409, 429, 5xx (529 included) and lost connections; an answer that is no JSON once more, since a proxy's
    /// error page looks like that.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 409 | 429) || *status >= 500,
            Self::Timeout(_) | Self::Connect(_) | Self::NotJson(_) => true,
            Self::TooLarge(_) => false,
        }
    }

    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Few values, fit for a metric's label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Status { status: 429, .. } => "rate_limited",
            Self::Status { status: 401 | 403, .. } => "auth",
            Self::Status { status: 529 | 503, .. } => "overloaded",
            Self::Status { status, .. } if *status >= 500 => "server_error",
            Self::Status { .. } => "refused",
            Self::Timeout(_) => "timeout",
            Self::Connect(_) => "transport",
            Self::TooLarge(_) => "too_large",
            Self::NotJson(_) => "not_json",
        }
    }
}

/// A client with its bounds. Cheap to clone; clones share the connection pool.
#[derive(Debug, Clone)]
pub struct Http {
    pub client: reqwest::Client,
    pub retry: Policy,
    /// Of one attempt, from connecting to the last byte.
    pub timeout: Duration,
    /// Of an answer, after decompression.
    pub max_bytes: usize,
}

impl Http {
    #[must_use]
    pub fn new(client: reqwest::Client, retry: Policy) -> Self {
        Self { client, retry, timeout: Duration::from_secs(60), max_bytes: 64 << 20 }
    }

    /// One attempt.
    ///
    /// # Errors
    /// Any status from 400 on, and everything that keeps the answer from arriving whole.
    pub async fn attempt(&self, request: RequestBuilder) -> Result<Answer, HttpError> {
        match tokio::time::timeout(self.timeout, self.read(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::Timeout(self.timeout)),
        }
    }

    async fn read(&self, request: RequestBuilder) -> Result<Answer, HttpError> {
        let mut response = request.send().await.map_err(|error| connect_error(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| connect_error(&error))? {
            if body.len() + chunk.len() > self.max_bytes {
                return Err(HttpError::TooLarge(self.max_bytes));
            }
            body.extend_from_slice(&chunk);
        }
        let body = body.freeze();
        if status.as_u16() >= 400 {
            let retry_after = retry_after(&headers);
            return Err(HttpError::Status { status: status.as_u16(), body: text::one_line(&String::from_utf8_lossy(&body), 500), retry_after, headers: Box::new(headers) });
        }
        Ok(Answer { status, headers, body })
    }

    /// Attempts until one succeeds, one fails for good, or the policy ends.
    ///
    /// `make` builds the request anew for each attempt; `read` turns the answer into what the caller wants and may
    /// refuse it (`HttpError::NotJson` is tried again).
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn send<T>(&self, mut make: impl FnMut() -> RequestBuilder + Send, mut read: impl FnMut(Answer) -> Result<T, HttpError> + Send) -> Result<T, HttpError> {
        let started = tokio::time::Instant::now();
        for attempt in 1.. {
            let error = match self.attempt(make()).await.and_then(&mut read) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let wait = if error.is_retryable() { self.retry.wait(attempt, started.elapsed(), error.retry_after(), backoff::chance()) } else { None };
            let Some(wait) = wait else { return Err(error) };
            tracing::debug!(attempt, ?wait, error = %error, "outgoing call failed, trying again");
            tokio::time::sleep(wait).await;
        }
        unreachable!("the policy ends every loop")
    }
}

/// Reads an answer as JSON; what is read may borrow from it.
///
/// # Errors
/// `NotJson` with where it broke and how the answer begins.
pub fn json<'a, T: serde::Deserialize<'a>>(answer: &'a Answer) -> Result<T, HttpError> {
    serde_json::from_slice(&answer.body).map_err(|error| {
        let head = &answer.body[..answer.body.len().min(120)];
        HttpError::NotJson(format!("{error}; it begins with `{}`", text::one_line(&String::from_utf8_lossy(head), 80)))
    })
}

/// `retry-after-ms` (milliseconds), else `Retry-After` in seconds or as an HTTP date.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(ms) = header("retry-after-ms").and_then(|value| value.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1000.0).ok();
    }
    let value = header("retry-after")?;
    if let Ok(secs) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(secs).ok();
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?;
    // A date is relative to the server's clock, which its `Date` header tells; ours may differ.
    let now = header("date").and_then(|date| jiff::fmt::rfc2822::parse(date).ok())?;
    Duration::try_from(now.timestamp().duration_until(at.timestamp())).ok()
}

/// Says what broke without the URL, which may carry a secret (a webhook's path).
fn connect_error(error: &reqwest::Error) -> HttpError {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    HttpError::Connect(text::one_line(&deepest.to_string(), 200))
}
