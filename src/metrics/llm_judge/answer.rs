//! Reading what models really answer: a JSON object, maybe after thinking, in a fence, amid prose, with Python's words,
//! single quotes or trailing commas. What cannot be read for certain is no verdict.
//!
//! Total: any text gives an answer or `None`, in time linear in the text for each `{` that it holds, at most 64 of them.

use serde_json::{Map, Value};

/// Nesting that a verdict has at most.
const MAX_DEPTH: usize = 16;
/// Places at which an object is looked for, from the end: a verdict comes last.
const MAX_STARTS: usize = 64;

/// The last object in the text that has one of `keys`, and whether it took repair to read it.
pub(super) fn object(text: &str, keys: &[&str]) -> Option<Map<String, Value>> {
    let text = after_thinking(text);
    let wanted = |map: &Map<String, Value>| keys.iter().any(|key| map.contains_key(*key));
    if let Ok(Value::Object(map)) = serde_json::from_str(text.trim())
        && wanted(&map)
    {
        return Some(map);
    }
    let starts: Vec<usize> = text.match_indices('{').map(|(at, _)| at).collect();
    starts.iter().rev().take(MAX_STARTS).filter_map(|at| Reader::new(&text[*at..]).object(0)).find(wanted)
}

/// What follows the last `</think>`: a thought may hold a draft of the verdict.
fn after_thinking(text: &str) -> &str {
    text.rsplit_once("</think>").map_or(text, |(_, rest)| rest)
}

/// A tolerant reader of one JSON value.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn new(rest: &'a str) -> Self {
        Self { rest }
    }

    fn skip_space(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            let comment = self.rest.strip_prefix("//").map(|rest| rest.split_once('\n').map_or("", |(_, rest)| rest));
            match comment {
                Some(rest) => self.rest = rest,
                None => return,
            }
        }
    }

    fn eat(&mut self, sign: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.skip_space();
        match self.rest.chars().next()? {
            '{' => self.object(depth).map(Value::Object),
            '[' => self.list(depth).map(Value::Array),
            '"' | '\'' => self.text().map(Value::String),
            _ => self.word(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Map<String, Value>> {
        if depth > MAX_DEPTH || !self.eat('{') {
            return None;
        }
        let mut map = Map::new();
        loop {
            if self.eat('}') {
                return Some(map);
            }
            self.skip_space();
            let key = match self.rest.chars().next()? {
                '"' | '\'' => self.text()?,
                _ => self.name()?,
            };
            if !self.eat(':') {
                return None;
            }
            let value = self.value(depth + 1)?;
            map.insert(key, value);
            if !self.eat(',') && !self.rest.starts_with('}') {
                return None;
            }
        }
    }

    fn list(&mut self, depth: usize) -> Option<Vec<Value>> {
        if depth > MAX_DEPTH || !self.eat('[') {
            return None;
        }
        let mut items = Vec::new();
        loop {
            if self.eat(']') {
                return Some(items);
            }
            items.push(self.value(depth + 1)?);
            if !self.eat(',') && !self.rest.starts_with(']') {
                return None;
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        let mut out = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next()?.1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'b' | 'f' => {}
                    'u' => {
                        let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                        // Half of a surrogate pair is shown as what it is: unreadable.
                        out.push(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}'));
                    }
                    other => out.push(other),
                },
                c if c == quote && self.closes(at + c.len_utf8()) => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Some(out);
                }
                c => out.push(c),
            }
        }
        None
    }

    /// A quote ends its text when what follows goes on with the object; else it stands inside it, unescaped.
    fn closes(&self, behind: usize) -> bool {
        self.rest[behind..].trim_start().chars().next().is_none_or(|next| matches!(next, ',' | '}' | ']' | ':'))
    }

    fn name(&mut self) -> Option<String> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|end| *end > 0)?;
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(name.to_owned())
    }

    fn word(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| matches!(c, ',' | '}' | ']') || c.is_whitespace()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "true" | "True" => Some(Value::Bool(true)),
            "false" | "False" => Some(Value::Bool(false)),
            "null" | "None" => Some(Value::Null),
            number => serde_json::from_str::<serde_json::Number>(number).ok().map(Value::Number),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn score(text: &str) -> Option<f64> {
        object(text, &["score"])?.get("score")?.as_f64()
    }

    #[test]
    fn every_dressing_of_a_verdict_is_read() {
        for text in [
            r#"{"reason": "fine", "score": 4}"#,
            "Sure:\n```json\n{\"reason\": \"fine\", \"score\": 4}\n```\nHope this helps!",
            r#"Let me think {step by step}. {"reason": "fine", "score": 4} That is all."#,
            "{'reason': 'it isn't bad', 'score': 4}",
            r#"{"reason": "fine", "score": 4,}"#,
            "{\"reason\": \"two\nlines\", \"score\": 4}",
            r#"<think>{"score": 1}</think>{"reason": "fine", "score": 4}"#,
            r#"{reason: "fine", score: 4, ok: True, none: None} // done"#,
            r#"{"score": 2} no, rather {"score": 4}"#,
        ] {
            assert_eq!(score(text), Some(4.0), "{text}");
        }
    }

    #[test]
    fn what_is_cut_off_or_no_verdict_is_none() {
        for text in ["", "I am unable to rate this answer.", r#"{"reason": "fine", "sc"#, r#"{"reason": "fine", "score":"#, "{}", "[4]", "4"] {
            assert_eq!(score(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\"':,a-c0-9\\\\ \nußé</think>]{0,200}") {
            let _ = object(&text, &["a"]);
        }

        #[test]
        fn what_serde_writes_is_read_back(reason in ".*", value in -1e6f64..1e6, prose in "[a-z .]{0,20}") {
            let json = serde_json::json!({ "reason": reason, "score": value });
            let read = object(&format!("{prose}{json}"), &["score"]).unwrap();
            prop_assert_eq!(read.get("score").and_then(Value::as_f64), json["score"].as_f64());
        }
    }
}
