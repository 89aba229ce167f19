//! When a monitor runs. [`plan`] is a pure rule from a schedule and an instant to the next slot; [`queue`] is one timer
//! heap on its own thread that hands due slots over; [`clock`] is the only wall clock.
//!
//! Why not tokio-cron-scheduler for the monitors: see the crate docs.

pub mod clock;
pub mod plan;
pub mod queue;
