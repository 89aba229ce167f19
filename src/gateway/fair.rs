//! Places that are given in turn: each who waits gets the next one after everybody else who waits has had one, so that
//! a large run does not starve a small one. Work that nobody waits for gets a place when nobody else wants it, and else one in
//! [`PATIENCE`]: what it holds elsewhere must not be held for ever. The number of places may change while they are used.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

#[derive(Debug)]
pub(super) struct Fair {
    state: Mutex<State>,
}

/// As many places in a row go past those in the background.
const PATIENCE: u32 = 8;

#[derive(Debug)]
struct State {
    places: usize,
    taken: usize,
    first: Line,
    background: Line,
    /// Places that went past the background since it had its last.
    passed_over: u32,
}

#[derive(Debug, Default)]
struct Line {
    /// Who waits, in the order of their next turn; each once.
    turns: VecDeque<Arc<str>>,
    waiting: HashMap<Arc<str>, VecDeque<oneshot::Sender<Place>>>,
}

impl Line {
    fn wait(&mut self, who: &str) -> oneshot::Receiver<Place> {
        let (sender, turn) = oneshot::channel();
        let who: Arc<str> = match self.waiting.get_key_value(who) {
            Some((known, _)) => Arc::clone(known),
            None => who.into(),
        };
        let line = self.waiting.entry(Arc::clone(&who)).or_default();
        line.push_back(sender);
        if line.len() == 1 {
            self.turns.push_back(who);
        }
        turn
    }

    /// Whose turn is next; their next one comes after that of all others.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        let who = self.turns.pop_front()?;
        let line = self.waiting.get_mut(&who)?;
        let sender = line.pop_front();
        if line.is_empty() {
            self.waiting.remove(&who);
        } else {
            self.turns.push_back(who);
        }
        sender
    }
}

impl State {
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        let behind = !self.background.turns.is_empty();
        if behind && (self.first.turns.is_empty() || self.passed_over >= PATIENCE) {
            self.passed_over = 0;
            return self.background.next();
        }
        self.passed_over = if behind { self.passed_over + 1 } else { 0 };
        self.first.next()
    }
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place(Option<Arc<Fair>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(fair) = self.0.take() {
            let mut state = fair.lock();
            state.taken -= 1;
            fair.hand_out(&mut state);
        }
    }
}

impl Fair {
    pub(super) fn new(places: usize) -> Arc<Self> {
        let state = State { places: places.max(1), taken: 0, first: Line::default(), background: Line::default(), passed_over: 0 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Waits for `who`'s turn, behind all others where it is work in the background. May be cancelled.
    pub(super) async fn place(self: &Arc<Self>, who: &str, background: bool) -> Place {
        let turn = {
            let mut state = self.lock();
            if state.taken < state.places && state.first.turns.is_empty() && state.background.turns.is_empty() {
                state.taken += 1;
                return Place(Some(Arc::clone(self)));
            }
            if background { state.background.wait(who) } else { state.first.wait(who) }
        };
        turn.await.expect("invariant: who waits is in the line, and the line lives as long as `self`")
    }

    /// Changes the number of places, at least one; those taken stay taken.
    pub(super) fn resize(self: &Arc<Self>, places: usize) {
        let mut state = self.lock();
        state.places = places.max(1);
        self.hand_out(&mut state);
    }

    pub(super) fn taken(&self) -> usize {
        self.lock().taken
    }

    fn hand_out(self: &Arc<Self>, state: &mut State) {
        while state.taken < state.places
            && let Some(sender) = state.next()
        {
            state.taken += 1;
            if let Err(mut place) = sender.send(Place(Some(Arc::clone(self)))) {
                // Gave up waiting. Emptied before it drops: that would give the place back under this very lock.
                place.0 = None;
                state.taken -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_small_run_is_not_behind_all_of_a_large_one() {
        let fair = Fair::new(1);
        let held = fair.place("large", false).await;
        let mut large: Vec<_> = (0..50).map(|_| Box::pin(fair.place("large", false))).collect();
        large.iter_mut().for_each(|wait| assert!(wait.now_or_never().is_none()));
        let mut small = Box::pin(fair.place("small", false));
        assert!((&mut small).now_or_never().is_none());
        drop(held);
        let first = large.remove(0).await;
        assert!((&mut small).now_or_never().is_none());
        drop(first);
        drop(small.await);
        assert_eq!(fair.taken(), 1, "then it is the large one's turn again");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_no_place_with_him() {
        let fair = Fair::new(1);
        let held = fair.place("a", false).await;
        let mut gone = Box::pin(fair.place("b", false));
        assert!((&mut gone).now_or_never().is_none());
        let mut given = Box::pin(fair.place("c", false));
        assert!((&mut given).now_or_never().is_none());
        drop(gone);
        drop(held);
        // Given, and dropped before it was looked at.
        drop(given);
        drop(fair.place("d", false).now_or_never().expect("a free place"));
        assert_eq!(fair.taken(), 0);
    }

    #[tokio::test]
    async fn the_background_waits_until_nobody_else_wants_a_place_but_not_for_ever() {
        let fair = Fair::new(1);
        let mut held = fair.place("live", false).await;
        let mut behind = Box::pin(fair.place("behind", true));
        assert!((&mut behind).now_or_never().is_none());
        for _ in 0..PATIENCE {
            let mut live = Box::pin(fair.place("live", false));
            assert!((&mut live).now_or_never().is_none());
            drop(held);
            assert!((&mut behind).now_or_never().is_none(), "who came later goes first");
            held = live.await;
        }
        let mut live = Box::pin(fair.place("live", false));
        assert!((&mut live).now_or_never().is_none());
        drop(held);
        drop(behind.now_or_never().expect("its turn after all"));
        drop(live.await);
        drop(fair.place("behind", true).now_or_never().expect("a free place that nobody wants"));
    }

    #[tokio::test]
    async fn places_come_and_go() {
        let fair = Fair::new(2);
        let (one, two) = (fair.place("a", false).await, fair.place("a", false).await);
        fair.resize(1);
        drop(one);
        let mut third = Box::pin(fair.place("a", false));
        assert!((&mut third).now_or_never().is_none(), "two were taken, one is left");
        fair.resize(2);
        let three = third.await;
        drop((two, three));
        assert_eq!(fair.taken(), 0);
    }
}
