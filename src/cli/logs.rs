use std::io::IsTerminal;

use tracing_appender::{non_blocking::WorkerGuard, rolling};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use super::Failure;
use crate::config::{LogFormat, LogSpec, Rotation};

/// Log lines to standard error and, where the settings say so, to files. The guard flushes the file when it is dropped.
pub(super) fn start(spec: &LogSpec) -> Result<Option<WorkerGuard>, Failure> {
    // The housekeeping's scheduler tells each step of its own at `info`; a filter that names it has the last word.
    let filter = || {
        EnvFilter::try_new(format!("tokio_cron_scheduler=warn,{}", spec.level)).map_err(|error| Failure::Usage(format!("log level `{}`: {error}", spec.level)))
    };
    let terminal = std::io::stderr().is_terminal();
    let format = spec.format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json });
    let colour = terminal && std::env::var_os("NO_COLOR").is_none();
    let stderr = match format {
        LogFormat::Pretty => tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour).with_target(false).boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    let (file, guard) = match &spec.file {
        None => (None, None),
        Some(folder) => {
            let rotation = match spec.rotation {
                Rotation::Hourly => rolling::Rotation::HOURLY,
                Rotation::Daily => rolling::Rotation::DAILY,
                Rotation::Weekly => rolling::Rotation::WEEKLY,
                Rotation::Never => rolling::Rotation::NEVER,
            };
            let appender =
                rolling::Builder::new().rotation(rotation).filename_prefix("assayd").filename_suffix("log").max_log_files(spec.keep.max(1)).build(folder);
            let appender = appender.map_err(|error| Failure::Usage(format!("log files in {}: {error}", folder.display())))?;
            // Lossless: a line that explains a fault is worth a wait.
            let (writer, guard) = tracing_appender::non_blocking::NonBlockingBuilder::default().lossy(false).finish(appender);
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer).with_filter(filter()?);
            (Some(layer), Some(guard))
        }
    };
    tracing_subscriber::registry().with(stderr.with_filter(filter()?)).with(file).init();
    Ok(guard)
}
