//! The timer queue: one heap of next slots on one thread of its own, away from the workers that judge.
//!
//! It sleeps at most a second at a time, so that a wall clock that jumps is noticed: forwards, the latest slot fires and
//! the ones before it are counted as missed; backwards, nothing fires twice, since the next slot was fixed already.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;

use super::{clock::Clock, plan::Plan};

/// A slot that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub monitor: Arc<str>,
    pub slot: Timestamp,
    /// Slots that passed since the last one without having been handed over.
    pub missed: u64,
}

/// The heap, without thread or clock.
#[derive(Debug, Default)]
pub struct Heap {
    /// (slot, generation, monitor): an entry whose generation is not the monitor's is stale.
    heap: BinaryHeap<Reverse<(Timestamp, u64, Arc<str>)>>,
    entries: HashMap<Arc<str>, Entry>,
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    plan: Arc<Plan>,
    generation: u64,
    next: Timestamp,
}

/// Missed slots are counted up to here; a second-by-second monitor may miss a million over a holiday.
const COUNT: u64 = 10_000;

impl Heap {
    /// Adds a monitor or gives it another plan: its next slot is the first after `after`.
    pub fn set(&mut self, monitor: &Arc<str>, plan: Arc<Plan>, after: Timestamp) {
        self.remove(monitor);
        let Some(next) = plan.next_after(after) else { return };
        self.generation += 1;
        self.entries.insert(Arc::clone(monitor), Entry { plan, generation: self.generation, next });
        self.heap.push(Reverse((next, self.generation, Arc::clone(monitor))));
    }

    pub fn remove(&mut self, monitor: &str) {
        self.entries.remove(monitor);
        // Stale entries leave when they come up; when most are stale, they leave at once.
        if self.heap.len() > 64 && self.heap.len() > 2 * self.entries.len() {
            let entries = &self.entries;
            self.heap.retain(|Reverse((_, generation, monitor))| entries.get(monitor).is_some_and(|entry| entry.generation == *generation));
        }
    }

    /// The earliest slot to come.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((slot, ..))| *slot)
    }

    #[must_use]
    pub fn next_of(&self, monitor: &str) -> Option<Timestamp> {
        self.entries.get(monitor).map(|entry| entry.next)
    }

    /// Takes out one slot that is due at `now`, and puts the monitor's next one in.
    pub fn pop(&mut self, now: Timestamp) -> Option<Due> {
        while let Some(Reverse((slot, generation, monitor))) = self.heap.peek().cloned() {
            if slot > now {
                return None;
            }
            self.heap.pop();
            let Some(entry) = self.entries.get_mut(&monitor).filter(|entry| entry.generation == generation) else { continue };
            let (mut latest, mut missed) = (slot, 0);
            while let Some(later) = entry.plan.next_after(latest).filter(|later| *later <= now) {
                (latest, missed) = (later, missed + 1);
                if missed == COUNT {
                    latest = entry.plan.latest_at(now).unwrap_or(latest);
                }
            }
            match entry.plan.next_after(latest) {
                Some(next) => {
                    entry.next = next;
                    self.heap.push(Reverse((next, generation, Arc::clone(&monitor))));
                }
                None => {
                    self.entries.remove(&monitor);
                }
            }
            return Some(Due { monitor, slot: latest, missed });
        }
        None
    }
}

/// The heap on its thread. Dropping it stops the thread.
#[derive(Debug)]
pub struct Queue {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Milliseconds since the epoch at the loop's last round.
    beat: AtomicI64,
}

#[derive(Debug, Default)]
struct State {
    heap: Heap,
    stopped: bool,
}

/// Slots handed over before others may touch the heap: keeps a storm from holding up a reload.
const BURST: usize = 256;

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Starts the thread. `hand_over` is called on it and must not block.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(clock: Arc<dyn Clock>, hand_over: impl Fn(Due) + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        shared.beat.store(clock.now().as_millisecond(), Ordering::Relaxed);
        let thread = std::thread::Builder::new().name("assayd-timer".to_owned()).spawn(move || run(&of_thread, &*clock, &hand_over))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Adds a monitor or gives it another plan; its next slot is the first after `after`.
    pub fn set(&self, monitor: &Arc<str>, plan: Arc<Plan>, after: Timestamp) {
        self.shared.state().heap.set(monitor, plan, after);
        self.shared.changed.notify_one();
    }

    pub fn remove(&self, monitor: &str) {
        self.shared.state().heap.remove(monitor);
    }

    #[must_use]
    pub fn next_of(&self, monitor: &str) -> Option<Timestamp> {
        self.shared.state().heap.next_of(monitor)
    }

    /// When the loop last went round: at most a good second ago while it lives.
    #[must_use]
    pub fn last_beat(&self) -> Timestamp {
        Timestamp::from_millisecond(self.shared.beat.load(Ordering::Relaxed)).unwrap_or_default()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported; there is nothing to add on the way out.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, clock: &dyn Clock, hand_over: &(impl Fn(Due) + Send)) {
    let mut state = shared.state();
    while !state.stopped {
        let now = clock.now();
        shared.beat.store(now.as_millisecond(), Ordering::Relaxed);
        for _ in 0..BURST {
            let Some(due) = state.heap.pop(now) else { break };
            hand_over(due);
        }
        let wait = state.heap.next().map_or(Duration::from_secs(1), |next| Duration::try_from(next.duration_since(clock.now())).unwrap_or_default());
        // A zero wait still lets others at the heap.
        state = shared.changed.wait_timeout(state, wait.min(Duration::from_secs(1))).unwrap_or_else(PoisonError::into_inner).0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{schedule::plan::ScheduleSpec, util::duration::Human};

    fn every(secs: u64) -> Arc<Plan> {
        Arc::new(Plan::new(&ScheduleSpec { every: Some(Human::secs(secs)), ..ScheduleSpec::default() }, "m").unwrap())
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_second(secs).unwrap()
    }

    proptest! {
        /// However the clock steps (backwards too): every slot at most once and in order, the latest never lost, and
        /// fired and missed together are all slots.
        #[test]
        fn no_slot_fires_twice_and_none_is_lost(steps in proptest::collection::vec(-50i64..200, 1..60)) {
            let name: Arc<str> = "m".into();
            let mut heap = Heap::default();
            let (start, mut now) = (1_000_000, 1_000_000);
            heap.set(&name, every(7), at(start));
            let (mut last, mut seen, mut highest) = (at(start), 0, start);
            for step in steps {
                now += step;
                highest = highest.max(now);
                while let Some(due) = heap.pop(at(now)) {
                    prop_assert!(due.slot > last && due.slot <= at(now));
                    last = due.slot;
                    seen += 1 + due.missed;
                }
                let slots = u64::try_from(highest.div_euclid(7) - start.div_euclid(7)).unwrap();
                prop_assert_eq!(seen, slots);
            }
        }
    }

    #[test]
    fn a_changed_plan_takes_effect_at_its_next_slot_and_a_removed_one_never() {
        let (name, other): (Arc<str>, Arc<str>) = ("m".into(), "other".into());
        let mut heap = Heap::default();
        heap.set(&name, every(10), at(100));
        heap.set(&other, every(10), at(100));
        heap.set(&name, every(60), at(100));
        heap.remove("other");
        assert_eq!(heap.pop(at(119)), None);
        assert_eq!(heap.pop(at(120)), Some(Due { monitor: name, slot: at(120), missed: 0 }));
        assert_eq!(heap.pop(at(130)), None);
    }
}
