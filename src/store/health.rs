//! What assayd asks of itself: whether runs come, and what becomes of items that were drawn.

use sqlx::Row;

use super::{
    Store,
    read::{MONITOR, SPEAKING, sql},
};
use crate::model::Coverage;

type Result<T> = std::result::Result<T, sqlx::Error>;

impl Store {
    /// What became of the items drawn in `[since, until)`. Those that have waited only since `usual_us` count nowhere.
    ///
    /// # Errors
    /// The database's.
    pub async fn coverage(&self, monitor: &str, (since_us, until_us): (i64, i64), usual_us: i64) -> Result<Coverage> {
        // An item that was decided before the draw has neither a judgement nor a wait behind it.
        let text = format!(
            "SELECT coalesce(sum(d = 'judged'), 0) AS judged, coalesce(sum(d = 'failed'), 0) AS failed, coalesce(sum(d = 'deferred'), 0) AS deferred,
                    coalesce(sum(d = 'waiting'), 0) AS waiting
            FROM (SELECT CASE
                    WHEN p.state = 'undrawn' OR p.first_us > $3 THEN 'uncounted'
                    WHEN p.state = 'deferred' THEN 'deferred'
                    WHEN p.item IS NOT NULL THEN 'waiting'
                    WHEN i.decision = 'scored' THEN 'judged'
                    WHEN NOT EXISTS (SELECT 1 FROM scores s WHERE s.item = i.id)
                        AND NOT EXISTS (SELECT 1 FROM item_events e WHERE e.item = i.id AND e.decision = 'deferred') THEN 'undrawn'
                    WHEN i.decision = 'failed' THEN 'failed'
                    ELSE 'judged' END AS d
                FROM items i INDEXED BY items_by_time LEFT JOIN pending p ON p.item = i.id
                WHERE i.monitor = {MONITOR} AND i.seen_us >= $2 AND i.seen_us < $4 AND i.decision NOT IN ('filtered', 'sampled_out')
                    AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.id = i.run_id AND r.trigger IN ('gate', 'backfill')))"
        );
        let row = sqlx::query(sql(text)).bind(monitor).bind(since_us).bind(usual_us).bind(until_us).fetch_one(&self.read).await?;
        let count = |name: &str| -> Result<u64> { Ok(u64::try_from(row.try_get::<i64, _>(name)?).unwrap_or(0)) };
        Ok(Coverage { judged: count("judged")?, failed: count("failed")?, deferred: count("deferred")?, waiting: count("waiting")? })
    }

    /// The item that has waited longest for its scores, since when, and how many wait.
    ///
    /// # Errors
    /// The database's.
    pub async fn oldest_waiting(&self, monitor: &str) -> Result<Option<(String, i64, u64)>> {
        let text = format!(
            "SELECT i.item_id, p.first_us, p.n FROM (SELECT item, min(first_us) AS first_us, count(*) AS n FROM pending WHERE monitor = {MONITOR}) p
            JOIN items i ON i.id = p.item"
        );
        let row: Option<(String, i64, i64)> = sqlx::query_as(sql(text)).bind(monitor).fetch_optional(&self.read).await?;
        Ok(row.map(|(item, since_us, n)| (item, since_us, u64::try_from(n).unwrap_or(0))))
    }

    /// When a run of the monitor last did its work, in part or in full; release checks and backfills say nothing of the schedule.
    ///
    /// # Errors
    /// The database's.
    pub async fn last_success(&self, monitor: &str) -> Result<Option<i64>> {
        let text = format!(
            "SELECT finished_us FROM runs WHERE monitor = {MONITOR} AND status IN ('succeeded', 'partial') AND {SPEAKING} ORDER BY started_us DESC LIMIT 1"
        );
        sqlx::query_scalar(sql(text)).bind(monitor).fetch_optional(&self.read).await
    }

    /// When the run began that is under way.
    ///
    /// # Errors
    /// The database's.
    pub async fn under_way(&self, monitor: &str) -> Result<Option<i64>> {
        let text = format!("SELECT min(started_us) FROM runs WHERE monitor = {MONITOR} AND status = 'running' AND {SPEAKING}");
        sqlx::query_scalar(sql(text)).bind(monitor).fetch_one(&self.read).await
    }

    /// (monitor, memory) of all alerts of a name.
    ///
    /// # Errors
    /// The database's.
    pub async fn alerts_named(&self, name: &str) -> Result<Vec<(String, String)>> {
        sqlx::query_as("SELECT m.name, a.memory FROM alerts a INDEXED BY alerts_by_name JOIN monitors m ON m.id = a.monitor WHERE a.name = $1")
            .bind(name)
            .fetch_all(&self.read)
            .await
    }

    /// How many alerts of a monitor are in which state.
    ///
    /// # Errors
    /// The database's.
    pub async fn alert_states(&self, monitor: &str) -> Result<Vec<(String, i64)>> {
        sqlx::query_as(sql(format!("SELECT state, count(*) FROM alerts WHERE monitor = {MONITOR} GROUP BY state"))).bind(monitor).fetch_all(&self.read).await
    }
}
