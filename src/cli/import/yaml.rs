//! Writes YAML for people: in the order given, with comments, texts quoted only where they have to be. Our reader
//! ([`crate::util::yaml`]) gives back exactly what was written.

use std::fmt::Write;

use crate::util::{
    text::one_line,
    yaml::{Value, resolve_scalar},
};

/// A value to be written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Yaml {
    /// Read back as text, whatever it looks like.
    Text(String),
    /// A number, `true` or `false`, written as it is.
    Bare(String),
    List(List),
    Map(Map),
}

/// An item of a list, or an entry of a mapping, or what stands between them.
#[derive(Debug, Clone, PartialEq)]
enum Line<T> {
    Comment(String),
    Of(T),
    /// There for the user to take the `#` away.
    Off(T),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct List(Vec<Line<Yaml>>);

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Map(Vec<Line<(String, Yaml)>>);

impl From<&str> for Yaml {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Yaml {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Yaml {
    fn from(value: bool) -> Self {
        Self::Bare(value.to_string())
    }
}

impl From<u64> for Yaml {
    fn from(value: u64) -> Self {
        Self::Bare(value.to_string())
    }
}

impl From<Map> for Yaml {
    fn from(map: Map) -> Self {
        Self::Map(map)
    }
}

impl From<List> for Yaml {
    fn from(list: List) -> Self {
        Self::List(list)
    }
}

impl<T: Into<Yaml>> FromIterator<T> for List {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(items.into_iter().map(|item| Line::Of(item.into())).collect())
    }
}

impl List {
    pub(super) fn push(&mut self, value: impl Into<Yaml>) {
        self.0.push(Line::Of(value.into()));
    }

    /// An item that is commented out, below what there is to say of it.
    pub(super) fn push_off(&mut self, comment: &str, value: impl Into<Yaml>) {
        self.0.push(Line::Comment(comment.to_owned()));
        self.0.push(Line::Off(value.into()));
    }

    /// Without items, comments aside.
    pub(super) fn is_bare(&self) -> bool {
        !self.0.iter().any(|line| matches!(line, Line::Of(_)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `[a, b]`, where that is short and a line.
    fn flow(&self) -> Option<String> {
        const WIDTH: usize = 100;
        let items = self.0.iter().map(|line| match line {
            Line::Of(Yaml::Text(text)) => Some(scalar(text)),
            Line::Of(Yaml::Bare(word)) => Some(word.clone()),
            _ => None,
        });
        let items = items.collect::<Option<Vec<String>>>()?.join(", ");
        (items.len() <= WIDTH).then(|| format!("[{items}]"))
    }
}

impl Map {
    /// In the place of what the key had, if it was set.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Yaml>) {
        let set = self.0.iter_mut().find_map(|line| if let Line::Of((known, set)) = line { (known == key).then_some(set) } else { None });
        match set {
            Some(set) => *set = value.into(),
            None => self.0.push(Line::Of((key.to_owned(), value.into()))),
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|line| matches!(line, Line::Of((known, _)) if known == key))
    }

    /// Sets what there is.
    pub(super) fn set_some(&mut self, key: &str, value: Option<impl Into<Yaml>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    pub(super) fn comment(&mut self, comment: &str) {
        self.0.push(Line::Comment(comment.to_owned()));
    }

    /// An entry that is commented out, below what there is to say of it.
    pub(super) fn set_off(&mut self, comment: &str, key: &str, value: impl Into<Yaml>) {
        self.comment(comment);
        self.0.push(Line::Off((key.to_owned(), value.into())));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The document.
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        self.write(0, &mut out);
        out
    }

    fn write(&self, indent: usize, out: &mut String) {
        for line in &self.0 {
            write_line(line, indent, out, |(key, value), out| {
                out.push_str(&" ".repeat(indent));
                // `n` and `on` are words for true and false to some, and nobody writes such keys in quotes.
                out.push_str(&if is_plain(key) { key.clone() } else { quoted(key) });
                out.push(':');
                behind(value, indent, out);
            });
        }
    }
}

impl List {
    fn write(&self, indent: usize, out: &mut String) {
        for line in &self.0 {
            write_line(line, indent, out, |value, out| {
                match value {
                    // The first entry stands behind the dash, the others under it.
                    Yaml::Map(map) if matches!(map.0.first(), Some(Line::Of(_))) => {
                        let mut item = String::new();
                        map.write(indent + 2, &mut item);
                        item.replace_range(indent..=indent, "-");
                        out.push_str(&item);
                    }
                    value => {
                        out.push_str(&" ".repeat(indent));
                        out.push('-');
                        behind(value, indent, out);
                    }
                }
            });
        }
    }
}

fn write_line<T>(line: &Line<T>, indent: usize, out: &mut String, write: impl Fn(&T, &mut String)) {
    let pad = " ".repeat(indent);
    match line {
        Line::Comment(comment) => comment.lines().for_each(|line| {
            let _ = writeln!(out, "{pad}# {}", one_line(line, 400));
        }),
        Line::Of(value) => write(value, out),
        Line::Off(value) => {
            let mut text = String::new();
            write(value, &mut text);
            text.lines().for_each(|line| {
                let _ = writeln!(out, "{pad}# {}", line.get(indent..).unwrap_or_default());
            });
        }
    }
}

/// A value behind `key:` or `-`.
fn behind(value: &Yaml, indent: usize, out: &mut String) {
    match value {
        Yaml::Text(text) => match literal(text, indent + 2) {
            Some(block) => {
                let _ = writeln!(out, " {block}");
            }
            None => {
                let _ = writeln!(out, " {}", scalar(text));
            }
        },
        Yaml::Bare(word) => {
            let _ = writeln!(out, " {word}");
        }
        Yaml::List(list) => match list.flow() {
            Some(flow) => {
                let _ = writeln!(out, " {flow}");
            }
            None => {
                out.push_str(if list.is_bare() { " []\n" } else { "\n" });
                list.write(indent + 2, out);
            }
        },
        Yaml::Map(map) => {
            let bare = !map.0.iter().any(|line| matches!(line, Line::Of(_)));
            out.push_str(if bare { " {}\n" } else { "\n" });
            map.write(indent + 2, out);
        }
    }
}

/// Lines as they are, below `|`; `None` where the text would not come back as it is.
fn literal(text: &str, indent: usize) -> Option<String> {
    let (body, head) = match text.strip_suffix('\n') {
        Some(body) => (body, "|"),
        None => (text, "|-"),
    };
    let sound = |line: &str| line.is_empty() || !line.trim().is_empty() && line.chars().all(|c| c == '\t' || shown(c));
    let begins = body.starts_with(|c: char| !c.is_whitespace());
    if !text.contains('\n') || !begins || body.ends_with('\n') || !body.split('\n').all(sound) {
        return None;
    }
    let mut out = head.to_owned();
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.push_str(&" ".repeat(indent));
            out.push_str(line);
        }
    }
    Some(out)
}

/// Text on one line: as it is where it cannot be taken for anything else, else in double quotes.
fn scalar(text: &str) -> String {
    // What readers of YAML 1.1 take for true and false: editors have those.
    let flag = ["y", "n", "yes", "no", "on", "off"].iter().any(|word| text.eq_ignore_ascii_case(word));
    if !flag && (is_plain(text) || is_duration(text)) { text.to_owned() } else { quoted(text) }
}

fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | ' '))
        && !text.ends_with(' ')
        && matches!(resolve_scalar(text), Value::String(_))
}

/// `1d`, `6d 22h 40m`: nobody takes these for numbers.
fn is_duration(text: &str) -> bool {
    text.split(' ').all(|part| {
        let unit = part.trim_start_matches(|c: char| c.is_ascii_digit());
        unit.len() < part.len() && ["d", "h", "m", "s", "ms"].contains(&unit)
    })
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if shown(c) => out.push(c),
            c => {
                let _ = write!(out, "\\U{:08X}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

/// Characters that YAML takes as they are and that a reader sees as they are.
fn shown(c: char) -> bool {
    let unseen =
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
    !unseen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::util::yaml::{Node, parse};

    #[test]
    fn it_reads_as_people_write_it() {
        let mut source = Map::default();
        source.set("type", "sql");
        source.set("query", "SELECT *\nFROM answers -- all\n");
        source.set("lookback", "1d 12h");
        source.set("n", "1e3");
        source.set("columns", ["id", "created_at"].into_iter().collect::<List>());
        let mut metric = Map::default();
        metric.set("name", "polite");
        metric.set("threshold", Yaml::Bare("0.7".to_owned()));
        let mut metrics = List::default();
        metrics.push(metric.clone());
        metrics.push_off("decide:\nkeep it?", metric);
        let mut monitor = Map::default();
        monitor.comment("what came of old.yaml");
        monitor.set("name", "on");
        monitor.set("source", source);
        monitor.set("metrics", metrics);
        let expected = "# what came of old.yaml\nname: \"on\"\nsource:\n  type: sql\n  query: |\n    SELECT *\n    FROM answers -- all\n  lookback: 1d 12h\n  n: \"1e3\"\n  columns: [id, created_at]\n\
            metrics:\n  - name: polite\n    threshold: 0.7\n  # decide:\n  # keep it?\n  # - name: polite\n  #   threshold: 0.7\n";
        assert_eq!(monitor.render(), expected);
    }

    /// What a reader should find: comments and what is commented out are gone.
    fn meant(value: &Yaml) -> Option<Plain> {
        Some(match value {
            Yaml::Text(text) => Plain::Text(text.clone()),
            Yaml::Bare(word) => Plain::Other(format!("{:?}", resolve_scalar(word))),
            Yaml::List(list) => Plain::List(list.0.iter().filter_map(|line| if let Line::Of(value) = line { meant(value) } else { None }).collect()),
            Yaml::Map(map) => {
                Plain::Map(map.0.iter().filter_map(|line| if let Line::Of((key, value)) = line { Some((key.clone(), meant(value)?)) } else { None }).collect())
            }
        })
    }

    #[derive(Debug, PartialEq)]
    enum Plain {
        Text(String),
        Other(String),
        List(Vec<Plain>),
        Map(Vec<(String, Plain)>),
    }

    fn found(node: &Node) -> Plain {
        match &node.value {
            Value::String(text) => Plain::Text(text.clone()),
            Value::Seq(items) => Plain::List(items.iter().map(found).collect()),
            Value::Map(map) => Plain::Map(map.iter().map(|(key, _, value)| (key.clone(), found(value))).collect()),
            other => Plain::Other(format!("{other:?}")),
        }
    }

    fn text() -> BoxedStrategy<String> {
        // Anything at all, what looks like YAML, and lines.
        prop_oneof![
            any::<String>(),
            "[-?:,\\[\\]{}#&*!|>'\"%@`$~ \t\n\ra0.]{0,12}",
            "([a-z #:'\"\\\\-]{0,6}\n){1,4}[a-z ]{0,3}",
            prop_oneof![Just("null"), Just("yes"), Just("1e3"), Just("0x1F"), Just("---"), Just("- a"), Just("${A:-b}"), Just("~")].prop_map(str::to_owned),
        ]
        .boxed()
    }

    fn line<T: std::fmt::Debug + Clone + 'static>(of: BoxedStrategy<T>) -> impl Strategy<Value = Line<T>> {
        prop_oneof![6 => of.clone().prop_map(Line::Of), 1 => of.prop_map(Line::Off), 1 => text().prop_map(Line::Comment)]
    }

    fn value() -> BoxedStrategy<Yaml> {
        let leaf = prop_oneof![
            4 => text().prop_map(Yaml::Text),
            1 => any::<i64>().prop_map(|n| Yaml::Bare(n.to_string())),
            1 => any::<bool>().prop_map(Yaml::from),
        ];
        let nested = leaf.prop_recursive(4, 40, 5, |inner| {
            let list = proptest::collection::vec(line(inner.clone()), 0..5).prop_map(|lines| Yaml::List(List(lines)));
            prop_oneof![list, map(inner).prop_map(Yaml::Map)]
        });
        nested.boxed()
    }

    fn map(inner: BoxedStrategy<Yaml>) -> impl Strategy<Value = Map> {
        proptest::collection::vec(line((text(), inner).boxed()), 0..5).prop_map(|mut lines| {
            // A key stands once; `<<` is YAML's own word.
            let mut seen = std::collections::BTreeSet::new();
            lines.retain(|line| if let Line::Of((key, _)) = line { key != "<<" && seen.insert(key.clone()) } else { true });
            Map(lines)
        })
    }

    proptest! {
        #[test]
        fn our_reader_reads_back_what_was_written(map in map(value())) {
            let written = map.render();
            let read = parse("written.yaml", written.as_bytes()).unwrap_or_else(|fault| panic!("{fault}\n{written}"));
            let read = read.first().map_or_else(|| Plain::Map(Vec::new()), found);
            prop_assert_eq!(Some(read), meant(&Yaml::Map(map)), "{}", written);
        }
    }
}
