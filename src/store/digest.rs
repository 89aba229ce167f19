//! The day of the last digest, and what one looks back on.

use sqlx::SqliteConnection;

use super::{
    Closed, NewNotice, Store,
    alerts::SPEAKS,
    groups,
    read::{MONITOR, sql},
    writer::Write,
};
use crate::model::DayTally;

type Result<T> = std::result::Result<T, sqlx::Error>;

/// A digest, to be sent once.
#[derive(Debug, Clone)]
pub struct NewDigest {
    /// `2026-01-02`
    pub day: String,
    pub at_us: i64,
    pub notices: Vec<NewNotice>,
}

impl Store {
    /// The day of the newest digest.
    ///
    /// # Errors
    /// The database's.
    pub async fn digest_day(&self) -> Result<Option<String>> {
        sqlx::query_scalar("SELECT max(day) FROM digests").fetch_one(&self.read).await
    }

    /// Keeps the day with the messages; false where it has been sent before, and nothing was kept.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn record_digest(&self, digest: NewDigest) -> std::result::Result<bool, Closed> {
        Ok(self.write(Write::Digest(Box::new(digest))).await?.changed > 0)
    }

    /// (metric, scores) of what was scored in `[from, to)` of the items that chance drew, by metric.
    ///
    /// # Errors
    /// The database's.
    pub async fn day_scores(&self, monitor: &str, from_us: i64, to_us: i64) -> Result<Vec<(String, DayTally)>> {
        let text = format!(
            "SELECT metric, count(*), sum(value) FROM scores INDEXED BY scores_by_time
            WHERE monitor = {MONITOR} AND created_us >= $2 AND created_us < $3 AND outcome = 'scored' AND {SPEAKS}
                AND NOT EXISTS (SELECT 1 FROM items WHERE items.id = scores.item AND items.chosen) GROUP BY metric ORDER BY metric"
        );
        let rows: Vec<(String, i64, f64)> = sqlx::query_as(sql(text)).bind(monitor).bind(from_us).bind(to_us).fetch_all(&self.read).await?;
        Ok(rows.into_iter().map(|(metric, n, sum)| (metric, DayTally { n: u64::try_from(n).unwrap_or(0), sum })).collect())
    }

    /// What the judgements of `[from, to)` cost, whoever asked for them; `None` where no price is known.
    ///
    /// # Errors
    /// The database's.
    pub async fn day_cost(&self, monitor: &str, from_us: i64, to_us: i64) -> Result<Option<f64>> {
        let text = format!("SELECT sum(cost_usd) FROM scores INDEXED BY scores_by_time WHERE monitor = {MONITOR} AND created_us >= $2 AND created_us < $3");
        sqlx::query_scalar(sql(text)).bind(monitor).bind(from_us).bind(to_us).fetch_one(&self.read).await
    }

    /// (monitor, alert, reason) of all that fire.
    ///
    /// # Errors
    /// The database's.
    pub async fn firing(&self) -> Result<Vec<(String, String, String)>> {
        sqlx::query_as("SELECT m.name, a.name, a.reason FROM alerts a JOIN monitors m ON m.id = a.monitor WHERE a.state = 'firing' ORDER BY m.name, a.name")
            .fetch_all(&self.read)
            .await
    }
}

pub(super) async fn apply(db: &mut SqliteConnection, digest: &NewDigest) -> Result<u64> {
    let sql = "INSERT INTO digests (day, at_us) VALUES ($1, $2) ON CONFLICT (day) DO NOTHING";
    let new = sqlx::query(sql).bind(&digest.day).bind(digest.at_us).execute(&mut *db).await?.rows_affected();
    if new > 0 {
        for notice in &digest.notices {
            groups::insert(db, notice, digest.at_us).await?;
        }
    }
    Ok(new)
}
