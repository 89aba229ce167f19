//! Which files are refused, and of which monitors they are.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Loaded, MonitorSpec, load::shown};
use crate::util::yaml::Fault;

impl Loaded {
    /// What is wrong with each file that is refused, by the monitor's name where that is known: because it can be read, or
    /// because an earlier version of the file was good and its monitor is among the `active` ones. Else by the file's stem; what
    /// lies under monitors (`_defaults.yaml`, `.env`, a folder) by its path.
    #[must_use]
    pub fn refused<'a>(&self, active: impl Iterator<Item = &'a Arc<MonitorSpec>> + Clone) -> BTreeMap<String, String> {
        let mut faults: BTreeMap<&str, Vec<&Fault>> = BTreeMap::new();
        for fault in &self.faults {
            faults.entry(&fault.at.file).or_default().push(fault);
        }
        let mut refused = BTreeMap::new();
        for (file, faults) in faults {
            let more = if faults.len() > 1 { format!(" (and {} more)", faults.len() - 1) } else { String::new() };
            let why = format!("{}{more}", faults[0]);
            let mut names: Vec<String> = self.unfit_in.get(file).cloned().unwrap_or_default();
            if names.is_empty() {
                let kept = active.clone().filter(|spec| shown(&spec.file) == file && !self.monitors.contains_key(&spec.name));
                names.extend(kept.map(|spec| spec.name.clone()));
            }
            if names.is_empty() {
                names.push(stem(file));
            }
            refused.extend(names.into_iter().map(|name| (name, why.clone())));
        }
        refused
    }
}

fn stem(file: &str) -> String {
    let path = Path::new(file);
    let monitors = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).filter(|stem| monitors && !stem.starts_with('_'));
    stem.unwrap_or_else(|| file.to_owned())
}
