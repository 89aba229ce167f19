//! Whether a metric of a trace's steps has any to judge.

use super::{MetricSpec, check::place};
use crate::{
    sources::SourceKind,
    util::yaml::{Fault, Node},
};

/// Metrics of a trace's steps, over a source whose traces have none: they would judge that nothing happened.
pub(super) fn check(source: &Node, metrics: &[MetricSpec], nodes: &[Node], faults: &mut Vec<Fault>) {
    if has_steps(source) {
        return;
    }
    // What is wrong with the type is told where it is read.
    let Some(kind) = source.get("type").and_then(Node::as_str).filter(|kind| inventory::iter::<SourceKind>().any(|known| known.name == *kind)) else { return };
    for metric in metrics.iter().filter(|metric| metric.config.needs_steps()) {
        let node = nodes.iter().find(|node| node.get("name").and_then(Node::as_str) == Some(&metric.name));
        if let Some(node) = node {
            let message =
                format!("`{}` judges the steps of a trace, and the items of a source of type `{kind}` have none; those of `langfuse` have", metric.kind);
            faults.push(Fault::new(place(node, "type"), message));
        }
    }
}

/// Whether traces of a source have observations. Told by its type: what lies around or inside another source has what that has.
fn has_steps(source: &Node) -> bool {
    match source.get("type").and_then(Node::as_str) {
        Some("langfuse") => true,
        Some("join") => source.get("left").is_some_and(has_steps),
        _ => false,
    }
}
