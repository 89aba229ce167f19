//! `watch:`, one switch for each alert that is on by default.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::{
    alerting::{FILE_REFUSED, of_monitors},
    util::{
        text,
        yaml::{Fault, Section},
    },
};

/// Alerts by name: false switches one off. What is not named is on, or as it is under this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Switches(BTreeMap<String, bool>);

impl Switches {
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(true)
    }

    /// These over what holds for all.
    pub(super) fn over(&self, all: &Self) -> Self {
        let mut both = all.0.clone();
        both.extend(self.0.iter().map(|(name, on)| (name.clone(), *on)));
        Self(both)
    }
}

impl JsonSchema for Switches {
    fn schema_name() -> Cow<'static, str> {
        "Switches".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: serde_json::Map<_, _> =
            of_monitors().chain([FILE_REFUSED.name]).map(|name| (name.to_owned(), serde_json::json!({ "type": "boolean" }))).collect();
        json_schema!({ "type": "object", "properties": names, "additionalProperties": false })
    }
}

/// Whose `watch` it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Monitor,
    Daemon,
}

/// What the section says; none is all on.
pub(super) fn read(section: Option<&Section<Switches>>, whose: Whose, faults: &mut Vec<Fault>) -> Switches {
    let Some(section) = section else { return Switches::default() };
    let Some(switches) = section.read(faults) else { return Switches::default() };
    for (name, at, _) in section.node.as_map().into_iter().flatten() {
        let of_daemon = name == FILE_REFUSED.name;
        if of_monitors().any(|known| known == name) || of_daemon && whose == Whose::Daemon {
            continue;
        }
        let message = if of_daemon {
            format!("`{name}` is the daemon's, which cannot ask a file that it refused: its switch stands in assayd.yaml")
        } else {
            let near = text::nearest(name, of_monitors().chain([FILE_REFUSED.name].into_iter().filter(|_| whose == Whose::Daemon)));
            let hint = near.map_or_else(|| format!("; there are {}", of_monitors().collect::<Vec<_>>().join(", ")), |near| format!(", did you mean `{near}`?"));
            format!("`{}` is no alert that is on by default{hint}", text::one_line(name, 80))
        };
        faults.push(Fault::new(at, message));
    }
    switches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::yaml;

    fn found(text: &str, whose: Whose) -> (Switches, Vec<String>) {
        let tree = yaml::parse("m.yaml", text.as_bytes()).unwrap().remove(0);
        let mut faults = Vec::new();
        let section: Section<Switches> = yaml::read(&tree, &mut faults).unwrap();
        let switches = read(Some(&section), whose, &mut faults);
        (switches, faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_switch_names_an_alert_that_there_is() {
        let (switches, faults) = found("no-data: false\nstalled: true\n", Whose::Monitor);
        assert_eq!((switches.is_on("no-data"), switches.is_on("stalled"), switches.is_on("dead-rows"), faults.len()), (false, true, true, 0));
        let (_, faults) = found("dead-rows: true\nnodata: false\n", Whose::Monitor);
        assert_eq!(faults, ["m.yaml:2:1: `nodata` is no alert that is on by default, did you mean `no-data`?"]);
        assert!(found("file-refused: false\n", Whose::Monitor).1[0].ends_with("its switch stands in assayd.yaml"));
        assert_eq!(found("file-refused: false\n", Whose::Daemon).1, Vec::<String>::new());
        assert_eq!(found("no-data: 7\n", Whose::Daemon).1.len(), 1);
    }

    #[test]
    fn a_monitor_has_the_last_word() {
        let (all, _) = found("no-data: false\nstalled: false\n", Whose::Daemon);
        let (own, _) = found("stalled: true\n", Whose::Monitor);
        let both = own.over(&all);
        assert_eq!((both.is_on("no-data"), both.is_on("stalled")), (false, true));
    }
}
