//! Child processes, and what the kernel knows of them.

use std::{
    fs::{File, read_to_string},
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// `USER_HZ`: 100 on every Linux that we build for.
const TICK: Duration = Duration::from_millis(10);

/// What a process took from start to end.
#[derive(Debug)]
pub struct Used {
    /// User and system time of all its threads, in steps of 10 ms.
    pub cpu: Duration,
    pub wall: Duration,
    /// Highest resident set, as seen every few milliseconds.
    pub peak_mib: f64,
    pub stdout: String,
}

/// Runs a command to its end. Standard error goes to a file that is shown when the command fails.
///
/// # Errors
/// When it cannot be started or exits with another code than 0.
pub fn run(command: &mut Command) -> anyhow::Result<Used> {
    let (out, err) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
    let started = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(out.reopen()?).stderr(err.reopen()?).spawn().with_context(|| format!("starting {command:?}"))?;
    let pid = child.id();
    let (mut peak_mib, mut round) = (0.0, 0_u32);
    // A process that ended and was not waited for keeps its times in /proc, all threads' together.
    let cpu = loop {
        let (state, cpu) = stat(pid)?;
        if state == 'Z' {
            break cpu;
        }
        if round.is_multiple_of(4) {
            peak_mib = memory_mib(pid, "VmHWM").unwrap_or(0.0).max(peak_mib);
        }
        round += 1;
        std::thread::sleep(Duration::from_millis(2));
    };
    let wall = started.elapsed();
    let status = child.wait()?;
    let stdout = read_to_string(out.path())?;
    if !status.success() {
        bail!("{command:?} ended with {status}: {} {}", stdout.trim(), tail(&read_to_string(err.path())?));
    }
    Ok(Used { cpu, wall, peak_mib, stdout })
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// State and CPU time so far.
fn stat(pid: u32) -> anyhow::Result<(char, Duration)> {
    let text = read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything, a bracket too.
    let fields: Vec<&str> = text.rsplit_once(')').context("no /proc/PID/stat")?.1.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
    Ok((fields.first().and_then(|state| state.chars().next()).unwrap_or('?'), TICK * (ticks(11) + ticks(12))))
}

pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    stat(pid).map(|(_, cpu)| cpu)
}

/// `VmRSS` or `VmHWM` in MiB.
pub fn memory_mib(pid: u32, field: &str) -> Option<f64> {
    let text = read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib: f64 = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024.0)
}

/// This program with a hidden command.
pub fn this(arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

/// A process that is ended with the value.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).spawn().with_context(|| format!("starting {command:?}"))?))
    }

    /// Starts it and waits for its first line.
    pub fn start_and_read(command: &mut Command) -> anyhow::Result<(Self, String)> {
        let mut me = Self::start(command.stdout(Stdio::piped()))?;
        let mut line = String::new();
        BufReader::new(me.0.stdout.take().context("no standard output")?).read_line(&mut line)?;
        Ok((me, line.trim().to_owned()))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where a daemon's log goes.
pub fn log_to(command: &mut Command, path: &std::path::Path) -> anyhow::Result<()> {
    let file = File::create(path)?;
    command.stdout(file.try_clone()?).stderr(file);
    Ok(())
}
