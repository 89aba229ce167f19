//! What goes on between runs: alerts that have to be seen though no run ends, and the daily digest.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Mutex, watch};

use super::{monitors::tell_states, wire::World};
use crate::pipeline::{Digests, Watched, Watcher};

/// Between two looks.
pub(super) const LOOK: Duration = Duration::from_secs(5);

/// Whoever moves alerts while no run of their monitor ends holds this: the alerts of a monitor that is gone are ended once.
pub(super) type Turn = Arc<Mutex<()>>;

/// Looks each `every`, and when what is watched has changed, until `stop` says so.
pub(super) async fn watch(world: Arc<World>, mut watched: watch::Receiver<Arc<Watched>>, turn: Turn, every: Duration, mut stop: watch::Receiver<bool>) {
    let mut watcher = Watcher::default();
    loop {
        {
            let _turn = turn.lock().await;
            let now = Arc::clone(&watched.borrow_and_update());
            match watcher.look(&world.services, &now).await {
                Ok(moved) => {
                    for monitor in moved {
                        tell_states(&world.services, &monitor).await;
                    }
                }
                Err(error) => tracing::warn!(%error, "alerts between runs could not be evaluated; trying again"),
            }
        }
        tokio::select! {
            // A sender that is gone asks for the same.
            _ = stop.wait_for(|stop| *stop) => return,
            changed = watched.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Sends the digest once a day, until `stop` says so; looks each `every` whether it is due.
pub(super) async fn digest(world: Arc<World>, mut digests: Digests, watched: watch::Receiver<Arc<Watched>>, every: Duration, mut stop: watch::Receiver<bool>) {
    loop {
        let monitors: Vec<String> = watched.borrow().monitors.keys().cloned().collect();
        match digests.look(&world.services, &monitors).await {
            Ok(true) => tracing::info!(monitors = monitors.len(), "the daily digest was made"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the daily digest could not be made; trying again"),
        }
        // A sender that is gone asks for the same as a `true`.
        if tokio::time::timeout(every, stop.wait_for(|stop| *stop)).await.is_ok() {
            return;
        }
    }
}
