use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{Method, RequestBuilder};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::OnceCell, time::Instant};

use super::links::{Links, LinksOf};
use crate::util::{
    http::{self, Http, HttpError},
    secret::{ExposeSecret, SecretString},
};

/// A Langfuse project. The keys decide the project.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LangfuseConnection {
    /// `https://cloud.langfuse.com`, or your own host; without `/api/public`.
    #[serde(default = "default_base_url")]
    pub base_url: String,
    #[schemars(with = "String")]
    pub public_key: SecretString,
    #[schemars(with = "String")]
    pub secret_key: SecretString,
    /// `lf-whsec_...`: checks prompt webhooks.
    #[schemars(with = "Option<String>")]
    pub webhook_secret: Option<SecretString>,
    /// Called (POST, JSON) when a prompt webhook was taken; it may hold a secret.
    #[schemars(with = "Option<String>")]
    pub notify_url: Option<SecretString>,
    /// Shared by all that name this connection.
    #[serde(skip)]
    #[schemars(skip)]
    dialect: Arc<Mutex<Option<Known>>>,
    #[serde(skip)]
    #[schemars(skip)]
    links: LinksOf,
}

/// What a server was found to be.
#[derive(Debug, Clone, Copy)]
struct Known {
    dialect: Dialect,
    at: Instant,
}

/// For how long a server is held to be one of v3: they are upgraded, and nobody tells us. One of v4 stays one.
const V3_FOR: Duration = Duration::from_secs(600);

fn default_base_url() -> String {
    "https://cloud.langfuse.com".to_owned()
}

/// An attribute of a span.
#[must_use]
pub fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// A name as one segment of a path: a slash in it is no separator.
#[must_use]
pub fn segment(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Which reads a server offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/api/public/v2/observations`
    V4,
    /// `/api/public/traces`
    V3,
}

/// A client of one project. Cheap to clone; what was found by probing is shared by all clients of the connection.
#[derive(Debug, Clone)]
pub struct Langfuse {
    http: Http,
    base_url: String,
    connection: Arc<LangfuseConnection>,
    project: Arc<OnceCell<Option<String>>>,
}

impl Langfuse {
    #[must_use]
    pub fn new(connection: &LangfuseConnection, http: Http) -> Self {
        let base_url = connection.base_url.trim_end_matches('/').to_owned();
        Self { http, base_url, connection: Arc::new(connection.clone()), project: Arc::default() }
    }

    #[must_use]
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// A request with credentials; `path` begins behind `/api/public`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .client
            .request(method, format!("{}/api/public{path}", self.base_url))
            .basic_auth(self.connection.public_key.expose_secret(), Some(self.connection.secret_key.expose_secret()))
            .header("x-langfuse-sdk-name", "assayd")
            .header("x-langfuse-sdk-version", env!("CARGO_PKG_VERSION"))
    }

    /// A request that hands over spans, in OTLP's JSON form (ids in hex, 64-bit integers as strings). Langfuse queues them;
    /// its answer says no more than that.
    pub fn spans(&self, spans: &[impl serde::Serialize]) -> RequestBuilder {
        let scope = json!({ "scope": { "name": "assayd", "version": env!("CARGO_PKG_VERSION") }, "spans": spans });
        let body = json!({ "resourceSpans": [{ "resource": { "attributes": [attribute("service.name", "assayd")] }, "scopeSpans": [scope] }] });
        self.request(Method::POST, "/otel/v1/traces").header("x-langfuse-ingestion-version", "4").json(&body)
    }

    /// Found by asking, and remembered. A failed probe is asked again.
    ///
    /// # Errors
    /// The probe's, except where it means V3.
    pub async fn dialect(&self) -> Result<Dialect, HttpError> {
        let known = *self.known();
        if let Some(known) = known.filter(|known| known.dialect == Dialect::V4 || known.at.elapsed() < V3_FOR) {
            return Ok(known.dialect);
        }
        let from = (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(1)).to_string();
        let query = [("limit", "1"), ("fromStartTime", from.as_str())];
        let probe = self.http.send(|| self.request(Method::GET, "/v2/observations").query(&query), |answer| http::json::<Value>(&answer)).await;
        let dialect = match probe {
            Ok(_) => Dialect::V4,
            Err(error) if self.says_v3(&error).await => Dialect::V3,
            Err(error) => return Err(error),
        };
        *self.known() = Some(Known { dialect, at: Instant::now() });
        Ok(dialect)
    }

    /// Has the next to need it ask again.
    pub fn forget_dialect(&self) {
        *self.known() = None;
    }

    /// Not held over a probe: where a server does not answer, nobody waits for anybody else's patience.
    fn known(&self) -> MutexGuard<'_, Option<Known>> {
        self.connection.dialect.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a refused probe came from a server without the path. Any proxy answers 404 for a moment while a server is
    /// started anew, so it has to be Langfuse's own answer; where it is not (the oldest servers have a page for unknown
    /// paths), its version has to say so.
    async fn says_v3(&self, error: &HttpError) -> bool {
        #[derive(Deserialize)]
        struct Health {
            version: String,
        }
        let HttpError::Status { status: 404 | 405 | 410, body, .. } = error else { return false };
        if body.contains("Langfuse v4") || body.contains("LangfuseNotFoundError") {
            return true;
        }
        let health = self.http.attempt(self.request(Method::GET, "/health")).await.and_then(|answer| http::json::<Health>(&answer));
        let major = health.ok().and_then(|health| health.version.trim_start_matches('v').split('.').next()?.parse::<u32>().ok());
        major.is_some_and(|major| major < 4)
    }

    /// What is known to be in a run of a dataset, for all that publish there.
    pub fn links(&self, dataset_id: &str, run_name: &str) -> Arc<tokio::sync::Mutex<Links>> {
        self.connection.links.of(dataset_id, run_name)
    }

    /// An address of the server's own, as Langfuse v3 gives it with a trace.
    #[must_use]
    pub fn page(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    /// Where a person finds a trace, once the project's id is known; `None` where the keys do not tell it.
    pub async fn trace_url(&self, trace_id: &str) -> Option<String> {
        let project = self.project.get_or_init(|| async { self.project_id().await.ok() }).await;
        project.as_ref().map(|project| format!("{}/project/{project}/traces/{trace_id}", self.base_url))
    }

    /// The cheapest check of the credentials: exempt from rate limits.
    ///
    /// # Errors
    /// 401 for refused keys, 403 for an organisation's key.
    pub async fn project_id(&self) -> Result<String, HttpError> {
        #[derive(Deserialize)]
        struct Projects {
            data: Vec<Project>,
        }
        #[derive(Deserialize)]
        struct Project {
            id: String,
        }
        let projects: Projects = self.http.send(|| self.request(Method::GET, "/projects"), |answer| http::json(&answer)).await?;
        projects.data.into_iter().next().map(|project| project.id).ok_or_else(|| HttpError::NotJson("the answer names no project".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment() {
        assert_eq!(segment("team/judge v2"), "team%2Fjudge%20v2");
        assert_eq!(segment("Ä?#%"), "%C3%84%3F%23%25");
    }
}
