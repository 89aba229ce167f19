//! A metric in a process of your own: a child that is started once, told items as JSON lines and answers in any order.
//! The protocol is in docs/metrics.md; [`child`] keeps the process, [`lines`] reads it.

mod child;
mod lines;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use self::child::{Ask, Fault, Hello};
use super::{BuildError, Gives, Judgement, Metric, MetricBuildCx, MetricConfig, MetricCx, MetricKind, Pinned, Price, outside};
use crate::{
    model::{Outcome, Wait},
    util::{
        duration::Human,
        plugin,
        secret::{ExposeSecret, SecretString},
    },
};

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
        };
        let revision = self.revision(cx);
        Ok(Arc::new(Exec { processes: cx.processes.clone(), spec: Arc::new(spec), timeout: self.timeout.0, trace: self.trace, revision }))
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

/// The processes of all `exec` metrics, by what makes them: a monitor is compiled anew for every run, its process stays.
#[derive(Debug, Clone)]
pub struct Processes(Arc<Mutex<Open>>);

#[derive(Debug)]
struct Open {
    /// `None` once closed.
    begin: Option<mpsc::UnboundedSender<Keeper>>,
    asks: HashMap<blake3::Hash, mpsc::Sender<Ask>>,
}

/// Keeps one process, for as long as it may be needed; its owner runs it as a task.
pub type Keeper = BoxFuture<'static, ()>;

impl Processes {
    /// The caller runs what comes out of the receiver.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Keeper>) {
        let (begin, begun) = mpsc::unbounded_channel();
        (Self(Arc::new(Mutex::new(Open { begin: Some(begin), asks: HashMap::new() }))), begun)
    }

    /// For checking settings: starts nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Mutex::new(Open { begin: None, asks: HashMap::new() })))
    }

    /// Ends all processes that have nothing to do, the others when they are done.
    pub fn close(&self) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.begin = None;
        open.asks.clear();
    }

    fn of(&self, spec: &Arc<Spec>) -> Option<mpsc::Sender<Ask>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = spec.key();
        if let Some(asks) = open.asks.get(&key).filter(|asks| !asks.is_closed()) {
            return Some(asks.clone());
        }
        let (asks, asked) = mpsc::channel(1);
        open.begin.as_ref()?.send(Box::pin(child::keep(Arc::clone(spec), asked))).ok()?;
        open.asks.insert(key, asks.clone());
        Some(asks)
    }
}

#[derive(Clone)]
struct Exec {
    processes: Processes,
    spec: Arc<Spec>,
    timeout: Duration,
    trace: bool,
    revision: String,
}

impl Exec {
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T, Fault>>) -> Ask) -> Result<T, Fault> {
        let ended = || Fault::Blocked("assayd is going down".to_owned());
        let asks = self.processes.of(&self.spec).ok_or_else(ended)?;
        let (answer, answered) = oneshot::channel();
        asks.send(ask(answer)).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

#[async_trait]
impl Metric for Exec {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        let item = outside::item(cx, self.trace);
        let timeout = self.timeout;
        match self.ask(|answer| Ask::Item { item, timeout, answer }).await {
            Ok((answer, took)) => answer.judgement(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            Err(Fault::Blocked(reason)) => Outcome::Deferred { reason: format!("{}: {reason}", self.spec.name()), wait: Wait::Judge }.into(),
            Err(Fault::Failed(reason)) => Outcome::Failed { reason: format!("{}: {reason}", self.spec.name()) }.into(),
        }
    }

    /// The name and version that the process says hello with are part of the revision.
    async fn pin(&self) -> Option<Pinned> {
        let revision = match self.ask(Ask::Hello).await {
            Ok(Hello { name, version }) => format!("{}\0{name}\0{version}", self.revision),
            // Whoever judges then finds the same and says so.
            Err(_) => self.revision.clone(),
        };
        Some(Pinned { metric: Arc::new(self.clone()), revision, prompt: None })
    }
}
