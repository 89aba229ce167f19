//! A monitor and settings that were written just now, checked before anybody loads them.

use std::{collections::BTreeSet, path::Path, rc::Rc, sync::LazyLock};

use regex::Regex;

use super::{
    Overrides, check,
    interpolate::{Env, Used, interpolate},
    secrets::Unneeded,
    settings,
};
use crate::util::{
    secret,
    yaml::{self, Fault, Node, Span, Value},
};

/// A variable that has to be set.
static UNSET: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?:\}|:\?)").expect("a pattern of ours"));

/// Faults of a monitor under settings, both as text. Reads no file but what the monitor names, and looks up no key.
///
/// What a variable holds is not known here: what is wrong where one stands is left to those who set it.
#[must_use]
pub fn faults_of_text(monitor: &str, shown: &str, settings: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let (Some(mut tree), Some(mut under)) = (tree(monitor, shown, &mut faults), tree(settings, super::DEFAULT_CONFIG, &mut faults)) else { return faults };
    stand_in("", &mut under);
    let unset = UNSET.captures_iter(monitor).map(|found| (found[1].to_owned(), "1".to_owned()));
    let env = Env { layers: vec![std::sync::Arc::new(unset.collect())] };
    let mut open = BTreeSet::new();
    lines_of_variables(&tree, &mut open);
    let mut used = Used::default();
    interpolate(&mut tree, &env, &mut used, &mut faults);
    secret::looking_up(Rc::new(Unneeded), || {
        if let Some(settings) = settings::read(&under, Path::new(""), &Overrides::default(), &mut faults) {
            check::monitor(&tree, Path::new(shown), &settings, &mut faults);
        }
    });
    used.hide(&mut faults);
    faults.retain(|fault| *fault.at.file != *shown || !open.contains(&fault.at.line));
    faults
}

fn tree(text: &str, shown: &str, faults: &mut Vec<Fault>) -> Option<Node> {
    let empty = || Node::new(Span { file: shown.into(), line: 1, column: 1 }, Value::Map(Vec::new()));
    match yaml::parse(shown, text.as_bytes()) {
        Ok(mut documents) => Some(documents.pop().unwrap_or_else(empty)),
        Err(fault) => {
            faults.push(fault);
            None
        }
    }
}

/// Puts something sound where settings leave a value to a variable.
fn stand_in(key: &str, node: &mut Node) {
    match &mut node.value {
        Value::Map(map) => map.iter_mut().for_each(|(key, _, value)| stand_in(key, value)),
        Value::Seq(items) => items.iter_mut().for_each(|item| stand_in(key, item)),
        Value::String(text) if text.contains("${") => {
            *text = match key {
                "url" => "postgres://localhost/any".to_owned(),
                "base_url" => "http://localhost".to_owned(),
                _ => "any".to_owned(),
            }
        }
        _ => {}
    }
}

fn lines_of_variables(node: &Node, lines: &mut BTreeSet<u32>) {
    match &node.value {
        Value::Map(map) => map.iter().for_each(|(.., value)| lines_of_variables(value, lines)),
        Value::Seq(items) => items.iter().for_each(|item| lines_of_variables(item, lines)),
        Value::String(text) if text.contains("${") => drop(lines.insert(node.at.line)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: &str = "connections:\n  langfuse:\n    default: { base_url: \"${HOST:-x}\", public_key: \"${A_KEY}\", secret_key: \"${B_KEY}\" }\n";

    fn found(monitor: &str) -> Vec<String> {
        faults_of_text(monitor, "m.yaml", SETTINGS).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_was_written_is_checked_but_for_what_is_to_be_filled_in() {
        let sound = "schedule: { every: 1h }\nsource:\n  type: langfuse\n  limit: \"${LIMIT}\"\n  lookback: \"${DAYS}x\"\n  tags: [a]\nmetrics: [{ name: a, type: length, max: 5 }]\n";
        assert_eq!(found(sound), Vec::<String>::new());
        let dotted = found(&sound.replace("name: a", "name: a.b"));
        assert!(matches!(dotted.as_slice(), [fault] if fault.starts_with("m.yaml:7:") && fault.contains("has no dot")), "{dotted:?}");
        assert!(found(&sound.replace("tags: [a]", "tags: [a]\n  connection: other"))[0].contains("other"));
        assert!(found("a: [")[0].starts_with("m.yaml:1:"));
    }
}
