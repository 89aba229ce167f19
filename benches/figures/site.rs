//! A folder with settings and monitors for one measurement, and the binary on it.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    client,
    process::{self, Background, Used},
};

/// Built by cargo for this bench, with its profile.
const ASSAYD: &str = env!("CARGO_BIN_EXE_assayd");

#[derive(Debug)]
pub struct Site {
    dir: TempDir,
    pub port: u16,
}

/// The part of `once --format json` that is looked at.
#[derive(Debug, Deserialize)]
pub struct Report {
    pub status: String,
    pub counts: Counts,
    pub published: std::collections::BTreeMap<String, Published>,
}

#[derive(Debug, Deserialize)]
pub struct Counts {
    pub fetched: u64,
    pub scored: u64,
}

#[derive(Debug, Deserialize)]
pub struct Published {
    pub delivered: u64,
}

impl Site {
    /// `server`: base of the model and the Langfuse, where the monitors need them.
    pub fn new(server: &str, concurrency: usize) -> anyhow::Result<Self> {
        Self::of(&format!(
            "concurrency: {{ runs: 16, judge_calls: {concurrency} }}\n\
             connections:\n  langfuse:\n    default: {{ base_url: \"{server}\", public_key: pk-lf-bench, secret_key: sk-lf-bench }}\n\
             providers:\n  openai: {{ type: openai, api_key: sk-bench, base_url: \"{server}/v1\" }}\n\
             profiles:\n  judge: {{ provider: openai, model: gpt-4o-mini }}\n"
        ))
    }

    /// `settings`: all but where it listens.
    pub fn of(settings: &str) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("assayd-figures-")?;
        fs::create_dir(dir.path().join("monitors"))?;
        let site = Self { dir, port: TcpListener::bind("127.0.0.1:0")?.local_addr()?.port() };
        site.settings(settings)?;
        Ok(site)
    }

    /// For the next process.
    pub fn settings(&self, settings: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.path().join("assayd.yaml"), format!("listen: 127.0.0.1:{}\n{settings}", self.port))?)
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a monitor as an editor does: beside it, then renamed over it.
    pub fn monitor(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let (file, beside) = (self.path().join("monitors").join(format!("{name}.yaml")), self.path().join("next"));
        fs::write(&beside, text)?;
        fs::rename(&beside, &file)?;
        Ok(file)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ASSAYD);
        command.args(arguments).current_dir(self.path()).env_clear().env("NO_COLOR", "1");
        // Where a metric's own program is found.
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command
    }

    /// `assayd once`, and what it reports.
    pub fn once(&self, monitor: &str) -> anyhow::Result<(Used, Report)> {
        let used = process::run(&mut self.command(&["once", monitor, "--format", "json"]))?;
        let report: Report = serde_json::from_str(used.stdout.trim())?;
        anyhow::ensure!(report.status == "succeeded", "the run is {}", report.status);
        Ok((used, report))
    }

    /// Starts the daemon and waits until it is ready; how long that took.
    pub fn daemon(&self) -> anyhow::Result<(Background, Duration)> {
        let mut command = self.command(&["run"]);
        process::log_to(&mut command, &self.path().join("daemon.log"))?;
        let started = Instant::now();
        let mut daemon = Background::start(&mut command)?;
        while self.get("readyz").is_err() {
            let log = || fs::read_to_string(self.path().join("daemon.log")).unwrap_or_default();
            anyhow::ensure!(daemon.is_alive(), "the daemon ended: {}", log().lines().last().unwrap_or_default());
            anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "not ready after a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok((daemon, started.elapsed()))
    }

    pub fn get(&self, path: &str) -> anyhow::Result<String> {
        client::get(&format!("{}/{path}", self.url()))
    }
}
