use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::{Failure, Format, Overrides, block_on, daemon_answer, monitors, print, settings, settings_without_keys, table};
use crate::{
    daemon::{self, wire},
    model::{PromptRef, PromptText},
    prompts::Use,
    store::{
        PromptRow, Store,
        lock::{Holder, LockError, StateLock},
    },
    util::text::one_line,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    /// Prompts kept in Langfuse that monitors judge with: label, version, when they were read
    List {
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// The text of a prompt as it was last read
    Show {
        /// NAME, NAME@LABEL or NAME@VERSION
        prompt: String,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Read prompts anew: all in use, or those of one name
    Refresh {
        name: Option<String>,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

/// A prompt in use, or one that was.
#[derive(Debug, Serialize)]
struct Line {
    prompt: String,
    connection: String,
    /// `production`, or the version that the settings name.
    wanted: String,
    /// Absent where none was ever read.
    version: Option<u32>,
    labels: Vec<String>,
    fetched_at: Option<Timestamp>,
    /// Why there is none to judge with.
    fault: Option<String>,
    monitors: Vec<String>,
}

pub(super) fn prompts(overrides: &Overrides, action: Action) -> Result<(), Failure> {
    match action {
        Action::List { format } => list(overrides, format),
        Action::Show { prompt, format } => show(overrides, &prompt, format),
        Action::Refresh { name, format } => refresh(overrides, name.as_deref(), format),
    }
}

fn list(overrides: &Overrides, format: Format) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let uses = wire::uses(monitors(&settings).monitors.values());
    tell(&lines(rows(&settings.state)?, &uses), format)
}

/// What is kept; nothing before the first run.
fn rows(state: &std::path::Path) -> Result<Vec<PromptRow>, Failure> {
    block_on(async {
        match Store::open_to_read(state).await {
            Ok(store) => Ok(store.prompts().await?),
            Err(_) => Ok(Vec::new()),
        }
    })
}

fn lines(rows: Vec<PromptRow>, uses: &BTreeSet<Use>) -> Vec<Line> {
    let mut rows: BTreeMap<PromptRef, Option<PromptRow>> = rows.into_iter().map(|row| (row.prompt.clone(), Some(row))).collect();
    for one in uses {
        rows.entry(one.prompt.clone()).or_default();
    }
    let line = |(prompt, row): (PromptRef, Option<PromptRow>)| {
        let monitors: BTreeSet<&str> = uses.iter().filter(|one| one.prompt == prompt).map(|one| one.monitor.as_str()).collect();
        let kept = row.as_ref().and_then(|row| row.kept.as_ref());
        Line {
            wanted: prompt.selector().1,
            version: kept.map(|kept| kept.version),
            labels: kept.map(|kept| kept.labels.clone()).unwrap_or_default(),
            fetched_at: row.as_ref().and_then(|row| Timestamp::from_microsecond(row.fetched_us).ok()),
            fault: row.as_ref().and_then(|row| row.fault.clone()),
            monitors: monitors.into_iter().map(str::to_owned).collect(),
            prompt: prompt.name,
            connection: prompt.connection,
        }
    };
    rows.into_iter().map(line).collect()
}

fn tell(lines: &[Line], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return print(&format!("{}\n", serde_json::to_string(lines).map_err(anyhow::Error::from)?));
    }
    let mut shown = table(&["prompt", "connection", "wanted", "version", "read", "monitors"]);
    for line in lines {
        let version = match (&line.fault, line.version) {
            (Some(fault), _) => one_line(fault, 200),
            (None, Some(version)) => version.to_string(),
            (None, None) => "not read yet".to_owned(),
        };
        let read = line.fetched_at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"));
        shown.add_row([one_line(&line.prompt, 80), one_line(&line.connection, 40), one_line(&line.wanted, 40), version, read, line.monitors.join(", ")]);
    }
    print(&format!("{shown}\n"))
}

fn show(overrides: &Overrides, prompt: &str, format: Format) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let prompt = PromptRef::new("", prompt.strip_prefix("langfuse:").unwrap_or(prompt)).map_err(Failure::Usage)?;
    let rows: Vec<PromptRow> = rows(&settings.state)?.into_iter().filter(|row| row.prompt.name == prompt.name && row.prompt.at == prompt.at).collect();
    if rows.is_empty() {
        return Err(Failure::Error(anyhow::anyhow!("the prompt `{prompt}` was not read yet; `assayd prompts list` shows those that were")));
    }
    if format == Format::Json {
        return print(&format!("{}\n", serde_json::to_string(&rows).map_err(anyhow::Error::from)?));
    }
    let mut out = String::new();
    for row in rows {
        let Some(kept) = row.kept else { continue };
        out.push_str(&format!(
            "{} v{} (connection {}), labels: {}\n",
            one_line(&row.prompt.name, 255),
            kept.version,
            one_line(&row.prompt.connection, 80),
            one_line(&kept.labels.join(", "), 300)
        ));
        let turns = match kept.prompt {
            PromptText::Text(text) => vec![(None, text)],
            PromptText::Chat(turns) => turns.into_iter().map(|turn| (Some(turn.role), turn.content)).collect(),
        };
        for (role, text) in turns {
            out.push('\n');
            if let Some(role) = role {
                out.push_str(&format!("[{}]\n", one_line(&role, 40)));
            }
            // Line by line: what somebody wrote in Langfuse is not to rule a terminal.
            text.lines().for_each(|line| out.push_str(&format!("{}\n", line_of(line))));
        }
        if let Some(fault) = row.fault {
            out.push_str(&format!("\nno longer judged with: {}\n", one_line(&fault, 500)));
        }
    }
    print(&out)
}

/// Like `one_line`, but for the spaces before and behind.
fn line_of(line: &str) -> String {
    let indent: String = line.chars().take_while(|c| *c == ' ' || *c == '\t').collect();
    format!("{indent}{}", one_line(line, usize::MAX))
}

fn refresh(overrides: &Overrides, name: Option<&str>, format: Format) -> Result<(), Failure> {
    let settings = settings(overrides)?;
    let uses = wire::uses(monitors(&settings).monitors.values());
    if let Some(name) = name.filter(|name| uses.iter().all(|one| one.prompt.name != **name)) {
        return Err(Failure::Usage(format!("no monitor judges with a prompt `{}`", one_line(name, 80))));
    }
    let me = Holder { pid: std::process::id(), command: "assayd prompts refresh".to_owned(), listen: None };
    let rows: Vec<PromptRow> = match StateLock::take(&settings.state, &me) {
        Ok(lock) => {
            let rows = block_on(async { Ok(daemon::refresh_prompts(settings, uses.clone(), name).await?) })?;
            drop(lock);
            rows
        }
        Err(LockError::Held(_, Holder { listen: Some(address), .. })) => {
            block_on(daemon_answer(&settings, &address, "/api/v1/prompts/refresh", &serde_json::json!({ "name": name })))?
        }
        Err(error) => return Err(Failure::Usage(error.to_string())),
    };
    let lines = lines(rows, &uses.into_iter().filter(|one| name.is_none_or(|name| one.prompt.name == name)).collect());
    tell(&lines, format)?;
    if lines.iter().any(|line| line.fault.is_some()) { Err(Failure::Problems) } else { Ok(()) }
}
