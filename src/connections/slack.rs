//! A Slack workspace, and a client that reads from it.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use slack_morphism::{
    SlackApiToken, SlackApiTokenValue, SlackClient,
    errors::SlackClientError,
    hyper_tokio::{SlackClientHyperConnector, SlackHyperClient},
};
use tokio::{sync::OnceCell, time::Instant};
use url::Url;

use crate::util::{
    backoff::{self, Policy},
    secret::{ExposeSecret, SecretString},
    text::one_line,
};

/// A Slack workspace: a bot token (threads, edits, resolves in place) or an incoming webhook (plain messages).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SlackConnection {
    /// Bot token (`xoxb-...`): with `chat:write` for alerts, with `channels:history` (`groups:history` for private
    /// channels) for the source `slack`.
    #[schemars(with = "Option<String>")]
    pub token: Option<SecretString>,
    /// Incoming webhook; its URL is a secret. Used when there is no token.
    #[schemars(with = "Option<String>")]
    pub webhook_url: Option<SecretString>,
    /// To check requests that come from Slack.
    #[schemars(with = "Option<String>")]
    pub signing_secret: Option<SecretString>,
    /// Base of the Web API.
    #[serde(default = "default_api_url")]
    pub api_url: String,
}

fn default_api_url() -> String {
    "https://slack.com/api/".to_owned()
}

/// Of one attempt; slack-morphism has no limit of its own.
const TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Slack counts by the minute; waited where it asks to slow down and does not say for how long.
const UNSAID: Duration = Duration::from_secs(30);
/// A call that Slack put off for longer in all is given up: the workspace's limit is used up by others.
const MOST_SLOWED: Duration = Duration::from_mins(10);

/// Reads from a workspace. Waiting when Slack says so, trying again and bounding time happen here.
///
/// Not slack-morphism's own rate control, which slows calls down before Slack asks for it: the limits differ by app.
pub struct Slack {
    api_url: String,
    token: SlackApiToken,
    retry: Policy,
    /// Made at the first call, since it reads the system's certificates.
    client: OnceCell<SlackHyperClient>,
    /// Until when a method is not called, where Slack asked for that.
    pauses: Mutex<BTreeMap<&'static str, Instant>>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum SlackError {
    /// Slack's word for what it does not do (`not_in_channel`); `needed` is the scope it misses, where it names one.
    #[error("Slack refuses {method}: {code}{}", needed.as_ref().map(|needed| format!(" (needs {needed})")).unwrap_or_default())]
    Refused { method: &'static str, code: String, needed: Option<String> },
    /// Retries ran out.
    #[error("{0}")]
    Unavailable(String),
}

/// What came of one attempt.
enum Failed {
    Slowed(Option<Duration>),
    Passing(String),
    Refused { code: String, needed: Option<String> },
}

impl SlackConnection {
    /// Its bot token, where it has one.
    ///
    /// # Errors
    /// A sentence: it is none that could be sent.
    pub fn bot_token(&self) -> Result<Option<SlackApiToken>, String> {
        let Some(token) = &self.token else { return Ok(None) };
        let token = token.expose_secret().trim();
        // A line break in a token (a file read whole) would fail every call with a message nobody understands.
        if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
            return Err("the Slack token is empty or has characters that no token has".to_owned());
        }
        Ok(Some(SlackApiToken::new(SlackApiTokenValue(token.to_owned()))))
    }

    /// Base of the Web API. slack-morphism joins with a slash of its own, and some servers take `//` for another path.
    ///
    /// # Errors
    /// A sentence: it is no address.
    pub fn base(&self) -> Result<String, String> {
        let base = self.api_url.trim_end_matches('/');
        let sound = Url::parse(base).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if sound { Ok(base.to_owned()) } else { Err(format!("`{}` is not an http(s) address", one_line(base, 80))) }
    }
}

impl Slack {
    /// Touches neither network nor disk.
    ///
    /// # Errors
    /// A sentence: the connection has no token, or an address that is none.
    pub fn new(connection: &SlackConnection, retry: Policy) -> Result<Self, String> {
        let token = connection.bot_token()?.ok_or("reading from Slack needs a connection with a `token`; a webhook only posts")?;
        let api_url = connection.base()?;
        Ok(Self { api_url, token, retry, client: OnceCell::new(), pauses: Mutex::default() })
    }

    /// Calls a method that reads, until it answers. The answer's `ok` has been looked at.
    ///
    /// # Errors
    /// See [`SlackError`].
    pub async fn get<T: DeserializeOwned + Send>(&self, method: &'static str, query: &[(&'static str, String)]) -> Result<T, SlackError> {
        let started = Instant::now();
        let (mut slowed, mut attempts) = (Duration::ZERO, 0);
        loop {
            slowed += self.turn(method).await;
            match self.attempt::<T>(method, query).await {
                Ok(answer) => return Ok(answer),
                // To wait when asked is no failed attempt: a workspace may allow one call a minute.
                Err(Failed::Slowed(wait)) => {
                    let wait = wait.unwrap_or(UNSAID) + Duration::from_secs(1).mul_f64(backoff::chance());
                    if slowed + wait > MOST_SLOWED {
                        return Err(SlackError::Unavailable(format!("Slack put {method} off for {MOST_SLOWED:?}: its rate limit is used up")));
                    }
                    tracing::info!(method, ?wait, "Slack asks to slow down");
                    self.pause(method, wait);
                }
                Err(Failed::Passing(message)) => {
                    attempts += 1;
                    let wait = self.retry.wait(attempts, started.elapsed().saturating_sub(slowed), None, backoff::chance());
                    let Some(wait) = wait else { return Err(SlackError::Unavailable(message)) };
                    tracing::debug!(method, attempts, ?wait, error = %message, "Slack did not answer, trying again");
                    tokio::time::sleep(wait).await;
                }
                Err(Failed::Refused { code, needed }) => return Err(SlackError::Refused { method, code, needed }),
            }
        }
    }

    /// Waits until the method may be called; how long that was.
    async fn turn(&self, method: &'static str) -> Duration {
        let started = Instant::now();
        loop {
            let until = self.pauses.lock().unwrap_or_else(PoisonError::into_inner).get(method).copied();
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return started.elapsed(),
            }
        }
    }

    /// Slack counts by method: the other calls of this one wait too.
    fn pause(&self, method: &'static str, wait: Duration) {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let until = pauses.entry(method).or_insert_with(Instant::now);
        *until = (*until).max(Instant::now() + wait);
    }

    async fn attempt<T: DeserializeOwned + Send>(&self, method: &'static str, query: &[(&'static str, String)]) -> Result<T, Failed> {
        let client =
            self.client.get_or_try_init(|| async { slack_client(&self.api_url, self.api_url.starts_with("https:")) }).await.map_err(Failed::Passing)?;
        let session = client.open_session(&self.token);
        let params: Vec<(&str, Option<&str>)> = query.iter().map(|(key, value)| (*key, Some(value.as_str()))).collect();
        match tokio::time::timeout(TIMEOUT, session.http_session_api.http_get(method, &params, None)).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(Failed::Passing(format!("no answer from Slack within {TIMEOUT:?}"))),
        }
    }
}

/// One client for https and, where the address says so, plain http. `tls`: whether what is called is https.
///
/// # Errors
/// A sentence: TLS cannot be set up.
pub fn slack_client(api_url: &str, tls: bool) -> Result<SlackHyperClient, String> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let builder = HttpsConnectorBuilder::new();
    let builder = if tls {
        builder.with_provider_and_native_roots(aws_lc_rs::default_provider()).map_err(|error| format!("root certificates for Slack: {error}"))?
    } else {
        // A container without certificates can still use a stand-in or a proxy over http. No root: no https.
        let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS for Slack: {error}"))?;
        builder.with_tls_config(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    };
    let connector = builder.https_or_http().enable_http1().enable_http2().wrap_connector(http);
    Ok(SlackClient::new(SlackClientHyperConnector::from(connector).with_slack_api_url(api_url)))
}

/// What a refused call says beside `error`.
#[derive(Deserialize, Default)]
struct Needs {
    needed: Option<String>,
}

fn failed(error: SlackClientError) -> Failed {
    match error {
        SlackClientError::RateLimitError(error) => Failed::Slowed(error.retry_after),
        SlackClientError::ApiError(error) => match error.code.as_str() {
            "ratelimited" | "rate_limited" => Failed::Slowed(None),
            "internal_error" | "fatal_error" | "request_timeout" | "service_unavailable" => Failed::Passing(format!("Slack says {}", error.code)),
            code => {
                let needs: Needs = error.http_response_body.as_deref().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
                Failed::Refused { code: one_line(code, 80), needed: needs.needed.map(|needed| one_line(&needed, 120)) }
            }
        },
        SlackClientError::HttpError(error) => {
            let status = error.status_code.as_u16();
            if status >= 500 || status == 408 {
                Failed::Passing(format!("Slack answered HTTP {status}"))
            } else {
                Failed::Refused { code: format!("HTTP {status}"), needed: None }
            }
        }
        SlackClientError::ProtocolError(error) => Failed::Passing(format!("Slack's answer is not what was expected: {}", error.json_error)),
        other => Failed::Passing(format!("Slack cannot be reached: {}", slack_cause(&other))),
    }
}

/// The cause without its wrapping, which names only libraries.
#[must_use]
pub fn slack_cause(error: &SlackClientError) -> String {
    // slack-morphism's own errors end the chain of `source`, although they hold a cause.
    let mut cause: &dyn Error = match error {
        SlackClientError::HttpProtocolError(error) => error.cause.as_ref().map_or(error as &dyn Error, |cause| cause.as_ref()),
        SlackClientError::SystemError(error) => error.cause.as_ref().map_or(error as &dyn Error, |cause| cause.as_ref()),
        other => other,
    };
    while let Some(source) = cause.source() {
        cause = source;
    }
    one_line(&cause.to_string(), 200)
}
