//! What goes on beside runs and requests: looks ahead of time, events that webhooks brought, calls of `notify_url`.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::{Prompts, hook::Taking};
use crate::util::{
    http::Http,
    secret::{ExposeSecret, SecretString},
};

/// Something to do soon.
pub(super) enum Errand {
    /// Look at what is not fresh.
    Look,
    /// Keep an event, and tell who is to be told of it.
    Take(Box<Taking>),
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

    /// Until `stop` says so. Nothing here waits for anything else here: a prompt that hangs holds no other one up.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { prompts, http, mut errands } = self;
        let mut under_way = BTreeSet::new();
        let (mut looks, mut events) = (FuturesUnordered::new(), FuturesUnordered::new());
        loop {
            for prompt in prompts.due() {
                if under_way.len() < AT_ONCE && under_way.insert(prompt.clone()) {
                    looks.push(async {
                        // What it found is in memory and in the log.
                        let _ = prompts.look(&prompt).await;
                        prompt
                    });
                }
            }
            tokio::select! {
                // A sender that is gone asks for the same.
                _ = stop.wait_for(|stop| *stop) => return,
                Some(prompt) = looks.next() => {
                    under_way.remove(&prompt);
                }
                Some(()) = events.next() => {}
                errand = errands.recv() => if let Some(Errand::Take(taking)) = errand {
                    events.push(async {
                        for (url, body) in prompts.take(*taking).await {
                            call(&http, url, body).await;
                        }
                    });
                },
                () = tokio::time::sleep(ROUND) => {}
            }
        }
    }
}

/// Best effort: what has to arrive goes through an outbox.
async fn call(http: &Http, url: SecretString, body: Value) {
    let sent = http.send(|| http.client.post(url.expose_secret()).json(&body), |_| Ok(())).await;
    if let Err(error) = sent {
        // The address may hold a secret.
        tracing::warn!(%error, "`notify_url` of a Langfuse connection could not be called");
    }
}
