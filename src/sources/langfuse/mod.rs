//! Traces of a Langfuse project, in both dialects (found by probing once): `v4` reads observations and groups them,
//! `v3` reads traces. What differs is in the two files beside this one; the settings, the filters and what an error
//! means are the same.

mod v3;
mod v4;

use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{BuildError, Fetched, Pages, Source, SourceConfig, SourceCx, SourceError, SourceKind, Window};
use crate::{
    connections::{self, Dialect, Langfuse},
    model::Trace,
    util::{http::HttpError, plugin},
};

/// Production traces from Langfuse; the item id is the trace id.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LangfuseConfig {
    /// Langfuse connection. Default `default`.
    connection: String,
    /// Traces (root observations) of these names. Default: all.
    names: Vec<String>,
    /// Traces with all of these tags.
    tags: Vec<String>,
    /// Traces of these environments. Default: all but Langfuse's own (`langfuse-*`, `sdk-experiment`).
    environment: OneOrMany,
    user_ids: Vec<String>,
    session_ids: Vec<String>,
    /// Traces a request asks for, 1 to 100. Default 100.
    page_size: u32,
}

impl Default for LangfuseConfig {
    fn default() -> Self {
        Self {
            connection: connections::DEFAULT.to_owned(),
            names: Vec::new(),
            tags: Vec::new(),
            environment: OneOrMany(Vec::new()),
            user_ids: Vec::new(),
            session_ids: Vec::new(),
            page_size: 100,
        }
    }
}

/// `production`, or `[production, staging]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Value")]
#[schemars(with = "Value")]
struct OneOrMany(Vec<String>);

impl TryFrom<Value> for OneOrMany {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::Null => Ok(Self::default()),
            Value::String(one) => Ok(Self(vec![one])),
            Value::Array(many) => {
                let many = many.into_iter().map(|one| if let Value::String(one) = one { Ok(one) } else { Err("expected names of environments".to_owned()) });
                many.collect::<Result<_, _>>().map(Self)
            }
            _ => Err("expected an environment's name or a list of them".to_owned()),
        }
    }
}

inventory::submit! {
    SourceKind {
        name: "langfuse",
        example: "connection: default\nnames: [chat-turn]\ntags: [prod]\nenvironment: production\n",
        schema: plugin::schema::<LangfuseConfig>,
        parse: |node, faults| plugin::parse::<LangfuseConfig>(node, faults).map(|config| Box::new(config) as Box<dyn SourceConfig>),
    }
}

impl SourceConfig for LangfuseConfig {
    fn build(&self, cx: &SourceCx<'_>) -> Result<Arc<dyn Source>, BuildError> {
        let connection = connections::find("langfuse", &cx.connections.langfuse, &self.connection).map_err(|message| BuildError::at("connection", message))?;
        if !(1..=100).contains(&self.page_size) {
            return Err(BuildError::at("page_size", "between 1 and 100"));
        }
        Ok(Arc::new(Reader { api: Langfuse::new(connection, cx.http.clone()), config: self.clone(), long: v4::LongKeys::default() }))
    }

    fn gives_observations(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Reader {
    api: Langfuse,
    config: LangfuseConfig,
    long: v4::LongKeys,
}

#[async_trait]
impl Source for Reader {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        match self.api.dialect().await.map_err(|error| self.error(&error))? {
            Dialect::V4 => v4::fetch(self, window, pages).await,
            Dialect::V3 => v3::fetch(self, window, pages).await,
        }
    }

    async fn complete(&self, trace: Arc<Trace>) -> Result<Arc<Trace>, SourceError> {
        let mut observations = match self.api.dialect().await.map_err(|error| self.error(&error))? {
            Dialect::V4 => v4::observations(self, &trace).await?,
            Dialect::V3 => v3::observations(self, &trace).await?,
        };
        observations.sort_by(|a, b| (a.start, &a.id).cmp(&(b.start, &b.id)));
        Ok(Arc::new(Trace { observations, ..Trace::clone(&trace) }))
    }

    async fn probe(&self) -> Result<String, SourceError> {
        let project = self.api.project_id().await.map_err(|error| self.error(&error))?;
        let dialect = self.api.dialect().await.map_err(|error| self.error(&error))?;
        Ok(format!("Langfuse project {project} answers ({dialect:?})"))
    }
}

impl Reader {
    fn error(&self, error: &HttpError) -> SourceError {
        match error.status() {
            Some(401 | 403) => SourceError::Refused(format!("Langfuse refuses the keys of connection `{}`: {error}", self.config.connection)),
            Some(400 | 404 | 405 | 410) => SourceError::Refused(format!("Langfuse: {error} (is base_url of connection `{}` right?)", self.config.connection)),
            _ => SourceError::Unavailable(format!("Langfuse: {error}")),
        }
    }

    /// What the settings ask for, looked at again here: parameters that take one value only cannot say it all, and a
    /// server may not know one.
    fn wants(&self, trace: &Trace) -> bool {
        let config = &self.config;
        let among = |wanted: &[String], value: &Option<String>| wanted.is_empty() || value.as_ref().is_some_and(|value| wanted.contains(value));
        let environment = match &trace.environment {
            // Langfuse's own and our experiments: a judge must not judge itself.
            Some(environment) if config.environment.0.is_empty() => !environment.starts_with("langfuse-") && environment != "sdk-experiment",
            environment => among(&config.environment.0, environment),
        };
        environment
            && among(&config.names, &trace.name)
            && among(&config.user_ids, &trace.user_id)
            && among(&config.session_ids, &trace.session_id)
            && config.tags.iter().all(|tag| trace.tags.contains(tag))
    }

    /// Parameters that both dialects know and that take what the settings say.
    fn filters(&self) -> Vec<(&'static str, String)> {
        let mut query: Vec<(&'static str, String)> = self.config.environment.0.iter().map(|environment| ("environment", environment.clone())).collect();
        for (key, values) in [("name", &self.config.names), ("userId", &self.config.user_ids), ("sessionId", &self.config.session_ids)] {
            if let [only] = &values[..] {
                query.push((key, only.clone()));
            }
        }
        query
    }
}

fn fetched(trace: Trace) -> Fetched {
    Fetched { id: trace.id.clone(), timestamp: trace.timestamp, dated: true, body: Ok(Arc::new(trace)) }
}

/// Tokens by kind, as `usageDetails`.
type Usage = std::collections::BTreeMap<String, f64>;

/// In all: `total`, or the sum of what there is.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
fn tokens(usage: &Usage) -> Option<u64> {
    let total = usage.get("total").copied().or_else(|| (!usage.is_empty()).then(|| usage.values().sum()));
    total.filter(|total| *total >= 0.0).map(|total| total as u64)
}

/// Langfuse says -1 where it did not compute a figure.
fn figure(value: Option<f64>) -> Option<f64> {
    value.filter(|value| *value >= 0.0)
}
