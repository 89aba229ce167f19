//! What is sound and most likely not what was meant: told by `validate` and in the log, and no reason to refuse a monitor.

use super::{Settings, SourceSpec};
use crate::{
    connections::LangfuseConnection,
    sinks::SinkConfig,
    util::{
        secret::ExposeSecret,
        yaml::{Fault, Node},
    },
};

/// The Langfuse connection whose traces the items of a source are; of a join, those of its left side.
pub(super) fn langfuse(source: &Node) -> Option<String> {
    match source.get("type").and_then(Node::as_str)? {
        "langfuse" => Some(source.get("connection").and_then(Node::as_str).unwrap_or(crate::connections::DEFAULT).to_owned()),
        // Under ids of its own they are nobody's traces.
        "join" if source.get("id").is_none() => langfuse(source.get("left")?),
        _ => None,
    }
}

/// Langfuse takes scores of traces that it does not have, and shows them nowhere.
pub(super) fn scores_without_traces(sink: &dyn SinkConfig, node: &Node, source: &SourceSpec, settings: &Settings) -> Option<Fault> {
    let onto = sink.scores_traces_of()?;
    let from = source.langfuse.as_deref();
    let of = |name: &str| settings.connections.langfuse.get(name);
    if from == Some(onto) || from.and_then(of).zip(of(onto)).is_some_and(|(from, onto)| same_project(from, onto)) {
        return None;
    }
    let items = from.map_or_else(|| format!("come from `{}`", source.kind), |from| format!("are traces of connection `{from}`"));
    let message = format!(
        "scores are put on the traces of Langfuse connection `{onto}`, but the items {items}: a score whose trace is not there is shown nowhere. \
         With `scores: false` and an `experiment` each item gets a trace of its own"
    );
    Some(Fault::new(&node.at, message))
}

/// The keys decide the project.
fn same_project(a: &LangfuseConnection, b: &LangfuseConnection) -> bool {
    let base = |connection: &LangfuseConnection| connection.base_url.trim_end_matches('/').to_owned();
    base(a) == base(b) && a.public_key.expose_secret() == b.public_key.expose_secret()
}
