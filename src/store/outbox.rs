//! The outbox: rows on their way to sinks, by queue. What a sink is handed at a time is bounded by rows and by bytes.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    Closed, Due, Fate, SentBatch, Store,
    apply::json,
    read::{Result, score},
    writer::Write,
};
use crate::{
    model::{Item, OutboxChange},
    sinks::Delivery,
};

/// Of the items that go with a batch. An item may have megabytes, a batch a thousand rows, and a process all of them at once.
const BATCH_BYTES: i64 = 16 << 20;
/// Items read at a time.
const TOGETHER: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStatus {
    pub name: String,
    pub waiting: i64,
    pub dead: i64,
    /// The newest error of a waiting or dead row.
    pub error: Option<String>,
}

impl Store {
    /// Rows of a queue that may be sent now, oldest first: at most `limit`, and as many as come with 16 MiB of items, but at
    /// least one.
    ///
    /// # Errors
    /// The database's.
    pub async fn due(&self, queue: &str, now_us: i64, limit: usize) -> Result<Vec<Due>> {
        let text = "SELECT o.id AS outbox_id, o.attempts, o.failures, o.failed_us, o.body, octet_length(b.body) AS bytes, s.*, m.name AS monitor_name
            FROM outbox o JOIN scores s ON s.id = o.score JOIN monitors m ON m.id = s.monitor LEFT JOIN bodies b ON b.id = o.body
            WHERE o.state = 0 AND o.queue = (SELECT id FROM queues WHERE name = $1) AND o.next_us <= $2 ORDER BY o.next_us, o.id LIMIT $3";
        let mut rows = sqlx::query(text).bind(queue).bind(now_us).bind(i64::try_from(limit).unwrap_or(i64::MAX)).fetch_all(&self.read).await?;
        let (mut bodies, mut bytes, mut fit) = (BTreeSet::new(), 0_i64, 0);
        for row in &rows {
            if let Some(body) = row.try_get::<Option<i64>, _>("body")?
                && !bodies.contains(&body)
            {
                bytes = bytes.saturating_add(row.try_get::<Option<i64>, _>("bytes")?.unwrap_or(0));
                if bytes > BATCH_BYTES && fit > 0 {
                    break;
                }
                bodies.insert(body);
            }
            fit += 1;
        }
        rows.truncate(fit);
        let items = self.items(queue, &bodies).await?;
        rows.iter().map(|row| due(row, &items)).collect()
    }

    /// The items of these bodies, each read once however many rows carry it.
    async fn items(&self, queue: &str, bodies: &BTreeSet<i64>) -> Result<HashMap<i64, Arc<Item>>> {
        let mut items = HashMap::with_capacity(bodies.len());
        let ids: Vec<&i64> = bodies.iter().collect();
        // A few at a time: text and item of these are in memory together, and a row alone would cost a way to the database's thread.
        for some in ids.chunks(TOGETHER) {
            let rows: Vec<(i64, String)> =
                sqlx::query_as("SELECT id, body FROM bodies WHERE id IN (SELECT value FROM json_each($1))").bind(json(&some)?).fetch_all(&self.read).await?;
            for (id, body) in rows {
                match serde_json::from_str(&body) {
                    Ok(item) => drop(items.insert(id, Arc::new(item))),
                    // One that does not read back (nested to the very limit) must not hold up the queue: its score goes without it.
                    Err(error) => tracing::warn!(queue, %error, "a kept item cannot be read; its score goes without it"),
                }
            }
        }
        Ok(items)
    }

    /// When the next waiting row of a queue may be sent.
    ///
    /// # Errors
    /// The database's.
    pub async fn next_due(&self, queue: &str) -> Result<Option<i64>> {
        sqlx::query_scalar("SELECT min(next_us) FROM outbox WHERE state = 0 AND queue = (SELECT id FROM queues WHERE name = $1)")
            .bind(queue)
            .fetch_one(&self.read)
            .await
    }

    /// Delivered and waiting rows of one run, by queue.
    ///
    /// # Errors
    /// The database's.
    pub async fn published(&self, run_id: &str) -> Result<Vec<(String, i64, i64)>> {
        let text = "SELECT q.name, sum(o.state = 1), sum(o.state = 0) FROM outbox o JOIN queues q ON q.id = o.queue WHERE o.score IN (SELECT id FROM scores WHERE run_id = $1) GROUP BY q.name";
        sqlx::query_as(text).bind(run_id).fetch_all(&self.read).await
    }

    /// Every queue that ever held a row.
    ///
    /// # Errors
    /// The database's.
    pub async fn queues(&self) -> Result<Vec<QueueStatus>> {
        let text = "SELECT q.name, (SELECT count(*) FROM outbox o WHERE o.queue = q.id AND o.state = 0) AS waiting, (SELECT count(*) FROM outbox o WHERE o.queue = q.id AND o.state = 2) AS dead,
                (SELECT o.error FROM outbox o WHERE o.queue = q.id AND o.state = 0 AND o.error IS NOT NULL ORDER BY o.id DESC LIMIT 1) AS waiting_error,
                (SELECT o.error FROM outbox o WHERE o.queue = q.id AND o.state = 2 ORDER BY o.id DESC LIMIT 1) AS dead_error
            FROM queues q ORDER BY q.name";
        let rows = sqlx::query(text).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                let error: Option<String> = row.try_get("waiting_error")?;
                let dead: Option<String> = row.try_get("dead_error")?;
                Ok(QueueStatus { name: row.try_get("name")?, waiting: row.try_get("waiting")?, dead: row.try_get("dead")?, error: error.or(dead) })
            })
            .collect()
    }

    /// When the oldest score was made that a queue has not delivered, by queue. Costs follow what waits.
    ///
    /// # Errors
    /// The database's.
    pub async fn undelivered_since(&self) -> Result<HashMap<String, i64>> {
        let text = "SELECT q.name, min(s.created_us) FROM outbox o JOIN queues q ON q.id = o.queue JOIN scores s ON s.id = o.score WHERE o.state IN (0, 2) GROUP BY q.name";
        Ok(sqlx::query_as(text).fetch_all(&self.read).await?.into_iter().collect())
    }

    /// When the oldest score was made that waits for its sink.
    ///
    /// # Errors
    /// The database's.
    pub async fn waiting_since(&self) -> Result<Option<i64>> {
        sqlx::query_scalar("SELECT min(s.created_us) FROM outbox o JOIN scores s ON s.id = o.score WHERE o.state = 0").fetch_one(&self.read).await
    }

    /// What became of a batch.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn record_sent(&self, batch: SentBatch) -> std::result::Result<(), Closed> {
        self.write(Write::Sent(batch)).await.map(|_| ())
    }

    /// Does what a person asks; returns how many rows that changed.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn change_outbox(&self, change: OutboxChange) -> std::result::Result<u64, Closed> {
        Ok(self.write(Write::Outbox(change)).await?.changed)
    }
}

fn due(row: &SqliteRow, items: &HashMap<i64, Arc<Item>>) -> Result<Due> {
    let count = |name: &str| -> Result<u32> { Ok(u32::try_from(row.try_get::<i64, _>(name)?).unwrap_or(u32::MAX)) };
    let body: Option<i64> = row.try_get("body")?;
    let delivery = Delivery {
        score: score(row)?,
        data_type: row.try_get("data_type")?,
        observation_id: row.try_get("observation_id")?,
        environment: row.try_get("environment")?,
        item: body.and_then(|body| items.get(&body)).map(Arc::clone),
    };
    Ok(Due { outbox_id: row.try_get("outbox_id")?, attempts: count("attempts")?, failures: count("failures")?, failed_us: row.try_get("failed_us")?, delivery })
}

pub(super) async fn change(db: &mut SqliteConnection, change: &OutboxChange) -> Result<u64> {
    let done = match change {
        OutboxChange::Retry { queue } => {
            let sql = "UPDATE outbox SET state = 0, attempts = 0, failures = 0, failed_us = NULL, next_us = 0
                WHERE state = 2 AND ($1 IS NULL OR queue = (SELECT id FROM queues WHERE name = $1))";
            sqlx::query(sql).bind(queue).execute(db).await?
        }
        OutboxChange::Drop { queue, waiting } => {
            // What they carried goes with retention.
            let sql = "DELETE FROM outbox WHERE queue = (SELECT id FROM queues WHERE name = $1) AND (state = 2 OR $2 AND state = 0)";
            sqlx::query(sql).bind(queue).bind(waiting).execute(db).await?
        }
    };
    Ok(done.rows_affected())
}

pub(super) async fn sent(db: &mut SqliteConnection, batch: &SentBatch) -> Result<u64> {
    let delivered: Vec<i64> = batch.fates.iter().filter(|(_, fate)| matches!(fate, Fate::Delivered)).map(|(id, _)| *id).collect();
    if !delivered.is_empty() {
        let sql = "UPDATE outbox SET state = 1, attempts = attempts + 1, error = NULL, delivered_us = $1 WHERE id IN (SELECT value FROM json_each($2))";
        sqlx::query(sql).bind(batch.at_us).bind(json(&delivered)?).execute(&mut *db).await?;
    }
    for (id, fate) in &batch.fates {
        match fate {
            Fate::Delivered => {}
            Fate::Dead(error) => {
                let sql = "UPDATE outbox SET state = 2, attempts = attempts + 1, error = $1, next_us = $2 WHERE id = $3";
                sqlx::query(sql).bind(error).bind(batch.at_us).bind(id).execute(&mut *db).await?;
            }
            Fate::Held(failure) => {
                let sql = "UPDATE outbox SET attempts = attempts + 1, next_us = $1, error = $2 WHERE id = $3";
                sqlx::query(sql).bind(failure.next_us).bind(&failure.error).bind(id).execute(&mut *db).await?;
            }
            Fate::Again(failure) => {
                let sql = "UPDATE outbox SET attempts = attempts + 1, failures = failures + 1, failed_us = coalesce(failed_us, $1), next_us = $2, error = $3 WHERE id = $4";
                sqlx::query(sql).bind(batch.at_us).bind(failure.next_us).bind(&failure.error).bind(id).execute(&mut *db).await?;
            }
        }
    }
    if batch.with_items && !delivered.is_empty() {
        // What a dead row carried stays with it.
        let sql = "DELETE FROM bodies WHERE id IN (SELECT body FROM outbox WHERE id IN (SELECT value FROM json_each($1)))
            AND NOT EXISTS (SELECT 1 FROM outbox WHERE outbox.body = bodies.id AND outbox.state <> 1)";
        sqlx::query(sql).bind(json(&delivered)?).execute(&mut *db).await?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{About, BodyKey, Case, Decision, ItemKey, OutboxChange, Outcome, Usage},
        store::{DrawBatch, Failure, ItemEnd, ItemOutcome, NewItem, NewScore, Queue},
    };

    fn key(n: usize) -> ItemKey {
        ItemKey::new("file:f", "m", &n.to_string())
    }

    /// A store with items, each of two metrics; their items have as many bytes as `sizes` says.
    async fn queued(store: &Store, sizes: &[usize]) {
        let drawn = |n: usize| NewItem {
            key: key(n),
            item_id: n.to_string(),
            item_us: 1,
            decision: Decision::Drawn,
            reason: "".into(),
            trace: None,
            given: None,
            chosen: false,
            undrawn: false,
        };
        let items = (0..sizes.len()).map(drawn).collect();
        let batch =
            DrawBatch { monitor: "m".to_owned(), run_id: "r".to_owned(), at_us: 1, items, baseline: Vec::new(), watermark: None, complete: true, again: false };
        store.record_draw(batch).await.unwrap();
        for (n, size) in sizes.iter().enumerate() {
            let trace = serde_json::json!({ "id": n.to_string(), "timestamp": "2026-01-01T00:00:00Z", "output": "x".repeat(*size) });
            let item =
                Item { trace: serde_json::from_value(trace).unwrap(), case: Case::default(), content_hash: "c".to_owned(), about: About::default().into() };
            let score = |metric: &str| NewScore {
                score_id: format!("{metric}-{n}"),
                metric: metric.into(),
                revision: "r".into(),
                data_type: "NUMERIC",
                outcome: Outcome::Scored { value: 1.0, raw: None, label: None, passed: None, reason: String::new() },
                usage: Usage::default(),
                answer: None,
            };
            let outcome = ItemOutcome {
                monitor: "m".to_owned(),
                run_id: "r".to_owned(),
                key: key(n),
                item_id: n.to_string(),
                item_us: 1,
                trace_id: None,
                observation_id: None,
                environment: None,
                url: None,
                at_us: 2,
                scores: ["one", "two"].map(score).into(),
                values: Vec::new(),
                stale: Vec::new(),
                queues: [Queue { name: "q".to_owned(), wants_item: true, metrics: Vec::new() }].into(),
                body: Some((BodyKey::new(key(n), "c"), serde_json::to_string(&item).unwrap())),
                end: Some(ItemEnd { decision: Decision::Scored, reason: String::new(), comes_back: false, counts: true }),
            };
            store.record_outcome(outcome).await.unwrap();
        }
    }

    async fn fate(store: &Store, rows: &[Due], at_us: i64, fate: &Fate) {
        let fates = rows.iter().map(|row| (row.outbox_id, fate.clone())).collect();
        store.record_sent(SentBatch { at_us, fates, with_items: true }).await.unwrap();
    }

    #[tokio::test]
    async fn a_batch_is_bounded_by_bytes_and_an_item_is_in_memory_once() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            queued(&store, &[9 << 20, 9 << 20, 20 << 20]).await;
            for n in 0..3 {
                let rows = store.due("q", 10, 1000).await.unwrap();
                let of: Vec<_> = rows.iter().map(|row| (row.delivery.score.item_id.as_str(), row.delivery.score.metric.as_str())).collect();
                let id = n.to_string();
                assert_eq!(of, [(id.as_str(), "one"), (id.as_str(), "two")], "one more item would be too much; one that is too much by itself goes alone");
                let [one, two] = [0, 1].map(|at| rows[at].delivery.item.clone().unwrap());
                assert!(Arc::ptr_eq(&one, &two));
                fate(&store, &rows, 11, &Fate::Delivered).await;
            }
            assert!(store.due("q", 10, 1000).await.unwrap().is_empty());
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }

    #[tokio::test]
    async fn a_rows_own_refusals_are_counted_and_begin_anew_when_it_is_sent_again_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            queued(&store, &[1]).await;
            let failure = || Failure { next_us: 0, error: "busy".to_owned() };
            let due = async || store.due("q", 10, 1000).await.unwrap();
            fate(&store, &due().await, 5, &Fate::Held(failure())).await;
            let known = async || due().await.iter().map(|row| (row.attempts, row.failures, row.failed_us)).next();
            assert_eq!(known().await, Some((1, 0, None)), "a sink that was away says nothing of the row");
            for at_us in [6, 7] {
                fate(&store, &due().await, at_us, &Fate::Again(failure())).await;
            }
            assert_eq!(known().await, Some((3, 2, Some(6))));
            fate(&store, &due().await, 8, &Fate::Dead("no".to_owned())).await;
            let change = async |change| store.change_outbox(change).await.unwrap();
            assert_eq!(change(OutboxChange::Retry { queue: Some("other".to_owned()) }).await, 0);
            assert_eq!(change(OutboxChange::Retry { queue: Some("q".to_owned()) }).await, 2);
            assert_eq!(known().await, Some((0, 0, None)));
            assert_eq!(change(OutboxChange::Drop { queue: "q".to_owned(), waiting: false }).await, 0);
            assert_eq!(store.undelivered_since().await.unwrap(), HashMap::from([("q".to_owned(), 2)]));
            assert_eq!(change(OutboxChange::Drop { queue: "q".to_owned(), waiting: true }).await, 2);
            assert!(due().await.is_empty());
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }
}
