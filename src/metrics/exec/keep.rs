//! Keeps a process for those that ask: starts it when somebody does, and anew when it ended.

use std::{sync::Arc, time::Duration};

use super::{Spec, child::Child, group::Groups, queue::Queue};
use crate::util::backoff::{self, Policy};

/// One that ended so often in a row without an answer is not to be blamed on the items.
const DEFECTIVE: u32 = 6;
/// Between two starts that failed.
const RESTART: Policy = Policy { attempts: u32::MAX, max_elapsed: Duration::MAX, base: Duration::from_secs(1), cap: LONGEST_PAUSE };
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A process that has failed without an answer.
pub(super) struct Broken {
    /// It had said hello.
    pub started: bool,
    pub reason: String,
}

/// Until nobody can ask for the process any more.
pub(super) async fn keep(spec: Arc<Spec>, mut queue: Queue, groups: Groups) {
    let mut failures = 0;
    while queue.somebody().await {
        let failed = match Child::start(&spec, &groups).await {
            Ok(child) => child.serve(&spec, &mut queue).await,
            Err(reason) => {
                tracing::warn!(command = spec.name(), %reason, "a metric's process could not be started");
                Err(Broken { started: false, reason })
            }
        };
        let Err(Broken { started, reason }) = failed else {
            failures = 0;
            continue;
        };
        failures += 1;
        if started && failures < DEFECTIVE {
            tokio::time::sleep(pause(failures)).await;
        } else {
            refuse_for_a_while(&mut queue, failures, &reason).await;
        }
    }
}

fn pause(failures: u32) -> Duration {
    RESTART.wait(failures, Duration::ZERO, None, backoff::chance()).unwrap_or(RESTART.cap)
}

async fn refuse_for_a_while(queue: &mut Queue, failures: u32, reason: &str) {
    let pause = tokio::time::sleep(pause(failures));
    tokio::pin!(pause);
    loop {
        queue.refuse(reason);
        tokio::select! {
            () = &mut pause => return,
            () = queue.take() => if !queue.open { return },
        }
    }
}
