//! `assayd gate MONITOR`: a release check, for the exit code of a CI job.

use jiff::Timestamp;

use super::{Failure, Format, Overrides, monitor, once, print, settings};
use crate::{
    config::MonitorSpec,
    control::RunRequest,
    model::{Gate, GateAnswer, GateReport, RunReport},
    statistics::evidence::THRESHOLDS,
    util::text::figure,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    monitor: String,
    /// The metric that decides; needed where the monitor has several
    #[arg(long)]
    metric: Option<String>,
    /// The mean that is good enough, in [0.001, 0.999] [default: the metric's own threshold]
    #[arg(long)]
    threshold: Option<f64>,
    /// A wrong answer has at most the probability 1 - confidence
    #[arg(long, default_value_t = 0.95)]
    confidence: f64,
    /// Items from this instant on (RFC 3339) [default: the source's lookback]
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

pub(super) fn gate(overrides: &Overrides, arguments: Arguments) -> Result<(), Failure> {
    let settings = settings(overrides)?;
    let spec = monitor(&settings, &arguments.monitor)?;
    let gate = asked(&spec, &arguments)?;
    let request =
        RunRequest { since: arguments.since, until: arguments.until, dry_run: false, no_publish: arguments.no_publish, gate: Some(gate), backfill: None };
    let report = once::run(overrides, settings, spec, request, "assayd gate").map_err(|failure| match failure {
        // Not a release that failed: nobody knows.
        Failure::Error(error) => {
            eprintln!("assayd: there is no answer: {error:#}");
            Failure::Undecided
        }
        other => other,
    })?;
    let Some(found) = &report.gate else {
        eprintln!("assayd: there is no answer: {}", report.error.as_deref().unwrap_or("no reason is known"));
        return Err(Failure::Undecided);
    };
    match arguments.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string(found).map_err(anyhow::Error::from)?))?,
        Format::Table => print(&render(&report, found))?,
    }
    match found.answer {
        GateAnswer::Pass => Ok(()),
        GateAnswer::Fail => Err(Failure::Problems),
        GateAnswer::Undecided => Err(Failure::Undecided),
    }
}

fn asked(spec: &MonitorSpec, arguments: &Arguments) -> Result<Gate, Failure> {
    let usage = |message: String| Failure::Usage(message);
    let known = || spec.metrics.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>().join(", ");
    let metric = match (&arguments.metric, spec.metrics.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => only.name.clone(),
        (None, _) => return Err(usage(format!("the monitor has several metrics; choose one by --metric ({})", known()))),
    };
    let Some(of) = spec.metrics.iter().find(|known| known.config.gives().may_give(&known.name, &metric)) else {
        return Err(usage(format!("the monitor has no metric `{metric}` ({})", known())));
    };
    let Some(threshold) = arguments.threshold.or(of.threshold) else {
        return Err(usage(format!("--threshold says which mean of `{metric}` is good enough; the metric has none of its own")));
    };
    if !THRESHOLDS.contains(&threshold) {
        return Err(usage(format!("--threshold lies between {} and {}, not at {threshold}", THRESHOLDS.start(), THRESHOLDS.end())));
    }
    if !(0.5..1.0).contains(&arguments.confidence) {
        return Err(usage(format!("--confidence is at least 0.5 and below 1, not {}", arguments.confidence)));
    }
    Ok(Gate { metric, threshold, confidence: arguments.confidence })
}

fn render(report: &RunReport, found: &GateReport) -> String {
    let GateReport { metric, threshold, confidence, n, population, left_out, .. } = found;
    let mean = found.mean.map_or_else(|| "no mean".to_owned(), |mean| format!("mean {}", figure(mean)));
    let sure = if found.certain {
        "certain: the rest could not change it".to_owned()
    } else {
        format!("wrong with a probability of at most {}", figure(1.0 - confidence))
    };
    let says = match found.answer {
        GateAnswer::Pass => format!("at {threshold} or better; {sure}"),
        GateAnswer::Fail => format!("not at {threshold}; {sure}"),
        GateAnswer::Undecided => format!("not known yet: {}", found.reason.as_deref().unwrap_or("too few items")),
    };
    let left_out = if *left_out > 0 { format!(", {left_out} left out") } else { String::new() };
    let cost = if report.cost_usd > 0.0 { format!("; {:.4} USD", report.cost_usd) } else { String::new() };
    format!(
        "{}: {metric} of {} is {says}\n{mean} over {n} of {population} items{left_out}; all of them lie between {} and {}{cost}\n",
        found.answer.as_str(),
        report.monitor,
        figure(found.low),
        figure(found.high)
    )
}
