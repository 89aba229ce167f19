use std::{collections::HashMap, sync::Arc};

use granit_parser::{Event, Marker, Parser, ScalarStyle};

use super::{Fault, Node, Span, Value, node::Map};
use crate::util::text;

/// Settings are small; what is larger is no settings file.
const MAX_BYTES: usize = 1 << 20;
/// Nodes of a document, aliases written out: bounds what a bomb can unfold to.
const MAX_NODES: usize = 50_000;
const MAX_DEPTH: usize = 64;

/// The documents of a file; empty ones are left out.
///
/// # Errors
/// What is wrong with it as YAML, and where: the first fault, since what follows it cannot be trusted.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Vec<Node>, Fault> {
    let file: Arc<str> = file.into();
    let at = |line: usize, column: usize| Span {
        file: Arc::clone(&file),
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(column).unwrap_or(u32::MAX),
    };
    if bytes.len() > MAX_BYTES {
        return Err(Fault::new(&at(1, 1), format!("the file has {} bytes; a settings file has at most {MAX_BYTES}", bytes.len())));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = &bytes[..error.valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = good.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        Fault::new(&at(line, column), "the file is not UTF-8 text")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { parser: Parser::new_from_str(text), file, anchors: HashMap::new(), open: Vec::new(), nodes: 0, last: Marker::new(0, 1, 0) };
    reader.documents().map_err(|mut fault| {
        // The braces of `${NAME}` are YAML's own where it reads `{ key: value }`.
        let line = text.lines().nth(fault.at.line.saturating_sub(1) as usize).unwrap_or_default();
        if fault.message.starts_with(INVALID) && line.contains(['{', '[']) && line.contains("${") && !line.contains("\"${") {
            fault.message.push_str("; inside `{ }` and `[ ]`, write \"${NAME}\" with quotes");
        }
        fault
    })
}

const INVALID: &str = "not valid YAML";

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    file: Arc<str>,
    /// Anchored nodes that are complete, with their sizes.
    anchors: HashMap<usize, (Node, usize)>,
    /// Anchors whose nodes are being read: an alias to one of these would hold itself.
    open: Vec<usize>,
    nodes: usize,
    last: Marker,
}

impl<'a> Reader<'a> {
    fn span(&self, at: &Marker) -> Span {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Span { file: Arc::clone(&self.file), line: number(at.line().max(1)), column: number(at.col() + 1) }
    }

    fn fault(&self, at: &Marker, message: impl Into<String>) -> Fault {
        Fault { at: self.span(at), message: message.into() }
    }

    fn next(&mut self) -> Result<(Event<'a>, Marker), Fault> {
        match self.parser.next() {
            Some(Ok((event, span))) => {
                self.last = span.start;
                Ok((event, span.start))
            }
            Some(Err(error)) => {
                let hint = if error.info().contains("tab") { " (YAML indents with spaces, never with tabs)" } else { "" };
                Err(self.fault(error.marker(), format!("{INVALID}: {}{hint}", error.info())))
            }
            None => Err(self.fault(&self.last.clone(), "the document ends too early")),
        }
    }

    fn documents(&mut self) -> Result<Vec<Node>, Fault> {
        let mut documents = Vec::new();
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(documents),
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => self.anchors.clear(),
                event => {
                    self.nodes = 0;
                    let node = self.node(event, &at, 0)?;
                    if node.value != Value::Null {
                        documents.push(node);
                    }
                }
            }
        }
    }

    fn spend(&mut self, nodes: usize, at: &Marker) -> Result<(), Fault> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES { Err(self.fault(at, format!("the document unfolds to more than {MAX_NODES} values"))) } else { Ok(()) }
    }

    fn node(&mut self, event: Event<'a>, at: &Marker, depth: usize) -> Result<Node, Fault> {
        if depth > MAX_DEPTH {
            return Err(self.fault(at, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.spend(1, at)?;
        let (before, span) = (self.nodes, self.span(at));
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                if tag.is_some() {
                    return Err(self.fault(at, "tags (`!...`) have no meaning here"));
                }
                let node = if style == ScalarStyle::Plain { Node::scalar(span, &text) } else { Node::new(span, Value::String(text.into_owned())) };
                (node, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(anchor);
                let mut items = Vec::new();
                loop {
                    let (event, at) = self.next()?;
                    if event == Event::SequenceEnd {
                        break;
                    }
                    items.push(self.node(event, &at, depth + 1)?);
                }
                self.open.pop();
                (Node::new(span, Value::Seq(items)), anchor)
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(anchor);
                let map = self.map(depth)?;
                self.open.pop();
                (Node::new(span, Value::Map(map)), anchor)
            }
            Event::Alias(anchor) => {
                if self.open.contains(&anchor) {
                    return Err(self.fault(at, "the alias refers to a value that holds the alias itself"));
                }
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.fault(at, "the alias refers to no anchor"));
                };
                self.spend(size, at)?;
                (node, 0)
            }
            _ => return Err(self.fault(at, "a value was expected")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before + 1));
        }
        Ok(node)
    }

    fn map(&mut self, depth: usize) -> Result<Map, Fault> {
        let mut map: Map = Vec::new();
        let mut merged: Map = Vec::new();
        let mut lines: HashMap<String, u32> = HashMap::new();
        loop {
            let (event, at) = self.next()?;
            let (key, span) = match event {
                Event::MappingEnd => break,
                Event::Scalar(key, ..) => (key.into_owned(), self.span(&at)),
                _ => return Err(self.fault(&at, "a key has to be plain text")),
            };
            let (event, value_at) = self.next()?;
            let value = self.node(event, &value_at, depth + 1)?;
            if key == "<<" {
                match value.value {
                    Value::Map(entries) => merged.extend(entries),
                    _ => return Err(self.fault(&value_at, "`<<` merges a mapping")),
                }
            } else if let Some(first) = lines.insert(key.clone(), span.line) {
                return Err(self.fault(&at, format!("the key `{}` stands here a second time; the first is in line {first}", text::one_line(&key, 60))));
            } else {
                map.push((key, span, value));
            }
        }
        for entry in merged {
            if lines.insert(entry.0.clone(), entry.1.line).is_none() {
                map.push(entry);
            }
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_value_knows_its_place() {
        let documents = parse("m.yaml", b"a: 1\nb:\n  - x\n  - \"2\"\n---\nc: true\n").unwrap();
        assert_eq!(documents.len(), 2);
        let b = documents[0].get("b").unwrap();
        let Value::Seq(items) = &b.value else { panic!("{b:?}") };
        assert_eq!((items[1].at.to_string().as_str(), &items[1].value), ("m.yaml:4:5", &Value::String("2".to_owned())));
        assert_eq!(documents[1].get("c").unwrap().at.line, 6);
    }

    #[test]
    fn what_is_no_settings_file_is_refused_where_it_breaks() {
        let bomb = {
            let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
            for level in 1..9 {
                let alias = format!("*a{}", level - 1);
                text += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
            }
            text.into_bytes()
        };
        let cases: [(&str, Vec<u8>, &str); 9] = [
            ("tab", b"a:\n\tb: 1\n".to_vec(), ":2:"),
            ("cycle", b"a: &x\n  b: *x\n".to_vec(), "itself"),
            ("bomb", bomb, "unfolds"),
            ("large", vec![b'a'; 10 << 20], "bytes"),
            ("not utf-8", b"a: 1\nb: \xff\n".to_vec(), ":2:4: the file is not UTF-8"),
            ("twice", b"a: 1\nb: 2\na: 3\n".to_vec(), ":3:1: the key `a`"),
            ("open", b"schedule: [\n".to_vec(), "not valid YAML"),
            ("a variable's braces", b"schedule: { every: ${EVERY} }\n".to_vec(), "with quotes"),
            ("deep", [b'['; 10_000].to_vec(), ""),
        ];
        for (name, bytes, want) in cases {
            let fault = parse("m.yaml", &bytes).unwrap_err().to_string();
            assert!(fault.contains(want), "{name}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse("m.yaml", &bytes);
        }

        #[test]
        fn no_text_of_yaml_signs_makes_it_panic(text in "[-a&*:{}\\[\\],\"'|>#!%@ \n\t<]{0,80}") {
            let _ = parse("m.yaml", text.as_bytes());
        }
    }
}
