//! A tolerant reader of one JSON object: single, curly and back quotes, quotes and line breaks inside texts, bare words,
//! Python's and JavaScript's literals, comments, commas too many or (between lines) too few. It adds nothing: every value
//! is a piece of the text, and an object that does not end is none.

use std::str::Chars;

use serde_json::{Map, Value};

/// Nesting that a verdict has at most.
const MAX_DEPTH: usize = 16;
/// Bytes looked at behind a quote.
const MAX_AHEAD: usize = 512;
/// Bytes of a key: longer ones are prose that fell into a quote.
const MAX_KEY: usize = 64;

/// White space, and what shows as nothing.
pub(super) fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}')
}

pub(super) struct Reader<'a> {
    text: &'a str,
    rest: &'a str,
    is_ours: &'a dyn Fn(&str) -> bool,
    /// A key was read that belongs to a verdict.
    pub ours: bool,
    /// A text holds its own quote, unescaped: where it ends was a guess.
    pub guessed: bool,
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a str, is_ours: &'a dyn Fn(&str) -> bool) -> Self {
        Self { text, rest: text, is_ours, ours: false, guessed: false }
    }

    /// Bytes read so far.
    pub fn read(&self) -> usize {
        self.text.len() - self.rest.len()
    }

    pub fn object(&mut self) -> Option<Map<String, Value>> {
        self.members(0)
    }

    fn eat(&mut self, signs: [char; 2]) -> bool {
        let rest = behind_blanks(self.rest);
        let found = rest.strip_prefix(signs);
        self.rest = found.unwrap_or(rest);
        found.is_some()
    }

    fn members(&mut self, depth: usize) -> Option<Map<String, Value>> {
        if depth > MAX_DEPTH || !self.eat(['{'; 2]) {
            return None;
        }
        let mut map = Map::new();
        while !self.eat(['}'; 2]) {
            let key = self.key()?;
            if !self.eat([':', '\u{ff1a}']) {
                return None;
            }
            self.ours |= (self.is_ours)(&key);
            let value = self.value(depth, ends_member)?;
            // Said twice and differently: nobody can know which one was meant.
            if map.get(&key).is_some_and(|before| *before != value) {
                return None;
            }
            map.insert(key, value);
            let behind = self.rest;
            if !self.eat([',', '\u{ff0c}']) && !self.rest.starts_with('}') && !is_next_line(behind) {
                return None;
            }
        }
        Some(map)
    }

    fn list(&mut self, depth: usize) -> Option<Vec<Value>> {
        if depth > MAX_DEPTH || !self.eat(['['; 2]) {
            return None;
        }
        let mut items = Vec::new();
        while !self.eat([']'; 2]) {
            items.push(self.value(depth, ends_item)?);
            if !self.eat([',', '\u{ff0c}']) && !self.rest.starts_with(']') {
                return None;
            }
        }
        Some(items)
    }

    fn value(&mut self, depth: usize, ends: fn(&str) -> bool) -> Option<Value> {
        self.rest = behind_blanks(self.rest);
        match self.rest.chars().next()? {
            '{' => self.members(depth + 1).map(Value::Object),
            '[' => self.list(depth + 1).map(Value::Array),
            first => match closing(first) {
                Some(quotes) => self.quoted(quotes, ends).map(Value::String),
                None => self.bare(),
            },
        }
    }

    fn key(&mut self) -> Option<String> {
        self.rest = behind_blanks(self.rest);
        let (key, length) = key(self.rest)?;
        self.rest = &self.rest[length..];
        Some(key.to_owned())
    }

    /// A text in quotes; it ends with the quote behind which the object goes on.
    fn quoted(&mut self, quotes: &[char], ends: fn(&str) -> bool) -> Option<String> {
        let mut out = String::new();
        let mut chars = self.rest.chars();
        chars.next();
        loop {
            let Some(c) = chars.next() else {
                self.rest = "";
                return None;
            };
            match c {
                '\\' => out.push(escape(&mut chars)),
                c if quotes.contains(&c) && ends(ahead(chars.as_str())) => {
                    self.rest = chars.as_str();
                    return Some(out);
                }
                c => {
                    self.guessed |= quotes.contains(&c);
                    out.push(c);
                }
            }
        }
    }

    /// A word without quotes, up to where the object goes on: a literal, a number, or text as it stands.
    fn bare(&mut self) -> Option<Value> {
        let placeholder = self.rest.starts_with('<').then(|| ahead(self.rest).find(['>', '\n'])).flatten().map(|at| at + 1);
        let end = placeholder.or_else(|| self.rest.find([',', '}', ']', '\n', '\u{ff0c}'])).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let word = ["//", "/*", " #"].iter().filter_map(|comment| word.find(comment)).min().map_or(word, |at| &word[..at]);
        self.rest = &self.rest[word.len()..];
        match word.trim_matches(is_blank) {
            "" => None,
            "true" | "True" => Some(Value::Bool(true)),
            "false" | "False" => Some(Value::Bool(false)),
            "null" | "None" | "undefined" => Some(Value::Null),
            word => Some(serde_json::from_str(word).map_or_else(|_| Value::from(word), Value::Number)),
        }
    }
}

/// The rest behind white space and comments; nothing where a comment does not end.
fn behind_blanks(mut rest: &str) -> &str {
    loop {
        rest = rest.trim_start_matches(is_blank);
        let end = if rest.starts_with("//") || rest.starts_with('#') {
            "\n"
        } else if rest.starts_with("/*") {
            "*/"
        } else {
            return rest;
        };
        rest = rest.split_once(end).map_or("", |(_, behind)| behind);
    }
}

/// As much as is looked at to guess where a text ends: a bound, so that a text full of quotes costs no more than others.
fn ahead(rest: &str) -> &str {
    &rest[..rest.floor_char_boundary(MAX_AHEAD)]
}

/// What may close a text that this opens.
fn closing(quote: char) -> Option<&'static [char]> {
    match quote {
        '"' => Some(&['"']),
        '\'' => Some(&['\'']),
        '`' => Some(&['`']),
        '\u{201c}' | '\u{201d}' | '\u{201e}' => Some(&['\u{201d}', '\u{201c}', '"']),
        '\u{2018}' | '\u{2019}' => Some(&['\u{2019}', '\'']),
        _ => None,
    }
}

/// The key that the text begins with, and how many bytes it takes.
fn key(rest: &str) -> Option<(&str, usize)> {
    let first = rest.chars().next()?;
    let Some(quotes) = closing(first) else {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-'))).filter(|end| (1..=MAX_KEY).contains(end))?;
        return Some((&rest[..end], end));
    };
    let inner = &rest[first.len_utf8()..];
    let stop = inner.char_indices().take_while(|(at, _)| *at <= MAX_KEY).find(|(_, c)| quotes.contains(c) || matches!(c, '{' | '}' | '\n'))?;
    quotes.contains(&stop.1).then(|| (&inner[..stop.0], first.len_utf8() + stop.0 + stop.1.len_utf8()))
}

/// Whether a member begins here.
fn is_member(rest: &str) -> bool {
    key(rest).is_some_and(|(_, length)| behind_blanks(&rest[length..]).starts_with([':', '\u{ff1a}']))
}

/// A comma was forgotten between lines.
fn is_next_line(behind_value: &str) -> bool {
    let rest = behind_blanks(behind_value);
    behind_value[..behind_value.len() - rest.len()].contains('\n') && is_member(rest)
}

/// Whether a quote that has this behind it ends the text of a member.
fn ends_member(behind: &str) -> bool {
    let rest = behind_blanks(behind);
    match rest.strip_prefix([',', '\u{ff0c}']).map(behind_blanks) {
        Some(next) => next.starts_with('}') || is_member(next),
        None => rest.starts_with('}') || is_next_line(behind),
    }
}

/// Whether a quote that has this behind it ends an item of a list.
fn ends_item(behind: &str) -> bool {
    behind_blanks(behind).starts_with([',', ']', '\u{ff0c}'])
}

/// What stands behind a backslash; half of a surrogate pair is shown as what it is: unreadable.
fn escape(chars: &mut Chars<'_>) -> char {
    match chars.next() {
        Some('n') => '\n',
        Some('t') => '\t',
        Some('r') => '\r',
        Some('b' | 'f') => ' ',
        Some('u') => {
            let high = unit(chars);
            let mut ahead = chars.clone();
            let pair = (ahead.next() == Some('\\') && ahead.next() == Some('u')).then(|| unit(&mut ahead));
            let units = [high.unwrap_or(0xfffd), pair.flatten().unwrap_or(0)];
            match char::decode_utf16(units).next() {
                Some(Ok(c)) => {
                    if c.len_utf16() == 2 {
                        *chars = ahead;
                    }
                    c
                }
                _ => char::REPLACEMENT_CHARACTER,
            }
        }
        Some(other) => other,
        None => char::REPLACEMENT_CHARACTER,
    }
}

/// Four hexadecimal digits; a text that has fewer keeps what it has.
fn unit(chars: &mut Chars<'_>) -> Option<u16> {
    let digits = chars.as_str().get(..4).and_then(|digits| u16::from_str_radix(digits, 16).ok())?;
    *chars = chars.as_str()[4..].chars();
    Some(digits)
}
