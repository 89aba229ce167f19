//! A look at the prompts in use without the daemon: `assayd prompts refresh`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{supervisor::Supervisor, wire::World};
use crate::{config::Settings, prompts::Use, schedule::clock::SystemClock, store::PromptRow};

/// Looks at all of them, or at those of one name, and keeps what was found.
///
/// # Errors
/// When the store or a connection cannot be set up.
pub async fn refresh_prompts(settings: Settings, uses: BTreeSet<Use>, name: Option<&str>) -> anyhow::Result<Vec<PromptRow>> {
    let (world, hands) = World::open(Arc::new(settings), Arc::new(SystemClock)).await?;
    drop(hands.keeper);
    let mut tasks = Supervisor::default();
    tasks.spawn("store", hands.writer.run());
    world.prompts.set_uses(uses);
    let rows = world.prompts.refresh(name).await;
    // An error means that it is closed already.
    let _ = world.services.store.close().await;
    tasks.finish(Duration::from_secs(10)).await;
    Ok(rows)
}
