//! Silences: added, ended early, forgotten some time after their end.

use sqlx::SqliteConnection;

use super::{Closed, Store, writer::Write};

/// A silence. Its times stand beside its body, since ending it early changes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilenceRow {
    pub id: String,
    pub starts_us: i64,
    pub ends_us: i64,
    /// JSON.
    pub body: String,
}

#[derive(Debug)]
pub(super) enum SilenceWrite {
    Add(SilenceRow),
    Expire { id: String, at_us: i64 },
}

impl Store {
    /// # Errors
    /// `Closed`.
    pub async fn add_silence(&self, row: SilenceRow) -> Result<(), Closed> {
        self.write(Write::Silence(SilenceWrite::Add(row))).await.map(|_| ())
    }

    /// Ends a silence now; false where there is none that has not ended.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn expire_silence(&self, id: &str, at_us: i64) -> Result<bool, Closed> {
        let write = SilenceWrite::Expire { id: id.to_owned(), at_us };
        Ok(self.write(Write::Silence(write)).await?.changed > 0)
    }

    /// Those that end after an instant, by their end.
    ///
    /// # Errors
    /// The database's.
    pub async fn silences(&self, ending_after_us: i64) -> Result<Vec<SilenceRow>, sqlx::Error> {
        let sql = "SELECT id, starts_us, ends_us, body FROM silences WHERE ends_us > $1 ORDER BY ends_us, id";
        let rows: Vec<(String, i64, i64, String)> = sqlx::query_as(sql).bind(ending_after_us).fetch_all(&self.read).await?;
        Ok(rows.into_iter().map(|(id, starts_us, ends_us, body)| SilenceRow { id, starts_us, ends_us, body }).collect())
    }
}

pub(super) async fn apply(db: &mut SqliteConnection, write: &SilenceWrite) -> Result<u64, sqlx::Error> {
    let done = match write {
        SilenceWrite::Add(row) => {
            let sql = "INSERT INTO silences (id, starts_us, ends_us, body) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING";
            sqlx::query(sql).bind(&row.id).bind(row.starts_us).bind(row.ends_us).bind(&row.body).execute(db).await?
        }
        SilenceWrite::Expire { id, at_us } => {
            // One that has not begun never does.
            let sql = "UPDATE silences SET ends_us = $1, starts_us = min(starts_us, $1) WHERE id = $2 AND ends_us > $1";
            sqlx::query(sql).bind(at_us).bind(id).execute(db).await?
        }
    };
    Ok(done.rows_affected())
}
