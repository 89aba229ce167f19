//! The whole of assayd, from outside, in a fake world: every test is a story, its name the promise that it shows.
//!
//! Nothing here knows the inside. A [`site::Site`] is a folder with settings and monitors; its [`world::World`] has the
//! services that assayd talks to. Tests wait for events. Where a test sleeps, the time itself is its subject.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::case_sensitive_file_extension_comparisons,
    clippy::disallowed_methods,
    clippy::result_large_err,
    reason = "a test ends where what it relies on does not hold; its figures are small and its own"
)]

mod alerts;
mod anchors;
mod backfill;
mod build;
mod calibrate;
mod cli;
mod digest;
mod dimensions;
mod draw;
mod evaluate;
mod evidence;
mod experiments;
mod faults;
mod gate;
mod gateway;
mod groups;
mod import;
mod join;
mod judge;
mod kills;
mod outbox;
mod outside;
mod pipeline;
mod plan;
mod postgres;
mod processes;
mod prompts;
mod publish;
mod receivers;
mod reload;
mod schedule;
mod scopes;
mod secrets;
mod services;
mod site;
mod slack_source;
mod sql;
mod switch;
mod usertests;
mod watch;
mod world;

#[path = "../tidy.rs"]
mod tidy;
