//! A change of the outbox without the daemon: `assayd outbox retry` and `drop`.

use std::{path::Path, time::Duration};

use super::supervisor::Supervisor;
use crate::{model::OutboxChange, store::Store};

/// The caller holds the state folder's lock. Returns how many rows were changed.
///
/// # Errors
/// When the store cannot be opened.
pub async fn change_outbox(state: &Path, change: OutboxChange) -> anyhow::Result<u64> {
    let (store, writer) = Store::open(state).await?;
    let mut tasks = Supervisor::default();
    tasks.spawn("store", writer.run());
    let changed = store.change_outbox(change).await;
    // An error means that it is closed already.
    let _ = store.close().await;
    tasks.finish(Duration::from_secs(10)).await;
    Ok(changed?)
}
