//! The limits of one provider or one profile: calls under way, requests and tokens a minute, and the pauses that the
//! provider asks for. What it has to refuse it is asked less: additive increase, multiplicative decrease (RFC 5681's
//! idea), of the calls under way.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    fair::{Fair, Place},
    rate::Rate,
};
use crate::{
    providers::{CallCx, ChatAnswer, ChatRequest, Headroom, Left, Limits, ProviderError},
    util::backoff,
};

/// A lone 429 is one call's bad luck and waited out by that call; the second without a success in between is the
/// provider speaking to all.
const SPEAKS_TO_ALL: u32 = 2;

/// Calls that a pause held back come back spread over this time, not in one burst.
const SPREAD: Duration = Duration::from_millis(250);

/// One storm of refusals is one reason to slow down: those of calls that began before the last cut say nothing new.
const BETWEEN_CUTS: Duration = Duration::from_secs(1);

/// With fewer requests left than this, what is left is spread over the time until there are more.
const SCARCE: u64 = 32;

/// An answer gives back what its call was taken to need too much; who waits for the rates looks again this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Who has to wait for the rates waits at least this long, and then as many go as may by then: to a limit of a minute a few at a time are as
/// even as one by one, and cost much less of the machine, where nothing else shares a wake-up or a commit.
const TOGETHER: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Lane {
    places: Arc<Fair>,
    /// Places at most.
    most: usize,
    /// Who may wait for the rates: one at a time, in fair turns.
    turn: Arc<Fair>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    requests: Option<Rate>,
    tokens: Option<Rate>,
    /// Of the answers so far, moving; what the next one is taken to need.
    output: Option<f64>,
    /// Places that the refusals so far leave.
    window: f64,
    last_cut: Option<Instant>,
    /// Refusals for rate in a row.
    refusals: u32,
    not_before: Option<Instant>,
    /// Between two calls, while the provider says that little is left.
    gap: Duration,
    next: Option<Instant>,
}

/// What a call holds while it is under way.
#[derive(Debug)]
pub(super) struct Entry {
    _place: Place,
    /// Taken from the tokens a minute.
    tokens: u64,
}

impl Lane {
    /// `most`: calls at the same time where the limits say nothing.
    pub(super) fn new(limits: Limits, most: usize) -> Self {
        let most = limits.concurrency.unwrap_or(most).max(1);
        #[expect(clippy::cast_precision_loss, reason = "a number of calls at the same time")]
        let window = most as f64;
        let state = State {
            requests: limits.rpm.map(Rate::per_minute),
            tokens: limits.tpm.map(Rate::per_minute),
            output: None,
            window,
            last_cut: None,
            refusals: 0,
            not_before: None,
            gap: Duration::ZERO,
            next: None,
        };
        Self { places: Fair::new(most), most, turn: Fair::new(1), state: Mutex::new(state) }
    }

    /// Waits for a place and for the rates.
    pub(super) async fn enter(&self, cx: &CallCx<'_>, request: &ChatRequest) -> Entry {
        let (who, background) = (cx.monitor, cx.background.is_some());
        let place = self.places.place(who, background).await;
        if !self.lock().is_paced() {
            return Entry { _place: place, tokens: 0 };
        }
        let _turn = self.turn.place(who, background).await;
        let slot = self.lock().slot(Instant::now());
        loop {
            // Only what may be used at once is taken: who gives up waiting has taken nothing.
            let taken = self.lock().take(Instant::now(), slot, request);
            match taken {
                Ok(tokens) => return Entry { _place: place, tokens },
                Err(wait) => tokio::time::sleep(wait.min(LOOK_AGAIN)).await,
            }
        }
    }

    /// Gives back what was taken for a call that was not made.
    pub(super) fn give_back(&self, entry: &Entry) {
        let mut state = self.lock();
        if let Some(rate) = &mut state.requests {
            rate.correct(1, 0);
        }
        if let Some(rate) = &mut state.tokens {
            rate.correct(entry.tokens, 0);
        }
    }

    /// How long the pause still lasts.
    pub(super) fn pause(&self) -> Option<Duration> {
        let mut state = self.lock();
        let left = state.not_before?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        if left.is_none() {
            state.not_before = None;
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
    pub(super) fn observe(&self, entry: &Entry, outcome: &Result<ChatAnswer, ProviderError>) {
        let now = Instant::now();
        let places = {
            let mut state = self.lock();
            match outcome {
                Ok(answer) => state.answered(entry, answer, now, self.most),
                Err(error) => state.failed(entry, error, now, self.places.taken()),
            }
            state.places()
        };
        self.places.resize(places.min(self.most));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_paced(&self) -> bool {
        self.requests.is_some() || self.tokens.is_some() || !self.gap.is_zero()
    }

    /// The next time that the gap leaves.
    fn slot(&mut self, now: Instant) -> Instant {
        let start = self.next.map_or(now, |next| next.max(now));
        if !self.gap.is_zero() {
            self.next = start.checked_add(self.gap);
        }
        start
    }

    /// The tokens taken, or how long to wait as far as is known now.
    fn take(&mut self, now: Instant, slot: Instant, request: &ChatRequest) -> Result<u64, Duration> {
        let rates = self.requests.iter().chain(&self.tokens).map(|rate| rate.wait(now)).fold(Duration::ZERO, Duration::max);
        let together = if rates.is_zero() { Duration::ZERO } else { rates.max(TOGETHER) };
        let wait = slot.saturating_duration_since(now).max(together);
        if !wait.is_zero() {
            return Err(wait);
        }
        let tokens = if self.tokens.is_some() { self.estimate(request) } else { 0 };
        for (rate, units) in self.requests.iter_mut().map(|rate| (rate, 1)).chain(self.tokens.iter_mut().map(|rate| (rate, tokens))) {
            rate.take(now, units);
        }
        Ok(tokens)
    }

    /// Four bytes a token, and an answer like those before it.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate, corrected by the answer")]
    fn estimate(&self, request: &ChatRequest) -> u64 {
        let answer = self.output.map_or(u64::from(request.max_tokens), |mean| mean as u64);
        request.bytes() as u64 / 4 + answer.min(u64::from(request.max_tokens))
    }

    fn answered(&mut self, entry: &Entry, answer: &ChatAnswer, now: Instant, most: usize) {
        self.refusals = 0;
        #[expect(clippy::cast_precision_loss, reason = "a mean of counts, and a number of calls at the same time")]
        {
            if let Some(output) = answer.tokens.output {
                self.output = Some(self.output.map_or(output as f64, |mean| mean * 0.9 + output as f64 * 0.1));
            }
            self.window = (self.window + 1.0 / self.window).min(most as f64);
        }
        let used = answer.tokens.input.zip(answer.tokens.output).map(|(input, output)| input + output);
        if let (Some(rate), Some(used)) = (&mut self.tokens, used) {
            rate.correct(entry.tokens, used);
        }
        self.spread(answer.headroom, used.unwrap_or(0).max(1), now);
    }

    fn failed(&mut self, entry: &Entry, error: &ProviderError, now: Instant, under_way: usize) {
        if let Some(rate) = &mut self.tokens {
            rate.correct(entry.tokens, 0);
        }
        let ProviderError::Transient { kind: "rate_limited" | "overloaded", retry_after, .. } = error else { return };
        if self.last_cut.is_none_or(|cut| now.duration_since(cut) >= BETWEEN_CUTS) {
            self.last_cut = Some(now);
            #[expect(clippy::cast_precision_loss, reason = "a number of calls at the same time")]
            let under_way = under_way as f64;
            self.window = (self.window.min(under_way) / 2.0).max(1.0);
        }
        if let Some(after) = retry_after {
            self.refusals += 1;
            if self.refusals >= SPEAKS_TO_ALL {
                self.not_before = self.not_before.max(now.checked_add(*after));
            }
        }
    }

    /// Slows down before the provider has to refuse.
    fn spread(&mut self, headroom: Headroom, tokens_a_call: u64, now: Instant) {
        let gap = |left: Left, calls: u64| if calls < SCARCE { left.resets_in / u32::try_from(calls + 1).unwrap_or(1) } else { Duration::ZERO };
        let requests = headroom.requests.map_or(Duration::ZERO, |left| gap(left, left.remaining));
        let tokens = headroom.tokens.map_or(Duration::ZERO, |left| gap(left, left.remaining / tokens_a_call));
        self.gap = requests.max(tokens);
        // Calls that wait already were let in by an older word; the first one after this waits its gap.
        self.next = if self.gap.is_zero() { None } else { self.next.max(now.checked_add(self.gap)) };
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and the number of places")]
    fn places(&self) -> usize {
        self.window as usize
    }
}
