//! Group commit: whatever waits goes into one transaction.

use std::time::Duration;

use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    DrawBatch, FinishedRun, GroupTold, Health, ItemOutcome, MovedAlerts, NewDigest, Retention, RunRow, SentBatch,
    anchors::AnchorsWrite,
    apply::{self, Names},
    experiments::Grouped,
    gateway::GatewayWrite,
    prompts::PromptWrite,
    silences::SilenceWrite,
};
use crate::{
    model::OutboxChange,
    util::backoff::{self, Policy},
};

/// Writes gathered into one transaction: enough to make an fsync cheap, few enough to keep the first one's wait short.
const BATCH: usize = 256;

/// How long a write that nobody waits for waits for others: at two hundred items a second each would else pay for an fsync of its own. A crash loses at most
/// what was judged within it, as it loses the calls that are under way.
const GATHER: Duration = Duration::from_millis(20);

/// Between attempts while the database refuses writes; it goes on for ever.
const RETRY: Policy = Policy { attempts: u32::MAX, max_elapsed: Duration::MAX, base: Duration::from_millis(50), cap: Duration::from_secs(2) };

pub(super) struct Request {
    pub write: Write,
    pub reply: oneshot::Sender<Reply>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reply {
    /// Rows that the write changed, where the caller asks.
    pub changed: u64,
}

pub(super) enum Write {
    BeginRun(RunRow),
    Draw(Box<DrawBatch>),
    Outcome(Box<ItemOutcome>),
    FinishRun(Box<FinishedRun>),
    Alerts(Box<MovedAlerts>),
    Sent(SentBatch),
    Outbox(OutboxChange),
    Told(GroupTold),
    Gateway(GatewayWrite),
    Prompt(PromptWrite),
    Digest(Box<NewDigest>),
    Silence(SilenceWrite),
    Anchors(AnchorsWrite),
    Grouped(Grouped),
    Retain(Retention),
    Checkpoint,
    /// The last one.
    Close,
}

impl Write {
    /// Whether more may be gathered before it goes to disk. What a run, a call or a person waits for goes at once.
    fn can_wait(&self) -> bool {
        match self {
            Self::Outcome(outcome) => outcome.end.is_some(),
            Self::Gateway(write) => !matches!(write, GatewayWrite::Budget { .. }),
            Self::Sent(_) => true,
            Self::BeginRun(_)
            | Self::Draw(_)
            | Self::FinishRun(_)
            | Self::Alerts(_)
            | Self::Told(_)
            | Self::Outbox(_)
            | Self::Prompt(_)
            | Self::Digest(_)
            | Self::Silence(_)
            | Self::Anchors(_)
            | Self::Grouped(_)
            | Self::Retain(_)
            | Self::Checkpoint
            | Self::Close => false,
        }
    }
}

/// The one hand that writes.
pub struct Writer {
    options: SqliteConnectOptions,
    /// `None` after a failure: a connection that met an I/O error is not trusted again.
    connection: Option<SqliteConnection>,
    requests: mpsc::Receiver<Request>,
    health: watch::Sender<Health>,
    names: Names,
}

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions, connection: SqliteConnection, requests: mpsc::Receiver<Request>, health: watch::Sender<Health>) -> Self {
        Self { options, connection: Some(connection), requests, health, names: Names::default() }
    }

    /// Serves writes until it is told to close or every [`super::Store`] handle is gone, then closes the file. Never gives a write up: while
    /// the database refuses, the batch is held and tried again.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.requests.recv_many(&mut batch, BATCH).await > 0 {
            self.gather(&mut batch).await;
            let replies = self.commit(&batch).await;
            let last = batch.iter().any(|request| matches!(request.write, Write::Close));
            for (request, reply) in batch.drain(..).zip(replies) {
                // A caller that went away (a run that timed out) has no use for the answer.
                let _ = request.reply.send(reply);
            }
            if last {
                break;
            }
        }
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "closing the store");
        }
    }

    async fn gather(&mut self, batch: &mut Vec<Request>) {
        let until = tokio::time::Instant::now() + GATHER;
        while batch.len() < BATCH && batch.iter().all(|request| request.write.can_wait()) {
            match tokio::time::timeout_at(until, self.requests.recv_many(batch, BATCH - batch.len())).await {
                Ok(more) if more > 0 => {}
                _ => return,
            }
        }
    }

    async fn commit(&mut self, batch: &[Request]) -> Vec<Reply> {
        let started = tokio::time::Instant::now();
        for attempt in 1.. {
            match self.try_commit(batch).await {
                Ok(replies) => {
                    if self.health.send_replace(Health::Well) != Health::Well {
                        tracing::info!("the store takes writes again");
                    }
                    return replies;
                }
                Err(error) => {
                    self.connection = None;
                    self.names = Names::default();
                    let reason = error.to_string();
                    if self.health.send_replace(Health::Unwell(reason.clone())) == Health::Well {
                        tracing::error!(error = %reason, "the store refuses writes; nothing is judged until it takes them again");
                    }
                }
            }
            let wait = RETRY.wait(attempt, started.elapsed(), None, backoff::chance()).unwrap_or(RETRY.cap);
            tokio::time::sleep(wait).await;
        }
        Vec::new()
    }

    async fn try_commit(&mut self, batch: &[Request]) -> Result<Vec<Reply>, sqlx::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            gone => gone.insert(self.options.connect().await?),
        };
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let replies = apply::apply(&mut transaction, &mut self.names, batch).await?;
        transaction.commit().await?;
        if batch.iter().any(|request| matches!(request.write, Write::Checkpoint)) {
            // Outside of the transaction, where alone it may run. A reader that holds it up is no fault.
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(connection).await?;
        }
        Ok(replies)
    }
}
