//! What assayd remembers: runs, the decision ledger, scores, the outbox, alert state.
//!
//! One SQLite file in WAL mode. All writes go through one [`Writer`], which gathers what waits into one transaction
//! (group commit), so an answer is on disk before its item counts as judged and a hundred answers cost one fsync.
//! `synchronous=FULL`: an answer that was paid for survives a power cut, not just a kill.
//!
//! When a write fails (disk full, folder read-only, file locked) nothing is dropped: the writer says so through
//! [`Store::health`], keeps what it holds and tries again; `pipeline` makes no judge call while the store is unwell.
//!
//! Reads go past the writer on connections of their own. A second process may read (`assayd status`), never write:
//! see [`lock`]. The one exception are the sealed secrets (`assayd secrets`), which the daemon itself never writes.
//!
//! Absent on purpose: rules. The store neither decides nor knows what a decision means.

mod alerts;
mod anchors;
mod apply;
mod digest;
mod experiments;
mod gateway;
mod groups;
mod health;
mod history;
pub mod lock;
mod lookup;
mod outbox;
mod outcomes;
mod prompts;
mod read;
mod retention;
mod secrets;
mod silences;
mod types;
mod writer;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::watch;

pub use alerts::{Since, Slice, ValueSeen};
pub use anchors::AnchorRow;
pub use digest::NewDigest;
pub use gateway::{CachedRow, CallRow, UsageRow};
pub use history::Version;
use lookup::Lookup;
pub use outbox::QueueStatus;
pub use prompts::PromptRow;
pub use read::{ExportFilter, ItemLife, MonitorStatus};
pub use retention::Retention;
pub use secrets::{SecretsError, change_secrets, read_secrets};
pub use silences::SilenceRow;
pub use types::{
    AlertRow, Baseline, DrawBatch, Due, DueGroup, Failure, Fate, FinishedRun, GroupTold, ItemEnd, ItemOutcome, Known, MovedAlerts, NewItem, NewNotice,
    NewScore, Pending, Queue, RunRow, SentBatch, Stage, Standing, TellingEnd, Told,
};
pub use writer::Writer;
use writer::{Reply, Request, Write};

/// The file inside the state folder.
pub const FILE: &str = "assayd.db";

/// A handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    read: SqlitePool,
    lookup: Arc<Lookup>,
    writes: Option<tokio::sync::mpsc::Sender<Request>>,
    health: watch::Receiver<Health>,
}

/// Whether writes get through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Well,
    /// The reason, in the database's words.
    Unwell(String),
}

/// A write that will not happen: the process is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is closed")]
pub struct Closed;

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5))
        // 2 MiB a connection: the operating system caches the file anyway.
        .pragma("cache_size", "-2000")
        .pragma("journal_size_limit", "67108864")
        .pragma("temp_store", "memory")
        .disable_statement_logging()
}

/// Brings a database up to date.
async fn migrate(connection: &mut SqliteConnection) -> anyhow::Result<()> {
    Ok(sqlx::migrate!("src/store/migrations/sqlite").run(connection).await?)
}

impl Store {
    /// Opens (and makes, or brings up to date) the database of a state folder, as its one writing process. The caller
    /// runs [`Writer::run`] for as long as the store is used.
    ///
    /// # Errors
    /// When the file cannot be opened or was made by a newer assayd.
    pub async fn open(state: &Path) -> anyhow::Result<(Self, Writer)> {
        let path = state.join(FILE);
        let describe = || format!("opening the store {}", path.display());
        let options = options(&path).create_if_missing(true);
        let mut connection = options.connect().await.with_context(describe)?;
        migrate(&mut connection).await.with_context(describe)?;
        let (health, watch) = watch::channel(Health::Well);
        let (writes, requests) = tokio::sync::mpsc::channel(1024);
        let writer = Writer::new(options.clone(), connection, requests, health);
        let options = options.create_if_missing(false);
        Ok((Self { lookup: Arc::new(Lookup::new(options.clone())), read: pool(options), writes: Some(writes), health: watch }, writer))
    }

    /// Opens an existing database beside whichever process writes it.
    ///
    /// # Errors
    /// When there is none yet.
    #[expect(clippy::unused_async, reason = "the pool wants a runtime around it")]
    pub async fn open_to_read(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(FILE);
        anyhow::ensure!(path.exists(), "there is no store at {} yet: nothing has run", path.display());
        let (_, health) = watch::channel(Health::Well);
        let options = options(&path).create_if_missing(false);
        Ok(Self { lookup: Arc::new(Lookup::new(options.clone())), read: pool(options), writes: None, health })
    }

    /// A store that holds nothing, keeps nothing and takes no writes.
    ///
    /// # Errors
    /// The database's.
    pub async fn nothing() -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new().in_memory(true).disable_statement_logging();
        // The one connection is the database.
        let pool = SqlitePoolOptions::new().max_connections(1).min_connections(1).idle_timeout(None).max_lifetime(None);
        let read = pool.connect_with(options.clone()).await?;
        sqlx::migrate!("src/store/migrations/sqlite").run(&read).await?;
        Ok(Self { lookup: Arc::new(Lookup::new(options)), read, writes: None, health: watch::channel(Health::Well).1 })
    }

    /// For waiting until writes get through, and for saying that they do not.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    #[must_use]
    pub fn is_well(&self) -> bool {
        *self.health.borrow() == Health::Well
    }

    /// Returns once writes get through. A closed store counts as unwell for ever, and ends with the process.
    ///
    /// # Errors
    /// `Closed` when the writer is gone.
    pub async fn wait_until_well(&self) -> Result<(), Closed> {
        self.health.clone().wait_for(|health| *health == Health::Well).await.map(|_| ()).map_err(|_| Closed)
    }

    async fn write(&self, write: Write) -> Result<Reply, Closed> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.writes.as_ref().ok_or(Closed)?.send(Request { write, reply }).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }

    /// Records the start of a run. `None` when the slot has run or is running already, else the run as it stands
    /// (an interrupted one keeps its seed and its progress).
    ///
    /// # Errors
    /// `Closed`.
    pub async fn begin_run(&self, run: RunRow) -> Result<bool, Closed> {
        Ok(self.write(Write::BeginRun(run)).await?.changed > 0)
    }

    /// The draw: decisions of a batch of new items, those drawn with what is needed to judge them, the watermark.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn record_draw(&self, batch: DrawBatch) -> Result<(), Closed> {
        self.write(Write::Draw(Box::new(batch))).await.map(|_| ())
    }

    /// What came of one item: its scores, what is to be published, and its decision if it is final or has to wait.
    /// On disk when this returns.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn record_outcome(&self, outcome: ItemOutcome) -> Result<(), Closed> {
        self.write(Write::Outcome(Box::new(outcome))).await.map(|_| ())
    }

    /// The end of a run, with the alerts it moved and the messages that follow from it.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn finish_run(&self, run: FinishedRun) -> Result<(), Closed> {
        self.write(Write::FinishRun(Box::new(run))).await.map(|_| ())
    }

    /// Alerts that moved between runs, and what people are told of them.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn record_alerts(&self, moved: MovedAlerts) -> Result<(), Closed> {
        self.write(Write::Alerts(Box::new(moved))).await.map(|_| ())
    }

    /// Forgets what retention no longer covers, a bounded number of rows a call; returns how many went.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn retain(&self, retention: Retention) -> Result<u64, Closed> {
        Ok(self.write(Write::Retain(retention)).await?.changed)
    }

    /// Ends the writer once all that was written before is on disk. Later writes answer `Closed`.
    ///
    /// # Errors
    /// `Closed`: it has ended already.
    pub async fn close(&self) -> Result<(), Closed> {
        self.write(Write::Close).await.map(|_| ())
    }

    /// Moves the write-ahead log into the database file.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn checkpoint(&self) -> Result<(), Closed> {
        self.write(Write::Checkpoint).await.map(|_| ())
    }
}

fn pool(options: SqliteConnectOptions) -> SqlitePool {
    // Not asked whether it lives before each use: it is a file, and asking costs as much as most queries.
    SqlitePoolOptions::new().test_before_acquire(false).max_connections(4).min_connections(0).idle_timeout(Duration::from_secs(60)).connect_lazy_with(options)
}
