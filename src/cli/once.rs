use std::{io::IsTerminal, sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Failure, Format, Overrides, block_on, daemon_answer, logs, monitor, print, settings, table};
use crate::{
    config::{MonitorSpec, Settings},
    control::RunRequest,
    daemon,
    model::{RunReport, RunStatus},
    pipeline::Progress,
    store::lock::{Holder, LockError, StateLock},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    monitor: String,
    /// Judge nothing, write nothing: show what would be taken
    #[arg(long)]
    dry_run: bool,
    /// Items from this instant on (RFC 3339), instead of from the watermark
    #[arg(long)]
    since: Option<Timestamp>,
    /// Items before this instant
    #[arg(long)]
    until: Option<Timestamp>,
    /// Keep the scores and never send them
    #[arg(long)]
    no_publish: bool,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(super) fn once(overrides: &Overrides, arguments: Arguments) -> Result<(), Failure> {
    let settings = settings(overrides)?;
    let spec = monitor(&settings, &arguments.monitor)?;
    let request =
        RunRequest { since: arguments.since, until: arguments.until, dry_run: arguments.dry_run, no_publish: arguments.no_publish, gate: None, backfill: None };
    let report = run(overrides, settings, spec, request, "assayd once")?;
    match arguments.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string(&report).map_err(anyhow::Error::from)?))?,
        Format::Table => print(&render(&report))?,
    }
    if report.status == RunStatus::Partial {
        eprintln!("assayd: the run is partial: {}", report.error.as_deref().unwrap_or("some judgements failed or wait"));
    }
    if report.status == RunStatus::Failed {
        eprintln!("assayd: the run failed: {}", report.error.as_deref().unwrap_or("no reason is known"));
        return Err(Failure::Problems);
    }
    Ok(())
}

/// A run by hand, by the daemon where there is one.
pub(super) fn run(overrides: &Overrides, settings: Settings, spec: Arc<MonitorSpec>, request: RunRequest, command: &str) -> Result<RunReport, Failure> {
    let log = crate::config::LogSpec { file: None, level: overrides.log_level.clone().unwrap_or_else(|| "warn".to_owned()), ..settings.log.clone() };
    let _guard = logs::start(&log)?;
    let me = Holder { pid: std::process::id(), command: command.to_owned(), listen: None };
    match StateLock::take(&settings.state, &me) {
        Ok(lock) => {
            let report = block_on(async { Ok(watched(settings, spec, request).await?) })?;
            drop(lock);
            Ok(report)
        }
        Err(LockError::Held(_, Holder { listen: Some(address), .. })) => {
            let path = format!("/api/v1/monitors/{}/runs", spec.name);
            block_on(daemon_answer(&settings, &address, &path, &request))
        }
        Err(error) => Err(Failure::Usage(error.to_string())),
    }
}

/// The run, with a progress line where somebody watches.
async fn watched(settings: Settings, spec: Arc<MonitorSpec>, request: RunRequest) -> anyhow::Result<RunReport> {
    let (progress, mut seen) = watch::channel(Progress::default());
    let run = daemon::once(settings, spec, request, progress);
    if !std::io::stderr().is_terminal() {
        return run.await;
    }
    let bar =
        ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg} [{elapsed}]").unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut run = std::pin::pin!(run);
    loop {
        tokio::select! {
            report = &mut run => {
                bar.finish_and_clear();
                return report;
            }
            Ok(()) = seen.changed() => {
                let Progress { fetched, drawn, decided } = *seen.borrow_and_update();
                bar.set_message(format!("fetched {fetched}, drawn {drawn}, decided {decided}"));
            }
        }
    }
}

fn render(report: &RunReport) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let counts = &report.counts;
    let _ = writeln!(out, "{} {}: {} in {:.1} s", report.monitor, report.slot, report.status.as_str(), Duration::from_millis(report.duration_ms).as_secs_f64());
    let mut items = table(&["fetched", "duplicate", "filtered", "sampled out", "scored", "failed", "deferred", "not applicable"]);
    items.add_row(
        [counts.fetched, counts.duplicate, counts.filtered, counts.sampled_out, counts.scored, counts.failed, counts.deferred, counts.not_applicable]
            .map(|n| n.to_string()),
    );
    let _ = writeln!(out, "{items}");
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    let mut metrics = table(&["metric", "n", "mean", "95 % interval", "passed", "failed"]);
    for (name, metric) in &report.metrics {
        let interval = match (metric.low, metric.high) {
            (Some(low), Some(high)) => format!("{low:.3} to {high:.3}"),
            _ => "-".to_owned(),
        };
        metrics.add_row([name.clone(), metric.n.to_string(), figure(metric.mean), interval, figure(metric.pass_rate), metric.failed.to_string()]);
    }
    let _ = writeln!(out, "{metrics}");
    for (sink, published) in &report.published {
        let _ = writeln!(out, "{sink}: {} delivered, {} waiting", published.delivered, published.pending);
    }
    for alert in report.alerts.iter().filter(|alert| alert.state != crate::model::AlertState::Inactive) {
        let _ = writeln!(out, "alert {}: {} ({})", alert.name, alert.state.as_str(), alert.reason);
    }
    if report.cost_usd > 0.0 {
        let _ = writeln!(out, "cost: {:.4} USD", report.cost_usd);
    }
    out
}
