use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::sinks::NotifyError;

/// Slack takes one message a second and channel (sustained).
const SPACING: Duration = Duration::from_secs(1);
/// A longer queue waits in the outbox, where it survives a restart.
const PATIENCE: Duration = Duration::from_secs(5);

/// Spaces the messages to each channel.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When a channel may be used next; past instants are dropped.
    next: Mutex<HashMap<String, Instant>>,
}

impl Pace {
    /// Waits for this channel's turn; a caller that gives up meanwhile only leaves a gap.
    ///
    /// # Errors
    /// `Retry` where the turn is further off than `PATIENCE`.
    pub(super) async fn turn(&self, channel: &str) -> Result<(), NotifyError> {
        let wait = self.reserve(channel, Instant::now());
        if wait > PATIENCE {
            return Err(NotifyError::Retry { message: "many messages wait for this Slack channel".to_owned(), retry_after: Some(wait), unsure: false });
        }
        sleep(wait).await;
        Ok(())
    }

    /// How long until the turn; taken only where that is within `PATIENCE`.
    fn reserve(&self, channel: &str, now: Instant) -> Duration {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.retain(|_, at| *at > now);
        let at = next.get(channel).copied().unwrap_or(now);
        let wait = at.duration_since(now);
        if wait <= PATIENCE {
            next.insert(channel.to_owned(), at + SPACING);
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_gets_one_a_second_and_others_do_not_wait_for_it() {
        let (pace, now) = (Pace::default(), Instant::now());
        let waits: Vec<u64> = (0..8).map(|_| pace.reserve("#a", now).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 3, 4, 5, 6, 6], "from the seventh on they stay in the outbox");
        assert_eq!(pace.reserve("#b", now), Duration::ZERO);
        assert_eq!(pace.reserve("#a", now + Duration::from_mins(1)), Duration::ZERO);
        assert_eq!(pace.next.lock().unwrap().len(), 1, "past turns are dropped");
    }
}
