//! What goes on beside runs and requests: looks ahead of time, and calls of `notify_url`.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::Prompts;
use crate::util::{
    http::Http,
    secret::{ExposeSecret, SecretString},
};

/// Something to do soon.
pub(super) enum Errand {
    /// Look at what is not fresh.
    Look,
    /// Tell an address of an event.
    Call { url: SecretString, body: Value },
}

/// Looks at the same time.
const AT_ONCE: usize = 8;
/// Between two looks for what is no longer fresh.
const ROUND: Duration = Duration::from_secs(1);

/// Keeps the prompts in use fresh.
pub struct Keeper {
    prompts: Prompts,
    http: Http,
    errands: mpsc::UnboundedReceiver<Errand>,
}

impl Keeper {
    pub(super) fn new(prompts: Prompts, http: Http, errands: mpsc::UnboundedReceiver<Errand>) -> Self {
        Self { prompts, http, errands }
    }

    /// Until `stop` says so.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let errand = tokio::select! {
                // A sender that is gone asks for the same.
                _ = stop.wait_for(|stop| *stop) => return,
                errand = self.errands.recv() => errand,
                () = tokio::time::sleep(ROUND) => Some(Errand::Look),
            };
            let work = async {
                match errand {
                    Some(Errand::Call { url, body }) => self.call(&url, &body).await,
                    Some(Errand::Look) => self.look().await,
                    None => {}
                }
            };
            tokio::select! {
                () = work => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn look(&self) {
        let due = self.prompts.due();
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |prompt| async move {
                // What it found is in memory and in the log.
                let _ = self.prompts.look(&prompt).await;
            })
            .await;
    }

    /// Best effort: what has to arrive goes through an outbox.
    async fn call(&self, url: &SecretString, body: &Value) {
        let sent = self.http.send(|| self.http.client.post(url.expose_secret()).json(body), |_| Ok(())).await;
        if let Err(error) = sent {
            // The address may hold a secret.
            tracing::warn!(%error, "`notify_url` of a Langfuse connection could not be called");
        }
    }
}
