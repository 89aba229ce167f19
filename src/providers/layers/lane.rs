//! One provider's share of the calls under way, and its pause where it says that it is asked too often.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use crate::{providers::ProviderError, util::backoff};

/// A lone 429 is one call's bad luck and waited out by that call; the second without a success in between is the
/// provider speaking to all.
const SPEAKS_TO_ALL: u32 = 2;

/// Calls that a pause held back come back spread over this time, not in one burst.
const SPREAD: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Lane {
    places: Semaphore,
    limits: Mutex<Limits>,
}

#[derive(Debug, Default)]
struct Limits {
    /// Refusals for rate in a row.
    refusals: u32,
    not_before: Option<Instant>,
}

impl Lane {
    pub(super) fn new(concurrency: Option<usize>) -> Self {
        Self { places: Semaphore::new(concurrency.unwrap_or(Semaphore::MAX_PERMITS).clamp(1, Semaphore::MAX_PERMITS)), limits: Mutex::default() }
    }

    pub(super) async fn place(&self) -> SemaphorePermit<'_> {
        self.places.acquire().await.expect("invariant: the semaphore is never closed")
    }

    /// How long the pause still lasts.
    pub(super) fn pause(&self) -> Option<Duration> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let left = limits.not_before?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        if left.is_none() {
            limits.not_before = None;
        }
        left
    }

    /// Waits until the pause is over.
    ///
    /// # Errors
    /// The rest of a pause that is longer than `patience`.
    pub(super) async fn resumed(&self, patience: Duration) -> Result<(), Duration> {
        while let Some(left) = self.pause() {
            if left > patience {
                return Err(left);
            }
            tokio::time::sleep(left + SPREAD.mul_f64(backoff::chance())).await;
        }
        Ok(())
    }

    /// Learns from how a call ended.
    pub(super) fn observe<T>(&self, outcome: &Result<T, ProviderError>) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(_) => limits.refusals = 0,
            Err(ProviderError::Transient { kind: "rate_limited" | "overloaded", retry_after: Some(after), .. }) => {
                limits.refusals += 1;
                if limits.refusals >= SPEAKS_TO_ALL {
                    limits.not_before = limits.not_before.max(Instant::now().checked_add(*after));
                }
            }
            Err(_) => {}
        }
    }
}
