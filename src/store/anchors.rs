//! What judges said of labelled anchors.

use sqlx::{Row, SqliteConnection};

use super::{
    Closed, Store,
    apply::{Names, json},
    read::{MONITOR, sql},
    writer::Write,
};

/// A judgement of an anchor, compared with its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnchorRow {
    /// The run that drew it; empty where the whole set was judged, at the start.
    pub run_id: String,
    /// `METRIC` or `METRIC.PART`.
    pub metric: String,
    /// Hash of its texts and its label.
    pub anchor: String,
    /// `None` where there was no verdict to compare.
    pub agrees: Option<bool>,
    /// How often it was asked for: on the way in, to be added.
    pub tries: u32,
}

#[derive(Debug)]
pub(super) struct AnchorsWrite {
    monitor: String,
    revision: String,
    rows: Vec<AnchorRow>,
    at_us: i64,
}

impl Store {
    /// On disk when this returns.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn record_anchors(&self, monitor: &str, revision: &str, rows: Vec<AnchorRow>, at_us: i64) -> Result<(), Closed> {
        let write = AnchorsWrite { monitor: monitor.to_owned(), revision: revision.to_owned(), rows, at_us };
        self.write(Write::Anchors(write)).await.map(|_| ())
    }

    /// What one revision of a judge said at the start and in a run.
    ///
    /// # Errors
    /// The database's.
    pub async fn anchors(&self, monitor: &str, revision: &str, run_id: &str) -> Result<Vec<AnchorRow>, sqlx::Error> {
        let text = format!(
            "SELECT run_id, metric, anchor, agrees, tries FROM anchor_judgements WHERE monitor = {MONITOR} AND revision = $2 AND run_id IN ('', $3)
            ORDER BY run_id, metric, anchor"
        );
        let rows = sqlx::query(sql(text)).bind(monitor).bind(revision).bind(run_id).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                let tries = u32::try_from(row.try_get::<i64, _>("tries")?).unwrap_or(u32::MAX);
                Ok(AnchorRow {
                    run_id: row.try_get("run_id")?,
                    metric: row.try_get("metric")?,
                    anchor: row.try_get("anchor")?,
                    agrees: row.try_get("agrees")?,
                    tries,
                })
            })
            .collect()
    }
}

/// A verdict stays as it is; where there was none, another try may find one.
pub(super) async fn apply(db: &mut SqliteConnection, names: &mut Names, write: &AnchorsWrite) -> Result<u64, sqlx::Error> {
    let monitor = names.monitor(db, &write.monitor).await?;
    let rows: Vec<_> = write.rows.iter().map(|row| (&row.run_id, &row.metric, &row.anchor, row.agrees.map(i64::from), row.tries)).collect();
    let text = "INSERT INTO anchor_judgements (monitor, revision, run_id, metric, anchor, agrees, tries, created_us)
        SELECT $1, $2, row.value ->> 0, row.value ->> 1, row.value ->> 2, row.value ->> 3, row.value ->> 4, $4 FROM json_each($3) AS row WHERE true
        ON CONFLICT DO UPDATE SET agrees = excluded.agrees, tries = tries + excluded.tries, created_us = excluded.created_us WHERE agrees IS NULL";
    let done = sqlx::query(text).bind(monitor).bind(&write.revision).bind(json(&rows)?).bind(write.at_us).execute(db).await?;
    Ok(done.rows_affected())
}

/// Those of runs go with the runs. Those of the start stay while anchors are drawn against them, however old they are.
pub(super) async fn retain(db: &mut SqliteConnection, scores_before_us: i64, runs_before_us: i64, limit: i64) -> Result<u64, sqlx::Error> {
    let text = "DELETE FROM anchor_judgements WHERE (monitor, revision, run_id, metric, anchor) IN (
        SELECT monitor, revision, run_id, metric, anchor FROM anchor_judgements a WHERE run_id <> '' AND created_us < $1
            OR run_id = '' AND created_us < $2 AND NOT EXISTS (SELECT 1 FROM anchor_judgements r
                WHERE r.monitor = a.monitor AND r.revision = a.revision AND r.run_id <> '' AND r.metric = a.metric AND r.created_us >= $1)
        LIMIT $3)";
    Ok(sqlx::query(text).bind(runs_before_us).bind(scores_before_us).bind(limit).execute(db).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Retention;

    fn row(run: &str, metric: &str, agrees: Option<bool>) -> AnchorRow {
        AnchorRow { run_id: run.to_owned(), metric: metric.to_owned(), anchor: "a".to_owned(), agrees, tries: 1 }
    }

    #[tokio::test]
    async fn a_verdict_stays_and_a_start_that_is_drawn_against_outlives_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            let record = async |rows: &[AnchorRow], at_us| store.record_anchors("m", "r1", rows.to_vec(), at_us).await.unwrap();
            let of = async |run: &str| store.anchors("m", "r1", run).await.unwrap();
            record(&[row("", "x", None), row("", "y", Some(true))], 1).await;
            record(&[row("", "x", None), row("", "y", Some(false))], 2).await;
            assert_eq!(of("").await, [AnchorRow { tries: 2, ..row("", "x", None) }, row("", "y", Some(true))]);
            record(&[row("", "x", Some(false))], 3).await;
            assert_eq!(of("").await[0], AnchorRow { tries: 3, ..row("", "x", Some(false)) });

            record(&[row("old", "x", Some(true)), row("old", "y", Some(true))], 5).await;
            record(&[row("new", "x", Some(true))], 50).await;
            let retention = Retention { now_us: 60, scores_before_us: 20, runs_before_us: 40, decisions_behind_us: 0, limit: 100 };
            store.retain(retention).await.unwrap();
            assert_eq!(
                (of("old").await, of("new").await.len()),
                (vec![AnchorRow { tries: 3, ..row("", "x", Some(false)) }], 2),
                "of y nothing is drawn any more"
            );
            assert_eq!(store.anchors("m", "r2", "new").await.unwrap(), [], "another revision starts anew");
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }
}
