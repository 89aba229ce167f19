//! `assayd backfill MONITOR`: items of the past, judged by the monitor as it is now.

use std::fmt::Write;

use jiff::Timestamp;

use super::{Failure, Format, Overrides, monitor, once, print, settings};
use crate::{
    config::MonitorSpec,
    control::RunRequest,
    model::{Backfill, Budget, Per, RunReport, RunStatus, WouldJudge},
    util::text::figure,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    monitor: String,
    /// Items from this instant on (RFC 3339)
    #[arg(long)]
    from: Timestamp,
    /// Items before this instant
    #[arg(long)]
    to: Timestamp,
    /// Only by this metric and those that it needs; may be given several times [default: all]
    #[arg(long)]
    metric: Vec<String>,
    /// At most so many items: `60/m` a minute, `5/s`, `1000/h`; without a unit a minute [default: no limit]
    #[arg(long, value_parser = per_minute)]
    rate: Option<f64>,
    /// For all of the backfill, however often it is begun again
    #[arg(long)]
    max_usd: Option<f64>,
    /// Draw anew what was left out before, and look further back than decisions are remembered
    #[arg(long)]
    rejudge: bool,
    /// Judge nothing, write nothing: show what would be judged and what it would cost, roughly
    #[arg(long)]
    dry_run: bool,
    /// Keep the scores and never send them
    #[arg(long)]
    no_publish: bool,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

fn per_minute(text: &str) -> Result<f64, String> {
    let (number, unit) = text.split_once('/').unwrap_or((text, "m"));
    let in_a_minute = match unit {
        "s" => 60.0,
        "m" => 1.0,
        "h" => 1.0 / 60.0,
        _ => return Err("the unit is s, m or h, as in 60/m".to_owned()),
    };
    let rate = number.parse::<f64>().map_err(|_| "a number of items, as in 60/m".to_owned())? * in_a_minute;
    if rate.is_finite() && rate >= 0.001 { Ok(rate) } else { Err("at least 0.001 items a minute".to_owned()) }
}

pub(super) fn backfill(overrides: &Overrides, arguments: Arguments) -> Result<(), Failure> {
    let settings = settings(overrides)?;
    let spec = monitor(&settings, &arguments.monitor)?;
    let asked = asked(&spec, &arguments)?;
    let (since, until) = (Some(arguments.from), Some(arguments.to));
    let request = RunRequest { since, until, dry_run: arguments.dry_run, no_publish: arguments.no_publish, gate: None, backfill: Some(asked) };
    let report = once::run(overrides, settings, spec, request, "assayd backfill")?;
    match arguments.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string(&report).map_err(anyhow::Error::from)?))?,
        Format::Table => print(&render(&report))?,
    }
    let why = report.error.as_deref().unwrap_or("some judgements failed or wait");
    match report.status {
        RunStatus::Failed => {
            eprintln!("assayd: the backfill failed: {why}");
            return Err(Failure::Problems);
        }
        RunStatus::Partial => eprintln!("assayd: the backfill is not done: {why}; begun again with the same arguments it goes on"),
        _ => {}
    }
    Ok(())
}

fn asked(spec: &MonitorSpec, arguments: &Arguments) -> Result<Backfill, Failure> {
    if arguments.from >= arguments.to {
        return Err(Failure::Usage(format!("--from {} does not lie before --to {}", arguments.from, arguments.to)));
    }
    if let Some(Err(message)) = arguments.max_usd.map(|usd| Budget::new(usd, Per::Run)) {
        return Err(Failure::Usage(format!("--max-usd: {message}")));
    }
    let mut metrics = Vec::with_capacity(arguments.metric.len());
    for name in &arguments.metric {
        let known = |metric: &&crate::config::MetricSpec| metric.name == *name || metric.config.gives().may_give(&metric.name, name);
        let Some(metric) = spec.metrics.iter().find(known) else {
            let known = spec.metrics.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Failure::Usage(format!("the monitor has no metric `{name}` ({known})")));
        };
        metrics.push(metric.name.clone());
    }
    metrics.sort();
    metrics.dedup();
    Ok(Backfill { metrics, per_minute: arguments.rate, max_usd: arguments.max_usd, rejudge: arguments.rejudge })
}

fn render(report: &RunReport) -> String {
    let mut out = String::new();
    let found = report.backfill.clone().unwrap_or_default();
    if let (Some(from), Some(to)) = (found.from, found.to) {
        let _ = writeln!(out, "{} from {from} to {to}: {}", report.monitor, if report.would.is_some() { "dry run" } else { report.status.as_str() });
    }
    let counts = &report.counts;
    let judged = [("scored", counts.scored), ("failed", counts.failed), ("not applicable", counts.not_applicable), ("waiting", counts.deferred)];
    let passed_over = [
        ("had these scores already", found.already_scored),
        ("left out, as decided before", found.left_out),
        ("not drawn now", counts.sampled_out),
        ("filtered now", counts.filtered),
        ("left to the monitor's own runs", found.left_to_runs),
    ];
    let told = |rows: &[(&str, u64)]| rows.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(", ");
    let rest = told(&passed_over);
    let _ = match &report.would {
        Some(would) => writeln!(out, "of {} items {} would be judged{}", counts.fetched, would.items, costs(would)),
        None => writeln!(
            out,
            "of {} items: {}",
            counts.fetched,
            Some(told(&judged)).filter(|told| !told.is_empty()).unwrap_or_else(|| "none was judged".to_owned())
        ),
    };
    if !rest.is_empty() {
        let _ = writeln!(out, "passed over: {rest}");
    }
    for (name, metric) in report.metrics.iter().filter(|(_, metric)| metric.n + metric.failed > 0) {
        let mean = metric.mean.map_or_else(|| "-".to_owned(), |mean| figure((mean * 1000.0).round() / 1000.0));
        let _ = writeln!(out, "{name}: mean {mean} over {} scores, {} failed", metric.n, metric.failed);
    }
    for (sink, published) in &report.published {
        let _ = writeln!(out, "{sink}: {} delivered, {} waiting", published.delivered, published.pending);
    }
    if report.cost_usd > 0.0 || found.max_usd.is_some() {
        let _ = write!(out, "cost: {:.4} USD", report.cost_usd);
        if let (Some(spent), Some(most)) = (found.spent_usd, found.max_usd) {
            let _ = write!(out, "; {spent:.4} of {most:.4} USD with what was begun before");
        }
        let _ = writeln!(out);
    }
    if let (Some(why), Some(at)) = (&found.stopped, found.goes_on_at) {
        let _ = writeln!(out, "stopped: {why}\nit goes on with items from {at} on");
    }
    out
}

fn costs(would: &WouldJudge) -> String {
    let judgements = would.judgements.iter().map(|(metric, n)| format!("{n} by {metric}")).collect::<Vec<_>>().join(", ");
    let usd = would.usd.map_or_else(|| "at a cost that is not known".to_owned(), |usd| format!("for about {usd:.4} USD"));
    if would.items == 0 { String::new() } else { format!(" ({judgements}), {usd}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_of_items_and_a_unit() {
        assert_eq!([per_minute("60"), per_minute("60/m"), per_minute("2/s"), per_minute("120/h")], [Ok(60.0), Ok(60.0), Ok(120.0), Ok(2.0)]);
        assert!(["0", "-1", "x/m", "1/d", "nan", "inf"].into_iter().all(|text| per_minute(text).is_err()));
    }
}
