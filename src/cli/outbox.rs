use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::json;

use super::{Failure, Format, Overrides, block_on, daemon_answer, monitors, print, settings, settings_without_keys, table};
use crate::{
    config::{Loaded, Settings},
    daemon,
    model::OutboxChange,
    store::{
        QueueStatus, Store,
        lock::{Holder, LockError, StateLock},
    },
    util::text::{nearest, one_line},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    /// What waits for each sink and what it refused for good: how much, since when, the last error
    List {
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Send dead rows again: those of a queue, or all
    Retry {
        /// As `outbox list` names it
        queue: Option<String>,
    },
    /// Forget the dead rows of a queue; their scores stay in the store
    Drop {
        /// As `outbox list` names it
        queue: String,
        /// Rows that wait too, where no monitor publishes to the queue any more
        #[arg(long)]
        waiting: bool,
    },
}

#[derive(serde::Deserialize)]
struct Changed {
    rows: u64,
}

pub(super) fn outbox(overrides: &Overrides, action: Action) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let (queues, since) = queues(&settings)?;
    match action {
        Action::List { format } => list(&settings, &queues, &since, format),
        Action::Retry { queue } => {
            queue.iter().try_for_each(|queue| known(&queues, queue))?;
            let of = queue.as_ref().map(|queue| format!(" of `{}`", one_line(queue, 200))).unwrap_or_default();
            let rows = change(overrides, &settings, OutboxChange::Retry { queue })?;
            print(&format!("{rows} dead rows{of} are due again\n"))
        }
        Action::Drop { queue, waiting } => {
            known(&queues, &queue)?;
            let what = if waiting { "rows" } else { "dead rows" };
            let of = one_line(&queue, 200);
            let rows = change(overrides, &settings, OutboxChange::Drop { queue, waiting })?;
            print(&format!("{rows} {what} of `{of}` are forgotten\n"))
        }
    }
}

/// What is queued, and since when by queue; nothing before the first run.
fn queues(settings: &Settings) -> Result<(Vec<QueueStatus>, HashMap<String, i64>), Failure> {
    block_on(async {
        match Store::open_to_read(&settings.state).await {
            Ok(store) => Ok((store.queues().await?, store.undelivered_since().await?)),
            Err(_) => Ok(Default::default()),
        }
    })
}

fn known(queues: &[QueueStatus], name: &str) -> Result<(), Failure> {
    if queues.iter().any(|queue| queue.name == name) {
        return Ok(());
    }
    let hint = nearest(name, queues.iter().map(|queue| queue.name.as_str())).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
    Err(Failure::Usage(format!("the outbox has no queue `{}`{hint}", one_line(name, 200))))
}

/// Whether a monitor publishes to the queue; `None` where files are broken, since the daemon goes on with what they were.
pub(super) fn served(loaded: &Loaded, queue: &str) -> Option<bool> {
    let named = loaded.monitors.values().any(|spec| spec.publish.iter().any(|sink| sink.queue() == queue));
    if named { Some(true) } else { loaded.broken.is_empty().then_some(false) }
}

fn list(settings: &Settings, queues: &[QueueStatus], since: &HashMap<String, i64>, format: Format) -> Result<(), Failure> {
    let loaded = monitors(settings);
    let oldest = |queue: &QueueStatus| since.get(&queue.name).and_then(|us| Timestamp::from_microsecond(*us).ok());
    if format == Format::Json {
        let queues: Vec<_> = queues
            .iter()
            .map(|queue| {
                json!({ "queue": queue.name, "waiting": queue.waiting, "dead": queue.dead, "oldest": oldest(queue), "error": queue.error, "served": served(&loaded, &queue.name) })
            })
            .collect();
        return print(&format!("{}\n", json!(queues)));
    }
    let mut shown = table(&["queue", "waiting", "dead", "oldest", "last error"]);
    for queue in queues {
        let name = one_line(&queue.name, 200);
        let name = if served(&loaded, &queue.name) == Some(false) { format!("{name} (no monitor publishes there)") } else { name };
        let oldest = oldest(queue).map_or_else(|| "-".to_owned(), |at| format!("{at:.0}"));
        shown.add_row([
            name,
            queue.waiting.to_string(),
            queue.dead.to_string(),
            oldest,
            queue.error.as_deref().map_or_else(|| "-".to_owned(), |error| one_line(error, 200)),
        ]);
    }
    print(&format!("{shown}\n"))
}

/// Beside a daemon, the daemon does it.
fn change(overrides: &Overrides, without_keys: &Settings, change: OutboxChange) -> Result<u64, Failure> {
    let me = Holder { pid: std::process::id(), command: "assayd outbox".to_owned(), listen: None };
    match StateLock::take(&without_keys.state, &me) {
        Ok(lock) => {
            may(&monitors(without_keys), &change)?;
            let rows = block_on(async { Ok(daemon::change_outbox(&without_keys.state, change).await?) })?;
            drop(lock);
            Ok(rows)
        }
        Err(LockError::Held(_, Holder { listen: Some(address), .. })) => {
            let settings = settings(overrides)?;
            let Changed { rows } = block_on(daemon_answer(&settings, &address, "/api/v1/outbox", &change))?;
            Ok(rows)
        }
        Err(error) => Err(Failure::Usage(error.to_string())),
    }
}

/// Rows that wait for a monitor's sink will arrive: nobody means those.
fn may(loaded: &Loaded, change: &OutboxChange) -> Result<(), Failure> {
    let OutboxChange::Drop { queue, waiting: true } = change else { return Ok(()) };
    match served(loaded, queue) {
        Some(false) => Ok(()),
        Some(true) => Err(Failure::Usage(format!("a monitor publishes to `{}`: what waits there will be sent", one_line(queue, 200)))),
        None => {
            loaded.faults.iter().for_each(|fault| eprintln!("{fault}"));
            Err(Failure::Usage("whether a monitor publishes there is not known while files have faults".to_owned()))
        }
    }
}
