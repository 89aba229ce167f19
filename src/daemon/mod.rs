//! The daemon: wiring, tasks, signals, reload, drain.

mod once;
pub mod supervisor;
pub mod wire;

pub use once::once;

/// Placeholder
pub async fn run(_settings: crate::config::Settings) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
