//! One run of one monitor: fetch -> dedup -> filter -> extract -> sample -> evaluate -> record -> publish, then alerts.
//!
//! [`run`] holds the order, a file beside it holds each stage. Stages know nothing of each other; what one hands to the
//! next is plain data. Dedup comes before filter and extract because both may need a trace's observations, which cost
//! requests that a known item must not cost again.
//!
//! What is stored when: the draw before any judging, each paid answer as it comes, the item's decision with its last
//! score. So a kill loses calls in flight and nothing else, and a draw is never drawn anew.
//!
//! Absent on purpose: YAML, wall clocks (`Services::clock`), waiting for slots.

mod again;
mod alerts;
mod anchors;
mod backfill;
mod between;
mod books;
mod candidates;
mod dedup;
mod digest;
mod dimension;
mod evaluate;
mod extract;
mod gate;
mod health;
mod measure;
mod monitor;
mod offers;
mod publish;
mod run;
mod sample;
mod tell;
mod view;

use std::sync::Arc;

use tokio::sync::watch;

pub use alerts::end_alerts;
pub use backfill::Task;
pub use between::{Scheduled, Watched, Watcher};
pub use digest::Digests;
pub use monitor::{BuildEnv, Monitor};
pub use publish::Couriers;
pub use run::{Order, Progress, end_interrupted, published, run};
pub use sample::seed;
pub use tell::NOTICES;

use crate::{config::Routing, schedule::clock::Clock, store::Store};

/// What every run works with.
#[derive(Debug, Clone)]
pub struct Services {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    /// Tells the outbox that there may be something to send.
    pub outbox: Arc<watch::Sender<()>>,
    /// To whom alerts go.
    pub routing: Arc<Routing>,
}

impl Services {
    fn now_us(&self) -> i64 {
        self.clock.now().as_microsecond()
    }
}
