//! The block on a judge that refuses every call (key, billing, no such model): known from the first refusal, tried
//! again by one call a minute, open to all as soon as one gets through.

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};

use crate::providers::{ProviderError, ProviderError::Blocked};

/// SPEC 7: a minute later it is tried again.
const PROBE_AFTER: Duration = Duration::from_mins(1);

/// How long the first call of a process goes ahead alone. A refused key answers much faster than a judge does, and
/// this keeps a whole wave of calls from running into it; short enough to be lost in the time of one judgement.
const HEAD_START: Duration = Duration::from_millis(50);

/// One model at one provider.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    blocked: Mutex<Option<Block>>,
    first_call: OnceLock<Instant>,
    /// Any answer at all has come.
    answered: AtomicBool,
    first_answer: Notify,
}

#[derive(Debug)]
struct Block {
    reason: String,
    /// Only for people; every decision is made on `probe_at`.
    since: Timestamp,
    probe_at: Instant,
    probing: bool,
}

impl Block {
    fn refuses(&self, now: Instant) -> bool {
        self.probing || now < self.probe_at
    }

    fn describe(&self) -> String {
        format!("blocked since {} UTC: {}", self.since.strftime("%H:%M"), self.reason)
    }
}

/// The right to make one call. Dropped without [`Pass::settle`] (the call was cancelled) it tells nothing.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    circuit: &'a Circuit,
    probe: bool,
}

impl Circuit {
    /// # Errors
    /// Why no call may be made now.
    pub(super) fn check(&self) -> Result<(), String> {
        match &*self.lock() {
            Some(block) if block.refuses(Instant::now()) => Err(block.describe()),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// Like [`Circuit::check`]. Where a probe is due, this call is the probe and all others stay refused meanwhile.
    pub(super) fn enter(&self) -> Result<Pass<'_>, String> {
        match &mut *self.lock() {
            Some(block) if block.refuses(Instant::now()) => Err(block.describe()),
            Some(block) => {
                block.probing = true;
                Ok(Pass { circuit: self, probe: true })
            }
            None => Ok(Pass { circuit: self, probe: false }),
        }
    }

    /// Lets the very first call go ahead: waits for its answer, but not for long.
    pub(super) async fn head_start(&self) {
        if self.answered.load(Ordering::Acquire) || self.first_call.set(Instant::now()).is_ok() {
            return;
        }
        // Made before the second look, so that an answer in between is not missed.
        let answer = self.first_answer.notified();
        let Some(first) = self.first_call.get().filter(|_| !self.answered.load(Ordering::Acquire)) else { return };
        // Whether by an answer or by time: the wait is over.
        let _ = tokio::time::timeout_at(*first + HEAD_START, answer).await;
    }

    /// Why it is blocked, if it is.
    pub(super) fn reason(&self) -> Option<String> {
        self.lock().as_ref().map(Block::describe)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Block>> {
        // Nothing under this lock can panic half-way.
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call did to the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Blocked,
    Unblocked,
}

impl Pass<'_> {
    /// Tells how the call ended.
    pub(super) fn settle<T>(self, outcome: &Result<T, ProviderError>) -> Option<Change> {
        if !self.circuit.answered.swap(true, Ordering::AcqRel) {
            self.circuit.first_answer.notify_waiters();
        }
        let mut blocked = self.circuit.lock();
        match (outcome, &mut *blocked) {
            (Err(Blocked { message: reason, .. }), Some(block)) => {
                // Calls that were under way when the block came say the same again; only a probe prolongs it.
                if self.probe {
                    block.reason.clone_from(reason);
                    block.probe_at = Instant::now() + PROBE_AFTER;
                    block.probing = false;
                }
                None
            }
            (Err(Blocked { message: reason, .. }), empty @ None) => {
                *empty = Some(Block { reason: reason.clone(), since: Timestamp::now(), probe_at: Instant::now() + PROBE_AFTER, probing: false });
                Some(Change::Blocked)
            }
            (Ok(_) | Err(ProviderError::Rejected { .. }), open) if self.probe => {
                *open = None;
                Some(Change::Unblocked)
            }
            // A passing fault says nothing about the key; after a probe's, `drop` lets the next call probe.
            _ => None,
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe
            && let Some(block) = &mut *self.circuit.lock()
        {
            block.probing = false;
        }
    }
}
