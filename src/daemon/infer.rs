//! One call without the daemon: `assayd infer`.

use std::sync::Arc;

use futures_util::StreamExt;

use super::{supervisor::Supervisor, wire::World};
use crate::{
    config::Settings,
    providers::{CallCx, CallError, Models, Part, Question, Reply},
    schedule::clock::SystemClock,
};

/// Asks a profile; `tell` sees each part of the answer's text as it comes.
///
/// # Errors
/// When the store or the profile cannot be set up, or the call failed.
pub async fn infer(settings: Settings, profile: &str, question: Question, mut tell: impl FnMut(&str) + Send) -> anyhow::Result<Reply> {
    let (world, hands) = World::open(Arc::new(settings), Arc::new(SystemClock)).await?;
    let model = world.gateway.model(profile).map_err(|message| anyhow::anyhow!(message))?;
    let mut tasks = Supervisor::default();
    tasks.spawn("store", hands.writer.run());
    tasks.spawn("hooks", hands.runner.run());
    let run_id = uuid::Uuid::now_v7().to_string();
    let cx = CallCx { monitor: "", metric: "", run_id: &run_id, item_id: "", budgets: &[], fresh: false, background: None };
    let mut parts = model.stream(question, cx);
    let mut outcome = Err(CallError::Failed { kind: "transport", message: "the answer ended without its end".to_owned() });
    while let Some(part) = parts.next().await {
        match part {
            Ok(Part::Text(text)) => tell(&text),
            Ok(Part::End(reply)) => outcome = Ok(reply),
            Err(error) => outcome = Err(error),
        }
    }
    world.gateway.finish().await;
    // An error means that it is closed already.
    let _ = world.services.store.close().await;
    tasks.finish(std::time::Duration::from_secs(10)).await;
    Ok(outcome?)
}
