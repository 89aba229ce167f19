//! Commands into the running daemon, and what they answer. The one way in for the API and for `assayd once` beside a
//! daemon.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    alerting::silence::Silence,
    model::{Backfill, Changes, Gate, OutboxChange, RunReport},
};

/// A run by hand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunRequest {
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Judge nothing, write nothing.
    pub dry_run: bool,
    /// Keep the scores and never send them.
    pub no_publish: bool,
    /// A release check instead of a run over new items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// Items of the past, from `since` to `until`, in place of new ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backfill: Option<Backfill>,
}

/// What `assayd silence` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SilenceOrder {
    Add(Silence),
    /// By its id, at this instant.
    Expire(String, Timestamp),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no monitor `{0}`")]
    NoSuchMonitor(String),
    #[error("monitor `{0}` is running already")]
    Busy(String),
    #[error("monitor `{0}` has a backfill under way; it can be begun again when that has ended")]
    Backfilling(String),
    #[error("{0}")]
    Unfit(String),
    #[error("the daemon is stopping")]
    Stopping,
}

pub enum Command {
    RunNow { monitor: String, request: RunRequest, reply: oneshot::Sender<Result<RunReport, Refusal>> },
    Reload { reply: oneshot::Sender<Changes> },
    Outbox { change: OutboxChange, reply: oneshot::Sender<Result<u64, Refusal>> },
}

/// A handle on the daemon; cheap to clone.
#[derive(Debug, Clone)]
pub struct Control(mpsc::Sender<Command>);

impl Control {
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel(64);
        (Self(sender), receiver)
    }

    /// Runs a monitor now; answers when the run is over.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn run_now(&self, monitor: String, request: RunRequest) -> Result<RunReport, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Command::RunNow { monitor, request, reply }).await.map_err(|_| Refusal::Stopping)?;
        answer.await.map_err(|_| Refusal::Stopping)?
    }

    /// Loads the monitors anew; answers with what changed.
    ///
    /// # Errors
    /// `Stopping`.
    pub async fn reload(&self) -> Result<Changes, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Command::Reload { reply }).await.map_err(|_| Refusal::Stopping)?;
        answer.await.map_err(|_| Refusal::Stopping)
    }

    /// Has rows of the outbox sent again, or forgets them; answers with how many.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn change_outbox(&self, change: OutboxChange) -> Result<u64, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Command::Outbox { change, reply }).await.map_err(|_| Refusal::Stopping)?;
        answer.await.map_err(|_| Refusal::Stopping)?
    }
}
