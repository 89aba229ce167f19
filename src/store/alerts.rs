//! What alerts ask: what a window or a run holds, what is kept of each alert, what is to be said.

use sqlx::{Row, sqlite::SqliteRow};

use super::{
    DueNotice, Store,
    read::{MONITOR, sql},
};
use crate::model::{AlertEvent, Judged, MeanOf, Route, RunMean, Tally};

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
    /// are the whole history. Scores of release checks are chosen to know soon, and speak for nothing else.
    fn condition(&self, metric: Option<&str>) -> String {
        let plus = if matches!(self, Self::Time(_)) { "" } else { "+" };
        let metric = if metric.is_some() { format!("{plus}metric = $2") } else { "$2 IS NULL".to_owned() };
        let window = match self {
            Self::Time(_) => "created_us >= CAST($3 AS INTEGER)",
            Self::Runs(_) => {
                "run_id IN (SELECT id FROM runs WHERE monitor = (SELECT id FROM monitors WHERE name = $1) AND trigger <> 'gate'
                    ORDER BY started_us DESC LIMIT CAST($3 AS INTEGER))"
            }
            Self::Run(_) => "run_id = $3",
        };
        format!("{plus}monitor = {MONITOR} AND {metric} AND {window} AND {NO_GATE}")
    }

    fn value(&self) -> String {
        match self {
            Self::Time(us) => us.to_string(),
            Self::Runs(n) => n.to_string(),
            Self::Run(id) => id.clone(),
        }
    }
}

/// Of a score: not made by a release check.
pub(super) const NO_GATE: &str = "NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = scores.run_id AND runs.trigger = 'gate')";

impl Store {
    /// What lies in a window of one metric's judgements (of all metrics without a name). What failed as a whole, under the
    /// metric's own name, failed for `METRIC.PART` too. `values` and `latencies` say whether the single figures are wanted,
    /// whose cost grows with the window.
    ///
    /// # Errors
    /// The database's.
    pub async fn tally(&self, monitor: &str, metric: Option<&str>, since: &Since, values: bool, latencies: bool) -> Result<Tally> {
        let window = format!("FROM scores WHERE {}", since.condition(metric));
        let text = format!(
            "SELECT count(CASE WHEN outcome = 'scored' THEN passed END) AS verdicts, coalesce(sum(CASE WHEN outcome = 'scored' THEN passed END), 0) AS passed,
                    coalesce(sum(outcome = 'failed'), 0) AS failed, sum(cost_usd) AS cost {window}"
        );
        let row = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(since.value()).fetch_one(&self.read).await?;
        let count = |name: &str| -> Result<u64> { Ok(u64::try_from(row.try_get::<i64, _>(name)?).unwrap_or(0)) };
        let mut tally =
            Tally { with_verdict: count("verdicts")?, passed: count("passed")?, failed: count("failed")?, cost_usd: row.try_get("cost")?, ..Tally::default() };
        if let Some((whole, _)) = metric.and_then(|metric| metric.split_once('.')) {
            let text = format!("SELECT count(*) {window} AND outcome = 'failed'");
            let failed: i64 = sqlx::query_scalar(sql(text)).bind(monitor).bind(whole).bind(since.value()).fetch_one(&self.read).await?;
            tally.failed += u64::try_from(failed).unwrap_or(0);
        }
        if values {
            let text = format!("SELECT value {window} AND outcome = 'scored'");
            tally.values = sqlx::query_scalar(sql(text)).bind(monitor).bind(metric).bind(since.value()).fetch_all(&self.read).await?;
        }
        if latencies {
            let text = format!("SELECT CAST(latency_ms AS REAL) {window} AND latency_ms IS NOT NULL");
            tally.latencies_ms = sqlx::query_scalar(sql(text)).bind(monitor).bind(metric).bind(since.value()).fetch_all(&self.read).await?;
        }
        Ok(tally)
    }

    /// Judgements since an instant that gave a score, and those that failed.
    ///
    /// # Errors
    /// The database's.
    pub async fn judgements(&self, monitor: &str, since_us: i64) -> Result<(u64, u64)> {
        let text = format!(
            "SELECT coalesce(sum(outcome = 'scored'), 0), coalesce(sum(outcome = 'failed'), 0)
            FROM scores INDEXED BY scores_by_time WHERE monitor = {MONITOR} AND created_us >= $2"
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
        higher_is_better: bool,
        n: u32,
    ) -> Result<Vec<(String, f64, String, Option<String>)>> {
        let order = if higher_is_better { "ASC" } else { "DESC" };
        let text = format!(
            "SELECT item_id, value, reason, url FROM scores WHERE {} AND outcome = 'scored' ORDER BY value {order}, created_us DESC LIMIT $4",
            since.condition(Some(metric))
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(since.value()).bind(n).fetch_all(&self.read).await?;
        rows.iter().map(|row| Ok((row.try_get("item_id")?, row.try_get("value")?, row.try_get("reason")?, row.try_get("url")?))).collect()
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
    pub async fn judged(&self, monitor: &str, metric: Option<&str>, run_id: &str) -> Result<Vec<Judged>> {
        // What failed as a whole failed for each part.
        let whole = metric.and_then(|metric| metric.split_once('.')).map(|(whole, _)| whole);
        let text = format!(
            "SELECT CASE WHEN s.outcome = 'scored' THEN s.value END AS value, CASE WHEN s.outcome = 'scored' THEN s.passed END AS passed,
                CAST(s.latency_ms AS REAL) AS latency_ms FROM scores s INDEXED BY scores_by_run JOIN items i ON i.id = s.item
            WHERE s.run_id = $3 AND s.monitor = {MONITOR} AND ($2 IS NULL OR s.metric = $2 OR s.metric = $4 AND s.outcome = 'failed')
                AND {FINAL} AND i.chosen = 0 ORDER BY s.item, s.id"
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(run_id).bind(whole).fetch_all(&self.read).await?;
        rows.iter().map(|row| Ok(Judged { value: row.try_get("value")?, passed: row.try_get("passed")?, latency_ms: row.try_get("latency_ms")? })).collect()
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
                AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.id = s.run_id AND runs.trigger = 'gate') ORDER BY s.created_us DESC LIMIT $3"
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(limit).fetch_all(&self.read).await?;
        let runs: std::collections::HashSet<String> = rows.iter().map(|row| row.try_get("run_id")).collect::<Result<_>>()?;
        Ok((rows.iter().map(judged).collect::<Result<_>>()?, runs.len() as u64))
    }

    /// The figure that each finished run since an instant gave as the mean of its judgements, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn run_means(&self, monitor: &str, metric: Option<&str>, of: MeanOf, since_us: i64) -> Result<Vec<RunMean>> {
        let (value, counted) = match of {
            MeanOf::Passed => ("s.passed", "s.outcome = 'scored' AND s.passed IS NOT NULL"),
            MeanOf::Failed => ("s.outcome = 'failed'", "true"),
            MeanOf::Values => ("s.value", "s.outcome = 'scored'"),
        };
        let text = format!(
            "SELECT r.slot_us, avg({value}) AS mean, count(*) AS n FROM runs r JOIN scores s INDEXED BY scores_by_run ON s.run_id = r.id JOIN items i ON i.id = s.item
            WHERE r.monitor = {MONITOR} AND r.trigger <> 'gate' AND r.slot_us >= $3 AND s.monitor = r.monitor AND ($2 IS NULL OR s.metric = $2)
                AND {FINAL} AND i.chosen = 0 AND {counted} GROUP BY r.id ORDER BY r.slot_us"
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(metric).bind(since_us).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                let n = u64::try_from(row.try_get::<i64, _>("n")?).unwrap_or(0);
                Ok(RunMean { slot_us: row.try_get("slot_us")?, mean: row.try_get("mean")?, n })
            })
            .collect()
    }

    /// What is kept of all alerts that share the project's promise, but one.
    ///
    /// # Errors
    /// The database's.
    pub async fn shared_evidence(&self, monitor: &str, but: &str) -> Result<Vec<String>> {
        let text = format!("SELECT memory FROM alerts WHERE memory ->> '$.evidence.shared' AND NOT (monitor = {MONITOR} AND name = $2)");
        sqlx::query_scalar(sql(text)).bind(monitor).bind(but).fetch_all(&self.read).await
    }

    /// Who was told that a firing began, and what.
    ///
    /// # Errors
    /// The database's; what no longer reads is left out.
    pub async fn told(&self, fingerprint: &str) -> Result<Vec<(Route, AlertEvent)>> {
        let text = "SELECT route, event FROM notices WHERE id IN (SELECT min(id) FROM notices WHERE fingerprint = $1 GROUP BY route) ORDER BY id";
        let rows: Vec<(String, String)> = sqlx::query_as(text).bind(fingerprint).fetch_all(&self.read).await?;
        Ok(rows.iter().filter_map(|(route, event)| Some((serde_json::from_str(route).ok()?, serde_json::from_str(event).ok()?))).collect())
    }

    /// Messages that may be sent now: the oldest waiting one of each firing and route, so that none overtakes another, and one
    /// that waits for its next try holds up no other. `Err` is one that no longer reads.
    ///
    /// # Errors
    /// The database's.
    pub async fn due_notices(&self, now_us: i64, limit: u32) -> Result<Vec<std::result::Result<DueNotice, i64>>> {
        let text = format!(
            "SELECT n.id, n.route, n.event, n.attempts,
                (SELECT t.thread FROM notices t WHERE t.fingerprint = n.fingerprint AND t.route = n.route AND t.thread IS NOT NULL ORDER BY t.id LIMIT 1) AS thread
            FROM notices n WHERE {FIRST_WAITING} AND n.next_us <= $1 ORDER BY n.id LIMIT $2"
        );
        let rows = sqlx::query(sql(text)).bind(now_us).bind(limit).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                let (id, route, event): (i64, String, String) = (row.try_get("id")?, row.try_get("route")?, row.try_get("event")?);
                let (Ok(route), Ok(event)) = (serde_json::from_str(&route), serde_json::from_str(&event)) else { return Ok(Err(id)) };
                let attempts = u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(u32::MAX);
                Ok(Ok(DueNotice { id, route, event, attempts, thread: row.try_get("thread")? }))
            })
            .collect()
    }

    /// When the next message may be sent.
    ///
    /// # Errors
    /// The database's.
    pub async fn next_notice_us(&self) -> Result<Option<i64>> {
        sqlx::query_scalar(sql(format!("SELECT min(n.next_us) FROM notices n WHERE {FIRST_WAITING}"))).fetch_one(&self.read).await
    }
}

fn judged(row: &SqliteRow) -> Result<Judged> {
    Ok(Judged { value: row.try_get("value")?, passed: row.try_get("passed")?, latency_ms: row.try_get("latency_ms")? })
}

/// Of a score `s`: it will not be tried again. One that fails now and is scored by a later run would else count as both.
const FINAL: &str = "(s.outcome = 'scored' OR s.outcome = 'failed' AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.item = s.item))";

/// Of its firing and route, no earlier message waits.
const FIRST_WAITING: &str =
    "n.state = 0 AND NOT EXISTS (SELECT 1 FROM notices e WHERE e.fingerprint = n.fingerprint AND e.route = n.route AND e.state = 0 AND e.id < n.id)";
