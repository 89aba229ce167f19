//! Which files are refused, and of which monitors they are.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Loaded, MonitorSpec, load::shown};
use crate::util::yaml::Fault;

impl Loaded {
    /// What is wrong with each file that is refused, by the monitor's name where that is known: because it can be read, or
    /// because an earlier version of the file was good and its monitor is among the `active` ones. Else by the file's stem; what
    /// lies under monitors (`_defaults.yaml`, `.env`, a folder) by its path.
    #[must_use]
    pub fn refused<'a>(&self, active: impl Iterator<Item = &'a Arc<MonitorSpec>>) -> BTreeMap<String, String> {
        let mut faults: BTreeMap<&str, Vec<&Fault>> = BTreeMap::new();
        for fault in &self.faults {
            faults.entry(&fault.at.file).or_default().push(fault);
        }
        if faults.is_empty() {
            return BTreeMap::new();
        }
        let mut kept: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for spec in active.filter(|spec| !self.monitors.contains_key(&spec.name)) {
            kept.entry(shown(&spec.file)).or_default().push(spec.name.clone());
        }
        let mut refused = BTreeMap::new();
        for (file, faults) in faults {
            let more = if faults.len() > 1 { format!(" (and {} more)", faults.len() - 1) } else { String::new() };
            let why = format!("{}{more}", faults[0]);
            let names = self.unfit_in.get(file).or_else(|| kept.get(file)).cloned().unwrap_or_else(|| vec![stem(file)]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::yaml::Span;

    #[test]
    fn a_file_is_known_by_its_monitor_or_its_stem_and_what_lies_under_monitors_by_its_path() {
        let fault = |file: &str, line| Fault { at: Span { file: file.into(), line, column: 1 }, message: "no".to_owned() };
        let faults = vec![
            fault("monitors/a.yaml", 1),
            fault("monitors/a.yaml", 2),
            fault("monitors/b.yaml", 1),
            fault("monitors/sub/_defaults.yaml", 1),
            fault("monitors/sub/.env", 1),
            fault("monitors", 1),
        ];
        let unfit_in = BTreeMap::from([("monitors/a.yaml".to_owned(), vec!["one".to_owned(), "two".to_owned()])]);
        let loaded = Loaded { faults, unfit_in, ..Loaded::default() };
        let refused = loaded.refused([].iter());
        assert_eq!(refused.keys().collect::<Vec<_>>(), ["b", "monitors", "monitors/sub/.env", "monitors/sub/_defaults.yaml", "one", "two"]);
        assert_eq!(refused["two"], "monitors/a.yaml:1:1: no (and 1 more)");
        assert_eq!(Loaded::default().refused([].iter()), BTreeMap::new());
    }
}
