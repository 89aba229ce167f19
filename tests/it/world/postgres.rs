//! A database of the test's own on a real server: ASSAYD_TEST_POSTGRES_URL, or the one on this machine. A gate in front
//! of it can be shut.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{net::TcpListener, task::JoinHandle, task::JoinSet};

pub struct Postgres {
    server: url::Url,
    name: String,
}

impl Postgres {
    /// `None` where there is no server, which CI does not put up with.
    pub async fn start() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = std::env::var("ASSAYD_TEST_POSTGRES_URL").unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        let server: url::Url = server.parse().expect("ASSAYD_TEST_POSTGRES_URL is an address");
        let name = format!("assayd_test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = async {
            let mut connection = PgConnection::connect(server.as_str()).await?;
            // What an earlier process of the same number left.
            sqlx::query(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))).execute(&mut connection).await?;
            sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await?;
            connection.close().await
        };
        match made.await {
            Ok(()) => Some(Self { server, name }),
            Err(error) => {
                assert!(std::env::var("ASSAYD_TEST_REQUIRE_POSTGRES").is_err(), "{error}");
                eprintln!("NOT TESTED: there is no Postgres here ({error})");
                None
            }
        }
    }

    pub fn url(&self) -> String {
        let mut url = self.server.clone();
        url.set_path(&self.name);
        url.to_string()
    }

    /// The same through another port.
    pub fn url_by(&self, port: u16) -> String {
        let mut url: url::Url = self.url().parse().unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(port)).unwrap();
        url.to_string()
    }

    /// Host and port.
    fn address(&self) -> String {
        format!("{}:{}", self.server.host_str().unwrap_or("127.0.0.1"), self.server.port().unwrap_or(5432))
    }

    pub async fn run(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().await.unwrap();
    }

    /// Rows as objects.
    pub async fn rows(&self, sql: &str) -> Vec<Value> {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        let sql = format!("SELECT to_json(q)::text FROM ({sql}) AS q");
        let rows: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(sql.clone())).fetch_all(&mut connection).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().await.unwrap();
        rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect()
    }

    /// Of a table that may not be there yet: 0.
    pub async fn count(&self, table: &str) -> u64 {
        let known = self.rows(&format!("SELECT to_regclass('{table}') IS NOT NULL AS known")).await;
        if known[0]["known"] == false {
            return 0;
        }
        self.rows(&format!("SELECT count(*) AS n FROM {table}")).await[0]["n"].as_u64().unwrap()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        // On a thread of its own: a test's runtime may be going down.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(server.as_str()).await.map_err(std::io::Error::other)?;
                sqlx::query(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut connection).await.map_err(std::io::Error::other)
            })
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("a test's database stays behind: {error}");
        }
    }
}

/// A port that leads to the server until it is dropped; then whoever knocks is refused, and who was in is out.
pub struct Gate(JoinHandle<()>);

impl Gate {
    pub async fn open(port: u16, postgres: &Postgres) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = postgres.address();
        Self(tokio::spawn(async move {
            let mut inside = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let address = address.clone();
                inside.spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(address).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        }))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.abort();
    }
}
