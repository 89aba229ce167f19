use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::{
    AssertSqlSafe, Column, ConnectOptions, Row, SqliteConnection, TypeInfo, ValueRef,
    sqlite::{SqliteConnectOptions, SqliteRow},
};

use super::{Ask, Take, query::quoted};

pub(super) fn wrapped(query: &str, ordered_by: Option<&str>) -> String {
    let order = ordered_by.map(|column| format!("ORDER BY q.{} ASC NULLS LAST ", quoted(column))).unwrap_or_default();
    format!("SELECT * FROM (\n{query}\n) AS q {order}LIMIT ?3")
}

/// Steps of SQLite's machine between two looks whether somebody still waits: about a millisecond.
const STEPS: i32 = 10_000;

/// Stops the statement when it is dropped: what nobody waits for any longer must not keep a core busy.
struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

async fn open(path: &Path) -> Result<(SqliteConnection, Running), sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).create_if_missing(false).busy_timeout(Duration::from_secs(5));
    let mut connection = options.disable_statement_logging().connect().await?;
    let running = Arc::new(AtomicBool::new(true));
    let looked_at = Arc::clone(&running);
    connection.lock_handle().await?.set_progress_handler(STEPS, move || looked_at.load(Ordering::Relaxed));
    Ok((connection, Running(running)))
}

pub(super) async fn rows(path: &Path, ask: &Ask<'_>, take: Take<'_>) -> Result<(), sqlx::Error> {
    let (mut connection, _running) = open(path).await?;
    let query = sqlx::query(AssertSqlSafe(ask.sql)).bind(ask.since()).bind(ask.until()).bind(ask.rows);
    let mut rows = query.fetch(&mut connection);
    while let Some(row) = rows.try_next().await? {
        let (row, bytes) = read(&row)?;
        if let ControlFlow::Break(()) = take(Ok(row), bytes) {
            break;
        }
    }
    Ok(())
}

/// Has SQLite compile the query.
pub(super) async fn explain(path: &Path, ask: &Ask<'_>) -> Result<(), sqlx::Error> {
    let (mut connection, _running) = open(path).await?;
    let query = sqlx::query(AssertSqlSafe(format!("EXPLAIN {}", ask.sql))).bind(ask.since()).bind(ask.until()).bind(ask.rows);
    query.execute(&mut connection).await.map(drop)
}

/// A row, and about how many bytes it takes.
fn read(row: &SqliteRow) -> Result<(Map<String, Value>, usize), sqlx::Error> {
    let (mut map, mut bytes) = (Map::new(), 0);
    for (at, column) in row.columns().iter().enumerate() {
        let raw = row.try_get_raw(at)?;
        let value = match raw.type_info().name() {
            _ if raw.is_null() => Value::Null,
            "INTEGER" if column.type_info().name() == "BOOLEAN" => Value::Bool(row.try_get_unchecked::<i64, _>(at)? != 0),
            "INTEGER" => row.try_get_unchecked::<i64, _>(at)?.into(),
            "REAL" => {
                let number: f64 = row.try_get_unchecked(at)?;
                serde_json::Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number)
            }
            "BLOB" => {
                let blob: &[u8] = row.try_get_unchecked(at)?;
                bytes += 2 * blob.len();
                Value::String(format!("\\x{}", blob.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
            }
            _ => {
                let text: &[u8] = row.try_get_unchecked(at)?;
                bytes += text.len();
                text_of(column.name(), &String::from_utf8_lossy(text))
            }
        };
        bytes += column.name().len() + 16;
        map.insert(column.name().to_owned(), value);
    }
    Ok((map, bytes))
}

/// SQLite has no JSON type, and two of a trace's own fields are no text.
fn text_of(column: &str, text: &str) -> Value {
    let json = if matches!(column, "tags" | "metadata") { serde_json::from_str(text).ok() } else { None };
    json.filter(|json: &Value| json.is_array() || json.is_object()).unwrap_or_else(|| Value::String(text.to_owned()))
}
