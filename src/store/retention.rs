//! What is forgotten, and when (SPEC 7): keys of scored items go with their scores, other decisions once they lie
//! `decisions` behind the monitor's watermark, runs by their age. Items that still wait are never forgotten.

use sqlx::SqliteConnection;

use super::{anchors, gateway};

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
    let sql = "DELETE FROM item_values WHERE (item, dimension) IN
        (SELECT v.item, v.dimension FROM item_values v LEFT JOIN items i ON i.id = v.item WHERE i.id IS NULL LIMIT $1)";
    gone += sqlx::query(sql).bind(limit).execute(&mut *db).await?.rows_affected();
    // What does not speak for today must not begin to when its run is forgotten.
    let sql = "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE started_us < $1 AND status <> 'running'
        AND (trigger NOT IN ('gate', 'backfill') OR NOT EXISTS (SELECT 1 FROM scores s WHERE s.run_id = runs.id)) LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM run_groups WHERE (name, run_id) IN (SELECT name, run_id FROM run_groups WHERE run_id NOT IN (SELECT id FROM runs) LIMIT $1)";
    gone += sqlx::query(sql).bind(limit).execute(&mut *db).await?.rows_affected();
    // The begin of a group that has no runs left.
    let sql = "DELETE FROM run_group_starts WHERE name IN (SELECT name FROM run_group_starts g WHERE since_us < $1
        AND NOT EXISTS (SELECT 1 FROM run_groups r WHERE r.name = g.name) LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM notices WHERE id IN (SELECT id FROM notices WHERE created_us < $1 AND state <> 0 LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM alert_groups WHERE id IN (SELECT g.id FROM alert_groups g WHERE g.due_us < $1 AND g.members = '[]'
        AND NOT EXISTS (SELECT 1 FROM notices n WHERE n.grp = g.id) LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM digests WHERE at_us < $1";
    gone += sqlx::query(sql).bind(retention.runs_before_us).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM silences WHERE id IN (SELECT id FROM silences WHERE ends_us < $1 LIMIT $2)";
    gone += sqlx::query(sql).bind(retention.runs_before_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM bodies WHERE id IN (SELECT id FROM bodies b WHERE NOT EXISTS (SELECT 1 FROM outbox o WHERE o.body = b.id) LIMIT $1)";
    gone += sqlx::query(sql).bind(limit).execute(&mut *db).await?.rows_affected();
    gone += anchors::retain(db, scores_before, retention.runs_before_us, limit).await?;
    gone += gateway::retain(db, retention.now_us, retention.runs_before_us, limit).await?;
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use crate::{
        model::{Decision, ItemKey, Outcome, Usage},
        store::{DrawBatch, ItemEnd, ItemOutcome, NewItem, NewScore, Retention, Since, Store},
    };

    #[tokio::test]
    async fn an_items_values_go_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            let key = ItemKey::new("file:f", "m", "a");
            let (monitor, run_id) = ("m".to_owned(), "r".to_owned());
            let item = NewItem {
                key,
                item_id: "a".to_owned(),
                item_us: 1,
                decision: Decision::Drawn,
                reason: "drawn".into(),
                trace: Some("{}".to_owned()),
                given: None,
                chosen: false,
                undrawn: false,
            };
            let watermark = None;
            let batch = DrawBatch {
                monitor: monitor.clone(),
                run_id: run_id.clone(),
                at_us: 1,
                items: vec![item],
                baseline: Vec::new(),
                watermark,
                complete: true,
                again: false,
            };
            store.record_draw(batch).await.unwrap();
            let score = NewScore {
                score_id: "s".to_owned(),
                metric: "good".into(),
                revision: "1".into(),
                data_type: "NUMERIC",
                outcome: Outcome::Scored { value: 1.0, raw: None, label: None, passed: None, reason: String::new() },
                usage: Usage::default(),
                answer: None,
            };
            let outcome = ItemOutcome {
                monitor,
                run_id,
                key,
                item_id: "a".to_owned(),
                item_us: 1,
                trace_id: None,
                observation_id: None,
                environment: None,
                url: None,
                at_us: 2,
                scores: vec![score],
                values: vec![("trace.x".into(), "v7".to_owned()), ("trace.y".into(), "none".to_owned())],
                stale: Vec::new(),
                queues: Vec::new().into(),
                body: None,
                end: Some(ItemEnd { decision: Decision::Scored, reason: String::new(), comes_back: false, counts: true }),
            };
            store.record_outcome(outcome).await.unwrap();
            let seen = async || store.values_seen("m", Some("good"), &Since::Time(0), "trace.x").await.unwrap().len();
            let rows = async || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM item_values").fetch_one(&store.read).await.unwrap();
            assert_eq!((seen().await, rows().await), (1, 2));
            let retention = |before| Retention { now_us: before, scores_before_us: before, runs_before_us: before, decisions_behind_us: 0, limit: 100 };
            store.retain(retention(2)).await.unwrap();
            assert_eq!(rows().await, 2, "the score is young enough");
            store.retain(retention(10)).await.unwrap();
            assert_eq!(rows().await, 0);
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }
}
