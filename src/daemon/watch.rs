//! Notices that files of monitors may have changed. Any event means "look again": names in events are not to be trusted
//! (a ConfigMap's swap names no file at all), so the loader compares contents.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::RemoveKind};
use tokio::sync::mpsc;

/// Quiet for this long before a look: an editor writes in several steps.
pub(super) const SETTLE: Duration = Duration::from_millis(200);
/// A look without any event: watches get lost (a folder deleted and made anew, network mounts).
pub(super) const RESCAN: Duration = Duration::from_secs(30);

pub(super) struct Files {
    watcher: Option<RecommendedWatcher>,
    folder: PathBuf,
    /// Device and inode of the folder that is watched.
    watched: Option<(u64, u64)>,
    /// A folder was removed, or events were dropped. (An inode's number may be given to the next folder.)
    lost: Arc<AtomicBool>,
}

impl Files {
    /// Sends a unit for every event below `folder`. Where the system gives no watch, the rescan alone is left.
    pub fn watch(folder: &Path, dirty: mpsc::Sender<()>) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let of_events = Arc::clone(&lost);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, |event| matches!(event.kind, EventKind::Remove(kind) if kind != RemoveKind::File)) {
                of_events.store(true, Ordering::Relaxed);
            }
            let matters = event.map_or(true, |event| !matches!(event.kind, EventKind::Access(_)));
            if matters {
                // Full means that a look is due anyway.
                let _ = dirty.try_send(());
            }
        });
        let watcher = watcher.map_err(|error| tracing::warn!(%error, "no file watch; looking every 30 s instead")).ok();
        let mut files = Self { watcher, folder: folder.to_owned(), watched: None, lost };
        files.again();
        files
    }

    /// Sets the watch anew where the folder is another one: a watch on a folder that was deleted and made again is dead
    /// without saying so.
    pub fn again(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let now = std::fs::metadata(&self.folder).ok().map(|folder| (folder.dev(), folder.ino()));
        if !self.lost.swap(false, Ordering::Relaxed) && now.is_some() && now == self.watched {
            return;
        }
        // An error means that there was no watch on it, which is what is wanted.
        let _ = watcher.unwatch(&self.folder);
        self.watched = match watcher.watch(&self.folder, RecursiveMode::Recursive) {
            Ok(()) => now,
            Err(error) => {
                tracing::debug!(%error, folder = %self.folder.display(), "not watched; looking every 30 s instead");
                None
            }
        };
    }
}
