//! What alerts ask: what a window or a run holds, what is kept of each alert, what is to be said.

use serde::Serialize;
use sqlx::{Row, sqlite::SqliteRow};

use super::{
    Store,
    read::{MONITOR, SPEAKING, sql},
};
use crate::model::{Judged, MeanOf, RunMean, Tally};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// Which scores a window holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// Made at or after this instant.
    Time(i64),
    /// Made by the latest finished runs, this many.
    Runs(u32),
    /// Made by one run.
    Run(String),
}

impl Since {
    /// What SQL selects by, with the index that serves it: a unary plus keeps SQLite from going by monitor and metric, whose rows
    /// are the whole history. Scores of release checks are chosen to know soon, those of a backfill are of the past.
    fn condition(&self, metric: Option<&str>) -> String {
        let plus = if matches!(self, Self::Time(_)) { "" } else { "+" };
        let metric = if metric.is_some() { format!("{plus}metric = $2") } else { "$2 IS NULL".to_owned() };
        let window = match self {
            Self::Time(_) => "created_us >= CAST($3 AS INTEGER)",
            Self::Runs(_) => {
                "run_id IN (SELECT id FROM runs WHERE monitor = (SELECT id FROM monitors WHERE name = $1) AND trigger NOT IN ('gate', 'backfill')
                    ORDER BY started_us DESC LIMIT CAST($3 AS INTEGER))"
            }
            Self::Run(_) => "run_id = $3",
        };
        format!("{plus}monitor = {MONITOR} AND {metric} AND {window} AND {SPEAKS}")
    }

    fn value(&self) -> String {
        match self {
            Self::Time(us) => us.to_string(),
            Self::Runs(n) => n.to_string(),
            Self::Run(id) => id.clone(),
        }
    }
}

/// The items that one of an alert's values is about: those judged since the alert has been told by value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slice {
    /// The expression.
    pub by: String,
    pub values: Vec<String>,
    /// Items that have one of the values; false: those that have another.
    pub inside: bool,
}

impl Slice {
    /// As SQL takes it; null for all items.
    fn bound(slice: Option<&Self>) -> Option<String> {
        // Plain data: it always serialises.
        slice.and_then(|slice| serde_json::to_string(slice).ok())
    }
}

/// A value's judgements in a window: how many, and when the newest was made in microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueSeen {
    pub value: String,
    pub n: u64,
    pub last_us: i64,
}

/// Of a score, by its table's name and the number of the parameter that is a slice: its item is in the slice.
fn in_slice(scores: &str, slice: u8) -> String {
    format!(
        "(${slice} IS NULL OR EXISTS (SELECT 1 FROM item_values v WHERE v.item = {scores}.item AND v.dimension = ${slice} ->> '$.by'
            AND (v.value IN (SELECT value FROM json_each(${slice}, '$.values'))) = (${slice} ->> '$.inside')))"
    )
}

/// Of a score: made neither by a release check nor by a backfill ([`Trigger::speaks`](crate::model::Trigger::speaks)).
pub(super) const SPEAKS: &str = "NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = scores.run_id AND runs.trigger IN ('gate', 'backfill'))";

impl Store {
    /// What lies in a window of one metric's judgements (of all metrics without a name). What failed as a whole, under the
    /// metric's own name, failed for `METRIC.PART` too. `values` and `latencies` say whether the single figures are wanted,
    /// whose cost grows with the window.
    ///
    /// # Errors
    /// The database's.
    pub async fn tally(&self, monitor: &str, metric: Option<&str>, since: &Since, of: Option<&Slice>, values: bool, latencies: bool) -> Result<Tally> {
        let (window, of) = (format!("FROM scores WHERE {} AND {}", since.condition(metric), in_slice("scores", 4)), Slice::bound(of));
        let text = format!(
            "SELECT count(CASE WHEN outcome = 'scored' THEN passed END) AS verdicts, coalesce(sum(CASE WHEN outcome = 'scored' THEN passed END), 0) AS passed,
                    coalesce(sum(outcome = 'failed'), 0) AS failed, sum(cost_usd) AS cost {window}"
        );
        let row = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(since.value()).bind(&of).fetch_one(&self.read).await?;
        let count = |name: &str| -> Result<u64> { Ok(u64::try_from(row.try_get::<i64, _>(name)?).unwrap_or(0)) };
        let mut tally =
            Tally { with_verdict: count("verdicts")?, passed: count("passed")?, failed: count("failed")?, cost_usd: row.try_get("cost")?, ..Tally::default() };
        if let Some((whole, _)) = metric.and_then(|metric| metric.split_once('.')) {
            let text = format!("SELECT count(*) {window} AND outcome = 'failed'");
            let failed: i64 = sqlx::query_scalar(sql(text)).bind(monitor).bind(whole).bind(since.value()).bind(&of).fetch_one(&self.read).await?;
            tally.failed += u64::try_from(failed).unwrap_or(0);
        }
        if values {
            let text = format!("SELECT value {window} AND outcome = 'scored'");
            tally.values = sqlx::query_scalar(sql(text)).bind(monitor).bind(metric).bind(since.value()).bind(&of).fetch_all(&self.read).await?;
        }
        if latencies {
            let text = format!("SELECT CAST(latency_ms AS REAL) {window} AND latency_ms IS NOT NULL");
            tally.latencies_ms = sqlx::query_scalar(sql(text)).bind(monitor).bind(metric).bind(since.value()).bind(&of).fetch_all(&self.read).await?;
        }
        Ok(tally)
    }

    /// The values that the items judged in a window have by an expression, in no order. Judgements that did not apply count for none.
    ///
    /// # Errors
    /// The database's.
    pub async fn values_seen(&self, monitor: &str, metric: Option<&str>, since: &Since, by: &str) -> Result<Vec<ValueSeen>> {
        let text = format!(
            "SELECT v.value, count(*) AS n, max(scores.created_us) AS last_us FROM scores JOIN item_values v ON v.item = scores.item AND v.dimension = $4
            WHERE {} AND outcome <> 'not_applicable' GROUP BY v.value",
            since.condition(metric)
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(since.value()).bind(by).fetch_all(&self.read).await?;
        let seen = |row: &SqliteRow| {
            let n = u64::try_from(row.try_get::<i64, _>("n")?).unwrap_or(0);
            Ok(ValueSeen { value: row.try_get("value")?, n, last_us: row.try_get("last_us")? })
        };
        rows.iter().map(seen).collect()
    }

    /// Judgements since an instant that gave a score, and those that failed.
    ///
    /// # Errors
    /// The database's.
    pub async fn judgements(&self, monitor: &str, since_us: i64) -> Result<(u64, u64)> {
        let text = format!(
            "SELECT coalesce(sum(outcome = 'scored'), 0), coalesce(sum(outcome = 'failed'), 0)
            FROM scores INDEXED BY scores_by_time WHERE monitor = {MONITOR} AND created_us >= $2 AND {SPEAKS}"
        );
        let (scored, failed): (i64, i64) = sqlx::query_as(sql(text)).bind(monitor).bind(since_us).fetch_one(&self.read).await?;
        Ok((u64::try_from(scored).unwrap_or(0), u64::try_from(failed).unwrap_or(0)))
    }

    /// The worst scored items of a window: (item, value, reason, url).
    ///
    /// # Errors
    /// The database's.
    pub async fn worst(
        &self,
        monitor: &str,
        metric: &str,
        since: &Since,
        of: Option<&Slice>,
        higher_is_better: bool,
        n: u32,
    ) -> Result<Vec<(String, f64, String, Option<String>)>> {
        let order = if higher_is_better { "ASC" } else { "DESC" };
        let text = format!(
            "SELECT item_id, value, reason, url FROM scores WHERE {} AND {} AND outcome = 'scored' ORDER BY value {order}, created_us DESC LIMIT $4",
            since.condition(Some(metric)),
            in_slice("scores", 5)
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(since.value()).bind(n).bind(Slice::bound(of)).fetch_all(&self.read).await?;
        rows.iter().map(|row| Ok((row.try_get("item_id")?, row.try_get("value")?, row.try_get("reason")?, row.try_get("url")?))).collect()
    }

    /// Monitors of which something is kept of an alert, other than one that is no monitor's own.
    ///
    /// # Errors
    /// The database's.
    pub async fn alerted_monitors(&self, other_than: &str) -> Result<Vec<String>> {
        let text = "SELECT DISTINCT m.name FROM alerts a JOIN monitors m ON m.id = a.monitor WHERE a.name <> $1 ORDER BY m.name";
        sqlx::query_scalar(text).bind(other_than).fetch_all(&self.read).await
    }

    /// (alert, memory) of a monitor.
    ///
    /// # Errors
    /// The database's.
    pub async fn alert_memories(&self, monitor: &str) -> Result<Vec<(String, String)>> {
        sqlx::query_as(sql(format!("SELECT name, memory FROM alerts WHERE monitor = {MONITOR}"))).bind(monitor).fetch_all(&self.read).await
    }

    /// What a run judged by a metric, of the items that chance drew, in the order stored: the same whenever it is asked.
    ///
    /// # Errors
    /// The database's.
    pub async fn judged(&self, monitor: &str, metric: Option<&str>, run_id: &str, of: Option<&Slice>) -> Result<Vec<Judged>> {
        // What failed as a whole failed for each part.
        let whole = metric.and_then(|metric| metric.split_once('.')).map(|(whole, _)| whole);
        let text = format!(
            "SELECT CASE WHEN s.outcome = 'scored' THEN s.value END AS value, CASE WHEN s.outcome = 'scored' THEN s.passed END AS passed,
                CAST(s.latency_ms AS REAL) AS latency_ms FROM scores s INDEXED BY scores_by_run JOIN items i ON i.id = s.item
            WHERE s.run_id = $3 AND s.monitor = {MONITOR} AND ($2 IS NULL OR s.metric = $2 OR s.metric = $4 AND s.outcome = 'failed')
                AND {FINAL} AND i.chosen = 0 AND {} ORDER BY s.item, s.id",
            in_slice("s", 5)
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(run_id).bind(whole).bind(Slice::bound(of)).fetch_all(&self.read).await?;
        rows.iter().map(judged).collect()
    }

    /// The newest judgements of a metric that chance drew, and how many runs made them.
    ///
    /// # Errors
    /// The database's.
    pub async fn recent_judged(&self, monitor: &str, metric: &str, limit: u32) -> Result<(Vec<Judged>, u64)> {
        let text = format!(
            "SELECT s.run_id, CASE WHEN s.outcome = 'scored' THEN s.value END AS value, CASE WHEN s.outcome = 'scored' THEN s.passed END AS passed,
                CAST(s.latency_ms AS REAL) AS latency_ms FROM scores s JOIN items i ON i.id = s.item
            WHERE s.monitor = {MONITOR} AND s.metric = $2 AND {FINAL} AND i.chosen = 0
                AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = s.run_id AND runs.trigger IN ('gate', 'backfill')) ORDER BY s.created_us DESC LIMIT $3"
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(limit).fetch_all(&self.read).await?;
        let runs: std::collections::HashSet<String> = rows.iter().map(|row| row.try_get("run_id")).collect::<Result<_>>()?;
        Ok((rows.iter().map(judged).collect::<Result<_>>()?, runs.len() as u64))
    }

    /// The figure that each finished run since an instant gave as the mean of its judgements, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn run_means(&self, monitor: &str, metric: Option<&str>, mean: MeanOf, since_us: i64, of: Option<&Slice>) -> Result<Vec<RunMean>> {
        let (value, counted) = match mean {
            MeanOf::Passed => ("s.passed", "s.outcome = 'scored' AND s.passed IS NOT NULL"),
            MeanOf::Failed => ("s.outcome = 'failed'", "true"),
            MeanOf::Values => ("s.value", "s.outcome = 'scored'"),
        };
        let text = format!(
            "SELECT r.slot_us, avg({value}) AS mean, count(*) AS n FROM runs r JOIN scores s INDEXED BY scores_by_run ON s.run_id = r.id JOIN items i ON i.id = s.item
            WHERE r.monitor = {MONITOR} AND r.trigger NOT IN ('gate', 'backfill') AND r.slot_us >= $3 AND s.monitor = r.monitor AND ($2 IS NULL OR s.metric = $2)
                AND {FINAL} AND i.chosen = 0 AND {counted} AND {} GROUP BY r.id ORDER BY r.slot_us",
            in_slice("s", 4)
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(since_us).bind(Slice::bound(of)).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                let n = u64::try_from(row.try_get::<i64, _>("n")?).unwrap_or(0);
                Ok(RunMean { slot_us: row.try_get("slot_us")?, mean: row.try_get("mean")?, n })
            })
            .collect()
    }

    /// The same of the latest runs, at most `n`.
    ///
    /// # Errors
    /// The database's.
    pub async fn recent_run_means(&self, monitor: &str, metric: Option<&str>, mean: MeanOf, n: u32, of: Option<&Slice>) -> Result<Vec<RunMean>> {
        let text = format!("SELECT min(slot_us) FROM (SELECT slot_us FROM runs WHERE monitor = {MONITOR} AND {SPEAKING} ORDER BY started_us DESC LIMIT $2)");
        let since_us: Option<i64> = sqlx::query_scalar(sql(text)).bind(monitor).bind(n).fetch_one(&self.read).await?;
        self.run_means(monitor, metric, mean, since_us.unwrap_or(0), of).await
    }

    /// What is kept of all alerts that share the project's promise, but one.
    ///
    /// # Errors
    /// The database's.
    pub async fn shared_evidence(&self, monitor: &str, but: &str) -> Result<Vec<String>> {
        let text = format!("SELECT memory FROM alerts WHERE memory ->> '$.evidence.shared' AND NOT (monitor = {MONITOR} AND name = $2)");
        sqlx::query_scalar(sql(text)).bind(monitor).bind(but).fetch_all(&self.read).await
    }
}

fn judged(row: &SqliteRow) -> Result<Judged> {
    Ok(Judged { value: row.try_get("value")?, passed: row.try_get("passed")?, latency_ms: row.try_get("latency_ms")? })
}

/// Of a score `s`: it will not be tried again. One that fails now and is scored by a later run would else count as both.
pub(super) const FINAL: &str = "(s.outcome = 'scored' OR s.outcome = 'failed' AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.item = s.item))";
