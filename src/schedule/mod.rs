//! When a monitor runs. [`plan`] is a pure rule from a schedule and an instant to the next slot; [`queue`] is one timer
//! heap on its own thread that hands due slots over; [`daily`] is the rule for what is told once a day; [`clock`] is the only wall clock.
//!
//! Why not tokio-cron-scheduler for the monitors: see the crate docs.

pub mod clock;
pub mod daily;
pub mod plan;
pub mod queue;
