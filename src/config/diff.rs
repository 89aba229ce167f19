//! What a reload changes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use super::MonitorSpec;
use crate::model::Changes;

/// What becomes of one monitor.
#[derive(Debug, Clone)]
pub enum Change {
    Added(Arc<MonitorSpec>),
    /// Takes effect at the monitor's next slot; its state is carried over.
    Changed(Arc<MonitorSpec>),
    /// A run under way is left to finish.
    Removed(String),
}

/// By name and fingerprint. A monitor that is missing from `new` while its file, or a folder above it, is
/// among the `broken` ones is kept.
#[must_use]
pub fn diff(old: &BTreeMap<String, Arc<MonitorSpec>>, new: &BTreeMap<String, Arc<MonitorSpec>>, broken: &BTreeSet<PathBuf>) -> (Vec<Change>, Changes) {
    let (mut acts, mut changes) = (Vec::new(), Changes::default());
    for (name, spec) in new {
        match old.get(name) {
            None => {
                changes.added.push(name.clone());
                acts.push(Change::Added(Arc::clone(spec)));
            }
            Some(before) if before.fingerprint != spec.fingerprint => {
                changes.changed.push(name.clone());
                acts.push(Change::Changed(Arc::clone(spec)));
            }
            Some(_) => changes.unchanged += 1,
        }
    }
    for (name, spec) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
        if broken.iter().any(|path| spec.file.starts_with(path)) {
            changes.kept.push(name.clone());
        } else {
            changes.removed.push(name.clone());
            acts.push(Change::Removed(name.clone()));
        }
    }
    (acts, changes)
}
