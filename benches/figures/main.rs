//! The figures that the README quotes, measured on this machine: `cargo bench`, or `cargo bench -- --quick` for small
//! sizes, or `cargo bench -- judge wall` for some of them.
//!
//! What is measured is the release binary as a process of its own: its CPU time and peak memory are the kernel's. The
//! servers that it talks to (a model, a Langfuse v4) are a second process: this program again, with a hidden command.
//! Each figure stands beside a reference that is measured in the same run, since a bare number says little about a busy
//! machine.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people to read, not identities")]

mod alerts;
mod client;
mod daemon;
mod dedup;
mod exec;
mod gateway;
mod judge;
mod load;
mod machine;
mod memory;
mod postgres;
mod process;
mod report;
mod schedule;
mod server;
mod site;

use std::process::ExitCode;

use report::Report;

/// Full or small sizes.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    quick: bool,
}

impl Size {
    fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

type Figure = fn(Size, &mut Report) -> anyhow::Result<()>;

const FIGURES: [(&str, Figure); 10] = [
    ("judge", judge::cpu),
    ("wall", judge::wall),
    ("schedule", schedule::figures),
    ("daemon", daemon::figures),
    ("memory", memory::figures),
    ("dedup", dedup::figures),
    ("gateway", gateway::figures),
    ("postgres", postgres::figures),
    ("exec", exec::figures),
    ("alerts", alerts::figures),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let hidden = match arguments.first().map(String::as_str) {
        Some("serve") => Some(server::main(&arguments[1..])),
        Some("client") => Some(client::main(&arguments[1..])),
        Some("round") => Some(alerts::round_main(&arguments[1..])),
        Some("scheduler") => Some(schedule::reference_main(&arguments[1..])),
        _ => None,
    };
    if let Some(result) = hidden {
        return finish(result);
    }

    let size = Size { quick: arguments.iter().any(|argument| argument == "--quick") };
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    println!("{}\n", machine::describe());
    let mut report = Report::start();
    for (name, figure) in FIGURES {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        if let Err(error) = figure(size, &mut report) {
            report.broken(name, &error);
        }
    }
    if report.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures: {error:#}");
            ExitCode::FAILURE
        }
    }
}
