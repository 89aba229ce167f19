//! The old file as its tool read it: typed looks at its mappings, which remember what nobody looked at.
//!
//! A `${NAME}` may stand wherever a value may: both tools fill it in when they run, so it is carried, not looked up.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use super::{
    report::{Fate, Place, Report},
    yaml::{List, Yaml},
};
use crate::util::{
    duration::Human,
    text::{nearest, one_line},
    yaml::{Node, Span, Value},
};

/// A mapping of the old file; one that is missing reads as empty.
pub(super) struct Section<'a> {
    node: Option<&'a Node>,
    at: Span,
    path: String,
    looked_at: RefCell<BTreeSet<&'static str>>,
}

/// A number, or the variable that will hold it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Figure {
    Known(f64),
    Variable(String),
}

impl<'a> Section<'a> {
    pub(super) fn new(node: &'a Node, path: &str, report: &mut Report) -> Self {
        let section = Self { node: Some(node), at: node.at.clone(), path: path.to_owned(), looked_at: RefCell::default() };
        if node.as_map().is_none() && node.value != Value::Null {
            report.fault(&Place { at: node.at.clone(), key: path.to_owned() }, format!("expected a mapping, found {}", node.describe()));
        }
        section
    }

    /// The mapping under a key.
    pub(super) fn section(&self, key: &'static str, report: &mut Report) -> Section<'a> {
        let path = self.path_of(key);
        match self.get(key) {
            Some(node) => Section::new(node, &path, report),
            None => Section { node: None, at: self.at.clone(), path, looked_at: RefCell::default() },
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Where a key's value stands, or the mapping where it is missing.
    pub(super) fn place(&self, key: &str) -> Place {
        let at = self.node.and_then(|node| node.get(key)).map_or(&self.at, |value| &value.at);
        Place { at: at.clone(), key: self.path_of(key) }
    }

    /// Of the mapping itself.
    pub(super) fn here(&self) -> Place {
        Place { at: self.at.clone(), key: self.path.clone() }
    }

    pub(super) fn is_there(&self) -> bool {
        self.node.is_some()
    }

    pub(super) fn entries(&self) -> &'a [(String, Span, Node)] {
        self.node.and_then(Node::as_map).map_or(&[], Vec::as_slice)
    }

    /// `null` counts as missing.
    pub(super) fn get(&self, key: &'static str) -> Option<&'a Node> {
        self.looked_at.borrow_mut().insert(key);
        self.node?.get(key).filter(|node| node.value != Value::Null)
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// The first of some keys that is there: newer name first.
    pub(super) fn either(&self, keys: [&'static str; 2]) -> &'static str {
        let [first, second] = keys.map(|key| (key, self.has(key)));
        if !first.1 && second.1 { second.0 } else { first.0 }
    }

    /// Text, or what was written where that reads as something else (`version: 1.0`).
    pub(super) fn text(&self, key: &'static str, report: &mut Report) -> Option<String> {
        let node = self.get(key)?;
        let text = text_of(node);
        if text.is_none() {
            report.fault(&self.place(key), format!("expected text, found {}", node.describe()));
        }
        text
    }

    /// A list of texts; one text counts as a list of one.
    pub(super) fn texts(&self, key: &'static str, report: &mut Report) -> Option<Vec<String>> {
        let node = self.get(key)?;
        let Value::Seq(items) = &node.value else { return self.text(key, report).map(|one| vec![one]) };
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match text_of(item) {
                Some(text) => texts.push(text),
                None => report.fault(&Place { at: item.at.clone(), key: self.path_of(key) }, format!("expected texts, found {}", item.describe())),
            }
        }
        Some(texts)
    }

    pub(super) fn figure(&self, key: &'static str, report: &mut Report) -> Option<Figure> {
        let node = self.get(key)?;
        match &node.value {
            #[expect(clippy::cast_precision_loss, reason = "settings are small")]
            Value::Int(n) => Some(Figure::Known(*n as f64)),
            Value::Float(x) => Some(Figure::Known(*x)),
            Value::String(text) if text.contains("${") => Some(Figure::Variable(text.clone())),
            _ => {
                report.fault(&self.place(key), format!("expected a number, found {}", node.describe()));
                None
            }
        }
    }

    /// A whole number, at least 1.
    pub(super) fn count(&self, key: &'static str, report: &mut Report) -> Option<Figure> {
        let figure = self.figure(key, report)?;
        match figure {
            Figure::Known(n) if n < 1.0 || n.fract() != 0.0 => {
                report.fault(&self.place(key), "expected a whole number, at least 1");
                None
            }
            figure => Some(figure),
        }
    }

    /// The same where we take no more than so many.
    pub(super) fn count_up_to(&self, key: &'static str, most: u32, report: &mut Report) -> Option<Figure> {
        match self.count(key, report)? {
            Figure::Known(n) if n > f64::from(most) => {
                report.say(Fate::Changed, &self.place(key), format!("{n} there; {most} is the most here"));
                Some(Figure::Known(f64::from(most)))
            }
            figure => Some(figure),
        }
    }

    /// A length of time, written as so many of a unit (`m`, `h` ...).
    pub(super) fn time(&self, key: &'static str, unit: &str, report: &mut Report) -> Option<String> {
        match self.figure(key, report)? {
            Figure::Variable(text) => Some(format!("{text}{unit}")),
            Figure::Known(n) => {
                let seconds = match unit {
                    "d" => 86_400.0,
                    "h" => 3_600.0,
                    "m" => 60.0,
                    _ => 1.0,
                };
                let found = Duration::try_from_secs_f64(n * seconds).ok().filter(|time| time.as_secs() < 1_000 * 366 * 86_400);
                if found.is_none() {
                    report.fault(&self.place(key), "expected a length of time that is not negative");
                }
                found.map(|time| Human(time).to_string())
            }
        }
    }

    /// `yes` and `on` are true too, as to the parser of the older tool.
    pub(super) fn flag(&self, key: &'static str, report: &mut Report) -> Option<Yaml> {
        let node = self.get(key)?;
        match &node.value {
            Value::Bool(value) => Some(Yaml::from(*value)),
            Value::String(text) if ["yes", "on"].iter().any(|word| text.eq_ignore_ascii_case(word)) => Some(Yaml::from(true)),
            Value::String(text) if ["no", "off"].iter().any(|word| text.eq_ignore_ascii_case(word)) => Some(Yaml::from(false)),
            Value::String(text) if text.contains("${") => Some(Yaml::from(carried(text))),
            _ => {
                report.fault(&self.place(key), format!("expected true or false, found {}", node.describe()));
                None
            }
        }
    }

    /// Whether a flag is set. One that a variable decides counts as set: what it asks for is written, and the report says so.
    pub(super) fn is_set(&self, key: &'static str, or: bool, report: &mut Report) -> bool {
        match self.flag(key, report) {
            None => or,
            Some(Yaml::Text(text)) => {
                report.say(Fate::Decide, &self.place(key), format!("`{}` decides at run time; it is taken as true", one_line(&text, 60)));
                true
            }
            Some(value) => value == Yaml::from(true),
        }
    }

    /// A key that has no counterpart, with the reason.
    pub(super) fn drop(&self, key: &'static str, why: &str, report: &mut Report) {
        if self.has(key) {
            report.say(Fate::Changed, &self.place(key), format!("left out: {why}"));
        }
    }

    /// Says what was taken over as it is.
    pub(super) fn taken(&self, key: &'static str, target: &str, report: &mut Report) {
        if self.has(key) {
            report.say(Fate::Taken, &self.place(key), target);
        }
    }

    /// Names the keys that nobody looked at.
    pub(super) fn finish(&self, report: &mut Report) {
        let looked_at = self.looked_at.borrow();
        for (key, at, _) in self.entries().iter().filter(|(key, ..)| !looked_at.contains(key.as_str())) {
            let hint = nearest(key, looked_at.iter().copied()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            report.say(Fate::Unknown, &Place { at: at.clone(), key: self.path_of(key) }, format!("no key of the older tool that is known here{hint}"));
        }
    }
}

/// As it was written.
fn text_of(node: &Node) -> Option<String> {
    match &node.value {
        Value::String(text) => Some(text.clone()),
        Value::Int(_) | Value::Float(_) | Value::Bool(_) => node.text.as_deref().map(str::to_owned),
        Value::Null | Value::Seq(_) | Value::Map(_) => None,
    }
}

/// The same text for us: a `$$` stood for itself there, and stands for `$` here.
pub(super) fn carried(text: &str) -> String {
    text.replace("$$", "$$$$")
}

pub(super) fn carried_all(texts: Vec<String>) -> List {
    texts.iter().map(|text| carried(text)).collect()
}

impl From<Figure> for Yaml {
    fn from(figure: Figure) -> Self {
        match figure {
            Figure::Known(n) => Yaml::Bare(n.to_string()),
            Figure::Variable(text) => Yaml::Text(carried(&text)),
        }
    }
}

/// Any value, key by key.
pub(super) fn whole(node: &Node) -> Yaml {
    match &node.value {
        Value::Map(map) => {
            let mut whole_map = super::yaml::Map::default();
            map.iter().for_each(|(key, _, value)| whole_map.set(key, whole(value)));
            whole_map.into()
        }
        Value::Seq(items) => items.iter().map(whole).collect::<List>().into(),
        Value::String(text) => Yaml::Text(carried(text)),
        Value::Null => Yaml::Bare("null".to_owned()),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => Yaml::Bare(node.text.as_deref().unwrap_or_default().to_owned()),
    }
}
