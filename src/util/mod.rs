//! Tools that know nothing of assayd: located YAML, the HTTP client with its one retry loop, backoff, text, humantime.
//!
//! Absent on purpose: domain words, wall clocks, settings files.

pub mod backoff;
pub mod duration;
pub mod http;
pub mod one_or_many;
pub mod plugin;
pub mod template;
pub mod text;
pub mod yaml;
