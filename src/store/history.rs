//! What `assayd plan` asks: what was judged run by run, what people were told of it, and which settings that was by.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use sqlx::Row;

use super::{
    Store,
    alerts::FINAL,
    read::{MONITOR, SPEAKING, sql},
};
use crate::model::{AlertEvent, Judged, PastJudgement, PastRun};

type Result<T> = std::result::Result<T, sqlx::Error>;

/// A monitor's settings, as its last run had them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub fingerprint: String,
    /// Hashes by key.
    pub parts: BTreeMap<String, String>,
}

impl Store {
    /// What each finished run that speaks judged by a metric (by all without a name), in the order in which they ended; runs that judged nothing are
    /// among them. What failed as a whole failed for each part.
    ///
    /// # Errors
    /// The database's.
    pub async fn past_runs(&self, monitor: &str, metric: Option<&str>) -> Result<Vec<PastRun>> {
        let whole = metric.and_then(|metric| metric.split_once('.')).map(|(whole, _)| whole);
        let text = format!(
            "SELECT s.run_id, CASE WHEN s.outcome = 'scored' THEN s.value END AS value, CASE WHEN s.outcome = 'scored' THEN s.passed END AS passed,
                CAST(s.latency_ms AS REAL) AS latency_ms, s.cost_usd, i.chosen FROM scores s JOIN items i ON i.id = s.item
            WHERE s.monitor = {MONITOR} AND ($2 IS NULL OR s.metric = $2 OR s.metric = $3 AND s.outcome = 'failed') AND {FINAL} ORDER BY s.item, s.id"
        );
        let mut judged: HashMap<String, Vec<PastJudgement>> = HashMap::new();
        for row in sqlx::query(sql(text)).bind(monitor).bind(metric).bind(whole).fetch_all(&self.read).await? {
            let one = Judged { value: row.try_get("value")?, passed: row.try_get("passed")?, latency_ms: row.try_get("latency_ms")? };
            let past = PastJudgement { judged: one, chosen: row.try_get("chosen")?, cost_usd: row.try_get("cost_usd")? };
            judged.entry(row.try_get("run_id")?).or_default().push(past);
        }
        let text = format!(
            "SELECT id, slot_us, coalesce(finished_us, started_us) AS ended FROM runs
            WHERE monitor = {MONITOR} AND report IS NOT NULL AND {SPEAKING} ORDER BY ended, id"
        );
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(sql(text)).bind(monitor).fetch_all(&self.read).await?;
        let time = |us: i64| Timestamp::from_microsecond(us).unwrap_or_default();
        let run = |(id, slot, ended): (String, i64, i64)| PastRun { judged: judged.remove(&id).unwrap_or_default(), id, slot: time(slot), ended: time(ended) };
        Ok(rows.into_iter().map(run).collect())
    }

    /// What people were told of an alert since an instant, oldest first, once for each receiver.
    ///
    /// # Errors
    /// The database's; what no longer reads is left out.
    pub async fn told_of(&self, monitor: &str, alert: &str, since_us: i64) -> Result<Vec<AlertEvent>> {
        // A fingerprint is `monitor/alert/when`, that of one of several values `monitor/alert{label="value"}/when`; `0` follows `/` and
        // `|` follows `{`.
        let text = "SELECT event FROM notices WHERE (fingerprint >= $1 || '/' || $2 || '/' AND fingerprint < $1 || '/' || $2 || '0'
            OR fingerprint >= $1 || '/' || $2 || '{' AND fingerprint < $1 || '/' || $2 || '|') AND created_us >= $3 ORDER BY id";
        let rows: Vec<String> = sqlx::query_scalar(text).bind(monitor).bind(alert).bind(since_us).fetch_all(&self.read).await?;
        Ok(rows.iter().filter_map(|event| serde_json::from_str(event).ok()).collect())
    }

    /// The settings that monitors last ran by. None of a store that no run of this version has written to.
    ///
    /// # Errors
    /// The database's; what no longer reads is left out.
    pub async fn versions(&self) -> Result<BTreeMap<String, Version>> {
        let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'versions')").fetch_one(&self.read).await?;
        if !known {
            return Ok(BTreeMap::new());
        }
        let text = "SELECT m.name, v.fingerprint, v.parts FROM versions v JOIN monitors m ON m.id = v.monitor";
        let rows: Vec<(String, String, String)> = sqlx::query_as(text).fetch_all(&self.read).await?;
        let version = |(name, fingerprint, parts): (String, String, String)| Some((name, Version { fingerprint, parts: serde_json::from_str(&parts).ok()? }));
        Ok(rows.into_iter().filter_map(version).collect())
    }
}
