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
        let since: Option<i64> = sqlx::query_scalar("SELECT min(slot_us) FROM runs WHERE id IN (SELECT run_id FROM run_groups WHERE name = $1)")
            .bind(group)
            .fetch_one(&self.read)
            .await?;
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
    let sql = "INSERT INTO run_groups (name, run_id) SELECT $1, value FROM json_each($2) WHERE true ON CONFLICT (name, run_id) DO NOTHING";
    Ok(sqlx::query(sql).bind(&grouped.group).bind(json(&grouped.run_ids)?).execute(db).await?.rows_affected())
}
