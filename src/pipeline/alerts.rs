//! Alerts after a run: evaluate each, and hand back what is to be stored and said.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;

use super::{
    Monitor, Services,
    anchors::{self, Looked},
    dimension::{self, Alerts},
    health::health,
    measure,
    monitor::Judge,
};
use crate::{
    alerting::{
        AFTER_RUN, AlertMemory, Builtin, Finding, Step, Verdict, between_runs,
        maintenance::Maintenance,
        silence::{Silence, mute},
        step,
    },
    config::NotifyTarget,
    metrics::Price,
    model::{AlertEvent, AlertEventKind, AlertLine, AlertState, MeanOf, PromptUse, RunReport, Severity, WorstItem, alertname},
    store::{AlertRow, MovedAlerts, NewNotice, Since, Slice},
    util::duration::Human,
};

/// What a run made of the monitor's alerts.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub rows: Vec<AlertRow>,
    /// Alerts that the monitor no longer has.
    pub removed: Vec<String>,
    pub notices: Vec<NewNotice>,
    pub lines: Vec<AlertLine>,
}

/// One alert, evaluated: all that is stored and said of it.
pub(super) struct Evaluation<'a> {
    /// With its value, where it is one of several.
    pub name: Cow<'a, str>,
    pub severity: Severity,
    pub after: Step,
    pub condition: String,
    pub summary: String,
    pub metric: Option<&'a str>,
    /// What tells it from the alerts of other values: a label's name and value.
    pub label: Option<(&'a str, String)>,
    pub value: Option<f64>,
    pub interval: Option<(f64, f64)>,
    pub threshold: Option<f64>,
    pub n: Option<u64>,
    pub window: Option<String>,
    pub notify: &'a [NotifyTarget],
    /// Where its worst examples are looked for.
    pub worst: Option<(Since, Option<Slice>)>,
    /// What the last runs are shown by.
    pub history: Option<MeanOf>,
}

/// The run whose end alerts are evaluated at; not stored yet.
#[derive(Clone, Copy)]
pub(super) struct Ended<'a> {
    pub monitor: &'a Monitor,
    /// As the run judged by them.
    pub metrics: &'a [Judge],
    pub services: &'a Services,
    pub report: &'a RunReport,
    pub now: Timestamp,
    /// What its judges were held against; `None` where it did not come to that.
    pub anchors: Option<&'a Looked>,
}

/// Whose alert was evaluated, and when.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub services: &'a Services,
    pub monitor: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub maintenance: &'a [Maintenance],
    /// Of a run that ended; empty between runs.
    pub run_id: &'a str,
    pub now: Timestamp,
}

impl<'a> From<Ended<'a>> for Of<'a> {
    fn from(ended: Ended<'a>) -> Self {
        let Ended { monitor, services, report, now, .. } = ended;
        Self { services, monitor: &monitor.spec.name, labels: &monitor.spec.labels, maintenance: &monitor.spec.maintenance, run_id: &report.run_id, now }
    }
}

/// Evaluates every alert of the monitor.
///
/// # Errors
/// The store's: then no alert moves.
async fn after_run(ended: Ended<'_>, new_items: u64, period: std::time::Duration) -> Result<Moved, sqlx::Error> {
    let Ended { monitor, services, report, now, .. } = ended;
    let spec = &monitor.spec;
    let mut memories = memories(services, &spec.name).await?;
    // What is evaluated between runs ends there, too.
    memories.retain(|name, _| !between_runs(name) || spec.has_alert(name));
    let health = health(monitor, services, report, new_items, period, now).await?;
    let silences = silences(services, now).await?;
    let mut built_in = Vec::with_capacity(AFTER_RUN.len());
    for (builtin, check) in AFTER_RUN.iter().filter(|(builtin, _)| spec.watches(builtin.name)) {
        let before = memories.remove(builtin.name).unwrap_or_default();
        let evaluation = found(builtin, check(&health), &before, now, &report.run_id);
        built_in.push((before, evaluation));
    }
    let mut moved = Moved::default();
    let judges = anchors::evaluate(ended, &mut memories).await?;
    for alert in &spec.alerts {
        let Alerts { watched, vanished } = dimension::alerts(ended, alert, &mut memories).await?;
        if watched.is_empty() {
            moved.nothing_yet(ended, &alert.name);
        }
        for (watched, before) in watched {
            let evaluation = measure::evaluate(ended, &watched, &before).await?;
            let explained = explained(ended, &evaluation, &built_in).or_else(|| judges.explain(ended, alert));
            moved.take(ended, &before, evaluation, explained, &silences).await?;
        }
        for (name, memory, why) in vanished {
            moved.end(ended.into(), name, &memory, &why).await?;
        }
    }
    moved.lines.extend(judges.unchanged);
    for (before, evaluation) in judges.evaluated {
        moved.take(ended, &before, evaluation, None, &silences).await?;
    }
    for (name, memory) in judges.edited {
        moved.end(ended.into(), name, &memory, "the judge or its anchors were edited: how well they agree is learned anew").await?;
    }
    for (before, evaluation) in built_in {
        moved.take(ended, &before, evaluation, None, &silences).await?;
    }
    for (name, memory) in memories {
        let off = AFTER_RUN.iter().any(|(builtin, _)| builtin.name == name);
        let why = if off { SWITCHED_OFF } else { "the alert was taken out of the monitor" };
        moved.end(ended.into(), name, &memory, why).await?;
    }
    // Another alert may have come under the same name.
    moved.removed.retain(|name| moved.rows.iter().all(|row| row.name != *name));
    Ok(moved)
}

/// The same, tried again for a while: the run's scores are evidence now or never.
///
/// # Errors
/// The store's, when it lasts.
pub(super) async fn after_run_surely(ended: Ended<'_>, new_items: u64, period: std::time::Duration) -> Result<Moved, sqlx::Error> {
    const TRIES: u32 = 5;
    let mut attempt = 0;
    loop {
        match after_run(ended, new_items, period).await {
            Err(error) if attempt < TRIES => {
                tracing::warn!(monitor = %ended.monitor.spec.name, %error, "alerts could not be evaluated; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(100 << attempt)).await;
                attempt += 1;
            }
            other => return other,
        }
    }
}

/// Why an alert ends that `watch` says no to.
pub(super) const SWITCHED_OFF: &str = "the alert was switched off";

/// What is kept of the monitor's alerts, by name.
pub(super) async fn memories(services: &Services, monitor: &str) -> Result<BTreeMap<String, AlertMemory>, sqlx::Error> {
    let stored = services.store.alert_memories(monitor).await?;
    // A memory that no longer reads starts anew: at worst an alert is said twice.
    Ok(stored.into_iter().map(|(name, json)| (name, serde_json::from_str(&json).unwrap_or_default())).collect())
}

pub(super) async fn silences(services: &Services, now: Timestamp) -> Result<Vec<Silence>, sqlx::Error> {
    let rows = services.store.silences(now.as_microsecond()).await?;
    Ok(rows.iter().filter_map(|row| Silence::read(&row.body, row.starts_us, row.ends_us)).collect())
}

/// The alert that explains this one and is told in its place: nothing can be said of the product while the source or the judge
/// is down.
fn explained(ended: Ended<'_>, evaluation: &Evaluation<'_>, built_in: &[(AlertMemory, Evaluation<'_>)]) -> Option<String> {
    let judge = ended.metrics.iter().find(|judge| evaluation.metric.is_some_and(|metric| judge.gives.may_give(&judge.name, metric)))?;
    let fires = |name: &str| built_in.iter().any(|(_, other)| other.name == name && other.after.memory.state == AlertState::Firing);
    let by = if fires("runs-failing") {
        "runs-failing"
    } else if judge.price == Price::Paid && fires("judge-blocked") {
        "judge-blocked"
    } else {
        return None;
    };
    Some(format!("{by} fires and explains it"))
}

/// What a person asked for: a silence, or a maintenance of the monitor or of all.
fn silenced(of: Of<'_>, silences: &[Silence], labels: &BTreeMap<String, String>) -> Option<String> {
    let silence = silences.iter().find(|silence| silence.mutes(labels, of.now)).map(|silence| format!("silence {} until {}", silence.id, silence.ends));
    silence.or_else(|| {
        let windows = of.maintenance.iter().chain(&of.services.routing.maintenance);
        windows.filter_map(|window| window.mutes(labels, of.now)).max().map(|until| format!("maintenance until {until}"))
    })
}

/// Those of the monitor, and what tells the alert from those of other values.
fn own_labels(of: Of<'_>, evaluation: &Evaluation<'_>) -> BTreeMap<String, String> {
    let mut labels = of.labels.clone();
    labels.extend(evaluation.label.iter().map(|(label, value)| ((*label).to_owned(), value.clone())));
    labels
}

/// What matchers of silences and routes look at.
fn labels(own: &BTreeMap<String, String>, monitor: &str, alert: &str, severity: Severity, metric: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = own.clone();
    labels.insert("alertname".to_owned(), alertname(alert).to_owned());
    labels.insert("monitor".to_owned(), monitor.to_owned());
    labels.insert("severity".to_owned(), severity.as_str().to_owned());
    labels.extend(metric.map(|metric| ("metric".to_owned(), metric.to_owned())));
    labels
}

impl Moved {
    async fn take(
        &mut self,
        ended: Ended<'_>,
        before: &AlertMemory,
        evaluation: Evaluation<'_>,
        explained: Option<String>,
        silences: &[Silence],
    ) -> Result<(), sqlx::Error> {
        let Ended { monitor, services, report, .. } = ended;
        let prompt = evaluation.metric.and_then(|metric| prompt_of(monitor, report, metric));
        let Some(event) = self.settle(ended.into(), before, &evaluation, explained, silences, prompt) else { return Ok(()) };
        let worst = worst(monitor, services, &evaluation).await?;
        let history = history(services, &monitor.spec.name, &evaluation).await?;
        self.tell(services, AlertEvent { worst, history, ..event }, evaluation.notify).await
    }

    /// Keeps what became of the alert; the event, where people are told of it, without its worst examples.
    pub(super) fn settle(
        &mut self,
        of: Of<'_>,
        before: &AlertMemory,
        evaluation: &Evaluation<'_>,
        explained: Option<String>,
        silences: &[Silence],
        prompt: Option<&PromptUse>,
    ) -> Option<AlertEvent> {
        let labels = labels(&own_labels(of, evaluation), of.monitor, &evaluation.name, evaluation.severity, evaluation.metric);
        let muted = silenced(of, silences, &labels).or(explained);
        let Step { memory: mut after, verdict } = mute(before, evaluation.after.clone(), muted.as_deref());
        after.see_prompt(prompt, matches!(verdict, Verdict::Notify(..)));
        let reason = format!("{}; {}", evaluation.summary, verdict.reason());
        self.lines.push(AlertLine { name: evaluation.name.to_string(), state: after.state, reason: reason.clone() });
        self.rows.push(AlertRow {
            monitor: of.monitor.to_owned(),
            name: evaluation.name.to_string(),
            state: after.state,
            reason,
            memory: serde_json::to_string(&after).unwrap_or_default(),
        });
        let Verdict::Notify(kind, _) = verdict else { return None };
        Some(AlertEvent {
            fingerprint: after.fingerprint(of.monitor, &evaluation.name),
            kind,
            monitor: of.monitor.to_owned(),
            alert: evaluation.name.to_string(),
            severity: evaluation.severity,
            condition: evaluation.condition.clone(),
            summary: before.prompt_changed(prompt).into_iter().fold(evaluation.summary.clone(), |summary, changed| format!("{summary}; {changed}")),
            metric: evaluation.metric.map(str::to_owned),
            value: evaluation.value,
            interval: evaluation.interval,
            threshold: evaluation.threshold,
            n: evaluation.n,
            window: evaluation.window.clone(),
            since: after.since.or(after.firing_since).unwrap_or(of.now),
            at: of.now,
            run_id: of.run_id.to_owned(),
            labels: own_labels(of, evaluation),
            worst: Vec::new(),
            history: Vec::new(),
            lines: Vec::new(),
        })
    }

    pub(super) async fn tell(&mut self, services: &Services, event: AlertEvent, notify: &[NotifyTarget]) -> Result<(), sqlx::Error> {
        let told = match event.kind {
            // Whoever was told of the beginning, whatever the settings have come to say since.
            AlertEventKind::Resolved => services.store.told(&event.fingerprint).await?,
            _ => Vec::new(),
        };
        if told.is_empty() {
            let labels = labels(&event.labels, &event.monitor, &event.alert, event.severity, event.metric.as_deref());
            let groups = services.routing.groups(notify, &labels);
            self.notices.extend(groups.into_iter().map(|group| NewNotice { group, event: event.clone() }));
        }
        // What tells it from other alerts is what it was when it was told.
        let as_told = |told: AlertEvent| AlertEvent { labels: told.labels, severity: told.severity, metric: told.metric, ..event.clone() };
        self.notices.extend(told.into_iter().map(|(group, told)| NewNotice { group, event: as_told(told) }));
        Ok(())
    }

    /// An alert by value, of which no value was seen.
    fn nothing_yet(&mut self, ended: Ended<'_>, name: &str) {
        let (state, reason) = (AlertState::NoData, "no item was judged since it looks at values".to_owned());
        let memory = serde_json::to_string(&AlertMemory { state, ..AlertMemory::default() }).unwrap_or_default();
        self.lines.push(AlertLine { name: name.to_owned(), state, reason: reason.clone() });
        self.rows.push(AlertRow { monitor: ended.monitor.spec.name.clone(), name: name.to_owned(), state, reason, memory });
    }

    /// An alert that is evaluated no longer, or whose value is gone.
    pub(super) async fn end(&mut self, of: Of<'_>, name: String, memory: &AlertMemory, why: &str) -> Result<(), sqlx::Error> {
        self.notices.extend(ends(of.services, (of.monitor, &name), memory, why, of.run_id, of.now).await?);
        if memory.state == AlertState::Firing && self.lines.iter().all(|line| line.name != name) {
            self.lines.push(AlertLine { name: name.clone(), state: AlertState::Resolved, reason: why.to_owned() });
        }
        self.removed.push(name);
        Ok(())
    }
}

/// Whoever was told that the alert fires is told that it ended.
async fn ends(
    services: &Services,
    (monitor, name): (&str, &str),
    memory: &AlertMemory,
    why: &str,
    run_id: &str,
    now: Timestamp,
) -> Result<Vec<NewNotice>, sqlx::Error> {
    if memory.state != AlertState::Firing || memory.untold {
        return Ok(Vec::new());
    }
    let told = services.store.told(&memory.fingerprint(monitor, name)).await?;
    let over = |told: AlertEvent| AlertEvent {
        kind: AlertEventKind::Resolved,
        summary: why.to_owned(),
        at: now,
        run_id: run_id.to_owned(),
        worst: Vec::new(),
        value: None,
        interval: None,
        n: None,
        ..told
    };
    Ok(told.into_iter().map(|(group, told)| NewNotice { group, event: over(told) }).collect())
}

/// The alerts of a monitor that runs no longer: nothing will ever end them. `gone`: no file has it any more.
///
/// # Errors
/// The store's, or that it is closed.
pub async fn end_alerts(services: &Services, monitor: &str, why: &str, gone: bool) -> anyhow::Result<()> {
    let memories = memories(services, monitor).await?;
    let mut notices = Vec::new();
    for (name, memory) in &memories {
        notices.extend(ends(services, (monitor, name), memory, why, "", services.clock.now()).await?);
    }
    let moved =
        MovedAlerts { monitor: monitor.to_owned(), at_us: services.now_us(), removed: memories.into_keys().collect(), notices, gone, ..MovedAlerts::default() };
    services.store.record_alerts(moved).await?;
    services.outbox.send_replace(());
    Ok(())
}

/// The prompt behind a metric: of the judge that gives it, or of the first part of a metric that is made of others.
fn prompt_of<'a>(monitor: &Monitor, report: &'a RunReport, metric: &str) -> Option<&'a PromptUse> {
    let spec = monitor.spec.metrics.iter().find(|spec| spec.config.gives().may_give(&spec.name, metric))?;
    // Parts stand above what is made of them, so this ends.
    report.prompts.get(&spec.name).or_else(|| spec.config.parts().into_iter().filter(|part| *part != metric).find_map(|part| prompt_of(monitor, report, part)))
}

/// `run_id`: of the run whose end it is, or of the evaluation: each counts once.
pub(super) fn found<'a>(builtin: &'a Builtin, finding: Finding, before: &AlertMemory, now: Timestamp, run_id: &str) -> Evaluation<'a> {
    Evaluation {
        name: builtin.name.into(),
        severity: builtin.severity,
        after: step(before, &builtin.rule, &finding.observed, now, run_id),
        condition: builtin.name.to_owned(),
        summary: finding.summary,
        metric: None,
        label: None,
        value: finding.value,
        interval: None,
        threshold: finding.threshold,
        n: finding.n,
        window: builtin.window.map(str::to_owned),
        notify: &[],
        worst: None,
        history: None,
    }
}

/// The three worst items of the window, for a message about a metric.
async fn worst(monitor: &Monitor, services: &Services, evaluation: &Evaluation<'_>) -> Result<Vec<WorstItem>, sqlx::Error> {
    let (Some(metric), Some((since, slice))) = (evaluation.metric, &evaluation.worst) else { return Ok(Vec::new()) };
    let higher_is_better = monitor.metrics.iter().find(|judge| judge.gives.may_give(&judge.name, metric)).is_none_or(|judge| judge.higher_is_better);
    let rows = services.store.worst(&monitor.spec.name, metric, since, slice.as_ref(), higher_is_better, 3).await?;
    Ok(rows.into_iter().map(|(item_id, value, reason, url)| WorstItem { item_id, value, reason, url }).collect())
}

/// Runs that a message shows.
const HISTORY: u32 = 20;

/// What the last runs gave, oldest first.
async fn history(services: &Services, monitor: &str, evaluation: &Evaluation<'_>) -> Result<Vec<f64>, sqlx::Error> {
    let Some(of) = evaluation.history else { return Ok(Vec::new()) };
    let slice = evaluation.worst.as_ref().and_then(|(_, slice)| slice.as_ref());
    let runs = services.store.recent_run_means(monitor, evaluation.metric, of, HISTORY, slice).await?;
    Ok(runs.into_iter().map(|run| run.mean).collect())
}

/// The wait between two slots that `no-data` assumes where the plan knows none.
pub(super) const UNKNOWN_PERIOD: Human = Human::hours(1);
