//! Alerts after a run: measure what the rules look at, let `alerting` decide, hand back what is to be stored and said.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Monitor, Services};
use crate::{
    alerting::{AlertMemory, BUILTINS, Builtin, Health, Hold, Observed, Rule, Statistic, Verdict, step},
    config::{AlertSpec, For, NotifyTarget, Over},
    model::{AlertEvent, AlertLine, PromptUse, Route, RunReport, RunStatus, Severity, WorstItem},
    store::{AlertRow, NewNotice, Since},
    util::duration::Human,
};

/// What a run made of the monitor's alerts.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub rows: Vec<AlertRow>,
    pub notices: Vec<NewNotice>,
    pub lines: Vec<AlertLine>,
}

/// One rule, evaluated: all that a message about it needs.
struct Evaluation<'a> {
    name: &'a str,
    severity: Severity,
    rule: Rule,
    observed: Observed,
    condition: String,
    summary: String,
    metric: Option<&'a str>,
    value: Option<f64>,
    threshold: Option<f64>,
    n: Option<u64>,
    window: Option<String>,
    notify: &'a [NotifyTarget],
    worst: Option<Since>,
}

/// Finished runs looked at for `runs-failing`.
const RUNS: u32 = 20;
const DAY_US: i64 = 86_400_000_000;

/// Evaluates every alert of the monitor. `report` is the run that just ended, not stored yet.
///
/// # Errors
/// The store's: then no alert moves, and the next run evaluates them.
pub(super) async fn alerts(
    monitor: &Monitor,
    services: &Services,
    report: &RunReport,
    new_items: u64,
    period: std::time::Duration,
) -> Result<Moved, sqlx::Error> {
    let now = services.clock.now();
    let spec = &monitor.spec;
    let mut memories: BTreeMap<String, AlertMemory> = services
        .store
        .alert_memories(&spec.name)
        .await?
        .into_iter()
        // A memory that no longer reads starts anew: at worst an alert is said twice.
        .map(|(name, json)| (name, serde_json::from_str(&json).unwrap_or_default()))
        .collect();
    let health = health(monitor, services, report, new_items, period, now).await?;
    let mut evaluations = Vec::with_capacity(spec.alerts.len() + BUILTINS.len());
    for alert in &spec.alerts {
        evaluations.push(measured(monitor, services, alert, now).await?);
    }
    evaluations.extend(BUILTINS.iter().filter(|builtin| spec.alerts.iter().all(|alert| alert.name != builtin.name)).map(|builtin| found(builtin, &health)));

    let mut moved = Moved::default();
    for evaluation in evaluations {
        let before = memories.remove(evaluation.name).unwrap_or_default();
        let mut after = step(&before, &evaluation.rule, &evaluation.observed, now, &report.run_id);
        let prompt = evaluation.metric.and_then(|metric| prompt_of(monitor, report, metric));
        after.memory.see_prompt(prompt, matches!(after.verdict, Verdict::Notify(..)));
        let reason = format!("{}; {}", evaluation.summary, after.verdict.reason());
        moved.lines.push(AlertLine { name: evaluation.name.to_owned(), state: after.memory.state, reason: reason.clone() });
        moved.rows.push(AlertRow {
            monitor: spec.name.clone(),
            name: evaluation.name.to_owned(),
            state: after.memory.state,
            reason,
            memory: serde_json::to_string(&after.memory).unwrap_or_default(),
        });
        let Verdict::Notify(kind, _) = after.verdict else { continue };
        let worst = worst(monitor, services, &evaluation).await?;
        let event = AlertEvent {
            fingerprint: after.memory.fingerprint(&spec.name, evaluation.name),
            kind,
            monitor: spec.name.clone(),
            alert: evaluation.name.to_owned(),
            severity: evaluation.severity,
            condition: evaluation.condition,
            summary: before.prompt_changed(prompt).into_iter().fold(evaluation.summary, |summary, changed| format!("{summary}; {changed}")),
            metric: evaluation.metric.map(str::to_owned),
            value: evaluation.value,
            threshold: evaluation.threshold,
            n: evaluation.n,
            window: evaluation.window,
            since: after.memory.since.or(after.memory.firing_since).unwrap_or(now),
            at: now,
            run_id: report.run_id.clone(),
            labels: spec.labels.clone(),
            worst,
        };
        moved.notices.extend(routes(evaluation.notify, &services.notify).into_iter().map(|route| NewNotice { route, event: event.clone() }));
    }
    Ok(moved)
}

/// The alert's own targets, else those of the settings, else the log.
#[must_use]
pub fn routes(own: &[NotifyTarget], default: &[NotifyTarget]) -> Vec<Route> {
    let targets = if own.is_empty() { default } else { own };
    if targets.is_empty() {
        return vec![Route { sink: "log".to_owned(), connection: String::new(), target: String::new() }];
    }
    targets.iter().map(|target| Route { sink: "slack".to_owned(), connection: target.connection.clone(), target: target.slack.clone() }).collect()
}

fn rule(alert: &AlertSpec) -> Rule {
    let hold = match alert.hold {
        For::Runs(runs) => Hold::Runs(runs),
        For::Time(time) => Hold::Time(time),
    };
    Rule { hold, repeat: alert.repeat }
}

fn since(over: Over, now: Timestamp) -> Since {
    match over {
        Over::Last(window) => Since::Time(now.as_microsecond().saturating_sub(window.millis().saturating_mul(1000))),
        Over::Runs(runs) => Since::Runs(runs),
    }
}

async fn measured<'a>(monitor: &'a Monitor, services: &Services, alert: &'a AlertSpec, now: Timestamp) -> Result<Evaluation<'a>, sqlx::Error> {
    let since = since(alert.over, now);
    let statistic = alert.when.statistic;
    let latencies = statistic == Statistic::LatencyP95;
    let values = !latencies && !matches!(statistic, Statistic::PassRate | Statistic::CostUsd);
    let tally = services.store.tally(&monitor.spec.name, alert.metric.as_deref(), &since, values, latencies).await?;
    let measured = statistic.of(&tally);
    let window = match alert.over {
        Over::Last(window) => window.to_string(),
        Over::Runs(1) => "1 run".to_owned(),
        Over::Runs(runs) => format!("{runs} runs"),
    };
    Ok(Evaluation {
        name: &alert.name,
        severity: alert.severity,
        rule: rule(alert),
        observed: alert.when.observe(&measured, alert.min_samples),
        condition: alert.when.to_string(),
        summary: alert.when.summary(alert.metric.as_deref().unwrap_or(&monitor.spec.name), &measured),
        metric: alert.metric.as_deref(),
        value: measured.value,
        threshold: Some(alert.when.threshold),
        n: Some(measured.n),
        window: Some(window),
        notify: &alert.notify,
        worst: Some(since),
    })
}

fn found<'a>(builtin: &'a Builtin, health: &Health) -> Evaluation<'a> {
    let finding = builtin.check(health);
    Evaluation {
        name: builtin.name,
        severity: builtin.severity,
        rule: builtin.rule,
        observed: finding.observed,
        condition: builtin.name.to_owned(),
        summary: finding.summary,
        metric: None,
        value: finding.value,
        threshold: finding.threshold,
        n: finding.n,
        window: builtin.window.map(str::to_owned),
        notify: &[],
        worst: None,
    }
}

async fn health(
    monitor: &Monitor,
    services: &Services,
    report: &RunReport,
    new_items: u64,
    period: std::time::Duration,
    now: Timestamp,
) -> Result<Health, sqlx::Error> {
    let (store, name, now_us) = (&services.store, &monitor.spec.name, now.as_microsecond());
    let earlier = store.last_reports(name, RUNS).await?;
    let failed_in_a_row = std::iter::once(report).chain(&earlier).take_while(|run| run.status == RunStatus::Failed).count();
    let (first, last) = store.first_run_and_last_item(name).await?;
    let (scored, failed) = store.judgements(name, now_us - DAY_US).await?;
    let (dead_rows_new, dead_rows) = store.dead_rows(name, now_us - DAY_US).await?;
    let time = |us: i64| Timestamp::from_microsecond(us).ok();
    Ok(Health {
        now,
        period,
        failed_in_a_row: u32::try_from(failed_in_a_row).unwrap_or(u32::MAX),
        ever_succeeded: report.status != RunStatus::Failed || store.monitor_status(name).await?.last_success_us.is_some(),
        last_error: report.error.clone(),
        first_run_at: first.and_then(time),
        last_new_item_at: if new_items > 0 { Some(now) } else { last.and_then(time) },
        scored,
        failed,
        judge_blocked: report.judge_blocked.clone(),
        over_budget: report.over_budget.clone(),
        dead_rows_new,
        dead_rows,
    })
}

/// The prompt behind a metric: of the judge that gives it, or of the first part of a metric that is made of others.
fn prompt_of<'a>(monitor: &Monitor, report: &'a RunReport, metric: &str) -> Option<&'a PromptUse> {
    let spec = monitor.spec.metrics.iter().find(|spec| spec.config.gives().may_give(&spec.name, metric))?;
    // Parts stand above what is made of them, so this ends.
    report.prompts.get(&spec.name).or_else(|| spec.config.parts().into_iter().filter(|part| *part != metric).find_map(|part| prompt_of(monitor, report, part)))
}

/// The three worst items of the window, for a message about a metric.
async fn worst(monitor: &Monitor, services: &Services, evaluation: &Evaluation<'_>) -> Result<Vec<WorstItem>, sqlx::Error> {
    let (Some(metric), Some(since)) = (evaluation.metric, &evaluation.worst) else { return Ok(Vec::new()) };
    let higher_is_better = monitor.metrics.iter().find(|judge| judge.gives.may_give(&judge.name, metric)).is_none_or(|judge| judge.higher_is_better);
    let rows = services.store.worst(&monitor.spec.name, metric, since, higher_is_better, 3).await?;
    Ok(rows.into_iter().map(|(item_id, value, reason, url)| WorstItem { item_id, value, reason, url }).collect())
}

/// The wait between two slots that `no-data` assumes where the plan knows none.
pub(super) const UNKNOWN_PERIOD: Human = Human::hours(1);
