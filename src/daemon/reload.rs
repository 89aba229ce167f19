//! Looks at the files of monitors, beside the slots: with thousands of files a look takes a while, and no slot waits for
//! it. What a look found is acted on by [`super::monitors`].

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    config::{Cache, Loaded, Settings, load_monitors},
    model::Changes,
};

/// Who wants the files looked at.
#[derive(Debug)]
pub(super) enum Asker {
    /// The daemon's start.
    Start,
    /// An event of the file system, or a while without one.
    Watch,
    /// SIGHUP.
    Signal,
    /// A request, which is answered.
    Api(oneshot::Sender<Changes>),
}

impl Asker {
    fn answer(self, changes: &Changes) {
        match self {
            Self::Start | Self::Watch => {}
            // Without systemd this says nothing to nobody.
            Self::Signal => drop(sd_notify::notify(&[sd_notify::NotifyState::Ready])),
            // A caller that went away needs no answer.
            Self::Api(reply) => drop(reply.send(changes.clone())),
        }
    }
}

/// One look at a time; who asks during one is answered by the next, which sees what was written before the question.
pub(super) struct Looks {
    settings: Arc<Settings>,
    cache: Arc<Mutex<Cache>>,
    task: Option<JoinHandle<Loaded>>,
    askers: Vec<Asker>,
    next: Vec<Asker>,
}

impl Looks {
    pub fn new(settings: Arc<Settings>) -> Self {
        Self { settings, cache: Arc::default(), task: None, askers: Vec::new(), next: Vec::new() }
    }

    pub fn ask(&mut self, asker: Asker) {
        if self.task.is_some() {
            self.next.push(asker);
        } else {
            self.askers.push(asker);
            self.begin();
        }
    }

    fn begin(&mut self) {
        let (settings, cache) = (Arc::clone(&self.settings), Arc::clone(&self.cache));
        self.task = Some(tokio::task::spawn_blocking(move || {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            load_monitors(&settings.monitors, &settings, &mut cache)
        }));
    }

    /// What the look that is under way finds; waits for ever if there is none. Nothing is lost when the wait is given up.
    pub async fn found(&mut self) -> Loaded {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let loaded = task.await;
        self.task = None;
        loaded.unwrap_or_else(|error| {
            tracing::error!(%error, "loading the monitors failed; the last good ones go on");
            // As if all of it were broken: nothing changes.
            Loaded { broken: [self.settings.monitors.clone()].into(), ..Loaded::default() }
        })
    }

    /// True when a person asked, who wants to read of it even if nothing changed.
    pub fn asked(&self) -> bool {
        self.askers.iter().any(|asker| !matches!(asker, Asker::Watch))
    }

    /// What was found has been acted on.
    pub fn done(&mut self, changes: &Changes) {
        self.askers.drain(..).for_each(|asker| asker.answer(changes));
        if !self.next.is_empty() {
            self.askers.append(&mut self.next);
            self.begin();
        }
    }
}
