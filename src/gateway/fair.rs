//! Places that are given in turn: each who waits gets the next one after everybody else who waits has had one, so that
//! a large run does not starve a small one. The number of places may change while they are used.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

#[derive(Debug)]
pub(super) struct Fair {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    places: usize,
    taken: usize,
    /// Who waits, in the order of their next turn; each once.
    turns: VecDeque<Arc<str>>,
    waiting: HashMap<Arc<str>, VecDeque<oneshot::Sender<Place>>>,
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
        Arc::new(Self { state: Mutex::new(State { places: places.max(1), taken: 0, turns: VecDeque::new(), waiting: HashMap::new() }) })
    }

    /// Waits for `who`'s turn. May be cancelled.
    pub(super) async fn place(self: &Arc<Self>, who: &str) -> Place {
        let turn = {
            let mut state = self.lock();
            if state.taken < state.places && state.turns.is_empty() {
                state.taken += 1;
                return Place(Some(Arc::clone(self)));
            }
            let (sender, turn) = oneshot::channel();
            let who: Arc<str> = match state.waiting.get_key_value(who) {
                Some((known, _)) => Arc::clone(known),
                None => who.into(),
            };
            let line = state.waiting.entry(Arc::clone(&who)).or_default();
            line.push_back(sender);
            if line.len() == 1 {
                state.turns.push_back(who);
            }
            turn
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
            && let Some(who) = state.turns.pop_front()
        {
            let Some(line) = state.waiting.get_mut(&who) else { continue };
            let sender = line.pop_front();
            if line.is_empty() {
                state.waiting.remove(&who);
            } else {
                state.turns.push_back(who);
            }
            let Some(sender) = sender else { continue };
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
        let held = fair.place("large").await;
        let mut large: Vec<_> = (0..50).map(|_| Box::pin(fair.place("large"))).collect();
        large.iter_mut().for_each(|wait| assert!(wait.now_or_never().is_none()));
        let mut small = Box::pin(fair.place("small"));
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
        let held = fair.place("a").await;
        let mut gone = Box::pin(fair.place("b"));
        assert!((&mut gone).now_or_never().is_none());
        let mut given = Box::pin(fair.place("c"));
        assert!((&mut given).now_or_never().is_none());
        drop(gone);
        drop(held);
        // Given, and dropped before it was looked at.
        drop(given);
        drop(fair.place("d").now_or_never().expect("a free place"));
        assert_eq!(fair.taken(), 0);
    }

    #[tokio::test]
    async fn places_come_and_go() {
        let fair = Fair::new(2);
        let (one, two) = (fair.place("a").await, fair.place("a").await);
        fair.resize(1);
        drop(one);
        let mut third = Box::pin(fair.place("a"));
        assert!((&mut third).now_or_never().is_none(), "two were taken, one is left");
        fair.resize(2);
        let three = third.await;
        drop((two, three));
        assert_eq!(fair.taken(), 0);
    }
}
