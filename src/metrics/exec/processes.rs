//! All processes of `exec` metrics, by what makes them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{
    Spec,
    group::Groups,
    keep,
    queue::{Asks, Queue},
};

/// The processes of all `exec` metrics: a monitor is compiled anew for every run, its process stays.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    open: Arc<Mutex<Open>>,
    groups: Groups,
}

#[derive(Debug, Default)]
struct Open {
    /// `None` once closed.
    begin: Option<mpsc::UnboundedSender<Keeper>>,
    asks: HashMap<blake3::Hash, Asks>,
}

/// Keeps one process, for as long as it may be needed; its owner runs it as a task.
pub type Keeper = BoxFuture<'static, ()>;

impl Processes {
    /// The caller runs what comes out of the receiver.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Keeper>) {
        let (begin, begun) = mpsc::unbounded_channel();
        let open = Open { begin: Some(begin), asks: HashMap::new() };
        (Self { open: Arc::new(Mutex::new(open)), groups: Groups::default() }, begun)
    }

    /// For checking settings: starts nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Ends all processes that have nothing to do, the others when they are done.
    pub fn close(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.begin = None;
        open.asks.clear();
    }

    /// Ends all processes at once, for a caller that leaves without dropping the tasks that keep them.
    pub fn kill(&self) {
        self.close();
        self.groups.end();
    }

    pub(super) fn of(&self, spec: &Arc<Spec>) -> Option<Asks> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let key = spec.key();
        if let Some(asks) = open.asks.get(&key).filter(|asks| !asks.are_closed()) {
            return Some(asks.clone());
        }
        let (asks, queue) = Queue::new();
        open.begin.as_ref()?.send(Box::pin(keep::keep(Arc::clone(spec), queue, self.groups.clone()))).ok()?;
        open.asks.insert(key, asks.clone());
        Some(asks)
    }
}
