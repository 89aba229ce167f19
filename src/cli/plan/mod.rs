//! `assayd plan [PATH...]`: what edited monitors would do, cost and tell, against the source and the history. Judges nothing,
//! writes nothing.

mod alerts;
mod report;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use self::report::{BudgetPlan, Change, Cost, MonitorPlan, Report, RunPlan};
use super::{Failure, Format, Overrides, block_on, monitors, print, settings, validate};
use crate::{
    config::{MonitorSpec, Settings},
    daemon,
    model::{Per, RunReport},
    schedule::plan::Plan,
    store::{Store, Version},
    util::duration::Human,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Files or folders whose monitors are planned, changed or not [default: monitors that are not as they last ran]
    paths: Vec<PathBuf>,
    /// How far back alerts are tried, in days
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=400))]
    days: u32,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

const DAY: f64 = 86_400.0;

pub(super) fn plan(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings(overrides)?;
    let all = arguments.paths.is_empty();
    let loaded = if all { monitors(&settings) } else { validate::chosen(&settings, overrides, &arguments.paths) };
    let mut report = Report { days: arguments.days, faults: loaded.faults.iter().map(ToString::to_string).collect(), ..Report::default() };
    block_on(async {
        let (store, versions) = match Store::open_to_read(&settings.state).await {
            Ok(store) => {
                let versions = store.versions().await?;
                (store, versions)
            }
            // Nothing has run yet.
            Err(_) => (Store::nothing().await?, BTreeMap::new()),
        };
        if all {
            let gone = |name: &&String| !loaded.monitors.contains_key(*name) && !loaded.unfit.contains(*name);
            report.removed = versions.keys().filter(gone).cloned().collect();
        }
        for (name, spec) in &loaded.monitors {
            let (change, keys) = changed(spec, versions.get(name));
            match change {
                Change::Added => report.added.push(name.clone()),
                Change::Changed => report.changed.push(name.clone()),
                Change::Unchanged => report.unchanged += 1,
            }
            if change != Change::Unchanged || !all {
                report.monitors.push(monitor_plan(&settings, &store, spec, (change, keys), arguments.days).await?);
            }
        }
        Ok(())
    })?;
    match arguments.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string(&report).map_err(anyhow::Error::from)?))?,
        Format::Table => print(&report.render())?,
    }
    if report.faults.is_empty() { Ok(()) } else { Err(Failure::Problems) }
}

/// By the settings that the monitor's last run had; the keys whose values are others.
fn changed(spec: &MonitorSpec, before: Option<&Version>) -> (Change, Vec<String>) {
    let Some(before) = before else { return (Change::Added, Vec::new()) };
    if before.fingerprint == spec.fingerprint {
        return (Change::Unchanged, Vec::new());
    }
    let mut keys: Vec<String> = spec.parts.iter().filter(|(key, hash)| before.parts.get(*key) != Some(*hash)).map(|(key, _)| key.clone()).collect();
    keys.extend(before.parts.keys().filter(|key| !spec.parts.contains_key(*key)).cloned());
    keys.sort();
    (Change::Changed, keys)
}

async fn monitor_plan(
    settings: &Settings,
    store: &Store,
    spec: &Arc<MonitorSpec>,
    (change, keys): (Change, Vec<String>),
    days: u32,
) -> Result<MonitorPlan, Failure> {
    let now = Timestamp::now();
    let gap = Plan::new(&spec.schedule, &spec.name).ok().and_then(|plan| plan.mean_gap(now)).unwrap_or(3600.0);
    // A day, or the time between two runs where that is longer: so day and night weigh as they do.
    let window = gap.max(DAY);
    let until = before(now, spec.source.settle.0.as_secs_f64());
    let since = before(until, window);
    let (run, looked) = match daemon::look(settings, spec, store, since, until).await {
        Ok(looked) => (run_plan(&looked, since, until, window / gap), Some(looked)),
        Err(error) => (RunPlan::failed(since, until, format!("{error:#}")), None),
    };
    let cost = looked.as_ref().and_then(|looked| cost(spec, looked, window, gap));
    let runs = looked.as_ref().map(|looked| (looked, window / gap));
    let (alerts, notes) = alerts::plans(store, spec, runs, gap, days, &keys).await?;
    let every = Human(Duration::from_secs_f64(gap.max(0.0).round()));
    Ok(MonitorPlan { monitor: spec.name.clone(), change, keys, every, run, cost, alerts, notes })
}

fn before(at: Timestamp, seconds: f64) -> Timestamp {
    SignedDuration::try_from_secs_f64(seconds).ok().and_then(|ago| at.checked_sub(ago).ok()).unwrap_or(Timestamp::MIN)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a day")]
fn run_plan(looked: &RunReport, since: Timestamp, until: Timestamp, runs: f64) -> RunPlan {
    let counts = &looked.counts;
    let would = looked.would.clone().unwrap_or_default();
    RunPlan {
        since,
        until,
        runs,
        fetched: counts.fetched,
        filtered: counts.filtered,
        not_applicable: counts.not_applicable,
        failed: counts.failed,
        sampled_out: counts.sampled_out,
        judged: would.items,
        judgements: would.judgements,
        fetched_a_run: counts.fetched as f64 / runs,
        judged_a_run: would.items as f64 / runs,
        error: looked.error.clone(),
    }
}

/// What it costs by the day that was looked at; nothing where no price is known.
fn cost(spec: &MonitorSpec, looked: &RunReport, window: f64, gap: f64) -> Option<Cost> {
    let would = looked.would.as_ref()?;
    let a_day = would.usd? / window * DAY;
    let a_run = a_day / DAY * gap;
    let expected = |per: Per| match per {
        Per::Run => a_run,
        Per::Day => a_day,
        Per::Week => a_day * 7.0,
        Per::Month => a_day * 30.0,
    };
    let budgets = spec.evaluation.budget.iter().map(|budget| {
        let expected_usd = expected(budget.per);
        BudgetPlan { usd: budget.usd(), per: budget.per, expected_usd, fits: expected_usd <= budget.usd() }
    });
    Some(Cost { usd_a_run: a_run, usd_a_day: a_day, usd_a_month: a_day * 30.0, by: would.usd_by, budgets: budgets.collect() })
}
