//! Budgets: the worst that a call can cost is reserved before it, what it did cost is settled after it.
//!
//! What a crash cannot take back is on disk: each account's `committed`, which the store holds before a call is made that
//! needs it, and which counts as spent by the next process. Blocks of a budget are committed ahead, so that a thousand
//! calls cost a few writes; what is not needed is given back when the account comes to rest. At any moment
//! `settled + reserved <= committed <= limit`, so neither a crash nor a thousand calls at once overspend.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    model::{Budget, Per, usd},
    providers::CallCx,
    schedule::clock::Clock,
    store::{Closed, Store},
    telemetry,
};

/// The share of a budget that is committed ahead: what a crash can cost at most, beyond the calls under way.
const BLOCKS: i64 = 64;

/// Whose money, and of which period.
type Key = (String, i64);

/// All accounts that this process has touched.
#[derive(Debug)]
pub(super) struct Budgets {
    store: Option<Store>,
    clock: Arc<dyn Clock>,
    /// Over all monitors.
    overall: Vec<Budget>,
    accounts: Mutex<HashMap<Key, Arc<Account>>>,
    /// One account is opened at a time, so that what was read from disk is not out of date once it is used.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Account {
    key: Key,
    /// Of the monitor that it belongs to, for the metric.
    monitor: Option<String>,
    money: Mutex<Money>,
    changed: Arc<Notify>,
    /// One write of this account's row at a time, so that the newest is the last.
    write: tokio::sync::Mutex<()>,
}

/// In nano-USD.
#[derive(Debug, Default)]
struct Money {
    limit: i64,
    settled: i64,
    reserved: i64,
    /// On disk, or on its way down to what is.
    committed: i64,
}

/// Whether a call fits.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    Now,
    /// Perhaps, once calls under way are settled.
    Later,
    Never,
}

impl Money {
    fn fit(&self, worst: i64) -> Fit {
        // Saturating: a price that is a slip of the keyboard must not come out small.
        if self.settled.saturating_add(self.reserved).saturating_add(worst) <= self.limit {
            Fit::Now
        } else if self.settled.saturating_add(worst) <= self.limit {
            Fit::Later
        } else {
            Fit::Never
        }
    }

    fn is_written(&self) -> bool {
        self.committed == self.settled
    }

    /// What has to be on disk before the calls that are reserved may be made; `None` where it is.
    fn wants(&self) -> Option<i64> {
        let used = self.settled.saturating_add(self.reserved);
        (used > self.committed).then(|| used.saturating_add(self.limit / BLOCKS).min(self.limit).max(used))
    }
}

/// What a budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Monitor,
    All,
    Backfill,
}

/// Why a call has to wait for another time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The sentence says which budget, and what is left of it.
    Over(String),
    Closed,
}

impl From<Closed> for Refusal {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl Budgets {
    pub(super) fn new(store: Option<Store>, clock: Arc<dyn Clock>, overall: Vec<Budget>) -> Self {
        Self { store, clock, overall, accounts: Mutex::default(), opening: tokio::sync::Mutex::default() }
    }

    /// Whether calls of this caller have to be paid for from a budget.
    pub(super) fn apply(&self, cx: &CallCx<'_>) -> bool {
        !self.overall.is_empty() || !cx.budgets.is_empty() || purse(cx).is_some()
    }

    /// Reserves `worst` nano-USD from every budget that applies; waits for calls under way where they may leave enough.
    ///
    /// # Errors
    /// `Over` when it fits in no case.
    pub(super) async fn reserve(&self, cx: &CallCx<'_>, worst: i64) -> Result<Reservation, Refusal> {
        let Some(store) = self.store.as_ref().filter(|_| self.apply(cx)) else { return Ok(Reservation::default()) };
        let now = self.clock.now();
        let mut reservation = Reservation { worst, accounts: Vec::with_capacity(cx.budgets.len() + self.overall.len()), begun: false };
        // Always in this order. Nobody waits for an account while holding one that the other waits for: what is held is
        // given back before a wait.
        let wanted: Vec<(Key, Whose, Budget)> = (cx.budgets.iter().map(|budget| (of_monitor(cx, *budget, now), Whose::Monitor, *budget)))
            .chain(self.overall.iter().map(|budget| (of_all(cx, *budget, now), Whose::All, *budget)))
            .chain(purse(cx).map(|(key, budget)| (key, Whose::Backfill, budget)))
            .collect();
        'again: loop {
            for (key, whose, budget) in &wanted {
                let monitor = (*whose == Whose::Monitor).then_some(cx.monitor);
                let account = self.account(store, key, monitor, *budget).await?;
                let changed = Arc::clone(&account.changed).notified_owned();
                let mut changed = std::pin::pin!(changed);
                changed.as_mut().enable();
                let fit = account.take(worst);
                match fit {
                    Fit::Now => reservation.accounts.push(account),
                    Fit::Later => {
                        reservation.give_back();
                        changed.await;
                        continue 'again;
                    }
                    Fit::Never => {
                        let refusal = account.refusal(worst, budget, *whose);
                        reservation.give_back();
                        return Err(Refusal::Over(refusal));
                    }
                }
            }
            for account in &reservation.accounts {
                account.commit(store, now.as_microsecond()).await?;
            }
            return Ok(reservation);
        }
    }

    /// Gives back to disk what calm accounts do not need, and forgets those of past periods.
    pub(super) async fn rest(&self) {
        let Some(store) = &self.store else { return };
        let now = self.clock.now();
        let accounts: Vec<Arc<Account>> = self.lock().values().cloned().collect();
        for account in accounts {
            if account.release(store, now.as_microsecond()).await.is_err() {
                return;
            }
        }
        let oldest = Per::Month.start(now).min(Per::Week.start(now)).as_microsecond();
        // What disk does not say yet is not forgotten.
        let in_use = |account: &Arc<Account>| Arc::strong_count(account) > 1 || !account.lock().is_written();
        self.lock().retain(|(_, period), account| *period == 0 && in_use(account) || *period >= oldest);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Account>>> {
        // Nothing under this lock can panic half-way.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, key: &Key, budget: Budget) -> Option<Arc<Account>> {
        let account = self.lock().get(key).cloned()?;
        // A reload may have changed the limit.
        account.lock().limit = budget.nano_usd;
        Some(account)
    }

    async fn account(&self, store: &Store, key: &Key, monitor: Option<&str>, budget: Budget) -> Result<Arc<Account>, Refusal> {
        if let Some(account) = self.known(key, budget) {
            return Ok(account);
        }
        let _turn = self.opening.lock().await;
        if let Some(account) = self.known(key, budget) {
            return Ok(account);
        }
        // What a process before this one committed and did not give back counts as spent.
        let committed = store.budget(&key.0, key.1).await.map_err(|error| Refusal::Over(format!("what was spent cannot be read: {error}")))?;
        let account = Arc::new(Account {
            key: key.clone(),
            monitor: monitor.map(str::to_owned),
            money: Mutex::new(Money { limit: budget.nano_usd, settled: committed, reserved: 0, committed }),
            changed: Arc::default(),
            write: tokio::sync::Mutex::default(),
        });
        Ok(Arc::clone(self.lock().entry(key.clone()).or_insert(account)))
    }
}

fn of_monitor(cx: &CallCx<'_>, budget: Budget, now: jiff::Timestamp) -> Key {
    match budget.per {
        Per::Run => (format!("monitor:{}:run:{}", cx.monitor, cx.run_id), 0),
        per => (format!("monitor:{}:{}", cx.monitor, per.as_str()), per.start(now).as_microsecond()),
    }
}

fn of_all(cx: &CallCx<'_>, budget: Budget, now: jiff::Timestamp) -> Key {
    match budget.per {
        Per::Run => (format!("all:run:{}", cx.run_id), 0),
        per => (format!("all:{}", per.as_str()), per.start(now).as_microsecond()),
    }
}

/// What background work may spend in all.
fn purse(cx: &CallCx<'_>) -> Option<(Key, Budget)> {
    let background = cx.background?;
    Some(((background.account(), 0), background.budget?))
}

impl Account {
    fn lock(&self) -> MutexGuard<'_, Money> {
        // As above.
        self.money.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, worst: i64) -> Fit {
        let mut money = self.lock();
        let fit = money.fit(worst);
        if fit == Fit::Now {
            money.reserved += worst;
        }
        fit
    }

    fn settle(&self, worst: i64, actual: i64) {
        let mut money = self.lock();
        money.reserved -= worst;
        money.settled = money.settled.saturating_add(actual);
        if let Some(monitor) = &self.monitor {
            telemetry::budget_spent(monitor, usd(money.settled));
        }
        drop(money);
        self.changed.notify_waiters();
    }

    /// Returns once what is reserved is on disk.
    async fn commit(&self, store: &Store, at_us: i64) -> Result<(), Closed> {
        if self.lock().wants().is_none() {
            return Ok(());
        }
        let _turn = self.write.lock().await;
        // Another call's write may have covered this one.
        let Some(target) = self.lock().wants() else { return Ok(()) };
        store.commit_budget(&self.key.0, self.key.1, target, at_us).await?;
        let mut money = self.lock();
        money.committed = money.committed.max(target);
        Ok(())
    }

    async fn release(&self, store: &Store, at_us: i64) -> Result<(), Closed> {
        let _turn = self.write.lock().await;
        let target = {
            let mut money = self.lock();
            // Less is committed than settled where a call cost more than its worst case: that, too, has to outlive a crash.
            if money.reserved > 0 || money.is_written() {
                return Ok(());
            }
            // Before the write: who reserves meanwhile waits for a commit of its own, behind this turn.
            money.committed = money.settled;
            money.settled
        };
        store.commit_budget(&self.key.0, self.key.1, target, at_us).await
    }

    fn refusal(&self, worst: i64, budget: &Budget, whose: Whose) -> String {
        let left = (budget.nano_usd - self.lock().settled).max(0);
        let (whose, per) = match whose {
            Whose::Monitor => ("the budget", format!(" per {}", budget.per.as_str())),
            Whose::All => ("the budget of all monitors", format!(" per {}", budget.per.as_str())),
            Whose::Backfill => ("the backfill's limit", String::new()),
        };
        format!("over {whose}: {:.6} of {:.6} USD{per} are left, and the call may cost {:.6}", usd(left), budget.usd(), usd(worst))
    }
}

/// Money set aside for one call. Dropped without [`Reservation::settle`] (the call was cancelled and may have been billed) it
/// counts as spent, if [`Reservation::begin`] was called, and is given back otherwise.
#[derive(Debug, Default)]
pub(super) struct Reservation {
    worst: i64,
    accounts: Vec<Arc<Account>>,
    /// The call may be on its way.
    begun: bool,
}

impl Reservation {
    /// From here on the call may be billed.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// `actual`: what the call cost, in nano-USD; `None` where that is not known, which counts as the worst.
    pub(super) fn settle(mut self, actual: Option<i64>) {
        self.end(actual.unwrap_or(self.worst));
    }

    fn give_back(&mut self) {
        self.end(0);
    }

    fn end(&mut self, actual: i64) {
        for account in self.accounts.drain(..) {
            account.settle(self.worst, actual);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.end(if self.begun { self.worst } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use proptest::prelude::*;

    use super::*;
    use crate::schedule::clock::SystemClock;

    const CENT: i64 = 10_000_000;

    struct Books {
        folder: tempfile::TempDir,
    }

    impl Books {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        /// One process's life; what is not given back when it ends was lost to a crash.
        async fn process<T>(&self, overall: Vec<Budget>, life: impl AsyncFnOnce(&Budgets) -> T) -> T {
            let (store, writer) = Store::open(self.folder.path()).await.unwrap();
            let budgets = Budgets::new(Some(store.clone()), Arc::new(SystemClock), overall);
            let story = async {
                let result = life(&budgets).await;
                store.close().await.unwrap();
                result
            };
            tokio::join!(story, writer.run()).0
        }
    }

    fn day(cents: i64) -> Budget {
        Budget { nano_usd: cents * CENT, per: Per::Day }
    }

    fn cx(budgets: &[Budget]) -> CallCx<'_> {
        CallCx { monitor: "m", metric: "x", run_id: "r", item_id: "i", budgets, fresh: false, background: None }
    }

    #[tokio::test]
    async fn a_thousand_calls_at_once_never_overspend_and_use_all_there_is() {
        let books = Books::new();
        let limits = [day(100)];
        let spent = books
            .process(vec![day(90)], async |budgets| {
                let calls = (0..1000_i64).map(|n| async move {
                    match budgets.reserve(&cx(&[day(100)]), 3 * CENT).await {
                        Ok(reservation) => {
                            tokio::task::yield_now().await;
                            // Most cost a third of the worst.
                            let cost = if n % 10 == 0 { 3 * CENT } else { CENT };
                            reservation.settle(Some(cost));
                            cost
                        }
                        Err(Refusal::Over(why)) => {
                            assert!(why.contains("per day"), "{why}");
                            0
                        }
                        Err(Refusal::Closed) => panic!("closed"),
                    }
                });
                let spent: i64 = join_all(calls).await.into_iter().sum();
                assert!(matches!(budgets.reserve(&cx(&limits), 3 * CENT).await, Err(Refusal::Over(_))));
                spent
            })
            .await;
        // A call that would fit once those under way are settled waits instead of being refused.
        assert!(spent <= 90 * CENT && spent > 87 * CENT, "{spent}");
    }

    #[tokio::test]
    async fn what_was_under_way_at_a_crash_counts_as_spent_and_what_was_given_back_does_not() {
        let books = Books::new();
        let limits = [day(10)];
        books
            .process(Vec::new(), async |budgets| {
                budgets.reserve(&cx(&limits), 4 * CENT).await.unwrap().settle(Some(CENT));
                budgets.rest().await;
                // In flight when the process dies: never settled, never given back.
                std::mem::forget(budgets.reserve(&cx(&limits), 4 * CENT).await.unwrap());
            })
            .await;
        books
            .process(Vec::new(), async |budgets| {
                assert!(matches!(budgets.reserve(&cx(&limits), 6 * CENT).await, Err(Refusal::Over(_))), "1 + 4 are gone, and a block beyond");
                budgets.reserve(&cx(&limits), 4 * CENT).await.unwrap().settle(Some(4 * CENT));
            })
            .await;
    }

    #[tokio::test]
    async fn a_call_that_is_cancelled_before_it_began_costs_nothing() {
        let books = Books::new();
        let limits = [day(10)];
        books
            .process(Vec::new(), async |budgets| {
                drop(budgets.reserve(&cx(&limits), 10 * CENT).await.unwrap());
                let mut begun = budgets.reserve(&cx(&limits), 10 * CENT).await.unwrap();
                begun.begin();
                drop(begun);
                assert!(matches!(budgets.reserve(&cx(&limits), CENT).await, Err(Refusal::Over(_))));
            })
            .await;
    }

    #[tokio::test]
    async fn what_cost_more_than_its_worst_case_is_not_forgotten() {
        let books = Books::new();
        for per in [Per::Run, Per::Day] {
            let limits = [Budget { nano_usd: 10 * CENT, per }];
            let left = async |budgets: &Budgets| budgets.reserve(&cx(&limits), CENT).await.is_ok();
            books
                .process(Vec::new(), async |budgets| {
                    budgets.reserve(&cx(&limits), CENT).await.unwrap().settle(Some(10 * CENT));
                    budgets.rest().await;
                    assert!(!left(budgets).await, "{per:?}, an account at rest");
                })
                .await;
            assert!(!books.process(Vec::new(), async |budgets| left(budgets).await).await, "{per:?}, the next process");
        }
    }

    #[test]
    fn no_price_is_so_large_that_it_fits() {
        let money = Money { limit: CENT, settled: 1, reserved: 1, committed: CENT };
        assert_eq!(money.fit(i64::MAX), Fit::Never);
    }

    #[tokio::test]
    async fn a_run_has_its_own_money() {
        let books = Books::new();
        books
            .process(Vec::new(), async |budgets| {
                let limits = [Budget { nano_usd: CENT, per: Per::Run }];
                budgets.reserve(&cx(&limits), CENT).await.unwrap().settle(None);
                assert!(matches!(budgets.reserve(&cx(&limits), CENT).await, Err(Refusal::Over(_))));
                budgets.reserve(&CallCx { run_id: "next", ..cx(&limits) }, CENT).await.unwrap().settle(None);
            })
            .await;
    }

    proptest! {
        #[test]
        fn commitments_cover_what_is_used_and_stay_within_the_limit(settled in 0i64..1_000_000, reserved in 0i64..1_000_000, left in 0i64..1_000_000, committed in 0i64..1_000_000) {
            let limit = settled + reserved + left;
            let money = Money { limit, settled, reserved, committed };
            let after = money.wants().unwrap_or(committed);
            prop_assert!(after >= settled + reserved);
            prop_assert!(money.wants().is_none_or(|target| target <= limit));
        }
    }
}
