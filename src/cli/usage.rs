use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use super::{Failure, Format, Overrides, block_on, print, settings_without_keys, table};
use crate::{
    model::usd,
    store::{Store, UsageRow},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    Provider,
    Model,
    Monitor,
    Day,
}

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What the sums are of
    #[arg(long, value_enum, default_value_t = By::Model)]
    by: By,
    /// Days back, today included
    #[arg(long, default_value_t = 30)]
    days: u16,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Sums over one provider, model, monitor or day.
#[derive(Debug, Default, Serialize)]
struct Line {
    name: String,
    calls: i64,
    errors: i64,
    cached: i64,
    input_tokens: i64,
    output_tokens: i64,
    cost_usd: f64,
}

pub(super) fn usage(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let since = today.checked_sub(jiff::Span::new().days(i64::from(arguments.days.max(1)) - 1)).unwrap_or(today);
    let rows = block_on(async { Ok(Store::open_to_read(&settings.state).await?.usage_since(&since.to_string()).await?) })?;
    let lines = summed(&rows, arguments.by);
    match arguments.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string(&lines).map_err(anyhow::Error::from)?)),
        Format::Table => {
            let name = match arguments.by {
                By::Provider => "provider",
                By::Model => "model",
                By::Monitor => "monitor",
                By::Day => "day",
            };
            let mut shown = table(&[name, "calls", "errors", "cached", "input tokens", "output tokens", "USD"]);
            for line in &lines {
                let counts = [line.calls, line.errors, line.cached, line.input_tokens, line.output_tokens].map(|n| n.to_string());
                shown.add_row(std::iter::once(line.name.clone()).chain(counts).chain([format!("{:.4}", line.cost_usd)]));
            }
            print(&format!("{shown}\n"))
        }
    }
}

/// In the order of the names, which for days is that of time.
fn summed(rows: &[UsageRow], by: By) -> Vec<Line> {
    let mut lines: BTreeMap<String, (Line, i64)> = BTreeMap::new();
    for row in rows {
        let name = match by {
            By::Provider => row.provider.clone(),
            By::Model => format!("{}/{}", row.provider, row.model),
            By::Monitor if row.monitor.is_empty() => "(no monitor)".to_owned(),
            By::Monitor => row.monitor.clone(),
            By::Day => row.day.clone(),
        };
        let (line, cost_nano) = lines.entry(name).or_default();
        line.calls += row.calls;
        line.errors += row.errors;
        line.cached += row.cached;
        line.input_tokens += row.input_tokens;
        line.output_tokens += row.output_tokens;
        *cost_nano += row.cost_nano;
    }
    lines.into_iter().map(|(name, (line, cost_nano))| Line { name, cost_usd: usd(cost_nano), ..line }).collect()
}
