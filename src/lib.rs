//! assayd: a daemon that tells a team when the answers of their LLM product get worse.

pub mod alerting;
pub mod cli;
pub mod config;
pub mod connections;
pub mod control;
pub mod daemon;
pub mod metrics;
pub mod model;
pub mod pipeline;
pub mod providers;
pub mod schedule;
pub mod sinks;
pub mod sources;
pub mod store;
pub mod telemetry;
pub mod util;
pub mod web;
