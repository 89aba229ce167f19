//! The one HTTP client and the one retry loop around it.
//!
//! A plug-in says what to send and reads what came; waiting, trying again and bounding the answer's size happen here.
//! Reading the body is part of an attempt, so a connection cut half-way is tried again like one that was never made
//! (a body that is read as it comes, [`Http::open`], is its reader's).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{RequestBuilder, StatusCode, header::HeaderMap};

use super::{
    backoff::{self, Policy},
    text,
};

/// An answer below 400, read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer below 400 of which only the head has come.
#[derive(Debug)]
pub struct Incoming {
    pub status: StatusCode,
    pub headers: HeaderMap,
    response: reqwest::Response,
    /// Of what is still to come.
    bytes_left: usize,
    max_bytes: usize,
}

impl Incoming {
    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// When the connection is lost or the body is larger than the client's bound.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        let Some(chunk) = self.response.chunk().await.map_err(|error| connection_error(&error))? else { return Ok(None) };
        self.bytes_left = self.bytes_left.checked_sub(chunk.len()).ok_or(HttpError::TooLarge(self.max_bytes))?;
        Ok(Some(chunk))
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// Like [`Incoming::chunk`].
    pub async fn whole(mut self) -> Result<Answer, HttpError> {
        let body = self.rest().await?;
        Ok(Answer { status: self.status, headers: self.headers, body })
    }

    async fn rest(&mut self) -> Result<Bytes, HttpError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpError {
    /// The server answered with an error status. `body` is its text, clipped; untrusted.
    #[error("HTTP {status}: {body}")]
    Status { status: u16, body: String, retry_after: Option<Duration>, headers: Box<HeaderMap> },
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// No such host, refused, no TLS: nothing was sent, so nothing was done over there.
    #[error("could not connect: {0}")]
    Connect(String),
    /// Reset or ended half-way: what was sent may have been done.
    #[error("connection lost: {0}")]
    Cut(String),
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
            Self::Timeout(_) | Self::Connect(_) | Self::Cut(_) | Self::NotJson(_) => true,
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
            Self::Status { status: 408, .. } => "timeout",
            Self::Status { status: 529 | 503, .. } => "overloaded",
            Self::Status { status, .. } if *status >= 500 => "server_error",
            Self::Status { .. } => "refused",
            Self::Timeout(_) => "timeout",
            Self::Connect(_) => "connect",
            Self::Cut(_) => "transport",
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
    /// Characters kept of the text of an error status.
    pub max_error: usize,
}

impl Http {
    #[must_use]
    pub fn new(client: reqwest::Client, retry: Policy) -> Self {
        Self { client, retry, timeout: Duration::from_secs(60), max_bytes: 64 << 20, max_error: 500 }
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
        self.open(request).await?.whole().await
    }

    /// One attempt, up to the head of the answer, for a body that is read as it comes. Bounds no time.
    ///
    /// # Errors
    /// Any status from 400 on, and everything that keeps the head from arriving.
    pub async fn open(&self, request: RequestBuilder) -> Result<Incoming, HttpError> {
        let response = request.send().await.map_err(|error| connection_error(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut incoming = Incoming { status, headers, response, bytes_left: self.max_bytes, max_bytes: self.max_bytes };
        if status.as_u16() < 400 {
            return Ok(incoming);
        }
        let body = incoming.rest().await?;
        Err(HttpError::Status {
            status: status.as_u16(),
            body: text::one_line(&String::from_utf8_lossy(&body), self.max_error),
            retry_after: retry_after(&incoming.headers),
            headers: Box::new(incoming.headers),
        })
    }

    /// Attempts until one succeeds, one fails for good, or the policy ends.
    ///
    /// `make` builds the request anew for each attempt; `read` turns the answer into what the caller wants and may
    /// refuse it (`HttpError::NotJson` is tried again).
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn send<T>(
        &self,
        mut make: impl FnMut() -> RequestBuilder + Send,
        mut read: impl FnMut(Answer) -> Result<T, HttpError> + Send,
    ) -> Result<T, HttpError> {
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
fn connection_error(error: &reqwest::Error) -> HttpError {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let what = text::one_line(&deepest.to_string(), 200);
    if error.is_connect() { HttpError::Connect(what) } else { HttpError::Cut(what) }
}
