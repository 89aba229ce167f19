//! Who waits for a process.

use std::{collections::VecDeque, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::outside::Answer;

/// What the process says first: `{"hello": {"name": .., "version": ..}}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Hello {
    pub name: String,
    #[serde(default)]
    pub version: String,
}

impl std::fmt::Display for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` version `{}`", self.name, self.version)
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody could be judged: there is no process to ask.
    Blocked(String),
    /// This item could not.
    Failed(String),
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, Fault>>;

/// An item to be judged. The answer comes with the time it took.
pub(super) struct Item {
    pub item: Value,
    pub timeout: Duration,
    /// Whom the run began with: nobody else may judge it.
    pub by: Option<Hello>,
    pub answer: Reply<(Answer, Duration)>,
}

impl Item {
    pub(super) fn refuse(self, fault: Fault) {
        // Who asked may be gone.
        let _ = self.answer.send(Err(fault));
    }
}

/// An item that waits for the process, and how often it was given to one.
pub(super) struct Waiting {
    pub item: Item,
    pub tries: u32,
}

/// Where the process is asked. Who it is has a way of its own, so that it waits for nobody's item.
#[derive(Debug, Clone)]
pub(super) struct Asks {
    pub items: mpsc::Sender<Item>,
    pub hellos: mpsc::Sender<Reply<Hello>>,
}

impl Asks {
    pub(super) fn are_closed(&self) -> bool {
        self.items.is_closed()
    }
}

/// All that ask for one process, in their order.
pub(super) struct Queue {
    items: mpsc::Receiver<Item>,
    hellos: mpsc::Receiver<Reply<Hello>>,
    pub waiting: VecDeque<Waiting>,
    /// They want to know who it is.
    pub curious: Vec<Reply<Hello>>,
    /// Somebody may still ask.
    pub open: bool,
}

impl Queue {
    pub(super) fn new() -> (Asks, Self) {
        let (items, items_asked) = mpsc::channel(1);
        let (hellos, hellos_asked) = mpsc::channel(1);
        let queue = Self { items: items_asked, hellos: hellos_asked, waiting: VecDeque::new(), curious: Vec::new(), open: true };
        (Asks { items, hellos }, queue)
    }

    /// Takes in whoever asks next, an item only when none waits: others wait with who asked for them. Loses nobody when it
    /// is cancelled; never ends once nobody can ask.
    pub(super) async fn take(&mut self) {
        tokio::select! {
            item = self.items.recv(), if self.open && self.waiting.is_empty() => match item {
                Some(item) => self.waiting.push_back(Waiting { item, tries: 0 }),
                None => self.open = false,
            },
            Some(hello) = self.hellos.recv() => self.curious.push(hello),
            else => std::future::pending().await,
        }
    }

    /// Until somebody is there; false when nobody can come any more.
    pub(super) async fn somebody(&mut self) -> bool {
        while self.waiting.is_empty() && self.curious.is_empty() {
            if !self.open {
                return false;
            }
            self.take().await;
        }
        true
    }

    /// Sends everybody away.
    pub(super) fn refuse(&mut self, reason: &str) {
        let fault = || Fault::Blocked(reason.to_owned());
        self.waiting.drain(..).for_each(|waiting| waiting.item.refuse(fault()));
        for curious in self.curious.drain(..) {
            let _ = curious.send(Err(fault()));
        }
    }
}
