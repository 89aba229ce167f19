//! `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$`, inside values and after parsing: what a variable holds can
//! never change the document's structure.

use std::collections::BTreeMap;

use crate::util::yaml::{Fault, Node, Span, Value};

/// Blocks and values in which `$` means nothing: they hold other languages.
const LEFT_ALONE: [&str; 8] = ["prompt", "extract", "patterns", "pattern", "query", "filter", "when", "always"];

/// Variables, nearest layer first.
#[derive(Debug, Clone, Default)]
pub(super) struct Env {
    pub layers: Vec<std::sync::Arc<BTreeMap<String, String>>>,
}

impl Env {
    /// The process's environment stands over every file.
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().or_else(|| self.layers.iter().find_map(|layer| layer.get(name).cloned()))
    }
}

pub(super) fn interpolate(node: &mut Node, env: &Env, faults: &mut Vec<Fault>) {
    match &mut node.value {
        Value::Seq(items) => items.iter_mut().for_each(|item| interpolate(item, env, faults)),
        Value::Map(map) => map.iter_mut().filter(|(key, ..)| !LEFT_ALONE.contains(&key.as_str())).for_each(|(.., value)| interpolate(value, env, faults)),
        Value::String(text) if text.contains('$') => match fill(text, env) {
            Ok((filled, whole)) if whole => *node = Node::scalar(node.at.clone(), &filled),
            Ok((filled, _)) => *text = filled,
            Err(message) => faults.push(Fault::new(&node.at, message)),
        },
        _ => {}
    }
}

/// The text with its variables; true when it was nothing but one `${..}`.
fn fill(text: &str, env: &Env) -> Result<(String, bool), String> {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        rest = if let Some(tail) = tail.strip_prefix('$') {
            out.push('$');
            tail
        } else if let Some(inside) = tail.strip_prefix('{') {
            let (inside, tail) = inside.split_once('}').ok_or("`${` without `}`; write `$$` for a plain `$`")?;
            out.push_str(&variable(inside, env)?);
            tail
        } else {
            out.push('$');
            tail
        };
    }
    out.push_str(rest);
    let whole = text.starts_with("${") && text.find('}') == Some(text.len() - 1);
    Ok((out, whole))
}

fn variable(inside: &str, env: &Env) -> Result<String, String> {
    let (name, or) = match inside.split_once(':') {
        Some((name, or)) => (name, Some(or)),
        None => (inside, None),
    };
    let sound = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !sound {
        return Err(format!("`${{{inside}}}` names no variable"));
    }
    // As in a shell: with a colon, an empty variable counts as unset.
    let value = env.get(name).filter(|value| or.is_none() || !value.is_empty());
    match (value, or) {
        (Some(value), _) => Ok(value),
        (None, Some(or)) if or.starts_with('-') => Ok(or[1..].to_owned()),
        (None, Some(or)) if or.starts_with('?') => Err(format!("the environment variable `{name}` is not set: {}", &or[1..])),
        (None, None) => Err(format!("the environment variable `{name}` is not set; give it a value or a default: `${{{name}:-default}}`")),
        (None, Some(_)) => Err(format!("`${{{inside}}}`: behind the colon stands `-default` or `?message`")),
    }
}

/// A `.env` file: `NAME=value`, `export NAME=value`, quotes, `#` comments.
pub(super) fn read_env(file: &str, text: &str, faults: &mut Vec<Fault>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line.strip_prefix("export ").unwrap_or(line).split_once('=');
        let Some((name, value)) = entry.filter(|(name, _)| name.trim().chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.trim().is_empty())
        else {
            // Not the line itself: it may hold a secret.
            faults.push(Fault::new(&Span { file: file.into(), line: u32::try_from(at + 1).unwrap_or(u32::MAX), column: 1 }, "expected `NAME=value`"));
            continue;
        };
        let value = value.trim();
        let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
        let value = quoted.unwrap_or_else(|| value.split_once(" #").map_or(value, |(value, _)| value.trim_end()));
        env.insert(name.trim().to_owned(), value.to_owned());
    }
    env
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        Env { layers: vec![std::sync::Arc::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())] }
    }

    fn filled(text: &str, env: &Env) -> Result<Value, String> {
        let at = Span { file: "m".into(), line: 1, column: 1 };
        let mut node = Node::new(at, Value::String(text.to_owned()));
        let mut faults = Vec::new();
        interpolate(&mut node, env, &mut faults);
        faults.pop().map_or(Ok(node.value), |fault| Err(fault.message))
    }

    #[test]
    fn the_forms_of_a_variable() {
        let env = env(&[("X_A", "30"), ("X_E", "")]);
        assert_eq!(filled("${X_A}", &env), Ok(Value::Int(30)));
        assert_eq!(filled("n=${X_A}", &env), Ok(Value::String("n=30".to_owned())));
        assert_eq!(filled("${X_A}${X_A}", &env), Ok(Value::String("3030".to_owned())));
        assert_eq!(filled("${X_E:-0.5}", &env), Ok(Value::Float(0.5)));
        assert_eq!(filled("$${X_A} costs $5", &env), Ok(Value::String("${X_A} costs $5".to_owned())));
        assert!(filled("${X_MISSING}", &env).unwrap_err().contains("X_MISSING"));
        assert!(filled("${X_MISSING:?set it in .env}", &env).unwrap_err().contains("set it in .env"));
        assert!(filled("${X_A", &env).is_err());
    }

    proptest! {
        #[test]
        fn a_value_never_becomes_structure(value in ".{0,40}") {
            let value = value.replace('\0', "");
            let node = filled("${X_V}", &env(&[("X_V", &value)])).unwrap();
            prop_assert!(!matches!(node, Value::Map(_) | Value::Seq(_)));
        }
    }
}
