use std::ops::ControlFlow;

use futures_util::TryStreamExt;
use sqlx::AssertSqlSafe;

use super::{Ask, Take, json, query::quoted};
use crate::connections::Postgres;

/// Rows as JSON text: the server knows all its types, and numbers keep their digits.
pub(super) fn wrapped(query: &str, ordered_by: Option<&str>) -> String {
    let order = ordered_by.map(|column| format!("ORDER BY q.{} ASC NULLS LAST ", quoted(column))).unwrap_or_default();
    // The line break ends a comment that the query may end with.
    format!("SELECT row_to_json(q)::text FROM (\n{query}\n) AS q {order}LIMIT $3")
}

async fn begin(postgres: &Postgres, ask: &Ask<'_>) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, sqlx::Error> {
    // With the transaction, not the session: this holds behind a pooler too.
    let millis = ask.timeout.as_millis().clamp(1, 2_000_000_000);
    postgres.begin(format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {millis}; SET LOCAL TimeZone = 'UTC'")).await
}

pub(super) async fn rows(postgres: &Postgres, ask: &Ask<'_>, take: Take<'_>) -> Result<(), sqlx::Error> {
    let mut transaction = begin(postgres, ask).await?;
    let query = sqlx::query_scalar::<_, String>(AssertSqlSafe(ask.sql)).persistent(false);
    let mut rows = query.bind(ask.since()).bind(ask.until()).bind(ask.rows).fetch(&mut *transaction);
    while let Some(text) = rows.try_next().await? {
        if let ControlFlow::Break(()) = take(json::row(&text), text.len()) {
            break;
        }
    }
    drop(rows);
    transaction.rollback().await
}

/// Has the server plan the query.
pub(super) async fn explain(postgres: &Postgres, ask: &Ask<'_>) -> Result<(), sqlx::Error> {
    let mut transaction = begin(postgres, ask).await?;
    let query = sqlx::query(AssertSqlSafe(format!("EXPLAIN {}", ask.sql))).persistent(false);
    query.bind(ask.since()).bind(ask.until()).bind(ask.rows).execute(&mut *transaction).await?;
    transaction.rollback().await
}
