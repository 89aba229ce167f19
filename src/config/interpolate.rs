//! `${NAME}`, `${NAME:-default}`, `${NAME:?message}` and `$$`, inside values and after parsing: what a variable holds can
//! never change the document's structure.

use std::collections::BTreeMap;

use crate::util::{
    text,
    yaml::{Fault, Node, Span, Value},
};

/// Blocks and values in which `$` means nothing: they hold other languages.
const LEFT_ALONE: [&str; 9] = ["prompt", "extract", "patterns", "pattern", "query", "filter", "when", "always", "by"];

/// Variables, nearest layer first.
#[derive(Debug, Clone, Default)]
pub(super) struct Env {
    pub layers: Vec<std::sync::Arc<BTreeMap<String, String>>>,
}

impl Env {
    /// The process's environment stands over every file.
    pub fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().or_else(|| self.layers.iter().find_map(|layer| layer.get(name).cloned()))
    }
}

/// What variables held that were filled in: name and value. Faults may not repeat it.
#[derive(Default)]
pub(super) struct Used(Vec<(String, String)>);

impl Used {
    fn note(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// Puts `${NAME}` where a fault repeats what a variable held, or how that begins: a message may have cut it short.
    pub fn hide(mut self, faults: &mut [Fault]) {
        // Long ones first: a short value may be a part of a long one.
        self.0.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        for fault in faults {
            for (name, value) in &self.0 {
                fault.message = hide(&fault.message, name, value);
            }
        }
    }
}

/// Values shorter than this are no secrets, and stand in many words.
const SHORTEST: usize = 3;
/// So many characters in common with the beginning of a value give it away.
const TELLING: usize = 6;

fn hide(message: &str, name: &str, value: &str) -> String {
    // Messages have one line and no control characters, whatever the value has.
    let value = text::one_line(value, usize::MAX);
    let head: String = value.chars().take(TELLING).collect();
    if head.chars().count() < SHORTEST {
        return message.to_owned();
    }
    let (mut out, mut rest) = (String::with_capacity(message.len()), message);
    while let Some(at) = rest.find(&head) {
        let shared: usize = rest[at..].chars().zip(value.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        out.push_str(&rest[..at]);
        out.push_str(&format!("${{{name}}}"));
        rest = &rest[at + shared..];
    }
    out.push_str(rest);
    out
}

pub(super) fn interpolate(node: &mut Node, env: &Env, used: &mut Used, faults: &mut Vec<Fault>) {
    match &mut node.value {
        Value::Seq(items) => items.iter_mut().for_each(|item| interpolate(item, env, used, faults)),
        Value::Map(map) => map.iter_mut().filter(|(key, ..)| !LEFT_ALONE.contains(&key.as_str())).for_each(|(.., value)| interpolate(value, env, used, faults)),
        Value::String(text) if text.contains('$') => match fill(text, env, used) {
            Ok(filled) => {
                if filled.whole {
                    *node = Node::scalar(node.at.clone(), &filled.text);
                } else {
                    *text = filled.text;
                }
                node.filled = filled.by_variable;
            }
            Err(message) => faults.push(Fault::new(&node.at, message)),
        },
        _ => {}
    }
}

/// A text with its variables.
struct Filled {
    text: String,
    /// It was nothing but one `${..}`.
    whole: bool,
    /// It begins with what a variable held, not with what the user wrote.
    by_variable: bool,
}

fn fill(text: &str, env: &Env, used: &mut Used) -> Result<Filled, String> {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let mut by_variable = false;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        rest = if let Some(tail) = tail.strip_prefix('$') {
            out.push('$');
            tail
        } else if let Some(inside) = tail.strip_prefix('{') {
            let (inside, tail) = inside.split_once('}').ok_or("`${` without `}`; write `$$` for a plain `$`")?;
            let (value, held) = variable(inside, env, used)?;
            by_variable |= held && out.is_empty();
            out.push_str(&value);
            tail
        } else {
            out.push('$');
            tail
        };
    }
    out.push_str(rest);
    let whole = text.starts_with("${") && text.find('}') == Some(text.len() - 1);
    Ok(Filled { text: out, whole, by_variable })
}

/// The value, and whether a variable held it: a default is written in the file.
fn variable(inside: &str, env: &Env, used: &mut Used) -> Result<(String, bool), String> {
    let (name, or) = match inside.split_once(':') {
        Some((name, or)) => (name, Some(or)),
        None => (inside, None),
    };
    let sound = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !sound {
        return Err(format!("`${{{}}}` names no variable", text::one_line(inside, 60)));
    }
    // As in a shell: with a colon, an empty variable counts as unset.
    let value = env.get(name).filter(|value| or.is_none() || !value.is_empty());
    match (value, or) {
        (Some(value), _) => {
            used.note(name, &value);
            Ok((value, true))
        }
        (None, Some(or)) if or.starts_with('-') => Ok((or[1..].to_owned(), false)),
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
        interpolate(&mut node, env, &mut Used::default(), &mut faults);
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

    #[test]
    fn what_a_variable_held_is_told_from_what_was_written() {
        let env = env(&[("X_A", "env:B")]);
        for (text, by_variable) in
            [("${X_A}", true), ("${X_A}/c", true), ("env:${X_A}", false), ("${X_MISSING:-env:B}", false), ("$$", false), ("env:B", false)]
        {
            let mut node = Node::new(Span { file: "m".into(), line: 1, column: 1 }, Value::String(text.to_owned()));
            interpolate(&mut node, &env, &mut Used::default(), &mut Vec::new());
            assert_eq!(node.filled, by_variable, "{text}");
        }
    }

    fn told(message: &str, value: &str) -> String {
        let mut faults = [Fault::new(&Span { file: "m".into(), line: 1, column: 1 }, message)];
        Used(vec![("X_V".to_owned(), value.to_owned())]).hide(&mut faults);
        faults[0].message.clone()
    }

    #[test]
    fn a_fault_names_the_variable_and_not_what_it_held() {
        assert_eq!(told("`xoxb-12-34-secret` is not a duration", "xoxb-12-34-secret"), "`${X_V}` is not a duration");
        assert_eq!(told("`xoxb-12-3…` is no address", "xoxb-12-34-secret"), "`${X_V}…` is no address", "cut short");
        assert_eq!(told("`two lines` is no name", "two\nlines"), "`${X_V}` is no name");
        assert_eq!(told("`5` is not a duration", "5"), "`5` is not a duration", "what is so short is no secret");
    }

    proptest! {
        #[test]
        fn a_value_is_never_repeated(value in "[a-zA-Z0-9_@:/ -]{8,60}", cut in 8_usize..60) {
            let value = value.trim();
            prop_assume!(value.len() >= 8 && !"unknown value, expected one of `sqlite`".contains(&value[..6]));
            let message = format!("unknown value `{}`, expected one of `sqlite`", text::one_line(value, cut));
            let told = told(&message, value);
            prop_assert!(!told.contains(&value[..7]), "{}", told);
        }

        #[test]
        fn a_value_never_becomes_structure(value in ".{0,40}") {
            let value = value.replace('\0', "");
            let node = filled("${X_V}", &env(&[("X_V", &value)])).unwrap();
            prop_assert!(!matches!(node, Value::Map(_) | Value::Seq(_)));
        }
    }
}
