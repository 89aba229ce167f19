//! Rows in the tables that dashboards read: `evaluation_dataset` has an item's content once, `evaluation_results` a row
//! for each score of it, `evaluation_view` both. `schema.sql` makes them (`assayd postgres init`).
//!
//! A batch is one transaction: items first, then the scores that refer to them. Keys are derived from what was judged,
//! so what arrives a second time after a crash is the same rows again. Where the server does not take a batch because of
//! what is in it, halves of it are tried, until the rows that it refuses stand alone.

mod rows;
mod table;

use std::{collections::BTreeMap, iter, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use sqlx::AssertSqlSafe;

use self::table::Table;
use super::{BuildError, Delivery, RowError, Sink, SinkConfig, SinkCx, SinkError, SinkKind, queue_name};
use crate::{
    connections::{self, Connections, Postgres, PostgresFault},
    util::plugin,
};

const DATASET: Table = Table { name: "evaluation_dataset", key: &["dataset_id"] };
const RESULTS: Table = Table { name: "evaluation_results", key: &["run_id", "dataset_id", "metric_name"] };

/// What is done where the table has a row of the same key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// The table's row stays.
    #[default]
    DoNothing,
    /// The new one takes its place.
    Upsert,
    /// The new one is refused for good, unless it is the very same score.
    Error,
}

/// Writes items to `evaluation_dataset` and their scores to `evaluation_results`; `assayd postgres init` makes the tables.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Postgres connection. Default `default`.
    #[serde(default = "connection")]
    connection: String,
    /// What is done where a row of the same key (run, item, metric) is there: `do_nothing`, `upsert` or `error`.
    /// Default `do_nothing`.
    #[serde(default)]
    on_conflict: OnConflict,
    /// Rows of a transaction at most, 1 to 10000. Default 1000.
    #[serde(default = "chunk_size")]
    chunk_size: usize,
    /// Schema that has the tables. Default: the first of the connection's search path, commonly `public`.
    schema: Option<String>,
}

fn connection() -> String {
    connections::DEFAULT.to_owned()
}

fn chunk_size() -> usize {
    1000
}

inventory::submit! {
    SinkKind {
        name: "postgres",
        example: "connection: default\non_conflict: do_nothing\nchunk_size: 1000\n",
        schema: plugin::schema::<PostgresConfig>,
        parse: |node, faults| plugin::parse::<PostgresConfig>(node, faults).map(|config| Box::new(config) as Box<dyn SinkConfig>),
    }
}

impl SinkConfig for PostgresConfig {
    fn build(&self, cx: &SinkCx<'_>) -> Result<Arc<dyn Sink>, BuildError> {
        if !(1..=10_000).contains(&self.chunk_size) {
            return Err(BuildError::at("chunk_size", "between 1 and 10000"));
        }
        if let Some(schema) = &self.schema {
            check_schema(schema).map_err(|message| BuildError::at("schema", message))?;
        }
        let postgres = open(cx.connections, &self.connection).map_err(|message| BuildError::at("connection", message))?;
        Ok(Arc::new(Writer { postgres, config: self.clone() }))
    }

    fn queue(&self) -> String {
        // All that decides what becomes of a row: monitors that share a queue share its sink.
        let mut parts = Vec::new();
        if self.connection != connections::DEFAULT {
            parts.push(("connection", self.connection.clone()));
        }
        if let Some(schema) = &self.schema {
            parts.push(("schema", schema.clone()));
        }
        match self.on_conflict {
            OnConflict::DoNothing => {}
            OnConflict::Upsert => parts.push(("on_conflict", "upsert".to_owned())),
            OnConflict::Error => parts.push(("on_conflict", "error".to_owned())),
        }
        queue_name("postgres", &parts)
    }
}

fn open(connections: &Connections, name: &str) -> Result<Postgres, String> {
    let connection = connections::find("postgres", &connections.postgres, name)?;
    Postgres::new(connection).map_err(|message| format!("connections.postgres.{name}: {message}"))
}

fn check_schema(name: &str) -> Result<(), String> {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if (1..=63).contains(&name.len()) && name.chars().all(sound) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        Ok(())
    } else {
        Err("a schema's name is up to 63 of a-z, 0-9 and `_`, and does not begin with a digit".to_owned())
    }
}

/// The SQL that makes tables, indexes and view, where they are missing.
///
/// # Errors
/// When the schema's name is none.
pub fn schema_sql(schema: Option<&str>) -> Result<String, String> {
    let tables = include_str!("schema.sql");
    let Some(schema) = schema else { return Ok(tables.to_owned()) };
    check_schema(schema)?;
    Ok(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\";\nSET search_path TO \"{schema}\";\n\n{tables}"))
}

/// Makes the tables of a connection; what is there stays as it is. Returns where that was.
///
/// # Errors
/// A sentence.
pub async fn init(connections: &Connections, name: &str, schema: Option<&str>) -> Result<String, String> {
    let sql = schema_sql(schema)?.replace("SET search_path", "SET LOCAL search_path");
    let postgres = open(connections, name)?;
    let made = async {
        // Two at the same time would both find nothing and collide.
        let mut transaction = postgres.begin("BEGIN; SELECT pg_advisory_xact_lock(hashtext('assayd postgres init'))".to_owned()).await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
        transaction.commit().await
    };
    made.await.map_err(|error| {
        // The view names every column, so tables of another make do not pass it.
        let other = matches!(&error, sqlx::Error::Database(error) if matches!(error.code().as_deref(), Some("42703" | "42P16" | "42809")));
        let hint = if other { "; a table or the view exists and has other columns: rename it, or choose a schema of its own" } else { "" };
        format!("{}{hint}", postgres.explain(&error))
    })?;
    Ok(postgres.place())
}

struct Writer {
    postgres: Postgres,
    config: PostgresConfig,
}

/// For a batch; the server ends it, and where the server is gone we do, a little later.
const PATIENCE: Duration = Duration::from_secs(60);
const SLACK: Duration = Duration::from_secs(15);

/// Why a batch was not written.
enum Failed {
    Database(sqlx::Error),
    Timeout,
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

#[async_trait]
impl Sink for Writer {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Result<(), RowError>>, SinkError> {
        let mut answers = vec![Ok(()); batch.len()];
        // The last error of a rule, and how many rows it was about.
        let (mut rule, mut ruled_out) = (None, 0);
        let mut open: Vec<Range<usize>> = iter::once(0..batch.len()).collect();
        while let Some(range) = open.pop() {
            let written = tokio::time::timeout(PATIENCE + SLACK, self.write(&batch[range.clone()])).await;
            let error = match written.map_err(|_| Failed::Timeout).and_then(|written| written.map_err(Failed::from)) {
                Ok(conflicts) => {
                    for at in conflicts {
                        answers[range.start + at] = Err(RowError::Dead("another score has this run, item and metric (on_conflict: error)".to_owned()));
                    }
                    continue;
                }
                Err(Failed::Database(error)) if matches!(PostgresFault::of(&error), PostgresFault::Data | PostgresFault::Rule) => error,
                Err(failed) => return Err(self.sink_error(&failed)),
            };
            if range.len() > 1 {
                let middle = range.start + range.len() / 2;
                open.extend([middle..range.end, range.start..middle]);
                continue;
            }
            answers[range.start] = Err(RowError::Dead(self.postgres.explain(&error)));
            if PostgresFault::of(&error) == PostgresFault::Rule {
                ruled_out += 1;
                rule = Some(error);
            }
        }
        match rule {
            // No row at all: more likely the rule, or our rights, are not what they should be.
            Some(error) if ruled_out == batch.len() => Err(self.sink_error(&Failed::Database(error))),
            _ => Ok(answers),
        }
    }

    fn batch_size(&self) -> usize {
        self.config.chunk_size
    }

    fn wants_item(&self) -> bool {
        true
    }

    async fn probe(&self) -> Result<String, SinkError> {
        let looked = async {
            let mut transaction = self.begin().await?;
            sqlx::query("SELECT FROM evaluation_view LIMIT 0").persistent(false).execute(&mut *transaction).await?;
            transaction.rollback().await
        };
        looked.await.map_err(|error| self.sink_error(&Failed::Database(error)))?;
        Ok(format!("Postgres at {} has the tables", self.postgres.place()))
    }
}

impl Writer {
    async fn begin(&self) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, sqlx::Error> {
        let schema = self.config.schema.as_ref().map(|schema| format!("; SET LOCAL search_path TO \"{schema}\"")).unwrap_or_default();
        self.postgres.begin(format!("BEGIN; SET LOCAL statement_timeout = {}{schema}", PATIENCE.as_millis())).await
    }

    /// One transaction. Returns the rows that met another one's key where that is an error.
    async fn write(&self, batch: &[Delivery]) -> Result<Vec<usize>, sqlx::Error> {
        let on_conflict = self.config.on_conflict;
        let ids: Vec<String> = batch.iter().map(rows::id).collect();
        // By key: once each, and in the same order wherever they are written, so that two writers do not deadlock.
        let datasets: BTreeMap<&str, &Delivery> = ids.iter().map(String::as_str).zip(batch).collect();
        let results: BTreeMap<_, _> = ids.iter().zip(batch).map(|(id, delivery)| ((&delivery.score.run_id, id, &delivery.score.metric), delivery)).collect();
        let datasets = datasets.into_iter().map(|(id, delivery)| rows::dataset(id, delivery)).collect();
        let results = results.into_iter().map(|((_, id, _), delivery)| rows::result(id, delivery)).collect();

        let mut transaction = self.begin().await?;
        for insert in [DATASET.insert(datasets, on_conflict), RESULTS.insert(results, on_conflict)].into_iter().flatten() {
            insert.execute(&mut *transaction).await?;
        }
        let conflicts = if on_conflict == OnConflict::Error { conflicts(&mut transaction, &ids, batch).await? } else { Vec::new() };
        transaction.commit().await?;
        Ok(conflicts)
    }

    fn sink_error(&self, failed: &Failed) -> SinkError {
        let error = match failed {
            Failed::Timeout => {
                let message = format!("Postgres at {}: no answer within {} s", self.postgres.place(), (PATIENCE + SLACK).as_secs());
                return SinkError { message, retry_after: None, transient: true };
            }
            Failed::Database(error) => error,
        };
        let fault = PostgresFault::of(error);
        let hint = match fault {
            PostgresFault::Tables => " (`assayd postgres init` makes the tables)",
            PostgresFault::Refused => " (check the connection and its rights)",
            PostgresFault::Rule => " (every row is refused: check the rights, policies and triggers of the tables)",
            PostgresFault::Data | PostgresFault::Away => "",
        };
        SinkError { message: format!("{}{hint}", self.postgres.explain(error)), retry_after: None, transient: fault == PostgresFault::Away }
    }
}

/// Rows whose key belongs to another score. One of ours that was written before is none of them.
async fn conflicts(connection: &mut sqlx::PgConnection, ids: &[String], batch: &[Delivery]) -> Result<Vec<usize>, sqlx::Error> {
    let of = |field: fn(&Delivery) -> &str| batch.iter().map(|delivery| field(delivery).replace('\0', "")).collect::<Vec<_>>();
    let sql =
        "SELECT given.at FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS given (run_id, dataset_id, metric_name, metric_id, at)
        JOIN evaluation_results AS known USING (run_id, dataset_id, metric_name) WHERE known.metric_id IS DISTINCT FROM given.metric_id";
    let found: Vec<i64> = sqlx::query_scalar(sql)
        .persistent(false)
        .bind(of(|delivery| &delivery.score.run_id))
        .bind(ids)
        .bind(of(|delivery| &delivery.score.metric))
        .bind(of(|delivery| &delivery.score.score_id))
        .fetch_all(connection)
        .await?;
    Ok(found.into_iter().filter_map(|at| usize::try_from(at - 1).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_named_by_all_that_decides() {
        let config = |connection: &str, on_conflict, schema: Option<&str>| PostgresConfig {
            connection: connection.to_owned(),
            on_conflict,
            chunk_size: chunk_size(),
            schema: schema.map(str::to_owned),
        };
        assert_eq!(config("default", OnConflict::DoNothing, None).queue(), "postgres");
        assert_eq!(config("eu", OnConflict::Upsert, Some("quality")).queue(), "postgres:connection=eu:schema=quality:on_conflict=upsert");
        let ambiguous = [config("eu", OnConflict::DoNothing, None), config("default", OnConflict::DoNothing, Some("eu"))];
        assert_ne!(ambiguous[0].queue(), ambiguous[1].queue(), "a connection is no schema");
    }

    #[test]
    fn a_schema_is_a_plain_name() {
        assert!(schema_sql(Some("quality_2")).unwrap().starts_with("CREATE SCHEMA IF NOT EXISTS \"quality_2\""));
        for name in ["", "2x", "a\"; DROP", "Quality"] {
            assert!(schema_sql(Some(name)).is_err(), "{name}");
        }
    }
}
