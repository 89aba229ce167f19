//! What each write does to the tables; of judged items, see [`outcomes`].

use std::collections::HashMap;

use sqlx::{QueryBuilder, SqliteConnection};

use super::{
    AlertRow, DrawBatch, FinishedRun, NewItem, NewNotice, RunRow, anchors, digest, experiments, gateway, groups, outbox,
    outcomes::{self, hex},
    prompts, retention, silences,
    writer::{Reply, Request, Write},
};
use crate::model::Decision;

/// Ids of monitors and queues by name, so that the big tables hold small integers.
#[derive(Debug, Default)]
pub(super) struct Names {
    monitors: HashMap<String, i64>,
    queues: HashMap<String, i64>,
}

impl Names {
    pub(super) async fn monitor(&mut self, db: &mut SqliteConnection, name: &str) -> Result<i64, sqlx::Error> {
        intern(&mut self.monitors, db, name, "INSERT INTO monitors (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id").await
    }

    pub(super) async fn queue(&mut self, db: &mut SqliteConnection, name: &str) -> Result<i64, sqlx::Error> {
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

/// Items of one statement. Each number of them is a statement of its own, and is prepared once.
const ROWS: usize = 16;

/// All writes of a transaction, in their order.
pub(super) async fn apply(db: &mut SqliteConnection, names: &mut Names, batch: &[Request]) -> Result<Vec<Reply>, sqlx::Error> {
    let mut replies = Vec::with_capacity(batch.len());
    while let Some(request) = batch.get(replies.len()) {
        let changed = match &request.write {
            Write::BeginRun(run) => begin_run(db, names, run).await?,
            Write::Draw(batch) => draw(db, names, batch).await?,
            Write::Outcome(_) => {
                let outcomes = outcomes::first(&batch[replies.len()..]);
                outcomes::write(db, names, &outcomes).await?;
                replies.resize(replies.len() + outcomes.len(), Reply::default());
                continue;
            }
            Write::FinishRun(run) => finish_run(db, names, run).await?,
            Write::Alerts(moved) => {
                let monitor = names.monitor(db, &moved.monitor).await?;
                if moved.gone {
                    sqlx::query("DELETE FROM versions WHERE monitor = $1").bind(monitor).execute(&mut *db).await?;
                }
                keep_alerts(db, monitor, &moved.rows, moved.at_us).await?;
                end_alerts(db, monitor, &moved.removed, &moved.notices, moved.at_us).await?;
                0
            }
            Write::Sent(batch) => outbox::sent(db, batch).await?,
            Write::Outbox(change) => outbox::change(db, change).await?,
            Write::Told(told) => groups::told(db, told).await?,
            Write::Gateway(write) => {
                gateway::apply(db, write).await?;
                0
            }
            Write::Grouped(grouped) => experiments::apply(db, grouped).await?,
            Write::Prompt(write) => prompts::apply(db, write).await?,
            Write::Digest(write) => digest::apply(db, write).await?,
            Write::Silence(write) => silences::apply(db, write).await?,
            Write::Anchors(write) => anchors::apply(db, names, write).await?,
            Write::Retain(retention) => retention::retain(db, retention).await?,
            Write::Checkpoint | Write::Close => 0,
        };
        replies.push(Reply { changed });
    }
    Ok(replies)
}

async fn begin_run(db: &mut SqliteConnection, names: &mut Names, run: &RunRow) -> Result<u64, sqlx::Error> {
    let monitor = names.monitor(db, &run.monitor).await?;
    let sql = "INSERT INTO runs (id, monitor, slot_us, trigger, status, seed, publish, started_us, since_us, until_us)
        VALUES ($1, $2, $3, $4, 'running', $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING";
    let done = sqlx::query(sql)
        .bind(&run.id)
        .bind(monitor)
        .bind(run.slot_us)
        .bind(run.trigger.name())
        .bind(run.seed)
        .bind(run.publish)
        .bind(run.started_us)
        .bind(run.since_us)
        .bind(run.until_us)
        .execute(db)
        .await?;
    Ok(done.rows_affected())
}

async fn draw(db: &mut SqliteConnection, names: &mut Names, batch: &DrawBatch) -> Result<u64, sqlx::Error> {
    let monitor = names.monitor(db, &batch.monitor).await?;
    for items in batch.items.chunks(ROWS) {
        insert_items(db, monitor, batch, items).await?;
    }
    if !batch.baseline.is_empty() {
        let baseline: Vec<_> = batch.baseline.iter().map(|known| (hex(known.key.0), hex(known.given.0), known.item_us)).collect();
        let sql = "UPDATE items SET given = unhex(base.value ->> 1), item_us = base.value ->> 2 FROM json_each($1) AS base
            WHERE items.key = unhex(base.value ->> 0) AND items.given IS NULL";
        sqlx::query(sql).bind(json(&baseline)?).execute(&mut *db).await?;
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

/// Items that are new, have changed, or failed before the draw and come back; and what is pending of those that wait.
async fn insert_items(db: &mut SqliteConnection, monitor: i64, batch: &DrawBatch, items: &[NewItem]) -> Result<(), sqlx::Error> {
    let given: Vec<_> = items.iter().filter_map(|item| Some((hex(item.key.0), hex(item.given?.0)))).collect();
    if !given.is_empty() {
        // Of an item that has changed: how it was decided becomes history, what waits of it is no longer what is judged.
        let sql = "INSERT INTO item_events (item, at_us, run_id, decision, reason)
                SELECT items.id, items.decided_us, items.run_id, items.decision, items.reason
                FROM json_each($1) AS new JOIN items ON items.key = unhex(new.value ->> 0)
                WHERE items.given <> unhex(new.value ->> 1)
                    AND NOT EXISTS (SELECT 1 FROM item_events e WHERE e.item = items.id AND e.at_us = items.decided_us AND e.decision = items.decision);
            DELETE FROM pending WHERE item IN (SELECT items.id FROM json_each($1) AS new JOIN items ON items.key = unhex(new.value ->> 0)
                WHERE items.given <> unhex(new.value ->> 1))";
        sqlx::query(sql).bind(json(&given)?).execute(&mut *db).await?;
    }
    let mut sql =
        QueryBuilder::new("INSERT INTO items (key, monitor, item_id, item_us, decision, reason, run_id, attempts, seen_us, decided_us, given, chosen) ");
    sql.push_values(items, |mut values, item| {
        values
            .push_bind(item.key.0.as_slice())
            .push_bind(monitor)
            .push_bind(&item.item_id)
            .push_bind(item.item_us)
            .push_bind(item.decision.as_str())
            .push_bind(&*item.reason)
            .push_bind(&batch.run_id)
            .push_bind(i64::from(item.decision == Decision::Failed))
            .push_bind(batch.at_us)
            .push_bind(batch.at_us)
            .push_bind(item.given.as_ref().map(|given| given.0.as_slice()))
            .push_bind(item.chosen);
    });
    sql.push(
        " ON CONFLICT (key) DO UPDATE SET item_us = excluded.item_us, decision = excluded.decision, reason = excluded.reason, run_id = excluded.run_id,
            attempts = CASE WHEN items.given <> excluded.given THEN 0 ELSE items.attempts END + excluded.attempts, decided_us = excluded.decided_us,
            given = coalesce(excluded.given, items.given), chosen = excluded.chosen
            WHERE items.given <> excluded.given OR EXISTS (SELECT 1 FROM pending WHERE pending.item = items.id AND pending.state = 'undrawn')",
    );
    if batch.again {
        sql.push(" OR NOT EXISTS (SELECT 1 FROM pending WHERE pending.item = items.id)");
    }
    if items.iter().any(|item| item.trace.is_some()) {
        // Any other item that was there before has its own row, or has been decided.
        sql.push(
            "; INSERT INTO pending (item, monitor, state, item_us, first_us, trace, publish)
            SELECT items.id, monitor, iif(decision = 'failed', 'undrawn', decision), item_us, decided_us, column3,
                coalesce((SELECT publish FROM runs WHERE runs.id = items.run_id), 1) FROM (",
        );
        sql.push_values(items.iter().filter_map(|item| Some((item, item.trace.as_deref()?))), |mut values, (item, trace)| {
            values.push_bind(item.key.0.as_slice()).push_bind(item.decision.as_str()).push_bind(trace);
        });
        sql.push(
            ") JOIN items ON items.key = column1 WHERE items.decision = column2
            ON CONFLICT (item) DO UPDATE SET state = excluded.state, first_us = excluded.first_us WHERE pending.state = 'undrawn'",
        );
    }
    sql.build().execute(&mut *db).await?;
    failed_before_the_draw(db, batch, items).await
}

/// What became of items that failed before the draw: each such failure is an event, and what does not wait any more goes.
async fn failed_before_the_draw(db: &mut SqliteConnection, batch: &DrawBatch, items: &[NewItem]) -> Result<(), sqlx::Error> {
    let keys = |chosen: fn(&NewItem) -> bool| items.iter().filter(|item| chosen(item)).map(|item| hex(item.key.0)).collect::<Vec<_>>();
    let failed = keys(|item| item.decision == Decision::Failed);
    if !failed.is_empty() {
        let sql = "INSERT INTO item_events (item, at_us, run_id, decision, reason) SELECT items.id, decided_us, run_id, decision, reason
            FROM json_each($1) AS failed JOIN items ON items.key = unhex(failed.value) WHERE decision = 'failed' AND run_id = $2 AND decided_us = $3";
        sqlx::query(sql).bind(json(&failed)?).bind(&batch.run_id).bind(batch.at_us).execute(&mut *db).await?;
    }
    let decided = keys(|item| item.undrawn && item.trace.is_none());
    if !decided.is_empty() {
        let sql =
            "DELETE FROM pending WHERE state = 'undrawn' AND item IN (SELECT items.id FROM json_each($1) AS key JOIN items ON items.key = unhex(key.value))";
        sqlx::query(sql).bind(json(&decided)?).execute(db).await?;
    }
    Ok(())
}

async fn finish_run(db: &mut SqliteConnection, names: &mut Names, run: &FinishedRun) -> Result<u64, sqlx::Error> {
    let monitor = names.monitor(db, &run.report.monitor).await?;
    let report = json(&run.report)?;
    let sql = "UPDATE runs SET status = $1, finished_us = $2, new_items = $3, report = $4 WHERE id = $5";
    let new_items = i64::try_from(run.new_items).unwrap_or(i64::MAX);
    sqlx::query(sql).bind(run.report.status.as_str()).bind(run.at_us).bind(new_items).bind(report).bind(&run.report.run_id).execute(&mut *db).await?;
    if let Some((fingerprint, parts)) = &run.version {
        let sql = "INSERT INTO versions (monitor, fingerprint, parts, updated_us) VALUES ($1, $2, $3, $4)
            ON CONFLICT (monitor) DO UPDATE SET fingerprint = excluded.fingerprint, parts = excluded.parts, updated_us = excluded.updated_us
            WHERE fingerprint <> excluded.fingerprint";
        sqlx::query(sql).bind(monitor).bind(fingerprint).bind(parts).bind(run.at_us).execute(&mut *db).await?;
    }
    keep_alerts(db, monitor, &run.alerts, run.at_us).await?;
    end_alerts(db, monitor, &run.removed_alerts, &run.notices, run.at_us).await?;
    Ok(0)
}

async fn keep_alerts(db: &mut SqliteConnection, monitor: i64, alerts: &[AlertRow], at_us: i64) -> Result<(), sqlx::Error> {
    for alert in alerts {
        let sql = "INSERT INTO alerts (monitor, name, state, reason, memory, updated_us) VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (monitor, name) DO UPDATE SET state = excluded.state, reason = excluded.reason, memory = excluded.memory, updated_us = excluded.updated_us";
        sqlx::query(sql)
            .bind(monitor)
            .bind(&alert.name)
            .bind(alert.state.as_str())
            .bind(&alert.reason)
            .bind(&alert.memory)
            .bind(at_us)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// Forgets alerts, and queues what people are told.
async fn end_alerts(db: &mut SqliteConnection, monitor: i64, names: &[String], notices: &[NewNotice], at_us: i64) -> Result<(), sqlx::Error> {
    for name in names {
        sqlx::query("DELETE FROM alerts WHERE monitor = $1 AND name = $2").bind(monitor).bind(name).execute(&mut *db).await?;
    }
    for notice in notices {
        groups::insert(db, notice, at_us).await?;
    }
    Ok(())
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))
}

#[cfg(test)]
mod tests {
    use crate::{
        model::{Decision, ItemKey},
        store::{DrawBatch, NewItem, RunRow, Stage, Store},
    };

    const START: (i64, i64) = (i64::MIN, i64::MIN);

    fn item(id: &str, decision: Decision, trace: bool, undrawn: bool) -> NewItem {
        NewItem {
            key: ItemKey::new("file:f", "m", id),
            item_id: id.to_owned(),
            item_us: 1,
            decision,
            reason: "because".into(),
            trace: trace.then(|| "{}".to_owned()),
            given: None,
            chosen: decision == Decision::Drawn && id.starts_with('c'),
            undrawn,
        }
    }

    #[tokio::test]
    async fn what_failed_before_the_draw_waits_until_it_is_drawn_or_decided() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            let run = |id: &str, publish| RunRow {
                id: id.to_owned(),
                monitor: "m".to_owned(),
                slot_us: 1,
                trigger: crate::model::Trigger::Manual,
                seed: 1,
                publish,
                started_us: 1,
                since_us: Some(-5),
                until_us: None,
                drawn: false,
            };
            let record = async |run: &str, at_us, items| {
                let batch = DrawBatch {
                    monitor: "m".to_owned(),
                    run_id: run.to_owned(),
                    at_us,
                    items,
                    baseline: Vec::new(),
                    watermark: None,
                    complete: false,
                    again: false,
                };
                store.record_draw(batch).await.unwrap();
            };
            let waiting = async |stage, publish| {
                let rows = store.pending("m", stage, publish, START, 9).await.unwrap();
                rows.into_iter().map(|(row, _)| (row.item_id, row.attempts)).collect::<Vec<_>>()
            };
            let named = |rows: &[(&str, u32)]| rows.iter().map(|(id, attempts)| ((*id).to_owned(), *attempts)).collect::<Vec<_>>();
            store.begin_run(run("quiet", false)).await.unwrap();
            store.begin_run(run("loud", true)).await.unwrap();
            assert_eq!(store.open_runs().await.unwrap().iter().map(|run| (run.since_us, run.until_us)).collect::<Vec<_>>(), [(Some(-5), None); 2]);

            record("quiet", 1, vec![item("a", Decision::Failed, true, false)]).await;
            record("loud", 1, ["b", "c", "d"].map(|id| item(id, Decision::Failed, true, false)).to_vec()).await;
            record("loud", 1, vec![item("e", Decision::Failed, false, false)]).await;
            assert_eq!(waiting(Stage::Undrawn, true).await, named(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]), "without its trace one is final");
            assert_eq!(waiting(Stage::Undrawn, false).await, named(&[("a", 1)]), "the others are to be published");

            // One is drawn, one for the asking, one fails for good, one is left out.
            record("loud", 2, vec![item("a", Decision::Drawn, true, true), item("c", Decision::Drawn, true, true)]).await;
            record("loud", 2, vec![item("b", Decision::Failed, false, true), item("d", Decision::Filtered, false, true)]).await;
            assert_eq!(waiting(Stage::Undrawn, true).await, []);
            assert_eq!(waiting(Stage::Drawn, true).await, named(&[("a", 1), ("c", 1)]), "a failure before the draw is an attempt");
            assert_eq!(waiting(Stage::Drawn, false).await, named(&[("a", 1)]), "as its first run was asked to");
            let chosen: Vec<String> = sqlx::query_scalar("SELECT item_id FROM items WHERE chosen").fetch_all(&store.read).await.unwrap();
            assert_eq!(chosen, ["c"]);
            let life = async |id: &str| store.item_life("m", id).await.unwrap().pop().unwrap();
            let (b, d) = (life("b").await, life("d").await);
            assert_eq!((b.decision.as_str(), b.attempts, b.events.len()), ("failed", 2, 2));
            assert_eq!((d.decision.as_str(), d.attempts, d.events.len()), ("filtered", 1, 1));
            // What waits in another way stays as it is.
            record("loud", 3, vec![item("a", Decision::Filtered, false, false)]).await;
            assert_eq!(life("a").await.decision, "drawn");
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }
}
