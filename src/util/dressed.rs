//! Values that show as a text of their own in a template, and are what they stand for else: a list is looped over, a map
//! looked into, each part in the same dress.

use std::{fmt::Debug, sync::Arc};

use minijinja::{
    Value,
    value::{Enumerator, Object, ObjectRepr, ValueKind},
};

/// What a value wears.
pub trait Dress: Debug + Send + Sync {
    /// A text in it.
    fn text(&self, text: &str) -> String;
}

/// A value in its dress: a text as one, JSON where it is shown whole and is none.
#[derive(Debug)]
pub struct Dressed {
    value: Value,
    dress: Arc<dyn Dress>,
}

impl Dressed {
    /// Numbers, flags and nothing are what they are.
    #[must_use]
    pub fn value(value: &Value, dress: &Arc<dyn Dress>) -> Value {
        match value.kind() {
            ValueKind::String => Value::from(dress.text(value.as_str().unwrap_or_default())),
            ValueKind::Map | ValueKind::Seq | ValueKind::Iterable | ValueKind::Plain => {
                Value::from_object(Self { value: value.clone(), dress: Arc::clone(dress) })
            }
            _ => value.clone(),
        }
    }

    /// The whole of it.
    pub(super) fn shown(&self) -> String {
        self.dress.text(&serde_json::to_string(&self.value).unwrap_or_default())
    }

    fn part(&self, value: &Value) -> Value {
        Self::value(value, &self.dress)
    }

    fn named(&self, key: &Value) -> Option<Value> {
        self.value.get_item(key).ok().filter(|value| !value.is_undefined())
    }

    /// The part under a key that came out of a loop, in its dress.
    fn named_in_dress(&self, key: &str) -> Option<Value> {
        // What is looked up by a name in the template has one line.
        let looped = key.contains('\n');
        let mut keys = self.value.try_iter().ok().filter(|_| looped)?;
        let bare = keys.find(|bare| bare.as_str().is_some_and(|bare| self.dress.text(bare) == key))?;
        self.named(&bare)
    }
}

impl Object for Dressed {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let value = self.named(key).or_else(|| self.named_in_dress(key.as_str()?))?;
        Some(self.part(&value))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let parts = |keys: minijinja::value::ValueIter| keys.map(|part| self.part(&part)).collect();
        match self.value.kind() {
            ValueKind::Seq => Enumerator::Seq(self.value.len().unwrap_or(0)),
            // Keys are text from outside as well.
            ValueKind::Map => self.value.try_iter().map_or(Enumerator::Empty, |keys| Enumerator::Values(parts(keys))),
            _ => Enumerator::NonEnumerable,
        }
    }

    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }

    fn repr(self: &Arc<Self>) -> ObjectRepr {
        match self.value.kind() {
            ValueKind::Seq => ObjectRepr::Seq,
            ValueKind::Map => ObjectRepr::Map,
            _ => ObjectRepr::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;
    use crate::util::template::Template;

    #[derive(Debug)]
    struct Bracket;

    impl Dress for Bracket {
        fn text(&self, text: &str) -> String {
            format!("<\n{text}>")
        }
    }

    #[test]
    fn each_part_of_a_value_wears_its_dress() {
        let dress: Arc<dyn Dress> = Arc::new(Bracket);
        let turns = vec![context! { role => "user", text => "hi", n => 1 }, context! { role => "bot", text => "ho", n => 2 }];
        let value = Dressed::value(&context! { turns => turns, tags => vec!["a"], none => Vec::<Value>::new() }, &dress);
        let shown = |template: &str| Template::new(template).unwrap().render(&context! { t => value.clone() }).unwrap().replace('\n', "");
        for (template, text) in [
            ("{{ t.tags }}", r#"<["a"]>"#),
            ("a {{ t.tags }} {{ t.tags ~ '!' }}", r#"a <["a"]> <["a"]>!"#),
            ("{% for turn in t.turns %}{{ turn.role }}{{ turn.n + 1 }}{{ turn['text'] }};{% endfor %}", "<user>2<hi>;<bot>3<ho>;"),
            ("{{ t.turns[-1].text }} {{ t.turns | length }} {{ t.tags | first }} {{ t.tags | join('+') }}", "<ho> 2 <a> <a>"),
            ("{% for key in t.turns[0] %}{{ key }}{{ t.turns[0][key] }},{% endfor %}", "<role><user>,<text><hi>,<n>1,"),
            ("{% for key, value in t.turns[0] | items %}{{ key }}{{ value }},{% endfor %}", "<role><user>,<text><hi>,<n>1,"),
            ("{% if t.none %}full{% else %}empty{% endif %}", "empty"),
        ] {
            assert_eq!(shown(template), text, "{template}");
        }
        assert!(Template::new("{{ t.other }}").unwrap().render(&context! { t => value }).is_err());
    }
}
