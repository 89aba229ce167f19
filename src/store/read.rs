//! Queries. Costs follow what is asked for, never the length of the history.

use std::collections::HashMap;

use jiff::Timestamp;
use sqlx::{Row, sqlite::SqliteRow};

use super::{Known, Pending, RunRow, Stage, Standing, Store};
use crate::model::{GivenHash, ItemKey, RunReport, Score};

pub(super) type Result<T> = std::result::Result<T, sqlx::Error>;

/// Keys that a query looks up.
const LOOKUP: usize = 500;

#[derive(Debug, Clone, Default)]
pub struct ExportFilter {
    pub monitor: Option<String>,
    /// By the time of scoring.
    pub since_us: Option<i64>,
}

/// (`score_id`, queue, state, when delivered, error)
pub type DeliveryRow = (String, String, i64, Option<i64>, Option<String>);

/// All that is known of one item.
#[derive(Debug, Clone)]
pub struct ItemLife {
    pub item_id: String,
    pub item_us: i64,
    pub decision: String,
    pub reason: String,
    pub run_id: String,
    pub attempts: i64,
    pub seen_us: i64,
    pub decided_us: i64,
    /// (when, decision, reason, run)
    pub events: Vec<(i64, String, String, String)>,
    pub scores: Vec<Score>,
    /// Beside each of the scores: what the model said where no verdict could be read from it. Kept apart because it goes
    /// nowhere else.
    pub answers: Vec<Option<String>>,
    /// What alerts tell it by: expressions, and what they gave.
    pub values: Vec<(String, String)>,
    pub deliveries: Vec<DeliveryRow>,
}

#[derive(Debug, Clone, Default)]
pub struct MonitorStatus {
    pub last_run: Option<RunReport>,
    pub last_success_us: Option<i64>,
    pub watermark_us: Option<i64>,
    pub waiting: i64,
    /// (alert, state, reason)
    pub alerts: Vec<(String, String, String)>,
}

fn time(us: i64) -> Timestamp {
    Timestamp::from_microsecond(us).unwrap_or_default()
}

pub(super) fn score(row: &SqliteRow) -> Result<Score> {
    let uint = |name: &str| -> Result<Option<u64>> { Ok(row.try_get::<Option<i64>, _>(name)?.and_then(|n| u64::try_from(n).ok())) };
    Ok(Score {
        score_id: row.try_get("score_id")?,
        run_id: row.try_get("run_id")?,
        monitor: row.try_get("monitor_name")?,
        metric: row.try_get("metric")?,
        metric_revision: row.try_get("revision")?,
        item_id: row.try_get("item_id")?,
        trace_id: row.try_get("trace_id")?,
        item_timestamp: time(row.try_get("item_us")?),
        outcome: row.try_get("outcome")?,
        value: row.try_get("value")?,
        raw: row.try_get("raw")?,
        label: row.try_get("label")?,
        passed: row.try_get("passed")?,
        reason: row.try_get("reason")?,
        provider: row.try_get("provider")?,
        model: row.try_get("model")?,
        input_tokens: uint("input_tokens")?,
        output_tokens: uint("output_tokens")?,
        cost_usd: row.try_get("cost_usd")?,
        latency_ms: uint("latency_ms")?,
        created_at: time(row.try_get("created_us")?),
    })
}

fn run(row: &SqliteRow) -> Result<RunRow> {
    Ok(RunRow {
        id: row.try_get("id")?,
        monitor: row.try_get("name")?,
        slot_us: row.try_get("slot_us")?,
        trigger: crate::model::Trigger::from_name(row.try_get("trigger")?),
        seed: row.try_get("seed")?,
        publish: row.try_get("publish")?,
        started_us: row.try_get("started_us")?,
        since_us: row.try_get("since_us")?,
        until_us: row.try_get("until_us")?,
        drawn: row.try_get("drawn")?,
    })
}

pub(super) const MONITOR: &str = "(SELECT id FROM monitors WHERE name = $1)";

/// Of a run: alerts look at it.
pub(super) const SPEAKING: &str = "trigger NOT IN ('gate', 'backfill')";

/// SQL from constants alone; `sqlx` wants that said.
pub(super) fn sql(text: String) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(text)
}

/// Keys as JSON, in hexadecimal: a statement of a few tens of kilobytes.
fn list(keys: &[ItemKey]) -> String {
    use std::fmt::Write;
    let mut list = String::with_capacity(keys.len() * 35 + 2);
    list.push('[');
    for (at, key) in keys.iter().enumerate() {
        list.push_str(if at == 0 { "\"" } else { ",\"" });
        for byte in key.0 {
            let _ = write!(list, "{byte:02x}");
        }
        list.push('"');
    }
    list.push(']');
    list
}

impl Store {
    /// Those of `keys` that the ledger knows.
    ///
    /// # Errors
    /// The database's.
    pub async fn known(&self, keys: &[ItemKey]) -> Result<HashMap<ItemKey, Known>> {
        let mut known = HashMap::with_capacity(keys.len());
        for chunk in keys.chunks(LOOKUP) {
            let text = "SELECT key, given, item_us FROM items WHERE key IN (SELECT unhex(value) FROM json_each($1))";
            let rows: Vec<(Vec<u8>, Option<Vec<u8>>, i64)> = sqlx::query_as(text).bind(list(chunk)).fetch_all(&self.read).await?;
            let sound = |(key, given, item_us): (Vec<u8>, Option<Vec<u8>>, i64)| {
                let given = given.and_then(|given| given.try_into().ok()).map(GivenHash);
                Some((ItemKey(key.try_into().ok()?), Known { given, item_us }))
            };
            known.extend(rows.into_iter().filter_map(sound));
        }
        Ok(known)
    }

    /// How far those of `keys` have come that the ledger knows.
    ///
    /// # Errors
    /// The database's.
    pub async fn standing(&self, keys: &[ItemKey]) -> Result<HashMap<ItemKey, Standing>> {
        let mut found = HashMap::with_capacity(keys.len());
        for chunk in keys.chunks(LOOKUP) {
            let text = "SELECT key, decision, EXISTS (SELECT 1 FROM pending p WHERE p.item = i.id) AS waits,
                    EXISTS (SELECT 1 FROM scores s WHERE s.item = i.id)
                        OR EXISTS (SELECT 1 FROM item_events e WHERE e.item = i.id AND e.decision = 'deferred') AS was_drawn
                FROM items i WHERE key IN (SELECT unhex(value) FROM json_each($1))";
            for row in sqlx::query(text).bind(list(chunk)).fetch_all(&self.read).await? {
                let Ok(key) = row.try_get::<Vec<u8>, _>("key")?.try_into() else { continue };
                let standing = Standing { decision: row.try_get("decision")?, waits: row.try_get("waits")?, was_drawn: row.try_get("was_drawn")? };
                found.insert(ItemKey(key), standing);
            }
        }
        Ok(found)
    }

    /// What an item cost by a metric, on average over its newest judgements; `None` where nothing is known.
    ///
    /// # Errors
    /// The database's.
    pub async fn mean_cost(&self, monitor: &str, metric: &str) -> Result<Option<f64>> {
        let text = format!(
            "SELECT sum(cost_usd) / count(DISTINCT item) FROM (SELECT item, cost_usd FROM scores
                WHERE monitor = {MONITOR} AND (metric = $2 OR substr(metric, 1, length($2) + 1) = $2 || '.') ORDER BY created_us DESC LIMIT 500)"
        );
        sqlx::query_scalar(sql(text)).bind(monitor).bind(metric).fetch_one(&self.read).await
    }

    /// # Errors
    /// The database's.
    pub async fn watermark(&self, monitor: &str, source_key: &str) -> Result<Option<i64>> {
        sqlx::query_scalar(sql(format!("SELECT at_us FROM watermarks WHERE monitor = {MONITOR} AND source_key = $2")))
            .bind(monitor)
            .bind(source_key)
            .fetch_optional(&self.read)
            .await
    }

    /// Runs that began and did not finish, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn open_runs(&self) -> Result<Vec<RunRow>> {
        let rows = sqlx::query("SELECT r.*, m.name FROM runs r JOIN monitors m ON m.id = r.monitor WHERE r.status = 'running' ORDER BY r.started_us")
            .fetch_all(&self.read)
            .await?;
        rows.iter().map(run).collect()
    }

    /// The newest slot that each monitor has run (or begun) by its schedule.
    ///
    /// # Errors
    /// The database's.
    pub async fn last_slots(&self) -> Result<std::collections::HashMap<String, i64>> {
        let text = "SELECT m.name, max(r.slot_us) FROM runs r JOIN monitors m ON m.id = r.monitor WHERE r.trigger IN ('schedule', 'catch_up') GROUP BY m.name";
        let rows: Vec<(String, i64)> = sqlx::query_as(text).fetch_all(&self.read).await?;
        Ok(rows.into_iter().collect())
    }

    /// The latest finished runs that speak for the monitor ([`Trigger::speaks`](crate::model::Trigger::speaks)), newest first.
    ///
    /// # Errors
    /// The database's; a report that no longer reads is left out.
    pub async fn last_reports(&self, monitor: &str, n: u32) -> Result<Vec<RunReport>> {
        let rows: Vec<String> = sqlx::query_scalar(sql(format!(
            "SELECT report FROM runs WHERE monitor = {MONITOR} AND report IS NOT NULL AND {SPEAKING} ORDER BY started_us DESC LIMIT $2"
        )))
        .bind(monitor)
        .bind(n)
        .fetch_all(&self.read)
        .await?;
        Ok(rows.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    /// When the monitor first ran, and when a run last found a new item.
    ///
    /// # Errors
    /// The database's.
    pub async fn first_run_and_last_item(&self, monitor: &str) -> Result<(Option<i64>, Option<i64>)> {
        let row = sqlx::query(sql(format!(
            "SELECT min(started_us) AS first, max(CASE WHEN new_items > 0 THEN finished_us END) AS last FROM runs WHERE monitor = {MONITOR} AND {SPEAKING}"
        )))
        .bind(monitor)
        .fetch_one(&self.read)
        .await?;
        Ok((row.try_get("first")?, row.try_get("last")?))
    }

    /// Items of a monitor that wait at a stage, oldest first; without `publish` only those whose scores nobody is sent.
    ///
    /// # Errors
    /// The database's.
    pub async fn pending(&self, monitor: &str, stage: Stage, publish: bool, after: (i64, i64), limit: u32) -> Result<Vec<(Pending, (i64, i64))>> {
        let states = match stage {
            Stage::Undrawn => "p.state = 'undrawn'",
            Stage::Drawn => "p.state = 'drawn'",
            Stage::Judged => "p.state IN ('failed', 'deferred')",
        };
        let text = format!(
            "SELECT p.item, i.key, i.item_id, p.item_us, p.first_us, i.attempts, p.state, p.trace FROM pending p JOIN items i ON i.id = p.item
             WHERE p.monitor = {MONITOR} AND {states} AND ($5 OR p.publish = 0) AND (p.item_us, p.item) > ($2, $3)
             ORDER BY p.item_us, p.item LIMIT $4"
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(after.0).bind(after.1).bind(limit).bind(publish).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                let key: Vec<u8> = row.try_get("key")?;
                let item_us: i64 = row.try_get("item_us")?;
                let pending = Pending {
                    key: ItemKey(key.try_into().map_err(|_| sqlx::Error::Decode("a key is not 16 bytes".into()))?),
                    item_id: row.try_get("item_id")?,
                    item_us,
                    first_us: row.try_get("first_us")?,
                    attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(u32::MAX),
                    state: row.try_get("state")?,
                    trace: row.try_get("trace")?,
                };
                Ok((pending, (item_us, row.try_get("item")?)))
            })
            .collect()
    }

    /// Scores that an item already has.
    ///
    /// # Errors
    /// The database's.
    pub async fn scores_of(&self, key: ItemKey) -> Result<Vec<Score>> {
        let text = "SELECT s.*, m.name AS monitor_name FROM scores s JOIN monitors m ON m.id = s.monitor WHERE s.item = (SELECT id FROM items WHERE key = $1)";
        sqlx::query(text).bind(key.0.as_slice()).fetch_all(&self.read).await?.iter().map(score).collect()
    }

    /// Rows of a monitor's scores that a sink refused for good: since an instant, and all.
    ///
    /// # Errors
    /// The database's.
    pub async fn dead_rows(&self, monitor: &str, since_us: i64) -> Result<(u64, u64)> {
        let text = format!(
            "SELECT coalesce(sum(o.next_us >= $2), 0), count(*) FROM outbox o JOIN scores s ON s.id = o.score WHERE o.state = 2 AND s.monitor = {MONITOR}"
        );
        let (new, all): (i64, i64) = sqlx::query_as(sql(text)).bind(monitor).bind(since_us).fetch_one(&self.read).await?;
        Ok((u64::try_from(new).unwrap_or(0), u64::try_from(all).unwrap_or(0)))
    }

    /// # Errors
    /// The database's.
    pub async fn monitor_status(&self, monitor: &str) -> Result<MonitorStatus> {
        let text = format!(
            "SELECT (SELECT max(at_us) FROM watermarks WHERE monitor = {MONITOR}) AS watermark, (SELECT count(*) FROM pending WHERE monitor = {MONITOR}) AS waiting,
                (SELECT max(finished_us) FROM runs WHERE monitor = {MONITOR} AND status IN ('succeeded', 'partial') AND {SPEAKING}) AS success"
        );
        let row = sqlx::query(sql(text)).bind(monitor).fetch_one(&self.read).await?;
        let alerts = sqlx::query_as(sql(format!("SELECT name, state, reason FROM alerts WHERE monitor = {MONITOR} ORDER BY name")))
            .bind(monitor)
            .fetch_all(&self.read)
            .await?;
        Ok(MonitorStatus {
            last_run: self.last_reports(monitor, 1).await?.pop(),
            last_success_us: row.try_get("success")?,
            watermark_us: row.try_get("watermark")?,
            waiting: row.try_get("waiting")?,
            alerts,
        })
    }

    /// # Errors
    /// The database's.
    pub async fn item_life(&self, monitor: &str, item_id: &str) -> Result<Vec<ItemLife>> {
        let rows = sqlx::query(sql(format!("SELECT * FROM items WHERE monitor = {MONITOR} AND item_id = $2 ORDER BY seen_us")))
            .bind(monitor)
            .bind(item_id)
            .fetch_all(&self.read)
            .await?;
        let mut lives = Vec::new();
        for row in &rows {
            let item: i64 = row.try_get("id")?;
            let events = sqlx::query_as("SELECT at_us, decision, reason, run_id FROM item_events WHERE item = $1 ORDER BY at_us")
                .bind(item)
                .fetch_all(&self.read)
                .await?;
            let scores = sqlx::query("SELECT s.*, m.name AS monitor_name FROM scores s JOIN monitors m ON m.id = s.monitor WHERE s.item = $1 ORDER BY s.id")
                .bind(item)
                .fetch_all(&self.read)
                .await?;
            let text = "SELECT s.score_id, q.name, o.state, o.delivered_us, o.error FROM outbox o JOIN scores s ON s.id = o.score JOIN queues q ON q.id = o.queue WHERE s.item = $1 ORDER BY o.id";
            let deliveries = sqlx::query_as(text).bind(item).fetch_all(&self.read).await?;
            // Of this and of answers, a store that its daemon has not migrated yet has none.
            let values = sqlx::query_as("SELECT dimension, value FROM item_values WHERE item = $1 ORDER BY dimension").bind(item).fetch_all(&self.read).await;
            lives.push(ItemLife {
                item_id: row.try_get("item_id")?,
                item_us: row.try_get("item_us")?,
                decision: row.try_get("decision")?,
                reason: row.try_get("reason")?,
                run_id: row.try_get("run_id")?,
                attempts: row.try_get("attempts")?,
                seen_us: row.try_get("seen_us")?,
                decided_us: row.try_get("decided_us")?,
                events,
                answers: scores.iter().map(|row| row.try_get("answer").unwrap_or_default()).collect(),
                values: values.unwrap_or_default(),
                scores: scores.iter().map(score).collect::<Result<_>>()?,
                deliveries,
            });
        }
        Ok(lives)
    }

    /// Scores in the order they were made, a page at a time: those behind row `after`; returns the row to go on from.
    ///
    /// # Errors
    /// The database's.
    pub async fn export(&self, filter: &ExportFilter, after: i64, limit: u32) -> Result<(Vec<Score>, Option<i64>)> {
        let text = "SELECT s.*, m.name AS monitor_name FROM scores s JOIN monitors m ON m.id = s.monitor
            WHERE s.id > $1 AND ($2 IS NULL OR m.name = $2) AND ($3 IS NULL OR s.created_us >= $3) AND s.outcome <> 'deferred' ORDER BY s.id LIMIT $4";
        let rows = sqlx::query(text).bind(after).bind(filter.monitor.as_deref()).bind(filter.since_us).bind(limit).fetch_all(&self.read).await?;
        let next = rows.last().map(|row| row.try_get("id")).transpose()?;
        Ok((rows.iter().map(score).collect::<Result<_>>()?, next))
    }
}
