use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::Deserialize;

use super::NotifyTarget;
use crate::{connections::Connections, providers::{ProviderConfig, prices::Price}, util::{backoff::Policy, duration::Human}};

/// assayd.yaml, checked. Every field has a default, so the file may be missing.
#[derive(Debug)]
pub struct Settings {
    /// Folder of the monitors.
    pub monitors: PathBuf,
    /// Folder of everything assayd writes.
    pub state: PathBuf,
    /// Address of API and metrics; `None` for `off`.
    pub listen: Option<std::net::SocketAddr>,
    pub auth: Option<AuthSpec>,
    pub log: LogSpec,
    pub concurrency: ConcurrencySpec,
    pub retention: RetentionSpec,
    pub retry: Policy,
    pub shutdown_grace: Human,
    /// Where alerts without their own `notify` go. Empty: to the log.
    pub notify: Vec<NotifyTarget>,
    pub connections: Connections,
    pub providers: BTreeMap<String, Arc<dyn ProviderConfig>>,
    /// Over the shipped table.
    pub prices: BTreeMap<String, Price>,
    pub profiles: BTreeMap<String, ProfileSpec>,
    /// Poll the monitors' folder instead of watching it (network mounts).
    pub poll: Option<Human>,
    /// Folder of the settings file: relative paths start here.
    pub base_dir: PathBuf,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthSpec {
    /// Bearer token that clients must send. Without it only loopback clients are served.
    #[schemars(with = "String")]
    pub token: SecretString,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSpec {
    /// Of standard error. Default: pretty on a terminal, json elsewhere.
    pub format: Option<LogFormat>,
    /// A level (`info`) or a filter (`assayd=debug,sqlx=warn`). Default info.
    pub level: String,
    /// Folder of log files; none are written where this is missing.
    pub file: Option<PathBuf>,
    /// Default daily.
    pub rotation: Rotation,
    /// Rotated files kept. Default 14.
    pub keep: usize,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self { format: None, level: "info".to_owned(), file: None, rotation: Rotation::Daily, keep: 14 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Pretty,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    Hourly,
    Daily,
    Weekly,
    Never,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConcurrencySpec {
    /// Runs at the same time. Default 16.
    pub runs: usize,
    /// Calls to models at the same time, over all monitors. Default 64.
    pub judge_calls: usize,
}

impl Default for ConcurrencySpec {
    fn default() -> Self {
        Self { runs: 16, judge_calls: 64 }
    }
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSpec {
    /// Decisions other than scored, behind the watermark. Default 90d.
    pub decisions: Human,
    /// Scores and the keys of scored items. Default 400d.
    pub scores: Human,
    /// Default 90d.
    pub runs: Human,
}

impl Default for RetentionSpec {
    fn default() -> Self {
        Self { decisions: Human::days(90), scores: Human::days(400), runs: Human::days(90) }
    }
}

/// Retries of every outgoing call.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySpec {
    /// Attempts in all. Default 7.
    pub attempts: u32,
    /// Default 60s.
    pub max_elapsed: Human,
}

impl Default for RetrySpec {
    fn default() -> Self {
        Self { attempts: 7, max_elapsed: Human::mins(1) }
    }
}

impl From<RetrySpec> for Policy {
    fn from(spec: RetrySpec) -> Self {
        Self { attempts: spec.attempts.max(1), max_elapsed: spec.max_elapsed.0, ..Self::default() }
    }
}

/// What a monitor names in `model:`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileSpec {
    /// An entry of `providers:`.
    pub provider: String,
    pub model: String,
    /// Sent only where it is set: many models refuse it.
    pub temperature: Option<f64>,
    /// Of the answer. Default 1024.
    pub max_tokens: Option<u32>,
    /// Put before every prompt.
    pub system: Option<String>,
    /// Of one attempt. Default 60s.
    pub timeout: Option<Human>,
}
