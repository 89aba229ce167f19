//! One alert of the settings, evaluated: what its window holds, what was learned, what evidence has gathered.

use jiff::Timestamp;

use super::{
    Monitor,
    alerts::{Ended, Evaluation},
    dimension::{Watched, window},
};
use crate::{
    alerting::{
        AlertMemory, Condition, Measured, Observed, Statistic, Step, Verdict,
        baseline::Learned,
        evidence::{Ask, Gathered, Shared, Shown, firing_sentence, resolved_sentence, step_on_evidence},
        step,
    },
    config::{AlertSpec, ConfidenceScope, EvidenceSpec, Over},
    model::{AlertEventKind, AlertState, Judged, MeanOf},
    schedule::plan::Plan,
    statistics::evidence::Promise,
    store::Since,
    util::text::figure,
};

/// # Errors
/// The store's.
pub(super) async fn evaluate<'a>(ended: Ended<'a>, watched: &Watched<'a>, before: &AlertMemory) -> Result<Evaluation<'a>, sqlx::Error> {
    let Ended { monitor, services, now, .. } = ended;
    let alert = watched.alert;
    let since = since(alert.over, now);
    let statistic = alert.when.statistic;
    let latencies = statistic == Statistic::LatencyP95;
    let values = !latencies && !matches!(statistic, Statistic::PassRate | Statistic::CostUsd);
    let tally = services.store.tally(&monitor.spec.name, alert.metric.as_deref(), &since, watched.slice.as_ref(), values, latencies).await?;
    let measured = statistic.of(&tally);
    let Found { condition, mut after, summary } = found(ended, watched, before, &measured).await?;
    after.memory.of = watched.of();
    Ok(Evaluation {
        name: watched.name.clone().into(),
        severity: alert.severity,
        after,
        condition: alert.when.to_string(),
        summary,
        metric: alert.metric.as_deref(),
        label: watched.value.clone(),
        value: measured.value,
        interval: measured.interval.map(|interval| (interval.low, interval.high)),
        threshold: condition.map(|condition| condition.threshold),
        n: Some(measured.n),
        window: Some(window(alert.over)),
        notify: &alert.notify,
        worst: Some((since, watched.slice.clone())),
        history: mean_of(statistic),
    })
}

struct Found {
    /// With a number; `None` while its level is learned.
    condition: Option<Condition>,
    after: Step,
    summary: String,
}

async fn found(ended: Ended<'_>, watched: &Watched<'_>, before: &AlertMemory, measured: &Measured) -> Result<Found, sqlx::Error> {
    let (alert, monitor) = (watched.alert, &ended.monitor.spec.name);
    let subject = &watched.subject(monitor);
    let judged = if alert.evidence.is_some() || alert.when.baseline {
        ended.services.store.judged(monitor, alert.metric.as_deref(), &ended.report.run_id, watched.slice.as_ref()).await?
    } else {
        Vec::new()
    };
    // A run without scores says nothing, not even that something else is judged: its metric may just have been away.
    let kept = before.evidence.as_ref().map(Gathered::about).or_else(|| before.baseline.as_ref().map(Learned::about)).filter(|_| judged.is_empty());
    let about = kept.map_or_else(|| about(ended, alert), str::to_owned);
    let (learned, level) = learned(ended, watched, before, &about).await?;
    let plainly = |observed: &Observed| {
        let Step { memory, verdict } = step(before, &alert.rule(), observed, ended.now, &ended.report.run_id);
        // Evidence is about a level, and by a confidence.
        Step { memory: AlertMemory { evidence: None, ..memory }, verdict }
    };
    let (condition, (mut after, summary)) = match (level, alert.evidence) {
        (Err(progress), _) => (None, (plainly(&Observed::Learning(progress)), format!("{subject}: {}", shown(alert, measured)))),
        (Ok(condition), None) => (Some(condition), (plainly(&observe(alert, condition, before, measured)), condition.summary(subject, measured))),
        (Ok(condition), Some(evidence)) => {
            let seen = Seen { about: &about, judged: &judged, measured };
            (Some(condition), on_evidence(ended, watched, evidence, condition, seen, before).await?)
        }
    };
    after.memory.baseline = learned;
    Ok(Found { condition, after, summary })
}

/// A plain threshold. While it fires, `resolve_when` says when it is over.
fn observe(alert: &AlertSpec, condition: Condition, before: &AlertMemory, measured: &Measured) -> Observed {
    let observed = condition.observe(measured, alert.min_samples);
    match (alert.resolve_when, measured.value) {
        (Some(end), Some(value)) if before.state == AlertState::Firing && matches!(observed, Observed::Breached(_)) => Observed::Breached(!end.holds(value)),
        _ => observed,
    }
}

/// What there is to go by.
#[derive(Clone, Copy)]
struct Seen<'a> {
    about: &'a str,
    /// By this run.
    judged: &'a [Judged],
    /// In the window.
    measured: &'a Measured,
}

/// What the run's scores say, and a sentence for people.
async fn on_evidence(
    ended: Ended<'_>,
    watched: &Watched<'_>,
    evidence: EvidenceSpec,
    condition: Condition,
    Seen { about, judged, measured }: Seen<'_>,
    before: &AlertMemory,
) -> Result<(Step, String), sqlx::Error> {
    let Ended { monitor, report, now, .. } = ended;
    let (alert, subject) = (watched.alert, &watched.subject(&monitor.spec.name));
    let shared = match evidence.scope {
        ConfidenceScope::Alert => None,
        ConfidenceScope::Project => Some(others(ended, &watched.name).await?),
    };
    let shared = shared.as_ref().map(|(others, watched)| Shared { others, watched: *watched });
    let promise = Promise { confidence: evidence.confidence, interval: interval(monitor, report.slot) };
    let ask = Ask { condition, promise, min_samples: alert.min_samples, about, shared };
    let stepped = step_on_evidence(before, &alert.rule(), &ask, judged, report.slot.as_second(), now, &report.run_id);
    let (after, Shown { level, streak, .. }) = match stepped {
        Ok(stepped) => stepped,
        Err(message) => (step(before, &alert.rule(), &Observed::Error(message), now, &report.run_id), Shown { level: 0.0, streak: None, in_doubt: false }),
    };
    let summary = match (&after.verdict, streak) {
        (Verdict::Notify(AlertEventKind::Firing, _), Some(streak)) => {
            firing_sentence(subject, &condition, promise, streak, shared.map(|shared| shared.watched))
        }
        (Verdict::Notify(AlertEventKind::Resolved, _), Some(streak)) => resolved_sentence(subject, &condition, streak),
        _ => {
            let of_what = if before.state == AlertState::Firing { "that it is over" } else { "against it" };
            format!("{}; evidence {of_what}: {} %", condition.summary(subject, measured), figure((level * 100.0).floor()))
        }
    };
    Ok((after, summary))
}

/// The evidence of the other alerts that share the project's promise, and how many alerts do.
async fn others(ended: Ended<'_>, alert: &str) -> Result<(Vec<f64>, u64), sqlx::Error> {
    let stored = ended.services.store.shared_evidence(&ended.monitor.spec.name, alert).await?;
    let memories: Vec<AlertMemory> = stored.iter().filter_map(|json| serde_json::from_str(json).ok()).collect();
    let quiet = memories.iter().filter(|memory| memory.state != AlertState::Firing).filter_map(|memory| memory.evidence.as_ref());
    Ok((quiet.map(Gathered::ln).collect(), memories.len() as u64 + 1))
}

/// The condition with a number in it, or how far learning is; and what is kept of it.
async fn learned(
    ended: Ended<'_>,
    watched: &Watched<'_>,
    before: &AlertMemory,
    about: &str,
) -> Result<(Option<Learned>, Result<Condition, String>), sqlx::Error> {
    let alert = watched.alert;
    if !alert.when.baseline {
        return Ok((None, Ok(alert.when)));
    }
    let slot_us = ended.report.slot.as_microsecond();
    let mut learned = Learned::carried(before.baseline.as_ref(), about, slot_us);
    if let Some(level) = learned.level {
        return Ok((Some(learned), Ok(alert.when.against(&level))));
    }
    let monitor = &ended.monitor.spec.name;
    let of = mean_of(alert.when.statistic).unwrap_or(MeanOf::Values);
    let runs = ended.services.store.run_means(monitor, alert.metric.as_deref(), of, learned.since_us(), watched.slice.as_ref()).await?;
    let window_us = alert.baseline.millis().saturating_mul(1000);
    let progress = match learned.learn(&runs, window_us) {
        Ok(level) => {
            let condition = alert.when.against(&level);
            format!("learned what is normal: {} {}; from the next run on: {condition}", condition.statistic, figure(level.mean))
        }
        Err(progress) => progress,
    };
    Ok((Some(learned), Err(progress)))
}

/// What the scores speak of: under another metric, another revision of it or another draw, what was gathered says nothing.
fn about(ended: Ended<'_>, alert: &AlertSpec) -> String {
    let spec = &ended.monitor.spec;
    let metric = alert.metric.as_deref().unwrap_or_default();
    let revision = ended.metrics.iter().find(|judge| judge.gives.may_give(&judge.name, metric)).map_or("", |judge| &judge.revision);
    let sampling = &spec.sampling;
    let when = alert.when;
    // Of a quantile the threshold says what is counted, of a mean only what it is compared with.
    let counted = (!matches!(when.statistic, Statistic::Mean | Statistic::PassRate | Statistic::FailedRate)).then(|| when.to_string());
    let learned = when.baseline.then_some(alert.baseline);
    let draw = format!(
        "{:?} {:?} {:?} {:?} {:?} {} {counted:?} {learned:?}",
        sampling.strategy,
        spec.source.filter,
        spec.source.key(),
        spec.source.scope,
        spec.source.config,
        when.statistic
    );
    blake3::hash(format!("{metric}\0{revision}\0{draw}").as_bytes()).to_hex()[..16].to_owned()
}

/// Seconds between two runs.
pub(super) fn interval(monitor: &Monitor, slot: Timestamp) -> f64 {
    let spec = &monitor.spec;
    Plan::new(&spec.schedule, &spec.name).ok().and_then(|plan| plan.mean_gap(slot)).unwrap_or(3600.0)
}

/// Of what a run's mean is taken to see how it went; `None` for what is no figure of answers.
fn mean_of(statistic: Statistic) -> Option<MeanOf> {
    match statistic {
        Statistic::PassRate => Some(MeanOf::Passed),
        Statistic::FailedRate => Some(MeanOf::Failed),
        Statistic::Mean | Statistic::P10 | Statistic::P50 | Statistic::P90 => Some(MeanOf::Values),
        Statistic::N | Statistic::CostUsd | Statistic::LatencyP95 => None,
    }
}

fn shown(alert: &AlertSpec, measured: &Measured) -> String {
    let n = measured.n;
    measured.value.map_or_else(|| format!("no {} yet", alert.when.statistic), |value| format!("{} {} over {n} answers", alert.when.statistic, figure(value)))
}

pub(super) fn since(over: Over, now: Timestamp) -> Since {
    match over {
        Over::Last(window) => Since::Time(now.as_microsecond().saturating_sub(window.millis().saturating_mul(1000))),
        Over::Runs(runs) => Since::Runs(runs),
    }
}
