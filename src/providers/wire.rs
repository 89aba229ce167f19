//! What providers share on the wire: requests with secret headers, what was learnt about a model, and lenient counts.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    sync::RwLock,
    time::Duration,
};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::{
    Deserializer, Serialize,
    de::{SeqAccess, Visitor},
};
use serde_json::Value;
use url::Url;

pub(super) use super::complaint::Complaint;
use super::{BuildError, ChatRequest, Headroom, Left, ProviderError};
use crate::util::{
    http::{Answer, Http, HttpError, Incoming},
    secret::{ExposeSecret, SecretString},
    text,
};

/// The layers bound an attempt by the profile's timeout; this one only has to be longer than any of those.
const NO_TIMEOUT: Duration = Duration::from_hours(24);

/// A judge's answer is a few kilobytes. What is far larger is no answer of a model.
const MAX_ANSWER: usize = 8 << 20;

/// Characters of a complaint that are read. Azure's on a filtered prompt is some 1,500 long, and half of one is no JSON.
const MAX_COMPLAINT: usize = 16_000;

/// 2,048 vectors of 4,096 figures in some 12 characters each.
const MAX_VECTORS: usize = 128 << 20;

/// One provider's address with the headers that every request carries.
#[derive(Debug)]
pub(super) struct Endpoint {
    http: Http,
    base: Url,
    headers: HeaderMap,
}

impl Endpoint {
    pub(super) fn new(http: &Http, base_url: &str) -> Result<Self, BuildError> {
        let web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let base = Url::parse(base_url).ok().filter(web).ok_or_else(|| BuildError::at("base_url", "`base_url` is no address like `https://host/path`"))?;
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let http = Http { timeout: NO_TIMEOUT, max_bytes: MAX_ANSWER, max_error: MAX_COMPLAINT, ..http.clone() };
        Ok(Self { http, base, headers })
    }

    /// Adds a header to every request; `key` is the setting it comes from.
    pub(super) fn header(&mut self, key: &'static str, name: &str, value: &str) -> Result<(), BuildError> {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| BuildError::at(key, format!("`{}` is no name of a header", text::one_line(name, 60))))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| BuildError::at(key, format!("the value for the header `{name}` has characters that a header cannot have")))?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(())
    }

    /// The user's `headers`, over all others.
    pub(super) fn extra_headers(&mut self, headers: &BTreeMap<String, SecretString>) -> Result<(), BuildError> {
        headers.iter().try_for_each(|(name, value)| self.header("headers", name, value.expose_secret()))
    }

    pub(super) fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// An address below the base; what the base has as its query stays.
    pub(super) fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    pub(super) async fn post(&self, url: &Url, body: Vec<u8>) -> Result<Answer, Complaint> {
        let request = self.http.client.post(url.clone()).headers(self.headers.clone()).body(body);
        self.http.attempt(request).await.map_err(|error| self.complaint(&error))
    }

    /// Like [`Endpoint::post`], for an answer that is as large as vectors are.
    pub(super) async fn post_for_vectors(&self, url: &Url, body: Vec<u8>) -> Result<Answer, Complaint> {
        let request = self.http.client.post(url.clone()).headers(self.headers.clone()).body(body);
        let http = Http { max_bytes: MAX_VECTORS, ..self.http.clone() };
        http.attempt(request).await.map_err(|error| self.complaint(&error))
    }

    /// For an answer that is read as it comes.
    pub(super) async fn open(&self, url: &Url, body: Vec<u8>) -> Result<Incoming, HttpError> {
        self.http.open(self.http.client.post(url.clone()).headers(self.headers.clone()).body(body)).await
    }

    pub(super) async fn get(&self, url: Url) -> Result<Answer, Complaint> {
        let request = self.http.client.get(url).headers(self.headers.clone());
        self.http.attempt(request).await.map_err(|error| self.complaint(&error))
    }

    pub(super) fn complaint(&self, error: &HttpError) -> Complaint {
        let mut complaint = Complaint::read(error);
        complaint.message = self.without_secrets(complaint.message);
        complaint
    }

    /// Some proxies quote the key they refuse.
    fn without_secrets(&self, message: String) -> String {
        let secrets = self.headers.values().filter(|value| value.is_sensitive()).filter_map(|value| value.to_str().ok());
        secrets
            .map(|secret| secret.strip_prefix("Bearer ").unwrap_or(secret))
            .filter(|secret| secret.len() >= 8)
            .fold(message, |message, secret| message.replace(secret, "[secret]"))
    }
}

/// Bytes of a request, built in one pass.
pub(super) fn body(value: &impl Serialize, capacity: usize) -> Result<Vec<u8>, ProviderError> {
    let mut bytes = Vec::with_capacity(capacity);
    serde_json::to_writer(&mut bytes, value).map_err(unwritable)?;
    Ok(bytes)
}

pub(super) fn unwritable(error: serde_json::Error) -> ProviderError {
    ProviderError::Rejected { kind: "bad_request", message: format!("the request cannot be written as JSON: {error}") }
}

/// Reads one document of a stream.
pub(super) fn document<'a, T: serde::Deserialize<'a>>(document: &'a str) -> Result<T, HttpError> {
    serde_json::from_str(document).map_err(|error| HttpError::NotJson(format!("{error}; it begins with `{}`", text::one_line(document, 80))))
}

/// What a provider learns by refusals of it.
pub(super) trait Quirks: Copy + PartialEq + fmt::Debug {
    /// What to try after this complaint; `None` where the request itself is at fault. Ends: each step gives up
    /// something for good.
    fn after(self, complaint: &Complaint, request: &ChatRequest) -> Option<Self>;
}

/// The ids in `{"data": [{"id"}]}`, as OpenAI and Anthropic list their models.
pub(super) fn model_ids(answer: &Answer) -> Result<Vec<String>, HttpError> {
    #[derive(serde::Deserialize)]
    struct List {
        #[serde(default)]
        data: Vec<Row>,
    }
    #[derive(serde::Deserialize)]
    struct Row {
        id: String,
    }
    let list: List = crate::util::http::json(answer)?;
    Ok(list.data.into_iter().map(|row| row.id).collect())
}

/// What is left of a provider's limits: `x-ratelimit-*` of OpenAI and its kin (resets as `1s`, `6m0s`, `20ms` or seconds),
/// `anthropic-ratelimit-*` (resets as RFC 3339).
pub(super) fn headroom(headers: &HeaderMap) -> Headroom {
    let get = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let left = |what: &str| {
        let openai = get(&format!("x-ratelimit-remaining-{what}")).zip(get(&format!("x-ratelimit-reset-{what}")));
        let anthropic = || get(&format!("anthropic-ratelimit-{what}-remaining")).zip(get(&format!("anthropic-ratelimit-{what}-reset")));
        let (remaining, reset) = openai.or_else(anthropic)?;
        Some(Left { remaining: remaining.parse().ok()?, resets_in: resets_in(reset, get("date"))? })
    };
    Headroom { requests: left("requests"), tokens: left("tokens") }
}

fn resets_in(reset: &str, date: Option<&str>) -> Option<Duration> {
    if let Ok(seconds) = reset.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    if let Ok(at) = reset.parse::<jiff::Timestamp>() {
        // An instant of the server's clock; ours may differ.
        let now = jiff::fmt::rfc2822::parse(date?).ok()?.timestamp();
        return Some(Duration::try_from(now.duration_until(at)).unwrap_or_default());
    }
    Duration::try_from(reset.parse::<jiff::SignedDuration>().ok()?).ok()
}

/// What was learnt about each model by being refused; kept as long as the process lives.
#[derive(Debug)]
pub(super) struct Learnt<Q>(RwLock<HashMap<String, Q>>);

impl<Q> Default for Learnt<Q> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<Q: Quirks> Learnt<Q> {
    /// Sends as the model is known to want it, `guess` the first time, and then without what is refused. The outer error of
    /// `send` is ours, the inner one the server's.
    pub(super) async fn ask<T, F>(
        &self,
        request: &ChatRequest,
        guess: impl FnOnce() -> Q,
        send: impl Fn(Q) -> F,
        into_error: impl Fn(Complaint) -> ProviderError,
    ) -> Result<T, ProviderError>
    where
        F: Future<Output = Result<Result<T, Complaint>, ProviderError>>,
    {
        let known = self.of(&request.model, guess);
        let mut quirks = known;
        loop {
            let complaint = match send(quirks).await? {
                Ok(answer) => {
                    // Only now it is sure that what was left out was the reason.
                    if quirks != known {
                        tracing::info!(model = request.model, ?quirks, "the server refused a parameter and is asked without it from now on");
                        self.set(&request.model, quirks);
                    }
                    return Ok(answer);
                }
                Err(complaint) => complaint,
            };
            match quirks.after(&complaint, request) {
                Some(next) => quirks = next,
                None => return Err(into_error(complaint)),
            }
        }
    }

    /// What is known about `model`, `guess` the first time.
    fn of(&self, model: &str, guess: impl FnOnce() -> Q) -> Q {
        // A poisoned lock only means that a reader panicked; the map is whole.
        let known = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(model).copied();
        known.unwrap_or_else(|| {
            let guess = guess();
            self.set(model, guess);
            guess
        })
    }

    fn set(&self, model: &str, quirks: Q) {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(model.to_owned(), quirks);
    }
}

/// The system prompt where the schema can only be asked for in words. Some servers want to read "JSON" somewhere.
pub(super) fn told_in_words<'a>(system: Option<&'a str>, schema: Option<&Value>) -> Option<Cow<'a, str>> {
    let Some(schema) = schema else { return system.map(Cow::Borrowed) };
    let order = format!("Answer with one JSON object and nothing else. It must follow this JSON Schema:\n{schema}");
    Some(Cow::Owned(match system {
        Some(system) => format!("{system}\n\n{order}"),
        None => order,
    }))
}

/// For `deserialize_with`: a count that may be missing, null, a float or nonsense. What is no count is unknown.
pub(super) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Count;

    impl<'de> Visitor<'de> for Count {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a count")
        }

        fn visit_u64<E>(self, count: u64) -> Result<Self::Value, E> {
            // Counts are summed later; no real one comes near.
            Ok(Some(count).filter(|count| *count < 1 << 50))
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(None)
        }

        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range, and whole as far as a count is")]
        fn visit_f64<E>(self, count: f64) -> Result<Self::Value, E> {
            Ok((0.0..1e15).contains(&count).then_some(count as u64))
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            Ok(None)
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
            Ok(None)
        }
    }

    deserializer.deserialize_any(Count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_a_proxy_quotes_is_taken_out() {
        let http = Http::new(reqwest::Client::new(), crate::util::backoff::Policy::default());
        let mut endpoint = Endpoint::new(&http, "http://localhost/v1/?api-version=1").unwrap();
        endpoint.header("api_key", "authorization", "Bearer sk-secret-1").unwrap();
        let error = HttpError::Status { status: 401, body: "bad key sk-secret-1".to_owned(), retry_after: None, headers: Box::default() };
        assert_eq!(endpoint.complaint(&error).message, "HTTP 401: bad key [secret]");
        assert!(!format!("{endpoint:?}").contains("sk-secret-1"));
        assert_eq!(endpoint.url(&["chat", "completions"]).as_str(), "http://localhost/v1/chat/completions?api-version=1");
        assert!(endpoint.header("headers", "a b", "x").is_err() && Endpoint::new(&http, "file:///x").is_err());
    }
}
