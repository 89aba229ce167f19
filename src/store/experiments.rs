//! What sinks ask about runs: when they were due, and the means of a group of them.

use std::collections::BTreeSet;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{Row, SqliteConnection};

use super::{Store, apply::json, writer::Write};
use crate::sinks::{Mean, Means, Runs};

#[derive(Debug)]
pub(super) struct Grouped {
    group: String,
    run_ids: BTreeSet<String>,
}

#[async_trait]
impl Runs for Store {
    async fn slot(&self, run_id: &str) -> Result<Option<Timestamp>, String> {
        let found: Result<Option<i64>, _> = sqlx::query_scalar("SELECT slot_us FROM runs WHERE id = $1").bind(run_id).fetch_optional(&self.read).await;
        Ok(found.map_err(|error| error.to_string())?.and_then(|us| Timestamp::from_microsecond(us).ok()))
    }

    async fn means(&self, group: &str, run_ids: &BTreeSet<String>) -> Result<Means, String> {
        let known = self.grouped(group).await.map_err(|error| error.to_string())?;
        if !run_ids.is_subset(&known) {
            let grouped = Grouped { group: group.to_owned(), run_ids: run_ids.clone() };
            self.write(Write::Grouped(grouped)).await.map_err(|closed| closed.to_string())?;
        }
        self.read_means(group).await.map_err(|error| error.to_string())
    }
}

impl Store {
    async fn grouped(&self, group: &str) -> Result<BTreeSet<String>, sqlx::Error> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT run_id FROM run_groups WHERE name = $1").bind(group).fetch_all(&self.read).await?;
        Ok(ids.into_iter().collect())
    }

    async fn read_means(&self, group: &str) -> Result<Means, sqlx::Error> {
        let since: Option<i64> = sqlx::query_scalar("SELECT since_us FROM run_group_starts WHERE name = $1").bind(group).fetch_optional(&self.read).await?;
        let sql = "SELECT metric, count(*) AS n, avg(value) AS mean FROM run_groups g JOIN scores s ON s.run_id = g.run_id
            WHERE g.name = $1 AND s.outcome = 'scored' GROUP BY metric ORDER BY metric";
        let rows = sqlx::query(sql).bind(group).fetch_all(&self.read).await?;
        let mean = |row: &sqlx::sqlite::SqliteRow| {
            Ok(Mean { metric: row.try_get("metric")?, n: u64::try_from(row.try_get::<i64, _>("n")?).unwrap_or(0), mean: row.try_get("mean")? })
        };
        let since = since.and_then(|us| Timestamp::from_microsecond(us).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Means { since, metrics: rows.iter().map(mean).collect::<Result<_, sqlx::Error>>()? })
    }
}

pub(super) async fn apply(db: &mut SqliteConnection, grouped: &Grouped) -> Result<u64, sqlx::Error> {
    let runs = json(&grouped.run_ids)?;
    // Stays as it is from then on, whichever runs come later and whichever retention forgets.
    let sql = "INSERT INTO run_group_starts (name, since_us) SELECT $1, min(slot_us) FROM runs WHERE id IN (SELECT value FROM json_each($2))
        HAVING min(slot_us) IS NOT NULL ON CONFLICT (name) DO NOTHING";
    sqlx::query(sql).bind(&grouped.group).bind(&runs).execute(&mut *db).await?;
    let sql = "INSERT INTO run_groups (name, run_id) SELECT $1, value FROM json_each($2) WHERE true ON CONFLICT (name, run_id) DO NOTHING";
    Ok(sqlx::query(sql).bind(&grouped.group).bind(runs).execute(db).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Trigger,
        store::{Retention, RunRow},
    };

    #[tokio::test]
    async fn a_group_keeps_the_time_that_it_began_with() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            for (id, slot_us) in [("first", 1_000), ("later", 2_000), ("earlier", 500)] {
                let run = RunRow {
                    id: id.to_owned(),
                    monitor: "m".to_owned(),
                    slot_us,
                    trigger: Trigger::Schedule,
                    seed: 0,
                    publish: true,
                    started_us: slot_us,
                    since_us: None,
                    until_us: None,
                    drawn: true,
                };
                store.begin_run(run).await.unwrap();
                sqlx::query("UPDATE runs SET status = 'succeeded'").execute(&store.read).await.unwrap();
            }
            let since = async |id: &str| store.means("g", &BTreeSet::from([id.to_owned()])).await.unwrap().since.as_microsecond();
            assert_eq!(since("first").await, 1_000);
            assert_eq!((since("later").await, since("earlier").await), (1_000, 1_000), "whichever comes after it");
            let forget = |runs_before_us| Retention { now_us: 0, scores_before_us: 0, runs_before_us, decisions_behind_us: 0, limit: 100 };
            store.retain(forget(1_500)).await.unwrap();
            assert!(store.slot("first").await.unwrap().is_none());
            assert_eq!(since("later").await, 1_000, "however many of its runs are forgotten");
            while store.retain(forget(3_000)).await.unwrap() > 0 {}
            assert!(sqlx::query("SELECT * FROM run_group_starts").fetch_all(&store.read).await.unwrap().is_empty());
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }
}
