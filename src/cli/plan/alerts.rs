//! What the alerts of a monitor would have done, and how soon they see a fall.

use jiff::{SignedDuration, Timestamp};

use super::report::{AlertPlan, Delay, Fall};
use crate::{
    alerting::{
        AlertMemory, Condition, Statistic,
        replay::{Firing, Looks, Reach, Tried, replay},
    },
    cli::{Failure, simulate::number},
    config::{AlertSpec, ConfidenceScope, MetricSpec, MonitorSpec, Over},
    model::{AlertEvent, AlertEventKind, Judged, PastRun, RunReport, alertname},
    statistics::{
        evidence::{Promise, Side},
        expect::delay,
        real,
    },
    store::Store,
    util::text::figure,
};

/// How far the usual mean falls.
const FALLS: [f64; 3] = [0.05, 0.10, 0.20];
/// Scores that stand for what is usual, and how many it takes to say so.
const RECENT: u32 = 5_000;
const LEAST: usize = 30;
/// A threshold this close to the usual mean cannot be told from it.
const NOISE: f64 = 0.02;

/// `runs`: what was looked at, and how many runs that makes.
pub(super) async fn plans(
    store: &Store,
    spec: &MonitorSpec,
    runs: Option<(&RunReport, f64)>,
    gap: f64,
    days: u32,
    keys: &[String],
) -> Result<(Vec<AlertPlan>, Vec<String>), Failure> {
    let memories = store.alert_memories(&spec.name).await?;
    let since = Timestamp::now().checked_sub(SignedDuration::from_hours(24 * i64::from(days))).unwrap_or(Timestamp::MIN);
    let (mut plans, mut notes) = (Vec::new(), Vec::new());
    for alert in &spec.alerts {
        let metric = alert.metric.as_deref();
        let of = metric.and_then(|name| spec.metrics.iter().find(|known| known.config.gives().may_give(&known.name, name)));
        let mut past = store.past_runs(&spec.name, metric).await?;
        past.iter_mut().flat_map(|run| &mut run.judged).for_each(|past| by_threshold(of, &mut past.judged));
        let scores = past.iter().filter(|run| run.ended >= since).map(|run| run.judged.len() as u64).sum();
        let fired = replay(&tried(alert, gap), &past).into_iter().filter(|firing| overlaps(*firing, since)).collect();
        let told = store.told_of(&spec.name, &alert.name, since.as_microsecond()).await?;
        let kept = memories.iter().filter(|(name, _)| alertname(name) == alert.name).filter_map(|(_, json)| serde_json::from_str::<AlertMemory>(json).ok());
        let (recent, usual_runs) = store.recent_judged(&spec.name, metric.unwrap_or_default(), RECENT).await?;
        let n = runs.zip(of).and_then(|((looked, runs), of)| Some(real(*looked.would.as_ref()?.judgements.get(&of.name)?) / runs));
        let n = n.filter(|n| *n > 0.0).unwrap_or_else(|| real(recent.len() as u64) / real(usual_runs.max(1)));
        let falls = number(alert, kept).and_then(|condition| falls(alert, condition, of, &recent, n, gap));
        plans.push(AlertPlan {
            name: alert.name.clone(),
            condition: alert.when.to_string(),
            confidence: alert.evidence.map(|evidence| evidence.confidence),
            runs: past.iter().filter(|run| run.ended >= since).count(),
            scores,
            fired,
            present: known(&memories, &alert.name).then(|| firings(told)),
            falls,
        });
        notes.extend(caveat(alert, of, &past, keys));
    }
    Ok((plans, notes))
}

fn known(memories: &[(String, String)], alert: &str) -> bool {
    memories.iter().any(|(name, _)| alertname(name) == alert)
}

fn overlaps(firing: Firing, since: Timestamp) -> bool {
    firing.at >= since || firing.resolved.is_none_or(|resolved| resolved >= since)
}

/// What the replay cannot know.
fn caveat(alert: &AlertSpec, of: Option<&MetricSpec>, past: &[PastRun], keys: &[String]) -> Option<String> {
    let name = &alert.name;
    if past.iter().all(|run| run.judged.is_empty()) {
        return Some(format!("{name}: there are no scores yet that it could be tried on"));
    }
    let own = of.map(|metric| format!("metrics.{}.", metric.name));
    // What decides whether it is asked, and what its value is compared with, is not what it says.
    let judges_anew = |key: &&String| {
        let key = own.as_ref().and_then(|own| key.strip_prefix(own.as_str()));
        key.is_some_and(|key| !matches!(key, "threshold" | "higher_is_better" | "when"))
    };
    if let Some(key) = keys.iter().find(judges_anew) {
        return Some(format!("{name}: tried on scores that were given before `{key}` changed; `assayd backfill` judges old items anew"));
    }
    if alert.by.is_some() {
        return Some(format!("{name}: tried on all values together; what was told is that of each of them"));
    }
    let shared = alert.evidence.is_some_and(|evidence| evidence.scope == ConfidenceScope::Project);
    shared.then(|| format!("{name}: tried alone, without the other alerts that share its promise"))
}

/// As the metric would say it today.
fn by_threshold(of: Option<&MetricSpec>, judged: &mut Judged) {
    if let (Some(threshold), Some(value)) = (of.and_then(|metric| metric.threshold), judged.value) {
        let higher = of.is_none_or(|metric| metric.higher_is_better);
        judged.passed = Some(if higher { value >= threshold } else { value <= threshold });
    }
}

fn tried(alert: &AlertSpec, gap: f64) -> Tried {
    let looks = match alert.evidence {
        Some(evidence) => Looks::Evidence(Promise { confidence: evidence.confidence, interval: gap }),
        None => {
            let reach = match alert.over {
                Over::Last(window) => Reach::Time(window.0),
                Over::Runs(runs) => Reach::Runs(usize::try_from(runs).unwrap_or(usize::MAX)),
            };
            Looks::Window { reach, end: alert.resolve_when }
        }
    };
    let learns_us = alert.baseline.millis().saturating_mul(1000);
    Tried { rule: alert.rule(), condition: alert.when, min_samples: alert.min_samples, looks, learns_us }
}

/// When people were told that it began and that it ended.
fn firings(told: Vec<AlertEvent>) -> Vec<Firing> {
    let mut of: Vec<(String, Firing)> = Vec::new();
    for event in told {
        let known = of.iter_mut().find(|(fingerprint, _)| *fingerprint == event.fingerprint);
        match (event.kind, known) {
            (AlertEventKind::Firing, None) => of.push((event.fingerprint, Firing { at: event.at, resolved: None })),
            (AlertEventKind::Resolved, Some((_, firing))) => firing.resolved = firing.resolved.or(Some(event.at)),
            _ => {}
        }
    }
    of.into_iter().map(|(_, firing)| firing).collect()
}

/// How many runs a fall of the usual mean goes unseen, for an alert with evidence about a mean or a share.
fn falls(alert: &AlertSpec, condition: Condition, of: Option<&MetricSpec>, recent: &[Judged], n: f64, gap: f64) -> Option<Fall> {
    let about_a_mean = matches!(condition.statistic, Statistic::Mean | Statistic::PassRate | Statistic::FailedRate);
    let question = condition.question().ok().filter(|_| about_a_mean)?;
    let mut recent = recent.to_vec();
    recent.iter_mut().for_each(|judged| by_threshold(of, judged));
    let numbers = condition.numbers(&recent);
    if numbers.len() < LEAST || n <= 0.0 {
        return None;
    }
    // Where more is worse, everything is seen in a mirror.
    let turned = |x: f64| if question.side == Side::Below { x } else { 1.0 - x };
    let mirrored: Vec<f64> = numbers.iter().map(|x| turned(*x)).collect();
    let usual = mirrored.iter().sum::<f64>() / real(mirrored.len() as u64);
    let threshold = turned(question.threshold);
    let stake = alert.evidence.and_then(|evidence| Promise { confidence: evidence.confidence, interval: gap }.stake());
    let lines = FALLS.iter().map(|fall| usual - fall).filter(|to| *to >= 0.0 && stake.is_some());
    let delays = lines.map(|to| Delay { to: turned(to), runs: delay(&mirrored, to, threshold, n, stake.unwrap_or_default()) }).collect();
    let noise = (usual < threshold + NOISE).then(|| {
        let side = if question.side == Side::Below { "above" } else { "below" };
        format!(
            "the threshold {} sits in the noise: the usual {} {} lies less than {NOISE} {side} it",
            figure(question.threshold),
            condition.statistic,
            figure(round(turned(usual)))
        )
    });
    Some(Fall { usual: turned(usual), scores: numbers.len(), n, delays, noise })
}

fn round(x: f64) -> f64 {
    (x * 1000.0).round() / 1000.0
}
