//! Exponential backoff with full jitter: wait a uniform share of `base * 2^n`, capped.
//!
//! Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// How often and how long one outgoing call is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in all, the first included; at least 1.
    pub attempts: u32,
    /// From the first attempt on; no attempt begins later than this.
    pub max_elapsed: Duration,
    /// Upper bound of the first wait.
    pub base: Duration,
    /// Upper bound of any wait that the server did not ask for.
    pub cap: Duration,
}

impl Default for Policy {
    /// SPEC's `retry` defaults: 7 attempts within 60 s.
    fn default() -> Self {
        Self { attempts: 7, max_elapsed: Duration::from_secs(60), base: Duration::from_millis(500), cap: Duration::from_secs(16) }
    }
}

impl Policy {
    /// The wait after failed attempt number `attempt` (from 1), or `None` when it was the last.
    ///
    /// `chance` is uniform in [0, 1). A server's `retry_after` is obeyed in full, never shortened by jitter; where it
    /// does not fit into `max_elapsed` the call is given up now rather than after a wait in vain.
    #[must_use]
    pub fn wait(&self, attempt: u32, elapsed: Duration, retry_after: Option<Duration>, chance: f64) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let ceiling = self.base.saturating_mul(1 << (attempt - 1).min(20)).min(self.cap);
        let wait = retry_after.unwrap_or(Duration::ZERO) + ceiling.mul_f64(chance);
        (elapsed + wait <= self.max_elapsed).then_some(wait)
    }
}

/// A uniform number in [0, 1) for jitter, where nothing must be reproducible.
#[must_use]
pub fn chance() -> f64 {
    rand::random()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_stays_under_its_ceiling_and_obeys_the_server(attempt in 1u32..10, elapsed in 0u64..70_000, asked in proptest::option::of(0u64..90_000), chance in 0.0f64..1.0) {
            let policy = Policy::default();
            let elapsed = Duration::from_millis(elapsed);
            let asked = asked.map(Duration::from_millis);
            match policy.wait(attempt, elapsed, asked, chance) {
                Some(wait) => {
                    prop_assert!(attempt < policy.attempts);
                    prop_assert!(elapsed + wait <= policy.max_elapsed);
                    prop_assert!(wait >= asked.unwrap_or_default());
                    prop_assert!(wait <= asked.unwrap_or_default() + policy.cap);
                }
                None => prop_assert!(attempt >= policy.attempts || elapsed + asked.unwrap_or_default() + policy.cap > policy.max_elapsed),
            }
        }
    }
}
