use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::{BuildError, Gives, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, Price, outside};
use crate::{
    model::{Outcome, Usage, Wait},
    util::{
        duration::Human,
        http::{self, Http, HttpError},
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
        Ok(Arc::new(HttpMetric { http, url, headers, trace: self.trace }))
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
}

struct HttpMetric {
    http: Http,
    url: Url,
    headers: HeaderMap,
    trace: bool,
}

#[async_trait]
impl Metric for HttpMetric {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let body = serde_json::json!({ "item": outside::item(cx, self.trace) });
        // A stable key lets the service recognise an item that comes again.
        let key = crate::model::trace_id(cx.call.run_id, cx.call.item_id);
        let started = tokio::time::Instant::now();
        let make = || self.http.client.post(self.url.clone()).headers(self.headers.clone()).header("idempotency-key", &key).json(&body);
        let answer = self.http.send(make, |answer| http::json::<outside::Answer>(&answer)).await;
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match answer {
            Ok(answer) => answer.judgement(took_ms),
            Err(error) => Judgement::new(failed(&error), Usage { latency_ms: Some(took_ms), ..Usage::default() }, None),
        }
    }
}

fn failed(error: &HttpError) -> Outcome {
    let reason = format!("http: {error}");
    match error {
        // Nobody can be judged until somebody acts: that is the service's fault, not the item's.
        HttpError::Connect(_) | HttpError::Status { status: 401 | 403 | 404 | 405, .. } => Outcome::Deferred { reason, wait: Wait::Judge },
        _ => Outcome::Failed { reason },
    }
}
