//! Prompts kept in Langfuse, as they were last read, and the webhook events that were taken.

use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{Closed, NewNotice, Store, apply::json, groups, writer::Write};
use crate::model::{PromptAt, PromptRef, PromptVersion};

/// A prompt, as it was last read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptRow {
    pub prompt: PromptRef,
    /// The last one that could be read; a fault leaves it.
    pub kept: Option<PromptVersion>,
    /// Why the last look found none to judge with.
    pub fault: Option<String>,
    /// Of the last look that was answered.
    pub fetched_us: i64,
}

#[derive(Debug)]
pub(super) enum PromptWrite {
    Keep(PromptRow),
    Event { sender: String, id: String, at_us: i64, notices: Vec<NewNotice> },
}

/// How long events are remembered: far longer than a signature is taken.
const REMEMBERED_US: i64 = 24 * 3600 * 1_000_000;

impl Store {
    /// What a look at a prompt found. A row with a fault leaves what was kept.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn keep_prompt(&self, row: PromptRow) -> Result<(), Closed> {
        self.write(Write::Prompt(PromptWrite::Keep(row))).await.map(|_| ())
    }

    /// Remembers an event that a webhook told, and queues what people are told of it. False when it was taken before: then
    /// nothing is queued.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn take_event(&self, sender: &str, id: &str, at_us: i64, notices: Vec<NewNotice>) -> Result<bool, Closed> {
        let write = PromptWrite::Event { sender: sender.to_owned(), id: id.to_owned(), at_us, notices };
        Ok(self.write(Write::Prompt(write)).await?.changed > 0)
    }

    /// # Errors
    /// The database's.
    pub async fn prompt(&self, prompt: &PromptRef) -> Result<Option<PromptRow>, sqlx::Error> {
        let (selector, value) = prompt.selector();
        let sql = "SELECT * FROM prompts WHERE connection = $1 AND name = $2 AND selector = $3 AND value = $4";
        let row = sqlx::query(sql).bind(&prompt.connection).bind(&prompt.name).bind(selector).bind(value).fetch_optional(&self.read).await?;
        row.map(|row| read(&row)).transpose()
    }

    /// All of them, by connection and name.
    ///
    /// # Errors
    /// The database's.
    pub async fn prompts(&self) -> Result<Vec<PromptRow>, sqlx::Error> {
        let rows = sqlx::query("SELECT * FROM prompts ORDER BY connection, name, selector, value").fetch_all(&self.read).await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &SqliteRow) -> Result<PromptRow, sqlx::Error> {
    let (selector, value): (String, String) = (row.try_get("selector")?, row.try_get("value")?);
    let at = match value.parse() {
        Ok(version) if selector == "version" => PromptAt::Version(version),
        _ => PromptAt::Label(value),
    };
    let body: Option<String> = row.try_get("body")?;
    Ok(PromptRow {
        prompt: PromptRef { connection: row.try_get("connection")?, name: row.try_get("name")?, at },
        // What an older assayd wrote in another form is as good as nothing: it is read anew.
        kept: body.and_then(|body| serde_json::from_str(&body).ok()),
        fault: row.try_get("fault")?,
        fetched_us: row.try_get("fetched_us")?,
    })
}

pub(super) async fn apply(db: &mut SqliteConnection, write: &PromptWrite) -> Result<u64, sqlx::Error> {
    match write {
        PromptWrite::Keep(row) => {
            let (selector, value) = row.prompt.selector();
            let body = row.kept.as_ref().map(json).transpose()?;
            let sql = "INSERT INTO prompts (connection, name, selector, value, body, fault, fetched_us) VALUES ($1, $2, $3, $4, $5, $6, $7)
                ON CONFLICT (connection, name, selector, value) DO UPDATE SET body = coalesce(excluded.body, body), fault = excluded.fault, fetched_us = excluded.fetched_us";
            let query = sqlx::query(sql).bind(&row.prompt.connection).bind(&row.prompt.name).bind(selector).bind(value);
            Ok(query.bind(body).bind(&row.fault).bind(row.fetched_us).execute(db).await?.rows_affected())
        }
        PromptWrite::Event { sender, id, at_us, notices } => {
            sqlx::query("DELETE FROM webhook_events WHERE at_us < $1").bind(at_us - REMEMBERED_US).execute(&mut *db).await?;
            let sql = "INSERT INTO webhook_events (sender, id, at_us) VALUES ($1, $2, $3) ON CONFLICT (sender, id) DO NOTHING";
            let new = sqlx::query(sql).bind(sender).bind(id).bind(at_us).execute(&mut *db).await?.rows_affected();
            if new > 0 {
                for notice in notices {
                    groups::insert(db, notice, *at_us).await?;
                }
            }
            Ok(new)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PromptText;

    #[tokio::test]
    async fn a_fault_leaves_the_last_good_version_and_an_event_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            let prompt = PromptRef::new("default", "judge@7").unwrap();
            let kept = PromptVersion {
                version: 7,
                labels: vec!["production".to_owned()],
                made_of: ["tone".to_owned()].into(),
                prompt: PromptText::Text("Rate {{input}}".to_owned()),
            };
            let good = PromptRow { prompt: prompt.clone(), kept: Some(kept), fault: None, fetched_us: 1 };
            store.keep_prompt(good.clone()).await.unwrap();
            assert_eq!(store.prompt(&prompt).await.unwrap(), Some(good.clone()));
            let gone = PromptRow { kept: None, fault: Some("gone".to_owned()), fetched_us: 2, ..good.clone() };
            store.keep_prompt(gone.clone()).await.unwrap();
            assert_eq!(store.prompts().await.unwrap(), [PromptRow { kept: good.kept, ..gone }]);
            assert!(store.prompt(&PromptRef::new("default", "judge").unwrap()).await.unwrap().is_none(), "a label is no version");

            assert!(store.take_event("default", "e1", 5, Vec::new()).await.unwrap());
            assert!(!store.take_event("default", "e1", 6, Vec::new()).await.unwrap());
            assert!(store.take_event("other", "e1", 6, Vec::new()).await.unwrap());
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }
}
