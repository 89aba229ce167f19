//! What an item is: a trace, one of its observations, or all the traces of a session. A source around the source, so that
//! none knows of it.

mod observation;
mod session;

use std::sync::Arc;

use jiff::SignedDuration;

use self::{observation::Observations, session::Sessions};
use super::{BuildError, Source};
use crate::{
    model::Trace,
    util::{duration::Human, template::Expr},
};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    #[default]
    Trace,
    /// One item an observation for which the expression over `observation` and `trace` is true.
    Observation { matching: String },
    /// One item a session, whose traces lie at most `reach` before its last one.
    Session { reach: Human },
}

impl Scope {
    /// Whether items are made of the traces' children.
    #[must_use]
    pub fn needs_observations(&self) -> bool {
        matches!(self, Self::Observation { .. })
    }

    /// Why a trace is no item of this scope, where it is none. It is passed on all the same: that it was looked at is
    /// recorded, and the watermark moves past it.
    #[must_use]
    pub fn leaves_out(&self, trace: &Trace) -> Option<String> {
        match self {
            Self::Observation { matching } if trace.observation_place().is_none() => Some(format!("no observation with `{matching}`")),
            _ => None,
        }
    }
}

/// `source` by items of a scope. `settle` is how long a session has to be idle.
///
/// # Errors
/// An expression that does not compile.
pub fn scoped(source: Arc<dyn Source>, scope: &Scope, settle: Human) -> Result<Arc<dyn Source>, BuildError> {
    Ok(match scope {
        Scope::Trace => source,
        Scope::Observation { matching } => {
            let matching = Expr::lenient(matching).map_err(|error| BuildError::at("where", format!("`where` is no expression: {error}")))?;
            Arc::new(Observations { source, matching })
        }
        Scope::Session { reach } => {
            let span = |human: &Human| SignedDuration::from_millis(human.millis());
            Arc::new(Sessions { source, reach: span(reach), settle: span(&settle), most_bytes: session::MOST_BYTES })
        }
    })
}
