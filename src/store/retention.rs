//! What is forgotten, and when (SPEC 7): keys of scored items go with their scores, other decisions once they lie
//! `decisions` behind the monitor's watermark, runs by their age. Items that still wait are never forgotten.

use sqlx::SqliteConnection;

use super::gateway;

/// Everything before these instants may go, in microseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub now_us: i64,
    pub scores_before_us: i64,
    pub runs_before_us: i64,
    /// How far behind its monitor's watermark a decision other than scored is kept, in microseconds.
    pub decisions_behind_us: i64,
    /// Rows a table and call, so that one pass holds no other write up for long.
    pub limit: i64,
}

pub(super) async fn retain(db: &mut SqliteConnection, retention: &Retention) -> Result<u64, sqlx::Error> {
    let (limit, scores_before) = (retention.limit, retention.scores_before_us);
    let mut gone = 0;
    // A score that still waits in an outbox outlives its time: publishing comes first.
    let sql = "DELETE FROM scores WHERE id IN (SELECT id FROM scores s WHERE s.created_us < $1
        AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.score = s.id AND o.state = 0) ORDER BY id LIMIT $2)";
    gone += sqlx::query(sql).bind(scores_before).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM outbox WHERE id IN (SELECT o.id FROM outbox o LEFT JOIN scores s ON s.id = o.score WHERE s.id IS NULL ORDER BY o.id LIMIT $1)";
    gone += sqlx::query(sql).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM items WHERE id IN (SELECT i.id FROM items i
        WHERE i.id NOT IN (SELECT item FROM pending)
          AND CASE WHEN i.decision = 'scored' THEN i.decided_us < $1 AND NOT EXISTS (SELECT 1 FROM scores s WHERE s.item = i.id)
              ELSE i.item_us < (SELECT min(at_us) FROM watermarks w WHERE w.monitor = i.monitor) - $2 AND i.seen_us < $3 END
        ORDER BY i.id LIMIT $4)";
    gone += sqlx::query(sql)
        .bind(scores_before)
        .bind(retention.decisions_behind_us)
        .bind(retention.runs_before_us)
        .bind(limit)
        .execute(&mut *db)
        .await?
        .rows_affected();
    let sql = "DELETE FROM item_events WHERE rowid IN (SELECT e.rowid FROM item_events e LEFT JOIN items i ON i.id = e.item WHERE i.id IS NULL LIMIT $1)";
    gone += sqlx::query(sql).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE started_us < $1 AND status <> 'running' LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM run_groups WHERE (name, run_id) IN (SELECT name, run_id FROM run_groups WHERE run_id NOT IN (SELECT id FROM runs) LIMIT $1)";
    gone += sqlx::query(sql).bind(limit).execute(&mut *db).await?.rows_affected();
    // The begin of a group that has no runs left.
    let sql = "DELETE FROM run_group_starts WHERE name IN (SELECT name FROM run_group_starts g WHERE since_us < $1
        AND NOT EXISTS (SELECT 1 FROM run_groups r WHERE r.name = g.name) LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM notices WHERE id IN (SELECT id FROM notices WHERE created_us < $1 AND state <> 0 LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM digests WHERE at_us < $1";
    gone += sqlx::query(sql).bind(retention.runs_before_us).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM silences WHERE id IN (SELECT id FROM silences WHERE ends_us < $1 LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM bodies WHERE id IN (SELECT id FROM bodies b WHERE NOT EXISTS (SELECT 1 FROM outbox o WHERE o.body = b.id) LIMIT $1)";
    gone += sqlx::query(sql).bind(limit).execute(&mut *db).await?.rows_affected();
    gone += gateway::retain(db, retention.now_us, retention.runs_before_us, limit).await?;
    Ok(gone)
}
