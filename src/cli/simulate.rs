//! `assayd simulate MONITOR`: what the monitor's alerts would do under its own scores, and what a plain threshold would.

use std::fmt::Write;

use rand::{SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{Failure, Format, Overrides, block_on, monitor, print, settings_without_keys, table};
use crate::{
    alerting::{
        AlertMemory, Comparison, Condition, Hold, Rule, Statistic,
        simulate::{Candidate, Looks, Runs, Simulated, alarms, delay, fallen},
    },
    config::{AlertSpec, MonitorSpec, Over},
    model::{Judged, alertname},
    schedule::plan::Plan,
    statistics::{evidence::Promise, real},
    store::Store,
    util::{duration::Human, text::figure},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    monitor: String,
    /// How many months are lived through for each figure
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    lives: u32,
    /// Makes the figures repeatable
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Scores that stand for what is usual.
const RECENT: u32 = 5_000;
/// With fewer, what is usual is not known.
const LEAST: usize = 30;
const MONTH: f64 = 30.0 * 86_400.0;
/// Runs of a month, at most: at more than this many a month, a part of it stands for all.
const HORIZON: f64 = 3_000.0;
/// A fall that is not told within so many runs is not told.
const PATIENCE: u32 = 3_000;
/// How far the mean falls.
const FALLS: [f64; 3] = [0.05, 0.10, 0.20];

#[derive(Serialize)]
struct Report {
    alert: String,
    condition: String,
    /// Scores that stand for what is usual, and their mean.
    scores: usize,
    mean: f64,
    /// Judgements a run, and seconds between two runs.
    per_run: usize,
    interval_seconds: f64,
    rules: Vec<Tried>,
}

#[derive(Serialize)]
struct Tried {
    rule: String,
    false_alarms_a_month: Simulated,
    delays: Vec<Delay>,
}

#[derive(Serialize)]
struct Delay {
    /// The mean that the scores fall (or rise) to.
    to: f64,
    /// `None` where it is not told within 3,000 runs.
    runs: Option<Simulated>,
}

pub(super) fn simulate(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let spec = monitor(&settings, &arguments.monitor)?;
    let plan = Plan::new(&spec.schedule, &spec.name).map_err(|fault| Failure::Usage(fault.message))?;
    let interval = plan.mean_gap(jiff::Timestamp::now()).unwrap_or(3600.0);
    let mut chance = StdRng::seed_from_u64(arguments.seed);
    let mut reports = Vec::new();
    block_on(async {
        let store = Store::open_to_read(&settings.state).await?;
        let memories = store.alert_memories(&spec.name).await?;
        for alert in spec.alerts.iter().filter(|alert| alert.when.statistic.needs_samples() && alert.metric.is_some()) {
            // Of an alert with `by` the levels of its values; the first that is known stands for all.
            let kept = memories.iter().filter(|(name, _)| alertname(name) == alert.name).filter_map(|(_, json)| serde_json::from_str::<AlertMemory>(json).ok());
            let Some(condition) = number(alert, kept) else {
                eprintln!("assayd: alert {}: what is normal is still being learned", alert.name);
                continue;
            };
            let (judged, runs) = store.recent_judged(&spec.name, alert.metric.as_deref().unwrap_or_default(), RECENT).await?;
            let scored = judged.iter().filter(|judged| judged.value.is_some()).count();
            if scored < LEAST {
                eprintln!("assayd: alert {}: {scored} scores so far; {LEAST} are needed to say what is usual", alert.name);
                continue;
            }
            if let Some(by) = &alert.by {
                let label = &by.label;
                eprintln!(
                    "assayd: alert {}: simulated on the scores of every {label} together; each has an alert of its own, on fewer scores a run",
                    alert.name
                );
            }
            let per_run = judged.len().div_ceil(usize::try_from(runs.max(1)).unwrap_or(1));
            reports.push(try_out(alert, condition, &spec, Runs { judged: &judged, n: per_run, interval }, arguments.lives, &mut chance));
        }
        Ok(())
    })?;
    if reports.is_empty() {
        eprintln!("assayd: monitor {} has no alert that could be tried", spec.name);
        return Err(Failure::Problems);
    }
    match arguments.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string(&reports).map_err(anyhow::Error::from)?)),
        Format::Table => print(&reports.iter().map(render).collect::<Vec<_>>().join("\n")),
    }
}

/// The alert's condition with a number in it.
pub(super) fn number(alert: &AlertSpec, kept: impl IntoIterator<Item = AlertMemory>) -> Option<Condition> {
    if !alert.when.baseline {
        return Some(alert.when);
    }
    let level = kept.into_iter().find_map(|memory| memory.baseline?.level)?;
    Some(alert.when.against(&level))
}

fn try_out(alert: &AlertSpec, condition: Condition, spec: &MonitorSpec, runs: Runs<'_>, lives: u32, chance: &mut StdRng) -> Report {
    let values: Vec<f64> = runs.judged.iter().filter_map(|judged| judged.value).collect();
    let mean = values.iter().sum::<f64>() / real(values.len() as u64);
    let per_month = MONTH / runs.interval;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and HORIZON")]
    let horizon = per_month.clamp(1.0, HORIZON) as u32;
    let part = per_month / f64::from(horizon);
    let worse_is_less = matches!(condition.comparison, Comparison::Less | Comparison::AtMost);
    let changes: Vec<(f64, Vec<Judged>)> = FALLS
        .iter()
        .map(|fall| if worse_is_less { mean - fall } else { mean + fall })
        .filter(|to| condition.statistic == Statistic::Mean && (0.0..=1.0).contains(to))
        .filter_map(|to| Some((to, fallen(runs.judged, to, worse_is_less, chance)?)))
        .collect();
    let rules = candidates(alert, condition, runs.interval).into_iter().map(|(rule, candidate)| {
        let found = alarms(&candidate, runs, horizon, lives, chance);
        let delays = changes.iter().map(|(to, judged)| Delay { to: *to, runs: delay(&candidate, runs, Runs { judged, ..runs }, PATIENCE, lives, chance) });
        let delays = delays.collect();
        Tried { rule, false_alarms_a_month: Simulated { mean: found.mean * part, se: found.se * part, ..found }, delays }
    });
    let rules = rules.collect();
    let name = format!("{}/{}", spec.name, alert.name);
    Report { alert: name, condition: condition.to_string(), scores: values.len(), mean, per_run: runs.n, interval_seconds: runs.interval, rules }
}

/// The alert, and what a plain threshold would have done in its place.
fn candidates(alert: &AlertSpec, condition: Condition, interval: f64) -> Vec<(String, Candidate)> {
    let at_once = Rule { hold: Hold::Runs(1), repeat: Human::days(36_500), keep: Human::secs(0) };
    let window = |runs: usize| Looks::Window { condition, end: None, min_samples: 1, runs };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 1, and a window of years is no more than a million runs")]
    let in_window = |window: Human| (window.0.as_secs_f64() / interval).ceil().clamp(1.0, 1e6) as usize;
    let over = match alert.over {
        Over::Last(window) => in_window(window),
        Over::Runs(runs) => usize::try_from(runs).unwrap_or(1),
    };
    let own = Rule { repeat: Human::days(36_500), ..alert.rule() };
    let looks = match alert.evidence {
        Some(evidence) => {
            let promise = Promise { confidence: evidence.confidence, interval };
            Looks::Evidence { condition, promise, min_samples: alert.min_samples, boost: evidence.boost }
        }
        None => Looks::Window { condition, end: alert.resolve_when, min_samples: alert.min_samples, runs: over },
    };
    let mut all = vec![
        ("this alert".to_owned(), Candidate { rule: own, looks }),
        ("plain threshold on each run".to_owned(), Candidate { rule: at_once, looks: window(1) }),
        ("the same, 3 runs in a row".to_owned(), Candidate { rule: Rule { hold: Hold::Runs(3), ..at_once }, looks: window(1) }),
        (format!("plain threshold over {}", runs_word(over)), Candidate { rule: at_once, looks: window(over) }),
    ];
    if alert.evidence.is_none() {
        let promise = Promise { confidence: 0.99, interval };
        if condition.question().is_ok() && promise.stake().is_some() {
            let looks = Looks::Evidence { condition, promise, min_samples: 0, boost: 1 };
            all.push(("with `confidence: 0.99`".to_owned(), Candidate { rule: at_once, looks }));
        }
    }
    all
}

fn runs_word(runs: usize) -> String {
    if runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") }
}

fn render(report: &Report) -> String {
    let mut out = String::new();
    let every = Human(std::time::Duration::from_secs_f64(report.interval_seconds.max(0.0).round()));
    let _ = writeln!(
        out,
        "{}: {} ({} scores so far, mean {}; {} a run, a run every {every})",
        report.alert,
        report.condition,
        report.scores,
        figure(report.mean),
        report.per_run
    );
    let tos: Vec<f64> = report.rules.first().map(|tried| tried.delays.iter().map(|delay| delay.to).collect()).unwrap_or_default();
    let mut heads = vec!["rule".to_owned(), "alarms a month as things are".to_owned()];
    heads.extend(tos.iter().map(|to| format!("runs until told of {}", figure((to * 100.0).round() / 100.0))));
    let mut shown = table(&heads.iter().map(String::as_str).collect::<Vec<_>>());
    let rounded = |simulated: &Simulated| format!("{} ± {}", figure((simulated.mean * 100.0).round() / 100.0), figure((simulated.se * 100.0).round() / 100.0));
    for tried in &report.rules {
        let mut row = vec![tried.rule.clone(), rounded(&tried.false_alarms_a_month)];
        row.extend(tried.delays.iter().map(|delay| delay.runs.as_ref().map_or_else(|| format!("over {PATIENCE}"), rounded)));
        shown.add_row(row);
    }
    let _ = writeln!(out, "{shown}");
    out
}
