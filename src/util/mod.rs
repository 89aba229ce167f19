//! Tools that know nothing of assayd: located YAML, secrets and their boxes, the HTTP client with its one retry loop,
//! backoff, text, redaction, humantime.
//!
//! Absent on purpose: domain words, wall clocks, settings files.

pub mod backoff;
pub mod dressed;
pub mod driven;
pub mod duration;
pub mod hidden;
pub mod http;
pub mod one_or_many;
pub mod plugin;
pub mod redact;
pub mod secret;
pub mod template;
pub mod text;
pub mod vault;
pub mod yaml;
