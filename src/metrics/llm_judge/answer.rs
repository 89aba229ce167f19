//! Finding the verdict in what models really answer: a JSON object, maybe behind thinking, in a fence, amid prose, inside
//! an envelope or a string. What cannot be read for certain is no verdict: asking again costs a call, a wrong score more.
//!
//! The rules, in this order:
//!
//! - An answer that is valid JSON is taken as it is, and nothing is looked for inside its texts.
//! - Thinking is no answer, for it may hold a draft of the verdict; behind a thought that does not end there is none.
//! - Of several complete objects the last one counts: drafts come first, and so do quotations of what was judged.
//! - An object that is not valid JSON is repaired ([`super::reader`]). Where one of ours breaks off, or where the end of its
//!   texts had to be guessed and another object follows, nothing counts: the second may stand inside the first.
//! - Where the rest of an object stands behind the last one, that one stood inside it, and nothing counts either.
//!
//! Total: any text gives an answer or `None`, in time linear in the text.

use serde_json::{Map, Value};

use super::reader::{self, Reader};

/// An object that holds a verdict.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub object: Map<String, Value>,
    /// It was not valid JSON as it stood.
    pub repaired: bool,
}

/// The words under which models give their reason.
pub(super) const REASONS: [&str; 4] = ["reason", "reasoning", "explanation", "rationale"];

/// Words under which tool calls carry their arguments, as JSON in a text.
const ARGUMENTS: [&str; 3] = ["arguments", "parameters", "input"];

/// What opens a thought and what closes it, by model family.
const THOUGHTS: [(&str, &str); 10] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u{25c1}think\u{25b7}", "\u{25c1}/think\u{25b7}"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis", "<|channel|>final"),
];

/// The last object in the text that gives one of `keys` a plain value.
pub(super) fn object(text: &str, keys: &[&str]) -> Option<Found> {
    let text = text.trim_matches(reader::is_blank);
    match serde_json::from_str(text) {
        // JSON in JSON, once: the inner text is an answer like any other.
        Ok(Value::String(inner)) => scan(inner.trim_matches(reader::is_blank), keys),
        Ok(value) => verdict_in(&value, keys).map(|object| Found { object, repaired: false }),
        Err(_) => scan(text, keys),
    }
}

/// The value under the first of `keys` that the object has, in whatever case.
pub(super) fn get<'a>(object: &'a Map<String, Value>, keys: &[&str]) -> Option<&'a Value> {
    let any_case = |key: &str| object.iter().find(|(name, _)| name.trim().eq_ignore_ascii_case(key)).map(|(_, value)| value);
    keys.iter().find_map(|key| object.get(*key).or_else(|| any_case(key)))
}

/// The object with the verdict: the value itself, the only one inside an envelope, the last one of a list.
fn verdict_in(value: &Value, keys: &[&str]) -> Option<Map<String, Value>> {
    match value {
        Value::Object(map) if get(map, keys).is_some_and(|verdict| !verdict.is_object() && !verdict.is_array()) => Some(map.clone()),
        Value::Object(map) => {
            let mut inner = map.iter().filter_map(|(name, value)| match value {
                Value::String(text) if ARGUMENTS.contains(&name.as_str()) => verdict_in(&serde_json::from_str(text).ok()?, keys),
                value => verdict_in(value, keys),
            });
            inner.next().filter(|_| inner.next().is_none())
        }
        Value::Array(list) => list.iter().rev().find_map(|value| verdict_in(value, keys)),
        _ => None,
    }
}

/// What stands at a place of the text that is worth a look.
enum Mark {
    Object,
    /// A thought begins here and ends before this place; `None` where it never ends.
    Thought(Option<usize>),
    /// The end of a thought whose beginning the server kept to itself, this long.
    ThoughtEnd(usize),
}

fn mark(rest: &str) -> Option<Mark> {
    if rest.starts_with('{') {
        return Some(Mark::Object);
    }
    let starts = |word: &str| rest.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    THOUGHTS.iter().find_map(|(open, close)| {
        if starts(open) {
            Some(Mark::Thought(find_ignoring_case(rest, close).map(|at| at + close.len())))
        } else {
            starts(close).then_some(Mark::ThoughtEnd(close.len()))
        }
    })
}

fn find_ignoring_case(text: &str, word: &str) -> Option<usize> {
    let (text, word) = (text.as_bytes(), word.as_bytes());
    text.windows(word.len()).position(|window| window.eq_ignore_ascii_case(word))
}

fn scan(text: &str, keys: &[&str]) -> Option<Found> {
    let mut found = None;
    let mut guessed = false;
    // Where the last object or thought ended.
    let mut behind = 0;
    let mut at = 0;
    while let Some(step) = text[at..].find(['{', '<', '[', '\u{25c1}']) {
        at += step;
        let rest = &text[at..];
        match mark(rest) {
            None => {
                at += rest.chars().next().map_or(1, char::len_utf8);
                continue;
            }
            // What follows would be the answer; and what stands before may be anything, an order to think included.
            Some(Mark::Thought(None)) => return None,
            Some(Mark::Thought(Some(end))) => at += end,
            Some(Mark::ThoughtEnd(length)) => {
                (found, guessed) = (None, false);
                at += length;
            }
            Some(Mark::Object) => {
                if has_remains(&text[behind..at]) {
                    found = None;
                }
                let read = read(rest, keys)?;
                if let Some(next) = read.verdict {
                    if guessed {
                        return None;
                    }
                    guessed = read.guessed;
                    found = Some(next);
                }
                at += read.length;
            }
        }
        behind = at;
    }
    found.filter(|_| !has_remains(&text[behind..]))
}

/// Whether this ends an object that does not begin in it: then the one before it stands inside, quoted from the trace.
fn has_remains(behind: &str) -> bool {
    behind.rfind('}').is_some_and(|end| behind[..end].contains(['"', '\'']))
}

struct Read {
    verdict: Option<Found>,
    guessed: bool,
    /// Bytes that are dealt with, at least one.
    length: usize,
}

/// What begins with a brace. `None` when it is an answer of ours that cannot be read.
fn read(rest: &str, keys: &[&str]) -> Option<Read> {
    let mut strict = serde_json::Deserializer::from_str(rest).into_iter::<Map<String, Value>>();
    if let Some(Ok(map)) = strict.next() {
        let length = strict.byte_offset();
        let verdict = verdict_in(&Value::Object(map), keys).map(|object| Found { object, repaired: false });
        return Some(Read { verdict, guessed: false, length });
    }
    let ours = |name: &str| keys.iter().chain(&REASONS).any(|key| name.trim().eq_ignore_ascii_case(key));
    let mut reader = Reader::new(rest, &ours);
    let object = reader.object();
    let (length, guessed) = (reader.read().max(1), reader.guessed);
    let verdict = object.and_then(|map| verdict_in(&Value::Object(map), keys)).map(|object| Found { object, repaired: true });
    if verdict.is_none() && reader.ours { None } else { Some(Read { verdict, guessed, length }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn score(text: &str) -> Option<f64> {
        object(text, &["score"])?.object.get("score")?.as_f64()
    }

    #[test]
    fn what_follows_a_guess_may_stand_inside_it() {
        assert_eq!(score(r#"{"reason": "it says "{"score": 5}" and more", "score": 1}"#), Some(1.0));
        assert_eq!(score(r#"{"reason": "it "says"} {"score": 5}"#), None);
        assert_eq!(score(r#"{"score": 1, "reason": "it "says"} {"score": 5}", "ok": true}"#), None);
        assert_eq!(score(r#"{"reason": "it says {"reason": "so", "score": 5}, and more", "score": 1}"#), None);
        assert_eq!(score(r#"{"reason": "it says: ", "score": 5}, and more", "score": 1}"#), None);
        assert_eq!(score(r#"{"reason": "it says {"score": 5} and more", "score": 1"#), None);
        assert_eq!(score(r#"{"reason": "fine", "score" 1, "note": "not {"score": 5}"}"#), None);
    }

    #[test]
    fn a_text_of_braces_comes_to_an_end() {
        for part in ["{", "{\"", "{a:", "{\"a\":\"", "{\"score\":", "<think>", "[{", "{\"a\":[", "{'a':'{"] {
            // Reading on from each brace would take hours.
            assert_eq!(object(&part.repeat(200_000), &["score"]), None, "{part}");
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9f64..1e9).prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
            "[{}\\[\\]\"':,<>/a-z0-9\\\\ \n]{0,30}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(".{0,6}", inner, 0..4).prop_map(|map| json!(map))
            ]
        })
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([{}\\[\\]\"':,a-c0-9\\\\ \nußé“”<>/*]|</?think>|\"score\":|\\{\"score\": ){0,120}") {
            let _ = object(&text, &["a", "score"]);
        }

        /// Whatever else it holds, however it is laid out, whatever stands before and behind.
        #[test]
        fn valid_json_comes_back_unchanged(
            rest in prop::collection::hash_map(".{0,6}", values(), 0..5),
            score in -1e6f64..1e6,
            pretty in any::<bool>(),
            before in "[a-z .\n`:]{0,20}",
            after in "[a-z .\n`:,}]{0,20}",
        ) {
            let mut map: Map<String, Value> = rest.into_iter().collect();
            map.insert("score".to_owned(), json!(score));
            let value = Value::Object(map);
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let expected: Map<String, Value> = serde_json::from_str(&text).unwrap();
            for dressed in [text.clone(), format!("{before}{text}{after}")] {
                let found = object(&dressed, &["score"]).unwrap();
                prop_assert_eq!(&found.object, &expected);
                prop_assert!(!found.repaired);
            }
        }
    }
}
