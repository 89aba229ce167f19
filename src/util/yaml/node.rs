use std::{fmt, marker::PhantomData, sync::Arc};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// A place in a file: 1-based line and column (in characters).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// As the user would name the file.
    pub file: Arc<str>,
    pub line: u32,
    pub column: u32,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Something wrong with what the user wrote: where, and a sentence that says what was expected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub at: Span,
    pub message: String,
}

impl Fault {
    #[must_use]
    pub fn new(at: &Span, message: impl Into<String>) -> Self {
        Self { at: at.clone(), message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub at: Span,
    pub value: Value,
    /// What was written, where that is a scalar other than a string: `name: 007` is still the text `007`.
    pub text: Option<Box<str>>,
    /// It begins with what a variable held, which is taken as it is: only what the user wrote here can be a reference.
    pub filled: bool,
}

impl Node {
    #[must_use]
    pub fn new(at: Span, value: Value) -> Self {
        Self { at, value, text: None, filled: false }
    }

    /// A plain scalar, read by its form.
    #[must_use]
    pub fn scalar(at: Span, text: &str) -> Self {
        let value = resolve_scalar(text);
        let text = (!matches!(value, Value::String(_) | Value::Null)).then(|| text.into());
        Self { at, value, text, filled: false }
    }

    #[must_use]
    pub fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a key of a map.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map()?.iter().find(|(name, ..)| name == key).map(|(.., node)| node)
    }

    /// `a mapping`, `a number`: for messages. Never the value itself, which may be a secret.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::Seq(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::String(_) => "text",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
        }
    }

    /// Takes out the entry (of a mapping) or item (of a list) whose value stands at a place. The mapping it stood in and its key; an item has no key. `None`, and nothing done, for the root.
    pub(super) fn leave_out(&mut self, at: &Span) -> Option<(Span, String)> {
        let here = self.at.clone();
        match &mut self.value {
            Value::Map(map) => {
                if let Some(deeper) = map.iter_mut().find_map(|(.., value)| value.leave_out(at)) {
                    return Some(deeper);
                }
                let found = map.iter().position(|(.., value)| value.at == *at)?;
                Some((here, map.remove(found).0))
            }
            Value::Seq(items) => {
                if let Some(deeper) = items.iter_mut().find_map(|item| item.leave_out(at)) {
                    return Some(deeper);
                }
                let found = items.iter().position(|item| item.at == *at)?;
                items.remove(found);
                Some((here, String::new()))
            }
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    Seq(Vec<Node>),
    Map(Map),
}

/// Keys in the order written; each with its own place.
pub type Map = Vec<(String, Span, Node)>;

/// A part of a struct that is kept as a tree, to be read in a second pass: so one fault in it does not hide the faults
/// beside it. Its schema is `T`'s.
#[derive(Debug, Clone)]
pub struct Section<T> {
    pub node: Node,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Section<T> {
    /// The typed part; `None` after at least one fault was pushed.
    pub fn read(&self, faults: &mut Vec<Fault>) -> Option<T> {
        super::read(&self.node, faults)
    }
}

impl<'de, T> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { node: Node::deserialize(deserializer)?, kind: PhantomData })
    }
}

impl<T: schemars::JsonSchema> schemars::JsonSchema for Section<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }
}

/// What a plain scalar means by YAML 1.2's core schema: `30` is a number, `true` a boolean, `yes` a string.
#[must_use]
pub fn resolve_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    if let Ok(int) = text.parse::<i64>() {
        return Value::Int(int);
    }
    // Rust reads words (`nan`, `infinity`) as floats; YAML does not.
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) && text.contains(|c: char| c.is_ascii_digit());
    match text.parse::<f64>() {
        Ok(float) if numeric && float.is_finite() => Value::Float(float),
        _ => Value::String(text.to_owned()),
    }
}
