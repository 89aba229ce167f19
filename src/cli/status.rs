use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::{Failure, Format, Overrides, block_on, monitors, outbox::served, print, settings_without_keys, table};
use crate::{
    schedule::plan::Plan,
    store::{MonitorStatus, Store, lock::StateLock},
    util::{duration::Human, text::one_line},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// When a monitor runs next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    At(Option<Timestamp>),
    Disabled,
    /// Its file is broken.
    Unknown,
}

pub(super) fn status(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let loaded = monitors(&settings);
    let now = Timestamp::now();
    let (mut rows, mut queues) = (Vec::new(), Vec::new());
    block_on(async {
        // Before the first run there is none.
        let store = Store::open_to_read(&settings.state).await.ok();
        for (name, spec) in &loaded.monitors {
            let next = Plan::new(&spec.schedule, name).ok().and_then(|plan| plan.next_after(now));
            let next = if spec.enabled { Next::At(next) } else { Next::Disabled };
            let status = match &store {
                Some(store) => store.monitor_status(name).await?,
                None => MonitorStatus::default(),
            };
            rows.push((name.clone(), next, status));
        }
        // The daemon goes on with their last good version, which stands in no file any more.
        for name in loaded.unfit.iter().filter(|name| !loaded.monitors.contains_key(*name)) {
            if let Some(store) = &store {
                rows.push((name.clone(), Next::Unknown, store.monitor_status(name).await?));
            }
        }
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(store) = &store {
            queues = store.queues().await?;
        }
        Ok(())
    })?;
    let daemon = StateLock::holder(&settings.state).filter(|holder| holder.command == "assayd run");
    let lag = |us: Option<i64>| us.map(|us| Human(Duration::from_secs(u64::try_from((now.as_microsecond() - us) / 1_000_000).unwrap_or(0))));
    let faults: Vec<String> = loaded.faults.iter().map(ToString::to_string).collect();
    if arguments.format == Format::Json {
        let monitors: Vec<_> = rows
            .iter()
            .map(|(name, next, status)| {
                let alerts: Vec<_> = status.alerts.iter().map(|(name, state, reason)| json!({ "name": name, "state": state, "reason": reason })).collect();
                json!({ "name": name, "enabled": *next != Next::Disabled, "next": if let Next::At(at) = next { *at } else { None }, "last_run": status.last_run, "watermark_lag_seconds": lag(status.watermark_us).map(|lag| lag.0.as_secs()),
                        "waiting": status.waiting, "alerts": alerts })
            })
            .collect();
        let queues: Vec<_> =
            queues.iter().map(|queue| json!({ "sink": queue.name, "waiting": queue.waiting, "dead": queue.dead, "error": queue.error, "served": served(&loaded, &queue.name) })).collect();
        return print(&format!(
            "{}\n",
            json!({ "daemon": daemon.map(|daemon| json!({ "pid": daemon.pid, "listen": daemon.listen })), "monitors": monitors, "outbox": queues, "faults": faults })
        ));
    }
    let mut shown = table(&["monitor", "next run", "last run", "scored", "watermark lag", "alerts"]);
    for (name, next, status) in &rows {
        let last = status.last_run.as_ref().map_or_else(|| "-".to_owned(), |run| format!("{:.0} {}", run.slot, run.status.as_str()));
        let scored = status.last_run.as_ref().map_or_else(|| "-".to_owned(), |run| run.counts.scored.to_string());
        let alerts: Vec<_> = status.alerts.iter().filter(|(_, state, _)| state != "inactive").map(|(name, state, _)| format!("{name}: {state}")).collect();
        let next = match next {
            Next::At(Some(at)) => format!("{at:.0}"),
            Next::At(None) => "-".to_owned(),
            Next::Disabled => "disabled".to_owned(),
            Next::Unknown => "file broken".to_owned(),
        };
        let lag = lag(status.watermark_us).map_or_else(|| "-".to_owned(), |lag| lag.to_string());
        shown.add_row([name.clone(), next, last, scored, lag, if alerts.is_empty() { "none".to_owned() } else { alerts.join(", ") }]);
    }
    let mut out = match &daemon {
        Some(daemon) => format!("daemon: process {}, {}\n", daemon.pid, daemon.listen.as_ref().map_or_else(|| "no API".to_owned(), |at| format!("at {at}"))),
        None => "daemon: not running, no slot will fire\n".to_owned(),
    };
    out += &format!("{shown}\n");
    for (name, .., status) in &rows {
        if let Some(error) = status.last_run.as_ref().and_then(|run| run.error.as_deref()) {
            out += &format!("{name}: {}\n", one_line(error, 300));
        }
    }
    for queue in &queues {
        let error = queue.error.as_deref().map(|error| format!(" (last error: {})", one_line(error, 200))).unwrap_or_default();
        let stranded = queue.waiting + queue.dead > 0 && served(&loaded, &queue.name) == Some(false);
        let unserved = if stranded { ", and no monitor publishes there" } else { "" };
        out += &format!("outbox {}: {} waiting, {} dead{unserved}{error}\n", queue.name, queue.waiting, queue.dead);
    }
    for fault in &faults {
        out += &format!("broken: {fault}\n");
    }
    print(&out)
}

/// Exit 0 when the daemon on this host is ready, 1 when it is not.
pub(super) fn healthcheck(overrides: &Overrides) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let Some(mut address) = settings.listen else {
        return Err(Failure::Usage("`listen: off`: there is nothing to ask".to_owned()));
    };
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    block_on(async {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().map_err(anyhow::Error::from)?;
        let answer =
            http.get(format!("http://{address}/readyz")).send().await.map_err(|error| anyhow::Error::new(error).context("the daemon does not answer"))?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(Failure::Error(anyhow::anyhow!("the daemon is not ready: {}", one_line(&answer.text().await.unwrap_or_default(), 300))))
        }
    })
}
