//! Notices that files of monitors may have changed. Any event means "look again": names in events are not to be trusted
//! (a ConfigMap's swap names no file at all), so the loader compares contents.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Quiet for this long before a look: an editor writes in several steps.
pub(super) const SETTLE: Duration = Duration::from_millis(200);
/// A look without any event: watches get lost (a folder deleted and made anew, network mounts).
pub(super) const RESCAN: Duration = Duration::from_secs(30);

pub(super) struct Files {
    watcher: Option<RecommendedWatcher>,
    folder: PathBuf,
}

impl Files {
    /// Sends a unit for every event below `folder`. Where the system gives no watch, the rescan alone is left.
    pub fn watch(folder: &Path, dirty: mpsc::Sender<()>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let matters = event.map_or(true, |event| !matches!(event.kind, notify::EventKind::Access(_)));
            if matters {
                // Full means that a look is due anyway.
                let _ = dirty.try_send(());
            }
        });
        let mut files =
            Self { watcher: watcher.map_err(|error| tracing::warn!(%error, "no file watch; looking every 30 s instead")).ok(), folder: folder.to_owned() };
        files.again();
        files
    }

    /// Sets the watch anew: one on a folder that was deleted and made again is dead without saying so.
    pub fn again(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        // An error means that there was no watch on it, which is what is wanted.
        let _ = watcher.unwatch(&self.folder);
        if let Err(error) = watcher.watch(&self.folder, RecursiveMode::Recursive) {
            tracing::debug!(%error, folder = %self.folder.display(), "not watched; looking every 30 s instead");
        }
    }
}
