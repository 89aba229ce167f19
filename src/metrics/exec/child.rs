//! One process, from its start to its end.

use std::{
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, prlimit};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncWriteExt, BufReader},
    process::{ChildStderr, ChildStdin, ChildStdout, Command},
    time::Instant,
};

use super::{
    Spec,
    answer::{self, Flight, Flights, stray},
    group::{Group, Groups},
    keep::Broken,
    lines::{Line, Lines},
    queue::{Fault, Hello, Queue, Waiting},
};
use crate::util::{secret::ExposeSecret, text};

/// Of a message from the process.
const LONGEST: usize = 4 << 20;
/// Between the end of its input and being killed.
const GRACE: Duration = Duration::from_secs(2);
/// What a process that has ended said before may still be in its pipes; but another may hold them, and write for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);
const LAST_LINES: usize = 1000;
/// How often an item is given to a process: the first may have died of another item, so the second has it alone.
const TRIES: u32 = 2;
/// What a program needs to run at all.
const HANDED_ON: [&str; 12] =
    ["PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH"];

/// A running process that has said hello.
pub(super) struct Child {
    group: Group,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    errors: Lines<BufReader<ChildStderr>>,
    errors_open: bool,
    /// The last thing it said about itself.
    last_words: String,
    hello: Hello,
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
    pub(super) async fn start(spec: &Spec, groups: &Groups) -> Result<Self, String> {
        let (program, arguments) = spec.command.split_first().ok_or("there is no command")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&spec.dir).env_clear();
        command.envs(HANDED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(spec.env.iter().map(|(name, value)| (name, value.expose_secret())));
        // A group of its own: its children end with it, and a Ctrl-C in our terminal is not theirs.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut process = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
        let (input, output, errors) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let group = Group::new(process, groups);
        if let (Some(pid), Some(bytes)) = (group.pid(), spec.memory) {
            let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
            prlimit(Some(pid), Resource::As, limit).map_err(|error| format!("its memory cannot be limited: {error}"))?;
        }
        let (Some(input), Some(output), Some(errors)) = (input, output, errors) else { return Err("it has no pipes".to_owned()) };
        let mut child = Self {
            group,
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
        let told = |text: &str| text::one_line(&spec.hidden.out_of(text), 100);
        loop {
            tokio::select! {
                line = self.output.next() => match line {
                    Ok(Some(Line::Whole(line))) => match serde_json::from_str::<First>(&line) {
                        Ok(First { hello }) => return Ok(Hello { name: told(&hello.name), version: told(&hello.version) }),
                        Err(_) => stray(spec, &line),
                    },
                    Ok(Some(Line::TooLong)) => {}
                    Ok(None) | Err(_) => return Err(self.end(spec).await),
                },
                line = self.errors.next(), if self.errors_open => self.note(spec, line.ok().flatten()),
                _ = self.group.process.wait() => return Err(self.end(spec).await),
            }
        }
    }

    /// Answers until the process ends or is not needed; an error where it never answered.
    pub(super) async fn serve(mut self, spec: &Spec, queue: &mut Queue) -> Result<(), Broken> {
        let mut flights = Flights::new();
        let (mut next, mut answered) = (0, false);
        let mut out: Vec<u8> = Vec::new();
        // It has nothing to do, however much it says on standard error.
        let mut idle_since = Instant::now();
        // It has ended, or takes nothing more: until then what it said before is waited for.
        let mut gone: Option<Instant> = None;
        let end = loop {
            queue.curious.drain(..).for_each(|curious| drop(curious.send(Ok(self.hello.clone()))));
            while gone.is_none()
                && let Some(Waiting { item, tries }) = next_in_line(queue, &flights, spec.concurrency)
            {
                if item.answer.is_closed() {
                    continue;
                }
                if let Some(by) = item.by.as_ref().filter(|by| **by != self.hello) {
                    let reason = format!("the process now is {}, and this run is judged by {by}", self.hello);
                    item.refuse(Fault::Blocked(reason));
                    continue;
                }
                out.extend_from_slice(json!({ "id": next, "item": item.item }).to_string().as_bytes());
                out.push(b'\n');
                flights.insert(next, Flight { item, since: Instant::now(), tries: tries + 1 });
                next += 1;
            }
            if !queue.open && flights.is_empty() && queue.waiting.is_empty() {
                break End::Closed;
            }
            if !flights.is_empty() {
                idle_since = Instant::now();
            }
            let late = flights.iter().map(|(id, flight)| (flight.since + flight.item.timeout, *id)).min();
            let until = late.map_or(idle_since + spec.idle, |(at, _)| at);
            let until = gone.map_or(until, |gone| gone.min(until));
            tokio::select! {
                line = self.output.next() => match line {
                    Ok(Some(Line::Whole(line))) => answered |= answer::read(spec, &line, &mut flights),
                    Ok(Some(Line::TooLong)) => break End::Broken(format!("it answered with more than {} MiB", LONGEST >> 20)),
                    Ok(None) | Err(_) => break End::Broken(self.end(spec).await),
                },
                line = self.errors.next(), if self.errors_open => self.note(spec, line.ok().flatten()),
                // Its output may stay open: what it has started may hold it.
                _ = self.group.process.wait(), if gone.is_none() => gone = Some(Instant::now() + LAST_WORDS),
                written = self.input.write(&out), if !out.is_empty() && gone.is_none() => match written {
                    Ok(written @ 1..) => drop(out.drain(..written)),
                    _ => gone = Some(Instant::now() + LAST_WORDS),
                },
                () = queue.take() => {}
                () = tokio::time::sleep_until(until) => match late {
                    _ if gone.is_some_and(|gone| gone <= until) => break End::Broken(self.end(spec).await),
                    None => break End::Idle,
                    Some((_, id)) => {
                        if let Some(Flight { item, .. }) = flights.remove(&id) {
                            let timeout = item.timeout;
                            item.refuse(Fault::Failed(format!("no answer within {timeout:?}")));
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
                for Flight { item, tries, .. } in flights.into_values().rev() {
                    if tries < TRIES { queue.waiting.push_front(Waiting { item, tries }) } else { item.refuse(Fault::Failed(reason.clone())) }
                }
                if answered { Ok(()) } else { Err(Broken { started: true, reason }) }
            }
        }
    }

    /// Into the log; what the process writes is text from outside.
    fn note(&mut self, spec: &Spec, line: Option<Line>) {
        match line {
            Some(line) => {
                if self.remember(spec, line) {
                    tracing::info!(command = spec.name(), "{}", self.last_words);
                }
            }
            // It closed this pipe and may go on: the other one says when it ends.
            None => self.errors_open = false,
        }
    }

    /// True where the line says anything.
    fn remember(&mut self, spec: &Spec, line: Line) -> bool {
        let Line::Whole(line) = line else { return false };
        let said = !line.trim().is_empty();
        if said {
            self.last_words = text::one_line(&spec.hidden.out_of(&line), 500);
        }
        said
    }

    /// How it ended, or had to be ended.
    async fn end(&mut self, spec: &Spec) -> String {
        let status = tokio::time::timeout(GRACE, self.group.process.wait()).await;
        // Whoever of its children is left would hold its pipes.
        self.group.end();
        let deadline = Instant::now() + LAST_WORDS;
        for _ in 0..LAST_LINES {
            let Ok(Ok(Some(line))) = tokio::time::timeout_at(deadline, self.errors.next()).await else { break };
            self.remember(spec, line);
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
        let _ = tokio::time::timeout(GRACE, self.group.process.wait()).await;
    }
}

/// Who may be told to the process now. One whose process died has the next one to itself: then it is known who it was.
fn next_in_line(queue: &mut Queue, flights: &Flights, concurrency: usize) -> Option<Waiting> {
    let alone = flights.values().any(|flight| flight.tries > 1);
    queue.waiting.pop_front_if(|next| flights.len() < concurrency && !alone && (next.tries == 0 || flights.is_empty()))
}

fn described(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
