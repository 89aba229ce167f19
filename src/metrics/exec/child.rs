//! One process and who waits for it.

use std::{
    collections::{BTreeMap, VecDeque},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    process::{ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Spec,
    lines::{Line, Lines},
    outside::Answer,
};
use crate::util::{
    backoff::{self, Policy},
    secret::ExposeSecret,
    text,
};

/// Of a message from the process.
const LONGEST: usize = 4 << 20;
/// A process that nobody asks for this long is ended; the next item starts it anew.
const IDLE: Duration = Duration::from_secs(3600);
/// Between the end of its input and being killed.
const GRACE: Duration = Duration::from_secs(2);
/// How often an item is given to a process: the first may have died of another item, so the second has it alone.
const TRIES: u32 = 2;
/// One that ended so often in a row without an answer is not to be blamed on the items.
const DEFECTIVE: u32 = 6;
/// Between two starts that failed.
const RESTART: Policy = Policy { attempts: u32::MAX, max_elapsed: Duration::MAX, base: Duration::from_secs(1), cap: Duration::from_secs(60) };
/// What a program needs to run at all.
const HANDED_ON: [&str; 12] =
    ["PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH"];

/// What the process says first: `{"hello": {"name": .., "version": ..}}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Hello {
    pub name: String,
    #[serde(default)]
    pub version: String,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody could be judged: there is no process to ask.
    Blocked(String),
    /// This item could not.
    Failed(String),
}

type Reply<T> = oneshot::Sender<Result<T, Fault>>;

pub(super) enum Ask {
    Hello(Reply<Hello>),
    /// The answer comes with the time it took.
    Item {
        item: Value,
        timeout: Duration,
        answer: Reply<(Answer, Duration)>,
    },
}

impl Ask {
    fn refuse(self, fault: Fault) {
        // Who asked may be gone.
        match self {
            Self::Hello(answer) => drop(answer.send(Err(fault))),
            Self::Item { answer, .. } => drop(answer.send(Err(fault))),
        }
    }
}

/// An item that the process has.
struct Flight {
    item: Value,
    timeout: Duration,
    answer: Reply<(Answer, Duration)>,
    since: Instant,
    tries: u32,
}

/// An item that waits for the process, and how often it was given to one.
struct Waiting {
    ask: Ask,
    tries: u32,
}

/// Everything that asks for the process, until nobody can any more.
pub(super) async fn keep(spec: Arc<Spec>, mut asked: mpsc::Receiver<Ask>) {
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    let mut failures = 0;
    loop {
        if waiting.is_empty() {
            match asked.recv().await {
                Some(ask) => waiting.push_back(Waiting { ask, tries: 0 }),
                None => return,
            }
        }
        let failed = match Child::start(&spec).await {
            Ok(child) => child.serve(&spec, &mut asked, &mut waiting).await,
            Err(reason) => {
                tracing::warn!(command = spec.name(), %reason, "a metric's process could not be started");
                Err(Broken { started: false, reason })
            }
        };
        let Err(Broken { started, reason }) = failed else {
            failures = 0;
            continue;
        };
        failures += 1;
        if started && failures < DEFECTIVE {
            tokio::time::sleep(pause(failures)).await;
            continue;
        }
        waiting.drain(..).for_each(|waiting| waiting.ask.refuse(Fault::Blocked(reason.clone())));
        if !refuse_for_a_while(&mut asked, failures, &reason).await {
            return;
        }
    }
}

/// A process that has failed without an answer.
struct Broken {
    /// It had said hello.
    started: bool,
    reason: String,
}

fn pause(failures: u32) -> Duration {
    RESTART.wait(failures, Duration::ZERO, None, backoff::chance()).unwrap_or(RESTART.cap)
}

/// False when nobody can ask any more.
async fn refuse_for_a_while(asked: &mut mpsc::Receiver<Ask>, failures: u32, reason: &str) -> bool {
    let pause = tokio::time::sleep(pause(failures));
    tokio::pin!(pause);
    loop {
        tokio::select! {
            () = &mut pause => return true,
            ask = asked.recv() => match ask {
                Some(ask) => ask.refuse(Fault::Blocked(reason.to_owned())),
                None => return false,
            }
        }
    }
}

/// A running process that has said hello.
struct Child {
    process: Group,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    errors: Lines<BufReader<ChildStderr>>,
    errors_open: bool,
    /// The last thing it said about itself.
    last_words: String,
    hello: Hello,
}

/// Who may be told to the process now. One whose process died has the next one to itself: then it is known who it was.
fn next_in_line(waiting: &mut VecDeque<Waiting>, flights: &BTreeMap<u64, Flight>, concurrency: usize) -> Option<Waiting> {
    let alone = flights.values().any(|flight| flight.tries > 1);
    waiting.pop_front_if(|next| flights.len() < concurrency && !alone && (next.tries == 0 || flights.is_empty()))
}

/// Why a process is no longer asked.
enum End {
    /// Nobody needs it.
    Idle,
    /// Nobody can ask any more.
    Closed,
    /// It ended, or had to be ended.
    Broken(String),
}

impl Child {
    async fn start(spec: &Spec) -> Result<Self, String> {
        let (program, arguments) = spec.command.split_first().ok_or("there is no command")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&spec.dir).env_clear();
        command.envs(HANDED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(spec.env.iter().map(|(name, value)| (name, value.expose_secret())));
        // A group of its own: its children end with it, and a Ctrl-C in our terminal is not theirs.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut process = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
        let pid = process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let (Some(pid), Some(bytes)) = (pid, spec.memory) {
            let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
            prlimit(Some(pid), Resource::As, limit).map_err(|error| format!("its memory cannot be limited: {error}"))?;
        }
        let (input, output, errors) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(input), Some(output), Some(errors)) = (input, output, errors) else { return Err("it has no pipes".to_owned()) };
        let mut child = Self {
            process: Group { process, pid },
            input,
            output: Lines::new(BufReader::new(output), LONGEST),
            errors: Lines::new(BufReader::new(errors), 64 << 10),
            errors_open: true,
            last_words: String::new(),
            hello: Hello { name: String::new(), version: String::new() },
        };
        match tokio::time::timeout(spec.start_timeout, child.greet(spec)).await {
            Ok(Ok(hello)) => {
                tracing::info!(command = spec.name(), name = %hello.name, version = %hello.version, "a metric's process is ready");
                child.hello = hello;
                Ok(child)
            }
            Ok(Err(reason)) => Err(child.with_last_words(reason)),
            Err(_) => Err(child.with_last_words(format!("it said no hello within {:?}", spec.start_timeout))),
        }
    }

    async fn greet(&mut self, spec: &Spec) -> Result<Hello, String> {
        #[derive(Deserialize)]
        struct First {
            hello: Hello,
        }
        loop {
            tokio::select! {
                line = self.output.next() => match line {
                    Ok(Some(Line::Whole(line))) => match serde_json::from_str::<First>(&line) {
                        Ok(First { hello }) => return Ok(Hello { name: text::one_line(&hello.name, 100), version: text::one_line(&hello.version, 100) }),
                        Err(_) => stray(spec, &line),
                    },
                    Ok(Some(Line::TooLong)) => {}
                    Ok(None) | Err(_) => return Err(self.end().await),
                },
                line = self.errors.next(), if self.errors_open => self.note(spec, line.ok().flatten()),
            }
        }
    }

    /// Answers until the process ends or is not needed; an error where it never answered.
    async fn serve(mut self, spec: &Spec, asked: &mut mpsc::Receiver<Ask>, waiting: &mut VecDeque<Waiting>) -> Result<(), Broken> {
        let mut flights: BTreeMap<u64, Flight> = BTreeMap::new();
        let (mut next, mut answered, mut open) = (0, false, true);
        let mut out: Vec<u8> = Vec::new();
        let end = loop {
            while let Some(Waiting { ask, tries }) = next_in_line(waiting, &flights, spec.concurrency) {
                match ask {
                    Ask::Hello(answer) => drop(answer.send(Ok(self.hello.clone()))),
                    Ask::Item { item, timeout, answer } if !answer.is_closed() => {
                        out.extend_from_slice(json!({ "id": next, "item": item }).to_string().as_bytes());
                        out.push(b'\n');
                        flights.insert(next, Flight { item, timeout, answer, since: Instant::now(), tries: tries + 1 });
                        next += 1;
                    }
                    Ask::Item { .. } => {}
                }
            }
            if !open && flights.is_empty() && waiting.is_empty() {
                break End::Closed;
            }
            let late = flights.iter().map(|(id, flight)| (flight.since + flight.timeout, *id)).min();
            let until = late.map_or_else(|| Instant::now() + IDLE, |(at, _)| at);
            tokio::select! {
                line = self.output.next() => match line {
                    Ok(Some(Line::Whole(line))) => answered |= answer(spec, &line, &mut flights),
                    Ok(Some(Line::TooLong)) => break End::Broken(format!("it answered with more than {} MiB", LONGEST >> 20)),
                    Ok(None) | Err(_) => break End::Broken(self.end().await),
                },
                line = self.errors.next(), if self.errors_open => self.note(spec, line.ok().flatten()),
                written = self.input.write(&out), if !out.is_empty() => match written {
                    Ok(written @ 1..) => drop(out.drain(..written)),
                    _ => break End::Broken(self.end().await),
                },
                ask = asked.recv(), if open && waiting.is_empty() => match ask {
                    Some(ask) => waiting.push_back(Waiting { ask, tries: 0 }),
                    None => open = false,
                },
                () = tokio::time::sleep_until(until) => match late {
                    None => break End::Idle,
                    Some((_, id)) => {
                        if let Some(flight) = flights.remove(&id) {
                            let _ = flight.answer.send(Err(Fault::Failed(format!("no answer within {:?}", flight.timeout))));
                        }
                        break End::Broken("it took too long for an item, and was ended".to_owned());
                    }
                },
            }
        };
        match end {
            End::Idle | End::Closed => {
                self.part().await;
                Ok(())
            }
            End::Broken(reason) => {
                tracing::warn!(command = spec.name(), %reason, "a metric's process is started anew");
                // Given to the next process in their order, before those that came later.
                for flight in flights.into_values().rev() {
                    let Flight { item, timeout, answer, tries, .. } = flight;
                    let ask = Ask::Item { item, timeout, answer };
                    if tries < TRIES { waiting.push_front(Waiting { ask, tries }) } else { ask.refuse(Fault::Failed(reason.clone())) }
                }
                if answered { Ok(()) } else { Err(Broken { started: true, reason }) }
            }
        }
    }

    /// Into the log; what the process writes is text from outside.
    fn note(&mut self, spec: &Spec, line: Option<Line>) {
        match line {
            Some(Line::Whole(line)) if !line.trim().is_empty() => {
                self.last_words = text::one_line(&line, 500);
                tracing::info!(command = spec.name(), "{}", self.last_words);
            }
            Some(_) => {}
            // It closed this pipe and may go on: the other one says when it ends.
            None => self.errors_open = false,
        }
    }

    /// How it ended, or had to be ended.
    async fn end(&mut self) -> String {
        let status = tokio::time::timeout(GRACE, self.process.process.wait()).await;
        // What it said last may still be in the pipe.
        while let Ok(Ok(Some(line))) = tokio::time::timeout(Duration::from_millis(50), self.errors.next()).await {
            if let Line::Whole(line) = line
                && !line.trim().is_empty()
            {
                self.last_words = text::one_line(&line, 500);
            }
        }
        let how = match status {
            Ok(Ok(status)) => format!("it ended: {}", described(status)),
            _ => "it closed its output".to_owned(),
        };
        self.with_last_words(how)
    }

    fn with_last_words(&self, reason: String) -> String {
        if self.last_words.is_empty() { reason } else { format!("{reason}; it said last: {}", self.last_words) }
    }

    /// Its input ends; it is killed if it does not take the hint.
    async fn part(mut self) {
        drop(self.input);
        let _ = tokio::time::timeout(GRACE, self.process.process.wait()).await;
    }
}

fn described(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// One message of the process; true when it was an answer.
fn answer(spec: &Spec, line: &str, flights: &mut BTreeMap<u64, Flight>) -> bool {
    #[derive(Deserialize)]
    struct Message {
        id: u64,
        #[serde(flatten)]
        answer: Answer,
    }
    let Ok(Message { id, answer }) = serde_json::from_str::<Message>(line) else {
        // An answer that is known by its id and cannot be read fails its item at once, instead of after the timeout.
        let id = serde_json::from_str::<Value>(line).ok().and_then(|value| value.get("id")?.as_u64());
        match id.and_then(|id| flights.remove(&id)) {
            Some(flight) => drop(flight.answer.send(Err(Fault::Failed(format!("an answer that cannot be read: {}", text::one_line(line, 300)))))),
            None => stray(spec, line),
        }
        return false;
    };
    let Some(flight) = flights.remove(&id) else {
        stray(spec, line);
        return false;
    };
    let _ = flight.answer.send(Ok((answer, flight.since.elapsed())));
    true
}

/// Libraries print.
fn stray(spec: &Spec, line: &str) {
    if !line.trim().is_empty() {
        tracing::info!(command = spec.name(), "on standard output, and no message: {}", text::one_line(line, 300));
    }
}

/// A process and all its children: killed when dropped.
struct Group {
    process: tokio::process::Child,
    pid: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            // Nobody is left of a group that ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
