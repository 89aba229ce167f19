use std::{
    fmt,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use schemars::JsonSchema;
use serde::Deserialize;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool, Transaction,
    postgres::{PgConnectOptions, PgDatabaseError, PgPoolOptions},
};

use crate::util::{
    secret::{ExposeSecret, SecretString},
    text,
};

/// A Postgres database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConnection {
    /// `postgres://user:password@host/database`; it holds a password, so it is a secret.
    #[schemars(with = "String")]
    pub url: SecretString,
    /// Shared by all that name this connection; made by the first one that uses it.
    #[serde(skip)]
    #[schemars(skip)]
    pool: Arc<OnceLock<PgPool>>,
}

impl PostgresConnection {
    #[must_use]
    pub fn new(url: SecretString) -> Self {
        Self { url, pool: Arc::default() }
    }
}

/// Connections to one database. Few: what uses them is seldom busy at the same time, and servers have few to give.
const CONNECTIONS: u32 = 4;
/// For a connection, a new one or a free one.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that nobody used for this long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// A client of one database. Cheap to clone; the clones share a pool.
#[derive(Clone)]
pub struct Postgres {
    options: Arc<PgConnectOptions>,
    pool: Arc<OnceLock<PgPool>>,
}

impl fmt::Debug for Postgres {
    /// Not the options: they hold the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Postgres").field(&self.place()).finish()
    }
}

/// What an error asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresFault {
    /// A value that the server does not take (SQLSTATE classes 22, 23 and 54): the same for ever.
    Data,
    /// A rule of the database's owner speaks against a row, or against all of them: a row-level policy (42501), a trigger
    /// (P0001), a view's check (44000), a rule that wants one row and finds more (21000).
    Rule,
    /// A table or column is missing, or is not what was expected (class 42).
    Tables,
    /// Credentials, rights, the database's name: the same until somebody acts.
    Refused,
    /// The server or the way to it; another try may do.
    Away,
}

impl Postgres {
    /// Pure: connects to nothing.
    ///
    /// # Errors
    /// A sentence, without the address: it may hold a password.
    pub fn new(connection: &PostgresConnection) -> Result<Self, String> {
        let url = connection.url.expose_secret();
        let scheme = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
        let options = scheme.then(|| PgConnectOptions::from_str(url).ok()).flatten();
        let options = options.ok_or("`url` is no address of a Postgres; write it like `postgres://user:password@host:5432/database`")?;
        Ok(Self { options: Arc::new(options.application_name("assayd").disable_statement_logging()), pool: Arc::clone(&connection.pool) })
    }

    /// Where the database is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        let options = &self.options;
        let database = options.get_database().unwrap_or(options.get_username());
        format!("{}:{}/{database}", options.get_host(), options.get_port())
    }

    /// A transaction, begun by `statement`: `BEGIN` and what has to be set in it.
    ///
    /// # Errors
    /// The server's, or of the way to it.
    pub async fn begin(&self, statement: String) -> Result<Transaction<'static, sqlx::Postgres>, sqlx::Error> {
        let pool = self.pool.get_or_init(|| {
            let options = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(PATIENCE).idle_timeout(IDLE);
            options.connect_lazy_with(PgConnectOptions::clone(&self.options))
        });
        match pool.begin_with(AssertSqlSafe(statement)).await {
            // The pool waits for a server that refuses, and says only that it waited: ask for the reason.
            Err(sqlx::Error::PoolTimedOut) => match tokio::time::timeout(PATIENCE, PgConnection::connect_with(&self.options)).await {
                Ok(Err(error)) => Err(error),
                Ok(Ok(connection)) => {
                    // It was only to see whether there is a way.
                    let _ = connection.close().await;
                    Err(sqlx::Error::PoolTimedOut)
                }
                Err(_) => Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer"))),
            },
            begun => begun,
        }
    }

    /// An error in words, without anything secret.
    #[must_use]
    pub fn explain(&self, error: &sqlx::Error) -> String {
        let what = match error {
            sqlx::Error::Database(error) => {
                let code = error.code().map(|code| format!(" (SQLSTATE {code})")).unwrap_or_default();
                format!("{}{code}", text::one_line(error.message(), 300))
            }
            sqlx::Error::PoolTimedOut => format!("all {CONNECTIONS} connections are busy"),
            sqlx::Error::Io(error) => text::one_line(&error.to_string(), 200),
            error => text::one_line(&error.to_string(), 200),
        };
        format!("Postgres at {}: {what}", self.place())
    }
}

impl PostgresFault {
    #[must_use]
    pub fn of(error: &sqlx::Error) -> Self {
        let sqlx::Error::Database(error) = error else { return Self::Away };
        let code = error.code().unwrap_or_default();
        // What the server calls no right to a table, and a row against a policy, has one code: the place in the server tells.
        let policy = || error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine) == Some("ExecWithCheckOptions");
        match &*code {
            "P0001" | "44000" | "21000" => return Self::Rule,
            "42501" if policy() => return Self::Rule,
            _ => {}
        }
        match code.get(..2).unwrap_or_default() {
            // 42501: no right to what is there.
            "42" if code != "42501" => Self::Tables,
            "3F" => Self::Tables,
            "22" | "23" | "54" => Self::Data,
            "0A" | "28" | "3D" | "42" => Self::Refused,
            _ => Self::Away,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_told_without_repeating_it() {
        for url in ["hunter2", "mysql://u:hunter2@h/d", "postgres://u:hunter2@h:notaport/d"] {
            let error = Postgres::new(&PostgresConnection::new(url.into())).unwrap_err();
            assert!(error.contains("postgres://") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_password_is_in_no_words() {
        let postgres = Postgres::new(&PostgresConnection::new("postgres://me:hunter2@db.internal/answers".into())).unwrap();
        let said = format!("{postgres:?} {} {}", postgres.place(), postgres.explain(&sqlx::Error::PoolTimedOut));
        assert!(said.contains("db.internal:5432/answers") && !said.contains("hunter2"), "{said}");
    }
}
