//! What assayd says about itself: one function per notable event, which writes the log line and moves the counter, so
//! that the two never disagree. Names of metrics are SPEC 5's; labels come from settings and small enums, never from
//! traces.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::model::{ItemCounts, RunReport, RunStatus};

/// A run ended.
pub fn run_finished(report: &RunReport, now_secs: f64) {
    let (monitor, status) = (report.monitor.clone(), report.status.as_str());
    counter!("assayd_runs_total", "monitor" => monitor.clone(), "status" => status).increment(1);
    let secs = Duration::from_millis(report.duration_ms).as_secs_f64();
    histogram!("assayd_run_duration_seconds", "monitor" => monitor.clone()).record(secs);
    for (decision, n) in decisions(&report.counts) {
        counter!("assayd_items_total", "monitor" => monitor.clone(), "decision" => decision).increment(n);
    }
    if report.status != RunStatus::Failed && report.trigger.speaks() {
        gauge!("assayd_last_success_timestamp_seconds", "monitor" => monitor).set(now_secs);
    }
    let (run, slot, counts, error) = (&report.run_id, report.slot, report.counts, report.error.as_deref().unwrap_or_default());
    match report.status {
        RunStatus::Failed => {
            tracing::error!(%run, monitor = %report.monitor, %slot, status, scored = counts.scored, failed = counts.failed, error, "run failed");
        }
        RunStatus::Partial => {
            tracing::warn!(%run, monitor = %report.monitor, %slot, status, scored = counts.scored, failed = counts.failed, deferred = counts.deferred, error, "run finished in part");
        }
        _ => {
            tracing::info!(%run, monitor = %report.monitor, %slot, status, fetched = counts.fetched, duplicate = counts.duplicate, scored = counts.scored, "run finished");
        }
    }
}

fn decisions(counts: &ItemCounts) -> [(&'static str, u64); 7] {
    [
        ("filtered", counts.filtered),
        ("duplicate", counts.duplicate),
        ("sampled_out", counts.sampled_out),
        ("deferred", counts.deferred),
        ("not_applicable", counts.not_applicable),
        ("scored", counts.scored),
        ("failed", counts.failed),
    ]
}

/// A judgement came to an end.
pub fn judged(monitor: &str, metric: &str, outcome: &'static str) {
    counter!("assayd_scores_total", "monitor" => monitor.to_owned(), "metric" => metric.to_owned(), "outcome" => outcome).increment(1);
}

/// How far the newest decided item lies behind.
pub fn watermark_lag(monitor: &str, secs: f64) {
    gauge!("assayd_watermark_lag_seconds", "monitor" => monitor.to_owned()).set(secs);
}

/// How late a slot was handed to its task.
pub fn slot_fired(lateness: Duration) {
    histogram!("assayd_schedule_lateness_seconds").record(lateness.as_secs_f64());
}

/// Slots that passed without a run: the monitor was still busy, or the machine slept.
pub fn slots_missed(monitor: &str, n: u64) {
    counter!("assayd_runs_total", "monitor" => monitor.to_owned(), "status" => "missed").increment(n);
    tracing::warn!(monitor, missed = n, "slots missed");
}

pub fn outbox_pending(queue: &str, waiting: i64) {
    #[expect(clippy::cast_precision_loss, reason = "rows in an outbox stay far below 2^52")]
    gauge!("assayd_outbox_pending", "sink" => queue.to_owned()).set(waiting as f64);
}

/// Alerts of a monitor in each state.
pub fn alerts(monitor: &str, state: &'static str, n: u32) {
    gauge!("assayd_alerts", "monitor" => monitor.to_owned(), "state" => state).set(f64::from(n));
}

/// Of the monitor's budget, in the period that it is for.
pub fn budget_spent(monitor: &str, usd: f64) {
    gauge!("assayd_budget_spent_usd", "monitor" => monitor.to_owned()).set(usd);
}

/// `result`: success | failure
pub fn reloaded(result: &'static str) {
    counter!("assayd_config_reloads_total", "result" => result).increment(1);
}

/// `state`: active | disabled | broken
pub fn monitors(state: &'static str, n: usize) {
    #[expect(clippy::cast_precision_loss, reason = "monitors stay far below 2^52")]
    gauge!("assayd_monitors", "state" => state).set(n as f64);
}

/// A webhook's event was taken. `result`: accepted | ignored
pub fn webhook(result: &'static str) {
    counter!("assayd_webhooks_total", "result" => result).increment(1);
}

/// An event was refused, and changed nothing. `result`: too_large | no_secret | forged | stale | replayed | malformed | busy
pub fn webhook_refused(result: &'static str, reason: &str) {
    webhook(result);
    tracing::warn!(result, reason, "a webhook was refused");
}

/// Upper bounds in seconds. Buckets, not quantiles: those of several daemons can be added up.
const BUCKETS: [(&str, &[f64]); 3] = [
    ("assayd_schedule_lateness_seconds", &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0]),
    ("assayd_run_duration_seconds", &[0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0]),
    ("llm_latency_seconds", &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
];

/// Counts from now on; the handle renders /metrics.
///
/// # Errors
/// When this process counts already.
pub fn start() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in BUCKETS {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
    }
    let handle = builder.install_recorder()?;
    describe();
    Ok(handle)
}

/// Help texts for /metrics.
fn describe() {
    describe_counter!("assayd_runs_total", "Runs by how they ended; `missed` are slots without a run");
    describe_histogram!("assayd_run_duration_seconds", "Duration of runs");
    describe_histogram!("assayd_schedule_lateness_seconds", "From a slot to the run handed to its task");
    describe_counter!("assayd_items_total", "Items by decision");
    describe_counter!("assayd_scores_total", "Judgements by outcome");
    describe_gauge!("assayd_watermark_lag_seconds", "Age of the newest decided item");
    describe_gauge!("assayd_last_success_timestamp_seconds", "When a run last did its work");
    describe_gauge!("assayd_outbox_pending", "Rows that wait to be sent");
    describe_gauge!("assayd_alerts", "Alerts by state");
    describe_counter!("assayd_config_reloads_total", "Reloads by result");
    describe_counter!("assayd_webhooks_total", "Events of webhooks by what became of them");
    describe_gauge!("assayd_monitors", "Monitors by state");
    describe_gauge!("assayd_budget_spent_usd", "Spent of the monitor's budget in its period, or counted as spent");
    describe_counter!("llm_requests_total", "Attempts to ask a model, by how they ended");
    describe_histogram!("llm_latency_seconds", "Duration of an attempt");
    describe_counter!("llm_tokens_total", "Tokens of questions and answers");
    describe_gauge!("llm_cost_usd_total", "Cost of all answers; only ever grows");
    describe_counter!("llm_cache_requests_total", "Look-ups of kept answers: memory, shelf, shared, miss, error");
    describe_counter!("llm_retries_total", "Attempts made again, by reason");
    describe_counter!("llm_guard_total", "Answers to look at, by what the hook `guard` found");
    describe_counter!("llm_hook_errors_total", "Hooks that failed");
    describe_counter!("llm_hook_events_dropped_total", "Events that hooks could not follow");
}
