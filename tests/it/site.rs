//! A folder with assayd.yaml and monitors/, the world that its connections lead to, and the binary run in it.

use std::{
    cell::RefCell,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::{Instant, timeout},
};

use crate::world::{Mode, Pulse, World};

pub const BIN: &str = env!("CARGO_BIN_EXE_assayd");

/// How long an event may take. Generous: a busy machine is no failure, and a test that passes never waits for it.
const PATIENCE: Duration = Duration::from_secs(45);

pub struct Site {
    pub world: World,
    folder: TempDir,
    pub port: u16,
    /// assayd.yaml; [`Site::save`] writes it.
    pub settings: Value,
    /// Set for the binary on top of a bare environment.
    pub env: Vec<(String, String)>,
    client: reqwest::Client,
    logs: Arc<Mutex<Vec<Log>>>,
}

type Log = Arc<Mutex<String>>;

/// What a command did.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Everything that it said.
    pub fn said(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}):\n{}\n{}", self.stdout, self.stderr))
    }
}

impl Site {
    pub async fn new() -> Self {
        Self::with(Mode::V4).await
    }

    pub async fn with(mode: Mode) -> Self {
        let world = World::start(mode).await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("monitors")).unwrap();
        let port = free_port();
        let settings = json!({
            "monitors": "monitors",
            "state": "state",
            "listen": format!("127.0.0.1:{port}"),
            // Enough to outlast one fault, little enough that a lasting one is soon told.
            "retry": { "attempts": 3, "max_elapsed": "10s" },
            "connections": {
                "langfuse": { "default": { "base_url": world.langfuse.url, "public_key": "pk-lf-test", "secret_key": "sk-lf-test" } },
                "slack": { "default": { "token": "xoxb-test", "api_url": format!("{}/api/", world.slack.url) } },
            },
            "providers": {
                "openai": { "type": "openai", "api_key": "sk-test", "base_url": format!("{}/v1", world.llm.url) },
                "anthropic": { "type": "anthropic", "api_key": "sk-ant-test", "base_url": world.llm.url },
            },
            "profiles": {
                "judge": { "provider": "openai", "model": "gpt-4o-mini" },
                "judge-a": { "provider": "anthropic", "model": "claude-3-5-haiku-20241022" },
            },
        });
        let site = Self { world, folder, port, settings, env: Vec::new(), client: reqwest::Client::new(), logs: Arc::default() };
        site.save();
        site
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.root().join(relative)
    }

    pub fn save(&self) {
        std::fs::write(self.path("assayd.yaml"), to_yaml(&self.settings)).unwrap();
    }

    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Writes monitors/NAME.yaml the way a careful tool does: beside it, then renamed over it.
    pub fn monitor(&self, name: &str, spec: &Value) {
        let mut whole = json!({ "name": name });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.write(&format!(".{name}.tmp"), to_yaml(&whole));
        std::fs::rename(self.path(&format!(".{name}.tmp")), self.path(&format!("monitors/{name}.yaml"))).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BIN);
        command.args(args).current_dir(self.root()).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        for key in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
            if let Ok(value) = std::env::var(key) {
                command.env(key, value);
            }
        }
        command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "1").envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// A command to its end.
    pub async fn run(&self, args: &[&str]) -> Output {
        self.fed(args, "").await
    }

    /// The same with this on its standard input.
    pub async fn fed(&self, args: &[&str], input: &str) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Most commands do not read it, and may have ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
        let output = timeout(Duration::from_secs(90), child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("assayd {args:?} did not end")).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
        let output = Output { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        for secret in ["sk-lf-test", "sk-test", "sk-ant-test", "xoxb-test"] {
            assert!(!output.said().contains(secret), "assayd {args:?} told a secret:\n{}", output.said());
        }
        output
    }

    /// One run of a monitor that must not fail, as JSON.
    pub async fn once(&self, monitor: &str) -> Value {
        self.once_with(monitor, &[], 0).await
    }

    pub async fn once_with(&self, monitor: &str, args: &[&str], code: i32) -> Value {
        let args = [&["once", monitor, "--format", "json"], args].concat();
        self.run(&args).await.expect(code).json()
    }

    /// Every score that is stored, oldest first.
    pub async fn export(&self, args: &[&str]) -> Vec<Value> {
        let args = [&["export", "--format", "jsonl"], args].concat();
        let output = self.run(&args).await.expect(0);
        output.stdout.lines().filter(|line| !line.trim().is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Items that have a score of this metric.
    pub async fn scored_items(&self, monitor: &str, metric: &str) -> Vec<String> {
        let mut items: Vec<String> = self
            .export(&["--monitor", monitor])
            .await
            .iter()
            .filter(|row| row["metric"] == metric && row["outcome"] == "scored")
            .map(|row| row["item_id"].as_str().unwrap().to_owned())
            .collect();
        items.sort();
        items
    }

    /// The daemon, ready.
    pub async fn daemon(&self) -> Daemon {
        let daemon = RefCell::new(self.spawn(&["run"]));
        self.wait("the daemon to be ready", || async { !daemon.borrow_mut().runs() || self.get("/readyz").await.is_some() }).await;
        let mut daemon = daemon.into_inner();
        assert!(daemon.runs(), "the daemon ended at once:\n{}", self.log());
        daemon
    }

    /// The daemon, just begun.
    pub fn spawn(&self, args: &[&str]) -> Daemon {
        let mut child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::default();
        self.logs.lock().unwrap().push(log.clone());
        follow(child.stdout.take().unwrap(), log.clone(), self.world.pulse.clone());
        follow(child.stderr.take().unwrap(), log.clone(), self.world.pulse.clone());
        Daemon { child, log }
    }

    /// What all daemons of this site said.
    pub fn log(&self) -> String {
        self.logs.lock().unwrap().iter().map(|log| log.lock().unwrap().clone()).collect::<Vec<_>>().join("--- next daemon\n")
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// A successful answer's text.
    pub async fn get(&self, path: &str) -> Option<String> {
        let (status, text) = self.request(reqwest::Method::GET, path).await?;
        (status < 400).then_some(text)
    }

    /// Status and text, whatever the status; `None` where nobody answers.
    pub async fn request(&self, method: reqwest::Method, path: &str) -> Option<(u16, String)> {
        let answer = self.client.request(method, self.url(path)).timeout(Duration::from_secs(20)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    pub async fn reload(&self) -> String {
        let (_, text) = self.request(reqwest::Method::POST, "/-/reload").await.expect("an answer to a reload");
        text
    }

    /// Sum of the series of a metric that carry these labels; 0 where there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.get("/metrics").await.unwrap_or_default();
        text.lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']))
            .filter(|rest| labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\""))))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Runs of a monitor that came to an end in the daemon that is up.
    pub async fn runs(&self, monitor: &str) -> f64 {
        let mut runs = 0.0;
        for status in ["succeeded", "partial", "failed"] {
            runs += self.metric("assayd_runs_total", &[("monitor", monitor), ("status", status)]).await;
        }
        runs
    }

    /// Waits until this many more runs have ended.
    pub async fn more_runs(&self, monitor: &str, n: u32) {
        let before = self.runs(monitor).await;
        self.wait(&format!("{n} more runs of {monitor}"), || async { self.runs(monitor).await >= before + f64::from(n) }).await;
    }

    /// Waits for what the world saw.
    pub async fn until(&self, what: &str, condition: impl Fn(&World) -> bool) {
        self.wait(what, || async { condition(&self.world) }).await;
    }

    /// Waits for a line in the log.
    pub async fn says(&self, words: &str) {
        let words = regex::Regex::new(words).unwrap();
        self.wait(&format!("the log to say `{words}`"), || async { words.is_match(&self.log()) }).await;
    }

    /// Asks again whenever something happened, and now and then in between for what happens out of the world's sight.
    pub async fn wait(&self, what: &str, condition: impl AsyncFnMut() -> bool) -> bool {
        self.wait_within(PATIENCE, what, condition).await
    }

    pub async fn wait_within(&self, patience: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut pulse = self.world.pulse.listen();
        while !condition().await {
            assert!(Instant::now() < deadline, "waited {patience:?} for {what}\n--- log\n{}", tail(&self.log()));
            let _ = timeout(Duration::from_millis(50), pulse.changed()).await;
        }
        true
    }
}

fn tail(log: &str) -> &str {
    let from = log.len().saturating_sub(6000);
    let from = (from..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
    &log[from..]
}

fn follow(from: impl AsyncRead + Unpin + Send + 'static, log: Log, pulse: Pulse) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(from).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            writeln!(log.lock().unwrap(), "{line}").unwrap();
            pulse.beat();
        }
    });
}

/// A daemon; it dies with the test.
pub struct Daemon {
    child: Child,
    log: Log,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id().expect("a daemon that runs")
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: &str) {
        let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.pid())]).status().unwrap();
        assert!(sent.success());
    }

    /// Its exit code; `None` where a signal ended it.
    pub async fn end(mut self) -> Option<i32> {
        let status = timeout(PATIENCE, self.child.wait()).await;
        status.unwrap_or_else(|_| panic!("the daemon did not end:\n{}", tail(&self.log()))).unwrap().code()
    }

    pub async fn stop(self) -> Option<i32> {
        self.signal("TERM");
        self.end().await
    }

    pub async fn kill9(mut self) {
        self.child.kill().await.unwrap();
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

/// Below the range that the system gives to outgoing connections, which would take a port between our look and the
/// daemon's start. Tests run as threads of one process or as processes of their own.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 11_000) as u16;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Block YAML, as people write it. Scalars are JSON, which YAML is a superset of.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = "  ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = if key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) { key.clone() } else { json!(key).to_string() };
                entry(&format!("{pad}{key}:"), value, indent, out);
            }
        }
        Value::Array(list) => {
            for value in list {
                entry(&format!("{pad}-"), value, indent, out);
            }
        }
        scalar => writeln!(out, "{pad}{scalar}").unwrap(),
    }
}

fn entry(head: &str, value: &Value, indent: usize, out: &mut String) {
    let nested = value.as_object().is_some_and(|map| !map.is_empty()) || value.as_array().is_some_and(|list| !list.is_empty());
    if nested {
        writeln!(out, "{head}").unwrap();
        block(value, indent + 1, out);
    } else {
        writeln!(out, "{head} {value}").unwrap();
    }
}
