//! How a monitor is doing, for the alerts that every monitor has.

use std::time::Duration;

use jiff::Timestamp;

use super::{Monitor, Services};
use crate::{
    alerting::{
        Health,
        watch::{Behind, Oldest},
    },
    model::{RunReport, RunStatus},
};

/// Finished runs looked at for `runs-failing`.
const RUNS: u32 = 20;
const DAY_US: i64 = 86_400_000_000;

pub(super) async fn health(
    monitor: &Monitor,
    services: &Services,
    report: &RunReport,
    new_items: u64,
    period: Duration,
    now: Timestamp,
) -> Result<Health, sqlx::Error> {
    let (store, name, now_us) = (&services.store, &monitor.spec.name, now.as_microsecond());
    let earlier = store.last_reports(name, RUNS).await?;
    let failed_in_a_row = std::iter::once(report).chain(&earlier).take_while(|run| run.status == RunStatus::Failed).count();
    let (first, last) = store.first_run_and_last_item(name).await?;
    let (scored, failed) = store.judgements(name, now_us - DAY_US).await?;
    let (dead_rows_new, dead_rows) = store.dead_rows(name, now_us - DAY_US).await?;
    let time = |us: i64| Timestamp::from_microsecond(us).ok();
    let delay_us = i64::try_from(period.as_micros()).unwrap_or(i64::MAX).saturating_mul(2);
    let coverage = store.coverage(name, (now_us - DAY_US, i64::MAX), now_us.saturating_sub(delay_us)).await?;
    let oldest = store.oldest_waiting(name).await?.and_then(|(item_id, us, waiting)| Some(Oldest { item_id, since: time(us)?, waiting }));
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
        coverage,
        oldest,
        behind: behind(report, &earlier, monitor.spec.source.settle.0, now),
    })
}

/// Runs in a row that left items to their source: what the last one's lag is compared with.
const PACE: usize = 6;

fn behind(report: &RunReport, earlier: &[RunReport], settle: Duration, now: Timestamp) -> Option<Behind> {
    let lag = Duration::from_secs(report.backlog_seconds?);
    let before = earlier.iter().take(PACE).map_while(|run| Some((Duration::from_secs(run.backlog_seconds?), run.slot))).last();
    Some(Behind { lag, settle, before: before.map(|(lag, slot)| (lag, now.duration_since(slot).try_into().unwrap_or_default())) })
}
