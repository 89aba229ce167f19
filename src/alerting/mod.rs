//! When to tell people. Pure: (last state, what was measured, now) -> (next state, decision with a named reason).
//! No clock, no store, no message text beyond one sentence; the pipeline measures, stores and sends.
//!
//! An alert's way: a [`Tally`](crate::model::Tally) of the scores in its window becomes [`Measured`] by its [`Statistic`]; its [`Condition`]
//! turns that into what is [`Observed`]; [`step`] decides, from the [`AlertMemory`] of the last evaluation, what the
//! state is now and whether anybody is told. The rules that are on by default skip the first two: they look at the
//! [`Health`] of a monitor when a run ends ([`AFTER_RUN`]), or at what the daemon knows between runs ([`STALLED`], [`FILE_REFUSED`]).
//!
//! An alert with `confidence` goes another way: it looks at each run's scores once, when the run ends, and gathers
//! [`evidence`]; its window only serves what is shown. One that compares with a `baseline` learns that level first
//! ([`baseline`]). The formulas are those of [`statistics`](crate::statistics). One with `by` is an alert for each value of an
//! expression ([`dimension`]), each of which goes its own way. Whether it is the judge that changed is told by [`anchors`].

pub mod anchors;
pub mod baseline;
mod builtin;
mod condition;
pub mod digest;
pub mod dimension;
pub mod evidence;
pub mod group;
mod machine;
pub mod maintenance;
mod measure;
pub mod replay;
pub mod silence;
pub mod simulate;
pub mod watch;

pub use builtin::{AFTER_RUN, Builtin, FILE_REFUSED, Finding, Health, STALLED, between_runs, of_monitors};
pub use condition::{Comparison, Condition};
pub use machine::{AlertMemory, Hold, Observed, OfValue, Reason, Rule, Step, Verdict, step};
pub use measure::{Measured, Statistic, percentile};
