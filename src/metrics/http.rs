use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::{BuildError, Gives, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, Price, outside};
use crate::{
    model::{Outcome, Usage, Wait, content_hash, score_id},
    util::{
        duration::Human,
        hidden::Hidden,
        http::{self, Answer, Http, HttpError},
        plugin,
        secret::{ExposeSecret, SecretString},
    },
};

/// A service of your own: one item is posted as JSON, a list of outcomes comes back (docs/metrics.md).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    url: String,
    /// Sent with every item, such as `Authorization`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    headers: BTreeMap<String, SecretString>,
    /// Of one attempt. Default 60s.
    #[serde(default = "timeout")]
    timeout: Human,
    /// Send the whole trace too. Default false.
    #[serde(default)]
    trace: bool,
    /// Tells versions of the service apart: a changed one is a new revision of the metric.
    #[serde(default)]
    version: String,
}

fn timeout() -> Human {
    Human::secs(60)
}

inventory::submit! {
    MetricKind {
        name: "http",
        example: "url: http://localhost:9000/judge\ntimeout: 30s\nversion: \"3\"\n",
        schema: plugin::schema::<HttpConfig>,
        parse: |node, faults| plugin::parse::<HttpConfig>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for HttpConfig {
    fn build(&self, cx: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        let url = Url::parse(&self.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.ok_or_else(|| BuildError::at("url", "an http or https URL, such as http://localhost:9000/judge".to_owned()))?;
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            let named = HeaderName::try_from(name).map_err(|_| BuildError::at("headers", format!("`{}` is no name of a header", name.escape_default())))?;
            let mut value = HeaderValue::try_from(value.expose_secret())
                .map_err(|_| BuildError::at("headers", format!("the value of `{named}` is none that a header can have")))?;
            value.set_sensitive(true);
            headers.insert(named, value);
        }
        let http = Http { timeout: self.timeout.0, max_bytes: 4 << 20, ..cx.http.clone() };
        let hidden = Hidden::of(self.headers.values());
        Ok(Arc::new(HttpMetric { http, url, headers, trace: self.trace, revision: self.revision(cx), hidden }))
    }

    fn price(&self) -> Price {
        Price::Paid
    }

    fn gives(&self) -> Gives {
        Gives::Unknown
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        format!("http:{}\0{}\0{}", self.url, self.trace, self.version)
    }

    /// A whole trace has its observations.
    fn templates(&self) -> Vec<&str> {
        self.trace.then_some("trace.observations").into_iter().collect()
    }
}

struct HttpMetric {
    http: Http,
    url: Url,
    headers: HeaderMap,
    trace: bool,
    revision: String,
    /// What the service was given in `headers` and must not tell on.
    hidden: Hidden,
}

#[async_trait]
impl Metric for HttpMetric {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let body = serde_json::json!({ "item": outside::item(cx, self.trace) });
        // The same for the same judgement in whatever run, so that a service can hand out again what it has found.
        let key = score_id(cx.call.monitor, cx.call.metric, &self.revision, cx.call.item_id, &content_hash(cx.case));
        let started = tokio::time::Instant::now();
        let make = || self.http.client.post(self.url.clone()).headers(self.headers.clone()).header("idempotency-key", &key).json(&body);
        let answer = self.http.send(make, read).await;
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match answer {
            Ok(answer) => answer.judgement(took_ms, &self.hidden),
            Err(error) => Judgement::new(self.failed(&error), Usage { latency_ms: Some(took_ms), ..Usage::default() }, None),
        }
    }
}

/// The client follows no redirect: a key in a header would go with it.
fn read(answer: Answer) -> Result<outside::Answer, HttpError> {
    if answer.status.is_redirection() {
        let elsewhere = if answer.headers.contains_key(LOCATION) { "the answer has a Location: `url` has to be where it leads" } else { "without a Location" };
        let body = format!("a redirect, which is not followed; {elsewhere}");
        return Err(HttpError::Status { status: answer.status.as_u16(), body, retry_after: None, headers: Box::new(answer.headers) });
    }
    http::json(&answer)
}

impl HttpMetric {
    fn failed(&self, error: &HttpError) -> Outcome {
        let reason = self.hidden.out_of(&format!("http: {error}"));
        match error {
            // Nobody can be judged until somebody acts: that is the service's fault, not the item's.
            HttpError::Connect(_) | HttpError::Status { status: 300..=399 | 401 | 403 | 404 | 405, .. } => Outcome::Deferred { reason, wait: Wait::Judge },
            _ => Outcome::Failed { reason },
        }
    }
}
