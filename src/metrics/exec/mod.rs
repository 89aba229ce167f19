//! A metric in a process of your own: a child that is started once, told items as JSON lines and answers in any order.
//! The protocol is in docs/metrics.md. [`queue`] is who waits for a process, [`keep`] sees to it that there is one,
//! [`child`] is one from its start to its end, [`group`] what ends with it.

mod answer;
mod child;
mod group;
mod keep;
mod lines;
mod processes;
mod queue;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::oneshot;

pub use self::processes::{Keeper, Processes};
use self::queue::{Fault, Hello, Item};
use super::{BuildError, DataType, Gives, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, Pinned, Price, outside, waiting::Waiting};
use crate::{
    model::{Outcome, Wait},
    util::{
        duration::Human,
        hidden::Hidden,
        plugin,
        secret::{ExposeSecret, SecretString},
    },
};

/// A process that nobody asks for this long is ended; the next item starts it anew.
const IDLE: Duration = Duration::from_secs(3600);

/// A process of your own: items go in as JSON lines, outcomes come out (docs/metrics.md).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecConfig {
    /// Program and arguments. Started in the folder of the settings file, without a shell.
    command: Vec<String>,
    /// Of one item. The process is ended with one that takes longer. Default 60s.
    #[serde(default = "timeout")]
    timeout: Human,
    /// Time to say hello. Default 60s.
    #[serde(default = "timeout")]
    start_timeout: Human,
    /// Items that the process has at the same time. Default 1.
    #[serde(default = "one")]
    concurrency: usize,
    /// Address space of each process in MiB. Default: no limit.
    memory_mb: Option<u64>,
    /// The process's environment, beside PATH, HOME, LANG, TZ and the like: assayd's own keys are not handed on.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    env: BTreeMap<String, SecretString>,
    /// Send the whole trace too. Default false.
    #[serde(default)]
    trace: bool,
}

fn timeout() -> Human {
    Human::secs(60)
}

fn one() -> usize {
    1
}

inventory::submit! {
    MetricKind {
        name: "exec",
        example: "command: [python3, examples/exec/bridge.py]\ntimeout: 60s\nconcurrency: 4\n",
        schema: plugin::schema::<ExecConfig>,
        parse: |node, faults| plugin::parse::<ExecConfig>(node, faults).map(|config| Box::new(config) as Box<dyn MetricConfig>),
    }
}

impl MetricConfig for ExecConfig {
    fn build(&self, cx: &MetricBuildCx<'_>) -> Result<Arc<dyn Metric>, BuildError> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(BuildError::at("command", "names no program".to_owned()));
        }
        if self.concurrency == 0 {
            return Err(BuildError::at("concurrency", "at least 1".to_owned()));
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(BuildError::at("env", format!("`{}` is no name of a variable", name.escape_default())));
        }
        let spec = Spec {
            command: self.command.clone(),
            // Empty where the settings file was named without a folder.
            dir: Path::new(".").join(cx.base_dir),
            env: self.env.clone(),
            start_timeout: self.start_timeout.0,
            concurrency: self.concurrency,
            memory: self.memory_mb.map(|mb| mb << 20),
            idle: IDLE,
            hidden: Hidden::of(self.env.values()),
        };
        let revision = self.revision(cx);
        Ok(Arc::new(Exec { processes: cx.processes.clone(), spec: Arc::new(spec), timeout: self.timeout.0, trace: self.trace, revision, by: None }))
    }

    fn price(&self) -> Price {
        Price::Paid
    }

    fn gives(&self) -> Gives {
        Gives::Unknown
    }

    fn revision(&self, _: &MetricBuildCx<'_>) -> String {
        format!("exec:{:?}\0{}", self.command, self.trace)
    }

    /// A whole trace has its observations.
    fn templates(&self) -> Vec<&str> {
        self.trace.then_some("trace.observations").into_iter().collect()
    }
}

/// What makes a process.
#[derive(Debug)]
pub(in crate::metrics) struct Spec {
    pub command: Vec<String>,
    pub dir: PathBuf,
    pub env: BTreeMap<String, SecretString>,
    pub start_timeout: Duration,
    pub concurrency: usize,
    /// Bytes.
    pub memory: Option<u64>,
    pub idle: Duration,
    /// What it was given in `env` and must not be told on.
    pub hidden: Hidden,
}

impl Spec {
    /// Equal for metrics that share a process. A hash: the environment may hold secrets.
    fn key(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &[u8]| {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text);
        };
        self.command.iter().for_each(|word| part(word.as_bytes()));
        part(self.dir.as_os_str().as_encoded_bytes());
        for (name, value) in &self.env {
            part(name.as_bytes());
            part(value.expose_secret().as_bytes());
        }
        part(format!("{:?} {} {:?}", self.start_timeout, self.concurrency, self.memory).as_bytes());
        hasher.finalize()
    }

    /// For people: the program, without its arguments.
    fn name(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }
}

#[derive(Clone)]
struct Exec {
    processes: Processes,
    spec: Arc<Spec>,
    timeout: Duration,
    trace: bool,
    revision: String,
    /// Whom a run began with.
    by: Option<Hello>,
}

fn going_down<E>(_: E) -> Fault {
    Fault::Blocked("assayd is going down".to_owned())
}

impl Exec {
    async fn answer(&self, item: serde_json::Value) -> Result<(outside::Answer, Duration), Fault> {
        let asks = self.processes.of(&self.spec).ok_or_else(|| going_down(()))?;
        let (answer, answered) = oneshot::channel();
        asks.items.send(Item { item, timeout: self.timeout, by: self.by.clone(), answer }).await.map_err(going_down)?;
        answered.await.map_err(going_down)?
    }

    /// Who the process is, within a bound of its own: a run must not wait for ever for its metrics.
    async fn hello(&self) -> Result<Hello, Fault> {
        let most = self.spec.start_timeout.saturating_add(keep::LONGEST_PAUSE);
        let hello = async {
            let asks = self.processes.of(&self.spec).ok_or_else(|| going_down(()))?;
            let (answer, answered) = oneshot::channel();
            asks.hellos.send(answer).await.map_err(going_down)?;
            answered.await.map_err(going_down)?
        };
        tokio::time::timeout(most, hello).await.unwrap_or_else(|_| Err(Fault::Blocked(format!("no process is ready within {most:?}"))))
    }

    fn told(&self, reason: &str) -> String {
        format!("{}: {reason}", self.spec.name())
    }
}

#[async_trait]
impl Metric for Exec {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        match self.answer(outside::item(cx, self.trace)).await {
            Ok((answer, took)) => answer.judgement(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), &self.spec.hidden),
            Err(Fault::Blocked(reason)) => Outcome::Deferred { reason: self.told(&reason), wait: Wait::Judge }.into(),
            Err(Fault::Failed(reason)) => Outcome::Failed { reason: self.told(&reason) }.into(),
        }
    }

    /// The name and version that the process says hello with are part of the revision, and nobody else judges in this run:
    /// a score's revision says who gave it.
    async fn pin(&self) -> Option<Pinned> {
        Some(match self.hello().await {
            Ok(hello) => Pinned {
                revision: format!("{}\0{}\0{}", self.revision, hello.name, hello.version),
                metric: Arc::new(Self { by: Some(hello), ..self.clone() }),
                prompt: None,
            },
            Err(Fault::Blocked(reason) | Fault::Failed(reason)) => {
                Pinned { metric: Arc::new(Waiting { reason: self.told(&reason), data_type: DataType::Numeric }), revision: self.revision.clone(), prompt: None }
            }
        })
    }
}
