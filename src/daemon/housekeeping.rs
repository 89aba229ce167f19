//! Low-rate chores on tokio-cron-scheduler: retention, checkpoints, the gateway's books. All in cron form and UTC, few, and none of them
//! panics: the limits within which that scheduler is sound (see the crate docs).

use std::sync::Arc;

use anyhow::Context;
use tokio_cron_scheduler::{Job, JobScheduler};

use crate::{config::RetentionSpec, gateway::Gateway, pipeline::Services, store::Retention};

/// Rows a table and call: some milliseconds of work.
const ROWS: i64 = 2_000;

/// Starts the chores. They end with the scheduler that is returned.
///
/// # Errors
/// When the scheduler cannot be set up.
pub(super) async fn start(services: &Services, gateway: &Arc<Gateway>, retention: RetentionSpec) -> anyhow::Result<JobScheduler> {
    let scheduler = JobScheduler::new_with_channel_size(64).await.context("setting up housekeeping")?;
    let of_retention = services.clone();
    // Minutes that fall on nobody's full hour.
    scheduler
        .add(Job::new_async("0 17 * * * *", move |_, _| {
            let services = of_retention.clone();
            Box::pin(async move { retain(&services, retention).await })
        })?)
        .await?;
    let of_checkpoint = services.clone();
    scheduler
        .add(Job::new_async("0 */5 * * * *", move |_, _| {
            let services = of_checkpoint.clone();
            Box::pin(async move {
                // A closed store has checkpointed itself.
                let _ = services.store.checkpoint().await;
            })
        })?)
        .await?;
    let of_books = Arc::clone(gateway);
    scheduler
        .add(Job::new_async("*/10 * * * * *", move |_, _| {
            let gateway = Arc::clone(&of_books);
            Box::pin(async move { gateway.keep_books().await })
        })?)
        .await?;
    scheduler.start().await?;
    Ok(scheduler)
}

async fn retain(services: &Services, spec: RetentionSpec) {
    let now_us = services.clock.now().as_microsecond();
    let micros = |human: crate::util::duration::Human| human.millis().saturating_mul(1000);
    let retention = Retention {
        now_us,
        scores_before_us: now_us.saturating_sub(micros(spec.scores)),
        runs_before_us: now_us.saturating_sub(micros(spec.runs)),
        decisions_behind_us: micros(spec.decisions),
        limit: ROWS,
    };
    let mut total = 0;
    while let Ok(gone) = services.store.retain(retention).await {
        total += gone;
        if gone == 0 {
            break;
        }
    }
    if total > 0 {
        tracing::info!(rows = total, "forgot what retention no longer covers");
    }
}
