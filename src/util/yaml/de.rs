//! Node -> typed struct.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor, value::StringDeserializer},
};

use super::{Fault, Node, Span, Value};
use crate::util::{
    secret::{self, ExposeSecret},
    text,
};

/// Faults of one tree that are looked for, one pass over the tree each.
const MOST_PASSES: usize = 32;

/// A typed value from a tree, with every fault of the tree: where something is wrong, it is told and left out, and what
/// is left is read again. So a value may come back beside faults, with defaults for what was wrong; the caller counts
/// faults before it uses one. `None` where a needed part is missing or wrong.
pub fn read<T: DeserializeOwned>(node: &Node, faults: &mut Vec<Fault>) -> Option<T> {
    let mut mended: Option<Node> = None;
    let mut left_out: Vec<(Span, String)> = Vec::new();
    for pass in 0..MOST_PASSES {
        let tree = mended.as_ref().unwrap_or(node);
        let unknown = RefCell::new(Vec::new());
        let read = T::deserialize(De { node: tree, faults: &unknown });
        // Each pass meets the unknown keys again.
        if pass == 0 {
            faults.extend(unknown.into_inner());
        }
        let error = match read {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let at = error.at.unwrap_or_else(|| tree.at.clone());
        // What was left out is missing now: that is no second fault.
        let known = left_out.iter().any(|(map, key)| *map == at && error.message == missing(key));
        if !known {
            faults.push(Fault { at: at.clone(), message: error.message });
        }
        left_out.push(mended.get_or_insert_with(|| node.clone()).leave_out(&at)?);
    }
    None
}

fn missing(field: &str) -> String {
    format!("`{field}` is missing")
}

#[derive(Debug)]
struct Error {
    at: Option<Span>,
    message: String,
}

impl Error {
    /// The innermost place wins.
    fn at(mut self, at: &Span) -> Self {
        self.at.get_or_insert_with(|| at.clone());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { at: None, message: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            // Never the text itself: it may be a secret in the wrong place.
            Unexpected::Str(_) => "text".to_owned(),
            Unexpected::Map => "a mapping".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Unit => "nothing".to_owned(),
            Unexpected::Signed(_) | Unexpected::Unsigned(_) | Unexpected::Float(_) => "a number".to_owned(),
            Unexpected::Bool(_) => "true or false".to_owned(),
            _ => "something else".to_owned(),
        };
        Self::custom(format_args!("expected {expected}, found {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(missing(field))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(unknown("value", variant, expected))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(unknown("key", field, expected))
    }
}

/// "unknown key `intervall`, did you mean `interval_minutes`?" What is no word of ours by its looks is not repeated: it
/// may be a secret in the wrong place.
pub(super) fn unknown(what: &str, word: &str, expected: &[&str]) -> String {
    let Some(word) = text::word(word) else {
        return format!("unknown {what}, expected one of {}", list(expected));
    };
    match text::nearest(word, expected.iter().copied()) {
        Some(near) => format!("unknown {what} `{word}`, did you mean `{near}`?"),
        None => format!("unknown {what} `{word}`, expected one of {}", list(expected)),
    }
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[derive(Clone, Copy)]
struct De<'a> {
    node: &'a Node,
    faults: &'a RefCell<Vec<Fault>>,
}

impl<'a> De<'a> {
    fn map<'de, V: Visitor<'de>>(self, map: &'a super::Map, fields: Option<&[&str]>, visitor: V) -> Result<V::Value, Error> {
        if let Some(fields) = fields {
            let strange = map.iter().filter(|(key, ..)| !fields.contains(&key.as_str()));
            self.faults.borrow_mut().extend(strange.map(|(key, at, _)| Fault::new(at, unknown("key", key, fields))));
        }
        let entries = map.iter().filter(|(key, ..)| fields.is_none_or(|fields| fields.contains(&key.as_str())));
        visitor.visit_map(Entries { entries, value: None, faults: self.faults }).map_err(|error: Error| error.at(&self.node.at))
    }

    fn secret<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) if !self.node.filled => {
                let found = secret::find(text).map_err(de::Error::custom);
                found.and_then(|secret| visitor.visit_str(secret.expose_secret())).map_err(|error: Error| error.at(&self.node.at))
            }
            _ => self.deserialize_string(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for De<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let read = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(value) => visitor.visit_str(value),
            Value::Seq(items) => visitor.visit_seq(Items { items: items.iter(), faults: self.faults }),
            Value::Map(map) => return self.map(map, None, visitor),
        };
        read.map_err(|error: Error| error.at(&self.node.at))
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(map) => self.map(map, Some(fields), visitor),
            // `source:` with nothing behind it: an empty mapping, whose missing keys are named.
            Value::Null => self.map(&Vec::new(), Some(fields), visitor),
            _ => Err(Error { at: Some(self.node.at.clone()), message: format!("expected a mapping, found {}", self.node.describe()) }),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.text {
            Some(text) => visitor.visit_str(text).map_err(|error: Error| error.at(&self.node.at)),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    #[expect(clippy::cast_precision_loss, reason = "an integer written where a fraction is wanted")]
    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Int(value) => visitor.visit_f64(*value as f64).map_err(|error: Error| error.at(&self.node.at)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.value == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        if name == CAPTURE {
            CAPTURED.set(Some(self.node.clone()));
            return visitor.visit_unit();
        }
        if name == secret::NEWTYPE {
            return self.secret(visitor);
        }
        visitor.visit_newtype_struct(self).map_err(|error: Error| error.at(&self.node.at))
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(variant) => {
                let variant: StringDeserializer<Error> = variant.clone().into_deserializer();
                visitor.visit_enum(variant).map_err(|error| error.at(&self.node.at))
            }
            _ => Err(Error { at: Some(self.node.at.clone()), message: format!("expected a word, found {}", self.node.describe()) }),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_seq(Items { items: [].iter(), faults: self.faults }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => self.map(&Vec::new(), None, visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct Entries<'a, I> {
    entries: I,
    value: Option<&'a Node>,
    faults: &'a RefCell<Vec<Fault>>,
}

impl<'a, 'de, I: Iterator<Item = &'a (String, Span, Node)>> MapAccess<'de> for Entries<'a, I> {
    type Error = Error;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, at, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        let key: StringDeserializer<Error> = key.clone().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.at(at))
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(node) = self.value.take() else { return Err(de::Error::custom("a value without a key")) };
        seed.deserialize(De { node, faults: self.faults }).map_err(|error| error.at(&node.at))
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    faults: &'a RefCell<Vec<Fault>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.next() else { return Ok(None) };
        seed.deserialize(De { node, faults: self.faults }).map(Some).map_err(|error| error.at(&node.at))
    }
}

/// The name by which a `Node` asks for the tree itself.
const CAPTURE: &str = "$assayd::util::yaml::Node";

thread_local! {
    /// How the tree passes serde, which knows no trees: set by the deserializer, taken by the visitor it calls next.
    static CAPTURED: Cell<Option<Node>> = const { Cell::new(None) };
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Take;
        impl Visitor<'_> for Take {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value of a settings file")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
                CAPTURED.take().ok_or_else(|| E::custom("a tree can only be read from a tree"))
            }
        }
        deserializer.deserialize_newtype_struct(CAPTURE, Take)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::util::{
        duration::Human,
        yaml::{Section, parse},
    };

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "what is read is compared by its debug form")]
    struct Outer {
        name: String,
        every: Option<Human>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        parts: Vec<Section<Part>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "as above")]
    struct Part {
        share: f64,
    }

    fn faults(text: &str) -> Vec<String> {
        let node = parse("m.yaml", text.as_bytes()).unwrap().remove(0);
        let mut faults = Vec::new();
        if let Some(outer) = read::<Outer>(&node, &mut faults) {
            for part in &outer.parts {
                part.read(&mut faults);
            }
        }
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn numbers_may_be_names_and_fractions() {
        assert_eq!(faults("name: 007\nlabels: { a: 1, b: true }\nparts: [ { share: 1 } ]"), Vec::<String>::new());
    }

    #[test]
    fn every_unknown_key_is_named_with_its_place() {
        assert_eq!(
            faults("nam: x\nname: y\nevry: 5m"),
            ["m.yaml:1:1: unknown key `nam`, did you mean `name`?", "m.yaml:3:1: unknown key `evry`, did you mean `every`?"]
        );
    }

    #[test]
    fn a_fault_in_one_part_does_not_hide_another() {
        assert_eq!(
            faults("name: y\nparts:\n  - share: much\n  - {}\n  - share: 0.5\n    more: 1\n"),
            ["m.yaml:3:12: expected f64, found text", "m.yaml:4:5: `share` is missing", "m.yaml:6:5: unknown key `more`, expected one of `share`"]
        );
    }

    #[test]
    fn a_wrong_value_is_named_at_the_value() {
        assert_eq!(faults("name: y\nevery: 5"), ["m.yaml:2:8: `5` is not a duration; write it like `30s`, `15m`, `1h 30m` or `7d`"]);
        assert_eq!(faults("name: [y]"), ["m.yaml:1:7: expected a string, found a list"]);
    }
}
