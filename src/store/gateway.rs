//! What the gateway keeps: money set aside, cached answers, usage by day, single calls.

use sqlx::{QueryBuilder, Row, SqliteConnection};

use super::{Closed, Store, writer::Write};

/// Sums of one day, one model and one monitor (empty: a call from outside).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageRow {
    /// `2026-11-01`, UTC.
    pub day: String,
    pub provider: String,
    pub model: String,
    pub monitor: String,
    /// Calls that ended, however.
    pub calls: i64,
    pub errors: i64,
    /// Answers that came from the cache and cost nothing.
    pub cached: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cost_nano: i64,
}

/// One call to a model, as the hook `record` keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct CallRow {
    pub trace_id: String,
    pub monitor: String,
    pub metric: String,
    pub item_id: String,
    pub profile: String,
    pub provider: String,
    pub model: String,
    pub prompt: String,
    pub response: Option<String>,
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub latency_ms: u64,
    pub cost_usd: Option<f64>,
    /// `ok`, `cached` or the error's kind.
    pub status: String,
    pub error: Option<String>,
    pub created_us: i64,
}

/// An answer to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRow {
    pub key: [u8; 32],
    pub expires_us: i64,
    /// JSON.
    pub reply: String,
}

/// A write of the gateway's.
#[derive(Debug)]
pub(super) enum GatewayWrite {
    Budget { scope: String, period_us: i64, committed: i64, at_us: i64 },
    Cached(Vec<CachedRow>),
    Usage(Vec<UsageRow>),
    Calls(Vec<CallRow>),
}

impl Store {
    /// What of a budget counts as spent, in nano-USD.
    ///
    /// # Errors
    /// The database's.
    pub async fn budget(&self, scope: &str, period_us: i64) -> Result<i64, sqlx::Error> {
        let sql = "SELECT committed FROM budgets WHERE scope = $1 AND period_us = $2";
        Ok(sqlx::query_scalar(sql).bind(scope).bind(period_us).fetch_optional(&self.read).await?.unwrap_or(0))
    }

    /// Sets it; on disk when this returns.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn commit_budget(&self, scope: &str, period_us: i64, committed: i64, at_us: i64) -> Result<(), Closed> {
        let write = GatewayWrite::Budget { scope: scope.to_owned(), period_us, committed, at_us };
        self.write(Write::Gateway(write)).await.map(|_| ())
    }

    /// A cached reply that has not expired.
    ///
    /// # Errors
    /// The database's.
    pub async fn cached(&self, key: [u8; 32], now_us: i64) -> Result<Option<String>, sqlx::Error> {
        self.lookup.cached(key, now_us).await
    }

    /// # Errors
    /// `Closed`.
    pub async fn keep_cached(&self, rows: Vec<CachedRow>) -> Result<(), Closed> {
        self.write(Write::Gateway(GatewayWrite::Cached(rows))).await.map(|_| ())
    }

    /// Adds to the sums.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn add_usage(&self, rows: Vec<UsageRow>) -> Result<(), Closed> {
        self.write(Write::Gateway(GatewayWrite::Usage(rows))).await.map(|_| ())
    }

    /// # Errors
    /// `Closed`.
    pub async fn keep_calls(&self, rows: Vec<CallRow>) -> Result<(), Closed> {
        self.write(Write::Gateway(GatewayWrite::Calls(rows))).await.map(|_| ())
    }

    /// The sums from `day` on, the newest day first.
    ///
    /// # Errors
    /// The database's.
    pub async fn usage_since(&self, day: &str) -> Result<Vec<UsageRow>, sqlx::Error> {
        let sql = "SELECT * FROM usage WHERE day >= $1 ORDER BY day DESC, provider, model, monitor";
        let rows = sqlx::query(sql).bind(day).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                Ok(UsageRow {
                    day: row.try_get("day")?,
                    provider: row.try_get("provider")?,
                    model: row.try_get("model")?,
                    monitor: row.try_get("monitor")?,
                    calls: row.try_get("calls")?,
                    errors: row.try_get("errors")?,
                    cached: row.try_get("cached")?,
                    input_tokens: row.try_get("input_tokens")?,
                    output_tokens: row.try_get("output_tokens")?,
                    cost_nano: row.try_get("cost_nano")?,
                })
            })
            .collect()
    }
}

/// Rows of one statement; one of as many is prepared once.
const ROWS: usize = 64;

pub(super) async fn apply(db: &mut SqliteConnection, write: &GatewayWrite) -> Result<(), sqlx::Error> {
    match write {
        GatewayWrite::Budget { scope, period_us, committed, at_us } => {
            let sql = "INSERT INTO budgets (scope, period_us, committed, updated_us) VALUES ($1, $2, $3, $4)
                ON CONFLICT (scope, period_us) DO UPDATE SET committed = excluded.committed, updated_us = excluded.updated_us";
            sqlx::query(sql).bind(scope).bind(period_us).bind(committed).bind(at_us).execute(db).await?;
        }
        GatewayWrite::Cached(rows) => {
            for rows in rows.chunks(ROWS) {
                let mut sql = QueryBuilder::new("INSERT INTO cache (key, expires_us, reply) ");
                sql.push_values(rows, |mut values, row| {
                    values.push_bind(row.key.as_slice()).push_bind(row.expires_us).push_bind(&row.reply);
                });
                sql.push(" ON CONFLICT (key) DO UPDATE SET expires_us = excluded.expires_us, reply = excluded.reply");
                sql.build().persistent(rows.len() == ROWS).execute(&mut *db).await?;
            }
        }
        GatewayWrite::Usage(rows) => {
            for row in rows {
                add_usage(&mut *db, row).await?;
            }
        }
        GatewayWrite::Calls(rows) => {
            for rows in rows.chunks(ROWS) {
                keep_calls(&mut *db, rows).await?;
            }
        }
    }
    Ok(())
}

async fn add_usage(db: &mut SqliteConnection, row: &UsageRow) -> Result<(), sqlx::Error> {
    let sql = "INSERT INTO usage (day, provider, model, monitor, calls, errors, cached, input_tokens, output_tokens, cost_nano)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        ON CONFLICT (day, provider, model, monitor) DO UPDATE SET calls = calls + excluded.calls, errors = errors + excluded.errors,
            cached = cached + excluded.cached, input_tokens = input_tokens + excluded.input_tokens,
            output_tokens = output_tokens + excluded.output_tokens, cost_nano = cost_nano + excluded.cost_nano";
    sqlx::query(sql)
        .bind(&row.day)
        .bind(&row.provider)
        .bind(&row.model)
        .bind(&row.monitor)
        .bind(row.calls)
        .bind(row.errors)
        .bind(row.cached)
        .bind(row.input_tokens)
        .bind(row.output_tokens)
        .bind(row.cost_nano)
        .execute(db)
        .await
        .map(drop)
}

async fn keep_calls(db: &mut SqliteConnection, rows: &[CallRow]) -> Result<(), sqlx::Error> {
    let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut sql = QueryBuilder::new(
        "INSERT INTO calls (trace_id, monitor, metric, item_id, profile, provider, model, prompt, response, input_tokens, output_tokens, latency_ms,
            cost_usd, status, error, created_us) ",
    );
    sql.push_values(rows, |mut values, row| {
        values
            .push_bind(&row.trace_id)
            .push_bind(&row.monitor)
            .push_bind(&row.metric)
            .push_bind(&row.item_id)
            .push_bind(&row.profile)
            .push_bind(&row.provider)
            .push_bind(&row.model)
            .push_bind(&row.prompt)
            .push_bind(row.response.as_deref())
            .push_bind(row.input_tokens.map(int))
            .push_bind(row.output_tokens.map(int))
            .push_bind(int(row.latency_ms))
            .push_bind(row.cost_usd)
            .push_bind(&row.status)
            .push_bind(row.error.as_deref())
            .push_bind(row.created_us);
    });
    sql.build().persistent(rows.len() == ROWS).execute(db).await.map(drop)
}

/// Longer than a month, the longest period of a budget.
const BUDGETS_FOR_US: i64 = 40 * 86_400_000_000;

/// Cached answers that have expired, money of past periods, calls as old as runs may be.
pub(super) async fn retain(db: &mut SqliteConnection, now_us: i64, runs_before_us: i64, limit: i64) -> Result<u64, sqlx::Error> {
    let sql = "DELETE FROM cache WHERE key IN (SELECT key FROM cache WHERE expires_us < $1 LIMIT $2)";
    let mut gone = sqlx::query(sql).bind(now_us).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM budgets WHERE (scope, period_us) IN (SELECT scope, period_us FROM budgets WHERE updated_us < $1 LIMIT $2)";
    gone += sqlx::query(sql).bind(now_us - BUDGETS_FOR_US).bind(limit).execute(&mut *db).await?.rows_affected();
    let sql = "DELETE FROM calls WHERE id IN (SELECT id FROM calls WHERE created_us < $1 LIMIT $2)";
    gone += sqlx::query(sql).bind(runs_before_us).bind(limit).execute(db).await?.rows_affected();
    Ok(gone)
}
