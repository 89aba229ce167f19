//! The whole of assayd, from outside, in a fake world: every test is a story, its name the promise that it shows.
//!
//! Nothing here knows the inside. A [`site::Site`] is a folder with settings and monitors; its [`world::World`] has the
//! services that assayd talks to. Tests wait for events. Where a test sleeps, the time itself is its subject.

mod alerts;
mod build;
mod cli;
mod evaluate;
mod faults;
mod kills;
mod pipeline;
mod publish;
mod reload;
mod schedule;
mod site;
mod world;

#[path = "../tidy.rs"]
mod tidy;
