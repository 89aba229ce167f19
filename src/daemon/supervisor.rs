//! Every task has a name, an owner and an end. The only place that spawns.

use std::{collections::HashMap, future::Future, time::Duration};

use tokio::{
    sync::mpsc,
    task::{Id, JoinSet},
};

/// Tasks that end together.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<()>,
    names: HashMap<Id, String>,
}

/// A task that is over.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub name: String,
    /// Panics are caught here: they end a task, not the process.
    pub panicked: bool,
}

impl Supervisor {
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks begin")]
    pub fn spawn(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(task);
        self.names.insert(handle.id(), name.into());
    }

    /// The next task that ends; waits for ever while there is none.
    pub async fn ended(&mut self) -> Ended {
        let (id, panicked) = match self.tasks.join_next_with_id().await {
            None => return std::future::pending().await,
            Some(Ok((id, ()))) => (id, false),
            Some(Err(error)) => (error.id(), error.is_panic()),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        if panicked {
            tracing::error!(task = %name, "a task panicked; this is a defect of assayd, please report it");
        }
        Ended { name, panicked }
    }

    /// Tasks that are not over, or over and not yet told by [`Supervisor::ended`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for all tasks, at most `grace`; then ends them. Returns the names of those that were ended.
    pub async fn finish(&mut self, grace: Duration) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + grace;
        while !self.is_empty() {
            tokio::select! {
                _ = self.ended() => {}
                () = tokio::time::sleep_until(deadline) => break,
                () = tokio::time::sleep(Duration::from_secs(5)) => {
                    tracing::info!(waiting_for = ?self.names.values().take(10).collect::<Vec<_>>(), "draining");
                }
            }
        }
        let left: Vec<String> = self.names.drain().map(|(_, name)| name).collect();
        self.tasks.shutdown().await;
        left
    }
}

/// Each of the tasks that come, under one name; ends when no more can come and all are over. Dropped, it ends them all.
pub async fn each(name: &'static str, mut begun: mpsc::UnboundedReceiver<impl Future<Output = ()> + Send + 'static>) {
    let mut tasks = Supervisor::default();
    loop {
        tokio::select! {
            task = begun.recv() => match task {
                Some(task) => tasks.spawn(name, task),
                None => break,
            },
            _ = tasks.ended() => {}
        }
    }
    while !tasks.is_empty() {
        tasks.ended().await;
    }
}
