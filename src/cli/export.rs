use jiff::Timestamp;

use super::{Failure, Overrides, block_on, print, settings_without_keys};
use crate::{
    model::Score,
    store::{ExportFilter, Store},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long)]
    monitor: Option<String>,
    /// Scores made at or after this instant (RFC 3339)
    #[arg(long)]
    since: Option<Timestamp>,
    #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
    format: ExportFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ExportFormat {
    Csv,
    Jsonl,
}

/// Scores read at a time.
const PAGE: u32 = 1000;

pub(super) fn export(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let filter = ExportFilter { monitor: arguments.monitor.clone(), since_us: arguments.since.map(Timestamp::as_microsecond) };
    block_on(async {
        let store = Store::open_to_read(&settings.state).await?;
        let (mut after, mut first) = (0, true);
        loop {
            let (scores, next) = store.export(&filter, after, PAGE).await?;
            match arguments.format {
                ExportFormat::Jsonl => {
                    let mut out = String::new();
                    for score in &scores {
                        out.push_str(&serde_json::to_string(score).map_err(anyhow::Error::from)?);
                        out.push('\n');
                    }
                    print(&out)?;
                }
                ExportFormat::Csv => print(&csv(&scores, first)?)?,
            }
            first = false;
            let Some(next) = next else { return Ok(()) };
            after = next;
        }
    })
}

fn csv(scores: &[Score], header: bool) -> anyhow::Result<String> {
    let mut writer = csv::WriterBuilder::new().has_headers(header).from_writer(Vec::new());
    for score in scores {
        writer.serialize(score)?;
    }
    Ok(String::from_utf8_lossy(&writer.into_inner()?).into_owned())
}
