//! assayd: a daemon that tells a team when the answers of their LLM product get worse.
//!
//! This page is the map. A folder is one idea; its `mod.rs` states the contract, its other files fulfil it.
//!
//! # One trace's way
//!
//! [`schedule`] says that a slot of monitor `support-answers` is due, and [`daemon`] starts [`pipeline::run`]:
//!
//! 1. **fetch**: the [`sources`] plug-in streams what lies between `watermark - overlap` and `now - settle`, oldest first.
//!    Sources stand inside one another where an item is more or less than a trace: `join`, and the scopes observation and session.
//! 2. **dedup**: what the decision ledger in the [`store`] knows is a duplicate. (Before extract, unlike the order in which
//!    users speak of the stages: extract may need a trace's observations, which cost requests.)
//! 3. **filter, extract**: a trace becomes a case (input, output, context, expected).
//! 4. **sample**: the draw is stored, with the trace, before anything is judged.
//! 5. **evaluate**: each of the [`metrics`] gives an outcome, free ones first; judges ask models through
//!    [`gateway`], the one place for retry, timeout, limits and cost.
//! 6. **record**: scores, the item's decision and what is to be sent, in one transaction, item by item.
//! 7. **publish**: couriers take the outbox to the [`sinks`], each queue on its own.
//! 8. **alert**: [`alerting`] decides, purely, from what was measured or, with `confidence`, from the evidence of all runs so far
//!    ([`statistics`]); messages go through an outbox too.
//!
//! # What holds at any moment
//!
//! - A run is (monitor, slot), a score is (monitor, metric, revision, item, content): both have ids derived from that, so
//!   whatever happens twice is the same thing again.
//! - An item has one row in the ledger. It is drawn or not drawn once; a crash or a deferral never draws anew, only content that
//!   changed does, where `rejudge` asks for it. What fails before the draw (a filter that does not fit) waits and takes part in a
//!   later one.
//! - Only runs that speak for today ([`model::Trigger::speaks`]) are looked at by alerts; a backfill leaves nothing in the ledger that
//!   such a run would take for its own.
//! - What waits is published as the run that took it was asked to, whichever run judges it.
//! - A paid answer is on disk (`synchronous=FULL`) before its item counts as judged, and before anything is sent.
//! - A failed judgement is an outcome with a reason, never a number.
//! - What a judge says of an anchor is no score: it only tells whether the judge changed.
//! - A run is judged by one version of each prompt, read when it starts ([`prompts`]); the revision of its scores is that text's.
//! - While the store refuses writes no model is called: an answer that cannot be kept would be paid for twice.
//! - One process writes a state folder ([`store::lock`]); any number read it. The sealed secrets alone are written by
//!   `assayd secrets`, in a table that no daemon writes.
//! - A key is a [`util::secret::SecretString`] from where it is read: never shown, looked up where the settings only name it.
//! - No call is made that a budget would have to pay and whose worst case is not set aside on disk ([`gateway`]).
//! - A metric's own process (`exec`) is kept by a task; it has a group of its own, which is killed when that task ends, or when
//!   assayd leaves without ending its tasks.
//! - A run's scores are evidence once: an alert's memory is written in the transaction that ends the run, with the run's id.
//! - What has to be seen though no run ends (a monitor that is stalled, a refused file) is evaluated between runs, by the one task
//!   that moves those alerts.
//! - What happened to an alert is in the store, by the group that it is told with, before anybody is told; how far telling came is
//!   kept before and after each message, so that a kill loses none, and what may have been taken is looked for before it is said again.
//! - Only [`daemon::supervisor`] begins tasks, only [`schedule::clock`] reads the wall clock for decisions.
//!
//! # Two schedulers, and why
//!
//! Monitors' slots come from [`schedule::plan`], a pure function over croner, and [`schedule::queue`], one heap on its own
//! thread. tokio-cron-scheduler runs the housekeeping (retention, checkpoints) and nothing else. Measured with it on a
//! 2-core machine: its 500 ms tick alone makes p99 lateness 380 to 497 ms; interval jobs fire up to a second early; of
//! 10,000 jobs that share an instant 30 to 37 % of the fires are lost with its default channel of 200; an interval job
//! that sleeps through its interval (a suspended machine) never fires again; a panic in a job's closure kills the job; a
//! zone is frozen at creation, so daylight saving shifts it. Within its limits it is sound: few jobs, cron form, UTC,
//! async closures that do not panic, a channel several times the number of jobs.
//! The heap here, by `cargo bench` on such a machine: 10,000 monitors with a p99 of 0.3 ms spread over a minute and of 10 ms
//! all at once, none missed. What a slot needs beyond the hand-over (compiling the monitor, a look at changed files) is
//! done by tasks beside the daemon's loop, and a run that finds no place waits as an entry in a line, not as a task, so the
//! loop hands over thousands of slots within the same milliseconds.
//!
//! # Settings
//!
//! [`util::yaml`] reads YAML into a tree in which every value knows its place; [`config`] merges, fills in and checks on
//! that tree, so that every fault names file, line and column. (serde alone loses places in tagged and flattened parts;
//! the parser is granit, the one under serde-saphyr.) Plug-ins register themselves: one file, one `mod` line.

#![cfg_attr(
    test,
    allow(
        clippy::float_cmp,
        clippy::unnecessary_wraps,
        clippy::unused_async,
        reason = "tests compare what was written down, and stand in for what may fail or wait"
    )
)]

pub mod alerting;
pub mod cli;
pub mod config;
pub mod connections;
pub mod control;
pub mod daemon;
pub mod gateway;
pub mod metrics;
pub mod model;
pub mod pipeline;
pub mod prompts;
pub mod providers;
pub mod schedule;
pub mod sinks;
pub mod sources;
pub mod statistics;
pub mod store;
pub mod telemetry;
pub mod util;
pub mod web;
