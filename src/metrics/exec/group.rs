//! A process and what it has started, as a group: they end together.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// The groups that are there, for whoever has to end them without dropping anything.
#[derive(Debug, Clone, Default)]
pub(super) struct Groups(Arc<Mutex<HashSet<Pid>>>);

impl Groups {
    /// Kills them all, now.
    pub(super) fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain().for_each(kill);
    }
}

/// A process and all its children that stayed with it (one that calls `setsid` did not): killed when dropped.
pub(super) struct Group {
    pub process: tokio::process::Child,
    pid: Option<Pid>,
    all: Groups,
}

impl Group {
    /// Of a process that leads a group of its own.
    pub(super) fn new(process: tokio::process::Child, all: &Groups) -> Self {
        let pid = process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        all.0.lock().unwrap_or_else(PoisonError::into_inner).extend(pid);
        Self { process, pid, all: all.clone() }
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// Kills who is left of it. Once: later its number may be another's.
    pub(super) fn end(&mut self) {
        let Some(pid) = self.pid.take() else { return };
        if self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid) {
            kill(pid);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

fn kill(pid: Pid) {
    // Nobody is left of a group that ended.
    let _ = kill_process_group(pid, Signal::KILL);
}
