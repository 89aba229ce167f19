//! What each write does to the tables.

use std::collections::HashMap;

use sqlx::SqliteConnection;

use super::{
    DrawBatch, Fate, ItemOutcome, NewScore, NoticeEnd, RunRow, SentBatch, gateway, retention,
    writer::{FinishedRun, Reply, Write},
};
use crate::model::Outcome;

/// Ids of monitors and queues by name, so that the big tables hold small integers.
#[derive(Debug, Default)]
pub(super) struct Names {
    monitors: HashMap<String, i64>,
    queues: HashMap<String, i64>,
}

impl Names {
    async fn monitor(&mut self, db: &mut SqliteConnection, name: &str) -> Result<i64, sqlx::Error> {
        intern(&mut self.monitors, db, name, "INSERT INTO monitors (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id").await
    }

    async fn queue(&mut self, db: &mut SqliteConnection, name: &str) -> Result<i64, sqlx::Error> {
        intern(&mut self.queues, db, name, "INSERT INTO queues (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id").await
    }
}

async fn intern(known: &mut HashMap<String, i64>, db: &mut SqliteConnection, name: &str, sql: &'static str) -> Result<i64, sqlx::Error> {
    if let Some(id) = known.get(name) {
        return Ok(*id);
    }
    let id: i64 = sqlx::query_scalar(sql).bind(name).fetch_one(db).await?;
    known.insert(name.to_owned(), id);
    Ok(id)
}

pub(super) async fn apply(db: &mut SqliteConnection, names: &mut Names, write: &Write) -> Result<Reply, sqlx::Error> {
    let changed = match write {
        Write::BeginRun(run) => begin_run(db, names, run).await?,
        Write::Draw(batch) => draw(db, names, batch).await?,
        Write::Outcome(outcome) => item_outcome(db, names, outcome).await?,
        Write::FinishRun(run) => finish_run(db, names, run).await?,
        Write::Sent(batch) => sent(db, batch).await?,
        Write::Notice { id, end } => notice(db, *id, end).await?,
        Write::Gateway(write) => {
            gateway::apply(db, write).await?;
            0
        }
        Write::Retain(retention) => retention::retain(db, retention).await?,
        Write::Checkpoint | Write::Close => 0,
    };
    Ok(Reply { changed })
}

async fn begin_run(db: &mut SqliteConnection, names: &mut Names, run: &RunRow) -> Result<u64, sqlx::Error> {
    let monitor = names.monitor(db, &run.monitor).await?;
    let sql = "INSERT INTO runs (id, monitor, slot_us, trigger, status, seed, publish, started_us) VALUES ($1, $2, $3, $4, 'running', $5, $6, $7) ON CONFLICT (id) DO NOTHING";
    let done = sqlx::query(sql)
        .bind(&run.id)
        .bind(monitor)
        .bind(run.slot_us)
        .bind(run.trigger.name())
        .bind(run.seed)
        .bind(run.publish)
        .bind(run.started_us)
        .execute(db)
        .await?;
    Ok(done.rows_affected())
}

async fn draw(db: &mut SqliteConnection, names: &mut Names, batch: &DrawBatch) -> Result<u64, sqlx::Error> {
    let monitor = names.monitor(db, &batch.monitor).await?;
    for item in &batch.items {
        let sql =
            "INSERT INTO items (key, monitor, item_id, item_us, decision, reason, run_id, seen_us, decided_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
            ON CONFLICT (key) DO NOTHING";
        let done = sqlx::query(sql)
            .bind(item.key.0.as_slice())
            .bind(monitor)
            .bind(&item.item_id)
            .bind(item.item_us)
            .bind(item.decision.as_str())
            .bind(&*item.reason)
            .bind(&batch.run_id)
            .bind(batch.at_us)
            .execute(&mut *db)
            .await?;
        if let (1, Some(trace)) = (done.rows_affected(), &item.trace) {
            let sql = "INSERT INTO pending (item, monitor, state, item_us, first_us, trace) VALUES ($1, $2, 'drawn', $3, $4, $5)";
            sqlx::query(sql).bind(done.last_insert_rowid()).bind(monitor).bind(item.item_us).bind(batch.at_us).bind(trace).execute(&mut *db).await?;
        }
    }
    if let Some((source_key, at_us)) = &batch.watermark {
        // Never backwards: a run by hand over an old window must not make the next one read all of it again.
        let sql = "INSERT INTO watermarks (monitor, source_key, at_us) VALUES ($1, $2, $3) ON CONFLICT (monitor, source_key) DO UPDATE SET at_us = max(at_us, excluded.at_us)";
        sqlx::query(sql).bind(monitor).bind(source_key).bind(at_us).execute(&mut *db).await?;
    }
    if batch.complete {
        sqlx::query("UPDATE runs SET drawn = 1 WHERE id = $1").bind(&batch.run_id).execute(&mut *db).await?;
    }
    Ok(0)
}

async fn item_outcome(db: &mut SqliteConnection, names: &mut Names, outcome: &ItemOutcome) -> Result<u64, sqlx::Error> {
    let monitor = names.monitor(db, &outcome.monitor).await?;
    let key = outcome.key.0.as_slice();
    let Some(item): Option<i64> = sqlx::query_scalar("SELECT id FROM items WHERE key = $1").bind(key).fetch_optional(&mut *db).await? else {
        // Forgotten by retention while it waited: there is nothing left to hang a score on.
        return Ok(0);
    };
    for score in &outcome.scores {
        let row = insert_score(db, monitor, item, outcome, score).await?;
        if matches!(score.outcome, Outcome::Scored { .. }) {
            for queue in outcome.queues.iter() {
                let queue = names.queue(db, queue).await?;
                sqlx::query("INSERT INTO outbox (queue, score) VALUES ($1, $2) ON CONFLICT (score, queue) DO NOTHING")
                    .bind(queue)
                    .bind(row)
                    .execute(&mut *db)
                    .await?;
            }
        }
    }
    let Some(end) = &outcome.end else { return Ok(0) };
    let sql = "UPDATE items SET decision = $1, reason = $2, run_id = $3, decided_us = $4, attempts = attempts + $5 WHERE id = $6";
    sqlx::query(sql)
        .bind(end.decision.as_str())
        .bind(&end.reason)
        .bind(&outcome.run_id)
        .bind(outcome.at_us)
        .bind(i64::from(end.counts))
        .bind(item)
        .execute(&mut *db)
        .await?;
    if end.comes_back {
        sqlx::query("UPDATE pending SET state = $1 WHERE item = $2").bind(end.decision.as_str()).bind(item).execute(&mut *db).await?;
    } else {
        sqlx::query("DELETE FROM pending WHERE item = $1").bind(item).execute(&mut *db).await?;
    }
    if end.comes_back || end.decision == crate::model::Decision::Failed {
        let sql = "INSERT INTO item_events (item, at_us, run_id, decision, reason) VALUES ($1, $2, $3, $4, $5)";
        sqlx::query(sql).bind(item).bind(outcome.at_us).bind(&outcome.run_id).bind(end.decision.as_str()).bind(&end.reason).execute(db).await?;
    }
    Ok(0)
}

/// A score that was recorded stays as it is; a failed judgement gives way to what a later attempt found.
async fn insert_score(db: &mut SqliteConnection, monitor: i64, item: i64, of: &ItemOutcome, score: &NewScore) -> Result<i64, sqlx::Error> {
    let (value, raw, label, passed) = match &score.outcome {
        Outcome::Scored { value, raw, label, passed, .. } => (Some(*value), *raw, label.as_deref(), *passed),
        _ => (None, None, None, None),
    };
    let int = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
    let sql = "INSERT INTO scores (score_id, run_id, monitor, item, metric, revision, item_id, trace_id, environment, url, item_us, outcome, data_type, value, raw, label, passed,
            reason, provider, model, input_tokens, output_tokens, cost_usd, latency_ms, answer, created_us)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26)
        ON CONFLICT (score_id) DO UPDATE SET run_id = excluded.run_id, outcome = excluded.outcome, value = excluded.value, raw = excluded.raw, label = excluded.label,
            passed = excluded.passed, reason = excluded.reason, provider = excluded.provider, model = excluded.model, input_tokens = excluded.input_tokens,
            output_tokens = excluded.output_tokens, cost_usd = excluded.cost_usd, latency_ms = excluded.latency_ms, answer = excluded.answer, created_us = excluded.created_us
            WHERE scores.outcome <> 'scored'
        RETURNING id";
    let inserted: Option<i64> = sqlx::query_scalar(sql)
        .bind(&score.score_id)
        .bind(&of.run_id)
        .bind(monitor)
        .bind(item)
        .bind(&*score.metric)
        .bind(&*score.revision)
        .bind(&of.item_id)
        .bind(of.trace_id.as_deref())
        .bind(of.environment.as_deref())
        .bind(of.url.as_deref())
        .bind(of.item_us)
        .bind(score.outcome.kind())
        .bind(score.data_type)
        .bind(value)
        .bind(raw)
        .bind(label)
        .bind(passed)
        .bind(score.outcome.reason())
        .bind(score.usage.provider.as_deref())
        .bind(score.usage.model.as_deref())
        .bind(int(score.usage.input_tokens))
        .bind(int(score.usage.output_tokens))
        .bind(score.usage.cost_usd)
        .bind(int(score.usage.latency_ms))
        .bind(score.answer.as_deref())
        .bind(of.at_us)
        .fetch_optional(&mut *db)
        .await?;
    match inserted {
        Some(id) => Ok(id),
        None => sqlx::query_scalar("SELECT id FROM scores WHERE score_id = $1").bind(&score.score_id).fetch_one(db).await,
    }
}

async fn finish_run(db: &mut SqliteConnection, names: &mut Names, run: &FinishedRun) -> Result<u64, sqlx::Error> {
    let monitor = names.monitor(db, &run.report.monitor).await?;
    let report = json(&run.report)?;
    let sql = "UPDATE runs SET status = $1, finished_us = $2, new_items = $3, report = $4 WHERE id = $5";
    let new_items = i64::try_from(run.new_items).unwrap_or(i64::MAX);
    sqlx::query(sql).bind(run.report.status.as_str()).bind(run.at_us).bind(new_items).bind(report).bind(&run.run_id).execute(&mut *db).await?;
    for alert in &run.alerts {
        let sql = "INSERT INTO alerts (monitor, name, state, reason, memory, updated_us) VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (monitor, name) DO UPDATE SET state = excluded.state, reason = excluded.reason, memory = excluded.memory, updated_us = excluded.updated_us";
        sqlx::query(sql)
            .bind(monitor)
            .bind(&alert.name)
            .bind(alert.state.as_str())
            .bind(&alert.reason)
            .bind(&alert.memory)
            .bind(run.at_us)
            .execute(&mut *db)
            .await?;
    }
    for notice in &run.notices {
        let sql = "INSERT INTO notices (fingerprint, route, event, created_us) VALUES ($1, $2, $3, $4)";
        sqlx::query(sql).bind(&notice.event.fingerprint).bind(json(&notice.route)?).bind(json(&notice.event)?).bind(run.at_us).execute(&mut *db).await?;
    }
    Ok(0)
}

fn json(value: &impl serde::Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))
}

async fn sent(db: &mut SqliteConnection, batch: &SentBatch) -> Result<u64, sqlx::Error> {
    for (id, fate) in &batch.fates {
        match fate {
            Fate::Delivered => {
                sqlx::query("UPDATE outbox SET state = 1, attempts = attempts + 1, error = NULL, delivered_us = $1 WHERE id = $2")
                    .bind(batch.at_us)
                    .bind(id)
                    .execute(&mut *db)
                    .await?
            }
            Fate::Dead(error) => {
                sqlx::query("UPDATE outbox SET state = 2, attempts = attempts + 1, error = $1, next_us = $2 WHERE id = $3")
                    .bind(error)
                    .bind(batch.at_us)
                    .bind(id)
                    .execute(&mut *db)
                    .await?
            }
            Fate::Again(failure) => {
                let sql = "UPDATE outbox SET attempts = attempts + 1, next_us = $1, error = $2 WHERE id = $3";
                sqlx::query(sql).bind(failure.next_us).bind(&failure.error).bind(id).execute(&mut *db).await?
            }
        };
    }
    Ok(0)
}

async fn notice(db: &mut SqliteConnection, id: i64, end: &NoticeEnd) -> Result<u64, sqlx::Error> {
    let done = match end {
        NoticeEnd::Delivered { thread } => {
            sqlx::query("UPDATE notices SET state = 1, attempts = attempts + 1, error = NULL, thread = $1 WHERE id = $2")
                .bind(thread.as_deref())
                .bind(id)
                .execute(db)
                .await?
        }
        NoticeEnd::Dead(error) => {
            sqlx::query("UPDATE notices SET state = 2, attempts = attempts + 1, error = $1 WHERE id = $2").bind(error).bind(id).execute(db).await?
        }
        NoticeEnd::Again(failure) => {
            let sql = "UPDATE notices SET attempts = attempts + 1, next_us = $1, error = $2 WHERE id = $3";
            sqlx::query(sql).bind(failure.next_us).bind(&failure.error).bind(id).execute(db).await?
        }
    };
    Ok(done.rows_affected())
}
