//! Rows of a query, in Postgres or in a SQLite file.
//!
//! A run's window is read in pages: each is a query and a read-only transaction of its own, so that no transaction stays
//! open on somebody's database while a model judges, and no more than a page is in memory. The next page asks again from
//! a second before the last row's time on and leaves out what it has seen, so that rows of the same time are not lost
//! where a page ends between them, nor where a database compares times in seconds. A page that brings nothing newer (many
//! rows of one time) is asked for again with twice as many rows.

mod json;
mod postgres;
mod query;
mod sqlite;

use std::{collections::HashMap, ops::ControlFlow, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use self::query::{Dialect, Query};
use super::{BuildError, Fetched, Pages, Source, SourceConfig, SourceCx, SourceError, SourceKind, Window, fields};
use crate::{
    connections::{self, Postgres, PostgresFault},
    util::{
        backoff::{self, Policy},
        duration::Human,
        plugin, text,
    },
};

/// Rows of a query as traces: `trace.row.COLUMN` is every column; columns named `input`, `output`, `metadata`, `tags`,
/// `name`, `user_id`, `session_id`, `environment`, `latency_ms` and `cost_usd` are those fields of the trace too.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlConfig {
    /// Postgres connection. Default `default`.
    connection: Option<String>,
    /// A SQLite file in place of a connection, relative to the settings file. It is opened for reading only.
    path: Option<PathBuf>,
    /// One `SELECT`. `:since` and `:until` are bound to the window of time (from, and before) that is asked for and have
    /// to stand in it: in Postgres as `timestamptz`, in SQLite as text such as `2026-01-31T09:30:00.000000Z`, which a
    /// query turns into what its column holds: `unixepoch(:since)`, `datetime(:since)`. `:limit` may stand in it: a
    /// number of rows that suits a page; the query then has to order its rows by time.
    query: String,
    /// Column with the item's id: text or a number, unique. Default `id`.
    #[serde(default = "id")]
    id_column: String,
    /// Column with the item's time, which is also what `:since` and `:until` are compared with: a timestamp (without a
    /// zone: UTC), RFC 3339 text, or seconds or milliseconds since the epoch. Default `created_at`.
    #[serde(default = "created_at")]
    timestamp_column: String,
    /// Columns that a row has to have a value in; a row without is an item that failed, with that reason.
    #[serde(default)]
    required: Vec<String>,
    /// Of one query; the server breaks off a longer one. Default 60s.
    #[serde(default = "timeout")]
    timeout: Human,
}

fn id() -> String {
    "id".to_owned()
}

fn created_at() -> String {
    "created_at".to_owned()
}

fn timeout() -> Human {
    Human::secs(60)
}

inventory::submit! {
    SourceKind {
        name: "sql",
        example: "path: answers.db\nquery: |\n  SELECT id, created_at, question AS input, answer AS output FROM answers\n  WHERE created_at >= :since AND created_at < :until\nid_column: id\ntimestamp_column: created_at\nrequired: [output]\n",
        schema: plugin::schema::<SqlConfig>,
        parse: |node, faults| plugin::parse::<SqlConfig>(node, faults).map(|config| Box::new(config) as Box<dyn SourceConfig>),
    }
}

impl SourceConfig for SqlConfig {
    fn build(&self, cx: &SourceCx<'_>) -> Result<Arc<dyn Source>, BuildError> {
        let (database, dialect) = match (&self.path, &self.connection) {
            (Some(_), Some(_)) => return Err(BuildError::at("path", "`path` is a SQLite file and `connection` a Postgres: leave one of them out")),
            (Some(path), None) => (Database::Sqlite(cx.base_dir.join(path)), Dialect::Sqlite),
            (None, name) => {
                let name = name.as_deref().unwrap_or(connections::DEFAULT);
                let connection = connections::find("postgres", &cx.connections.postgres, name).map_err(|message| BuildError::at("connection", message))?;
                let postgres = Postgres::new(connection).map_err(|message| BuildError::at("connection", format!("connections.postgres.{name}: {message}")))?;
                (Database::Postgres(postgres), Dialect::Postgres)
            }
        };
        let query = Query::parse(&self.query, dialect).map_err(|message| BuildError::at("query", message))?;
        if self.timeout.0.is_zero() {
            return Err(BuildError::at("timeout", "longer than 0s"));
        }
        // A query with `:limit` chose its rows by its own order; to order them again would hide a wrong one.
        let order = (!query.limited).then_some(self.timestamp_column.as_str());
        let sql = match dialect {
            Dialect::Postgres => postgres::wrapped(&query.bound(), order),
            Dialect::Sqlite => sqlite::wrapped(&query.bound(), order),
        };
        Ok(Arc::new(Sql { database, sql, config: self.clone(), retry: cx.http.retry }))
    }
}

enum Database {
    Postgres(Postgres),
    Sqlite(PathBuf),
}

struct Sql {
    database: Database,
    /// `$1`: since, `$2`: until, `$3`: rows.
    sql: String,
    config: SqlConfig,
    retry: Policy,
}

/// What a query is asked with.
struct Ask<'a> {
    sql: &'a str,
    window: Window,
    rows: i64,
    timeout: Duration,
}

impl Ask<'_> {
    fn since(&self) -> String {
        bound(self.window.from)
    }

    fn until(&self) -> String {
        bound(self.window.to)
    }
}

/// RFC 3339 with microseconds. Earlier years than the first are not written the same way everywhere.
fn bound(at: Timestamp) -> String {
    const YEAR_ONE: i64 = -62_135_596_800;
    format!("{:.6}", at.max(Timestamp::from_second(YEAR_ONE).unwrap_or(at)))
}

/// Is handed each row, or what is wrong with it for good, and about how many bytes it takes.
type Take<'a> = &'a mut (dyn FnMut(Result<Map<String, Value>, String>, usize) -> ControlFlow<()> + Send);

/// A page ends here, whichever comes first.
const PAGE_ROWS: i64 = 500;
const PAGE_BYTES: usize = 4 << 20;
/// Rows asked for at least, however large they are.
const FEWEST_ROWS: i64 = 16;
/// How far before its last row a page is continued.
const STEP_BACK: SignedDuration = SignedDuration::from_secs(1);

/// Rows that were sent, and their times: those that the next page brings once more.
type Sent = HashMap<String, Option<Timestamp>>;

#[async_trait]
impl Source for Sql {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        let (mut since, mut rows) = (window.from, PAGE_ROWS);
        let mut sent = Sent::new();
        let (mut seen, mut inside) = (0, 0);
        loop {
            let ask = Ask { sql: &self.sql, window: Window { from: since, to: window.to }, rows, timeout: self.config.timeout.0 };
            let page = self.page(&ask, window, &sent).await?;
            let next = page.newest.and_then(|newest| newest.checked_sub(STEP_BACK).ok()).unwrap_or(since).max(since);
            seen += page.rows;
            inside += page.items.len();
            sent.extend(page.items.iter().map(|item| (item.id.clone(), item.dated.then_some(item.timestamp))));
            sent.retain(|_, at| at.is_none_or(|at| at >= next));
            if !page.items.is_empty() && pages.send(page.items).await.is_err() {
                return Ok(());
            }
            if page.cut {
                rows = page.rows.max(FEWEST_ROWS);
            } else if page.rows < rows {
                break;
            } else if next == since {
                rows = rows.saturating_mul(2);
            }
            since = next;
        }
        if seen > 0 && inside == 0 {
            tracing::warn!(rows = seen, column = %self.config.timestamp_column, "the query gave rows, and none lies in its window by its timestamp_column");
        }
        Ok(())
    }

    async fn probe(&self) -> Result<String, SourceError> {
        let window = Window { from: Timestamp::UNIX_EPOCH, to: Timestamp::UNIX_EPOCH };
        let ask = Ask { sql: &self.sql, window, rows: 1, timeout: self.config.timeout.0 };
        let explained = match &self.database {
            Database::Postgres(postgres) => postgres::explain(postgres, &ask).await,
            Database::Sqlite(path) => sqlite::explain(path, &ask).await,
        };
        explained.map_err(|error| self.error(&error))?;
        Ok(match &self.database {
            Database::Postgres(postgres) => format!("Postgres at {} answers and knows what the query asks for", postgres.place()),
            Database::Sqlite(path) => format!("{} opens and knows what the query asks for", path.display()),
        })
    }
}

impl Sql {
    /// One page, asked for again while the database is away.
    async fn page(&self, ask: &Ask<'_>, window: Window, sent: &Sent) -> Result<Page<'_>, SourceError> {
        let started = tokio::time::Instant::now();
        for attempt in 1.. {
            let mut page =
                Page { config: &self.config, window, items: Vec::new(), undated: Vec::new(), rows: 0, bytes: 0, cut: false, newest: None, fault: None };
            let mut take = |row: Result<Map<String, Value>, String>, bytes: usize| page.take(row, bytes, sent);
            let read = async {
                match &self.database {
                    Database::Postgres(postgres) => postgres::rows(postgres, ask, &mut take).await,
                    Database::Sqlite(path) => sqlite::rows(path, ask, &mut take).await,
                }
            };
            // The server ends a query that takes too long; this is for a server that is gone, and for SQLite.
            let slack = if matches!(self.database, Database::Postgres(_)) { Duration::from_secs(15) } else { Duration::ZERO };
            let error = match tokio::time::timeout(ask.timeout + slack, read).await {
                Ok(Ok(())) => {
                    if let Some(fault) = page.fault {
                        return Err(fault);
                    }
                    page.items.append(&mut page.undated);
                    return Ok(page);
                }
                Ok(Err(error)) => self.error(&error),
                Err(_) => self.too_slow(),
            };
            let wait = match &error {
                SourceError::Unavailable(_) => self.retry.wait(attempt, started.elapsed(), None, backoff::chance()),
                _ => None,
            };
            let Some(wait) = wait else { return Err(error) };
            tracing::debug!(attempt, ?wait, %error, "a query failed, trying again");
            tokio::time::sleep(wait).await;
        }
        unreachable!("the policy ends every loop")
    }

    fn too_slow(&self) -> SourceError {
        SourceError::Refused(format!("the query takes longer than {} (`timeout`)", self.config.timeout))
    }

    fn error(&self, error: &sqlx::Error) -> SourceError {
        match &self.database {
            Database::Postgres(postgres) => {
                let canceled = matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("57014"));
                let read_only = matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("25006"));
                match PostgresFault::of(error) {
                    _ if canceled => self.too_slow(),
                    PostgresFault::Away if !read_only => SourceError::Unavailable(postgres.explain(error)),
                    _ => SourceError::Refused(postgres.explain(error)),
                }
            }
            Database::Sqlite(path) => {
                let what = match error {
                    sqlx::Error::Database(error) => error.message().to_owned(),
                    error => error.to_string(),
                };
                let message = format!("{}: {}", path.display(), text::one_line(&what, 300));
                // 1: no such table or column, a syntax error; the rest may pass (a lock, a file that is being replaced).
                let refused = matches!(error, sqlx::Error::Database(error) if error.code().as_deref() == Some("1"));
                if refused { SourceError::Refused(message) } else { SourceError::Unavailable(message) }
            }
        }
    }
}

/// Rows on their way to a page.
struct Page<'a> {
    config: &'a SqlConfig,
    /// Of the whole fetch.
    window: Window,
    /// New ones, in order of time.
    items: Vec<Fetched>,
    undated: Vec<Fetched>,
    /// Read, new or not.
    rows: i64,
    bytes: usize,
    /// There were more bytes than a page holds.
    cut: bool,
    newest: Option<Timestamp>,
    fault: Option<SourceError>,
}

impl Page<'_> {
    fn take(&mut self, row: Result<Map<String, Value>, String>, bytes: usize, sent: &Sent) -> ControlFlow<()> {
        self.rows += 1;
        let config = self.config;
        let row = match row {
            Ok(row) => row,
            Err(reason) => {
                self.fault = Some(SourceError::Refused(reason));
                return ControlFlow::Break(());
            }
        };
        let known = || row.keys().map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ");
        let keyed = [("id_column", &config.id_column), ("timestamp_column", &config.timestamp_column)];
        // A column that no row has is a slip of the pen: what failed for want of it would have failed for good.
        for (key, column) in keyed.into_iter().chain(config.required.iter().map(|column| ("required", column))) {
            if !row.contains_key(column) {
                let hint = text::nearest(column, row.keys().map(String::as_str)).map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
                self.fault = Some(SourceError::Refused(format!("the query gives no column `{column}` (`{key}`); {hint}it gives {}", known())));
                return ControlFlow::Break(());
            }
        }
        let at = row.get(&config.timestamp_column).and_then(time);
        if let Some(at) = at {
            if self.newest.is_some_and(|newest| at < newest) {
                let hint = format!(
                    "order by it, and let it be a value whose order is that of time (a timestamp, or a number since the epoch): `{}`",
                    config.timestamp_column
                );
                self.fault = Some(SourceError::Refused(format!("the query's rows do not come in order of its `timestamp_column`: {hint}")));
                return ControlFlow::Break(());
            }
            self.newest = Some(at);
            if at < self.window.from || at >= self.window.to {
                return ControlFlow::Continue(());
            }
        }
        let item = item(config, row, at, self.window);
        if sent.contains_key(&item.id) {
            return ControlFlow::Continue(());
        }
        if item.dated { &mut self.items } else { &mut self.undated }.push(item);
        self.bytes += bytes;
        self.cut = self.bytes >= PAGE_BYTES;
        if self.cut { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn item(config: &SqlConfig, row: Map<String, Value>, at: Option<Timestamp>, window: Window) -> Fetched {
    let timestamp = at.unwrap_or_else(|| window.to.checked_sub(SignedDuration::from_micros(1)).unwrap_or(window.to));
    let id = match row.get(&config.id_column) {
        Some(Value::String(id)) if !id.is_empty() => Ok(id.clone()),
        Some(Value::Number(id)) => Ok(id.to_string()),
        _ => Err(format!("`{}` is no id", config.id_column)),
    };
    let missing = config.required.iter().find(|column| row.get(*column).is_some_and(Value::is_null));
    let missing = missing.map(|column| format!("the row has no `{}`", text::one_line(column, 80)));
    let (id, fault) = match id {
        Ok(id) => (id, missing),
        Err(fault) => (format!("row-{}", &blake3::hash(Value::Object(row.clone()).to_string().as_bytes()).to_hex()[..32]), Some(fault)),
    };
    let body = match fault {
        Some(fault) => Err(fault),
        None => {
            let mut trace = fields::trace(id.clone(), timestamp, row.clone());
            trace.extra = Map::from_iter([("row".to_owned(), Value::Object(row))]);
            Ok(Arc::new(trace))
        }
    };
    Fetched { id, timestamp, dated: at.is_some(), body }
}

/// As in files; besides, times without a zone, which databases write too: UTC.
fn time(value: &Value) -> Option<Timestamp> {
    fields::time(value).or_else(|| {
        let text = value.as_str()?;
        let civil = text.parse::<civil::DateTime>().or_else(|_| text.parse::<civil::Date>().map(civil::DateTime::from)).ok()?;
        civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_databases_are_read() {
        let at: Timestamp = "2026-01-31T09:30:00Z".parse().unwrap();
        for text in ["2026-01-31T09:30:00+00:00", "2026-01-31T10:30:00+01:00", "2026-01-31T09:30:00", "2026-01-31 09:30:00", "2026-01-31 09:30:00+00"] {
            assert_eq!(time(&text.into()), Some(at), "{text}");
        }
        assert_eq!(time(&"2026-01-31".into()), Some("2026-01-31T00:00:00Z".parse().unwrap()));
        assert_eq!(time(&at.as_second().into()), Some(at));
        assert_eq!([Value::Null, "infinity".into(), "soon".into()].iter().filter_map(time).count(), 0);
        assert_eq!(bound(at), "2026-01-31T09:30:00.000000Z");
        assert_eq!(bound(Timestamp::MIN), "0001-01-01T00:00:00.000000Z");
    }
}
