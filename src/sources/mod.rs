//! Where traces come from. A source streams what lies in a time window, oldest first, and keeps no state of its own:
//! watermark, dedup and sampling are the pipeline's.
//!
//! To add one: a file with its config struct, an example, the [`Source`] and an `inventory::submit!`, and one `mod` line.

mod fields;
mod file;
#[cfg(test)]
mod given;
mod join;
mod langfuse;
mod scope;
mod slack;
mod sql;

use std::{borrow::Cow, fmt::Debug, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use tokio::sync::mpsc;

pub use self::scope::{Scope, scoped};
pub use crate::util::plugin::BuildError;
use crate::{
    connections::Connections,
    model::Trace,
    util::{
        http::Http,
        plugin::{self, Kind},
    },
};

pub type SourceKind = Kind<dyn SourceConfig>;
inventory::collect!(SourceKind);

/// Settings of one source, as read from a monitor's `source:` block without its common keys.
pub trait SourceConfig: Debug + Send + Sync {
    /// Pure: opens no connection and reads no file, so `assayd validate` calls it too.
    ///
    /// # Errors
    /// What is wrong with the settings, and the key it hangs on.
    fn build(&self, cx: &SourceCx<'_>) -> Result<Arc<dyn Source>, BuildError>;

    /// Whether its traces have observations, which `scope: observation` makes items of.
    fn gives_observations(&self) -> bool {
        false
    }

    /// Whether its traces can tell their sessions, which `scope: session` makes items of.
    fn gives_sessions(&self) -> bool {
        true
    }
}

/// Schema of a source inside a source: `type` and the kind's own keys, without those that a monitor's `source:` has beside.
fn nested_schema(generator: &mut SchemaGenerator) -> Schema {
    // By name, since a join may hold a join.
    struct Nested;
    impl JsonSchema for Nested {
        fn schema_name() -> Cow<'static, str> {
            "NestedSource".into()
        }
        fn json_schema(generator: &mut SchemaGenerator) -> Schema {
            plugin::blocks(generator, &json_schema!({}), inventory::iter::<SourceKind>().collect())
        }
    }
    generator.subschema_for::<Nested>()
}

/// What building a source may use.
pub struct SourceCx<'a> {
    pub connections: &'a Connections,
    pub http: &'a Http,
    /// Relative paths start here: the folder of the settings file.
    pub base_dir: &'a PathBuf,
    /// Whether the monitor reads `trace.observations` or `trace.steps`.
    pub wants_observations: bool,
}

/// `[from, to)`: items with `from <= timestamp < to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from: Timestamp,
    pub to: Timestamp,
}

/// One item as fetched.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    pub id: String,
    pub timestamp: Timestamp,
    /// False where the source had no time for the item (a broken line) and `timestamp` is the window's end. Such an
    /// item never moves the watermark.
    pub dated: bool,
    /// The trace, or why there is none: such an item is recorded as failed and not fetched again.
    pub body: Result<Arc<Trace>, String>,
}

/// The receiving end went away: the run has all it wants. Not an error; `fetch` returns `Ok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enough;

/// Where `fetch` puts its pages. Bounded: a slow reader slows the source, so memory stays at a few pages.
#[derive(Debug, Clone)]
pub struct Pages(mpsc::Sender<Vec<Fetched>>);

impl Pages {
    /// A channel that holds `pages` pages.
    #[must_use]
    pub fn channel(pages: usize) -> (Self, mpsc::Receiver<Vec<Fetched>>) {
        let (sender, receiver) = mpsc::channel(pages);
        (Self(sender), receiver)
    }

    /// # Errors
    /// `Enough` when nobody wants more.
    pub async fn send(&self, page: Vec<Fetched>) -> Result<(), Enough> {
        self.0.send(page).await.map_err(|_| Enough)
    }
}

#[async_trait]
pub trait Source: Send + Sync {
    /// Sends every item of the window, in ascending order of timestamp from page to page and within a page. The same
    /// window gives the same items or more (late arrivals); an item may come twice. Whole pages or an error: a window
    /// that ends in `Err` may be asked for again. Ends early with `Ok` when `Pages::send` says `Enough`.
    ///
    /// Observations are left out; see [`Source::complete`]. Waits and retries happen inside (`util::http`).
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError>;

    /// Fills in `trace.observations`. Called only when the monitor uses them, once per new item, several at a time.
    async fn complete(&self, trace: Arc<Trace>) -> Result<Arc<Trace>, SourceError> {
        Ok(trace)
    }

    /// A cheap check that the source can be reached and the credentials hold (`validate --live`); a sentence on success.
    async fn probe(&self) -> Result<String, SourceError>;
}

/// Why a fetch failed. The run fails with it; the next slot tries again from the same watermark.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// Key refused, no such project or path: the same until somebody acts.
    #[error("{0}")]
    Refused(String),
    /// Retries ran out, or the file could not be read this time.
    #[error("{0}")]
    Unavailable(String),
    /// The source's answer breaks its own contract (a page that repeats, a cursor that does not move).
    #[error("{0}")]
    Protocol(String),
}

impl SourceError {
    /// For a metric's label.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unavailable(_) => "unavailable",
            Self::Protocol(_) => "protocol",
        }
    }
}
