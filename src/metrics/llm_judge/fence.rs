//! Text from traces on its way into a prompt: fenced as data, and cut to what a field may have.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use minijinja::Value;

use crate::util::dressed::{Dress, Dressed};

/// Makes the fences of one prompt, and remembers what it had to cut.
#[derive(Debug, Clone)]
pub(super) struct Fences {
    max_chars: usize,
    cuts: Arc<Mutex<BTreeMap<String, Cut>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Cut {
    name: String,
    from: usize,
    to: usize,
}

impl Fences {
    pub fn new(max_chars: usize) -> Self {
        Self { max_chars, cuts: Arc::default() }
    }

    /// The text between markers that it cannot contain by accident or by design: they are made from its hash.
    pub fn text(&self, name: &str, text: &str) -> String {
        let (text, cut) = cut_middle(text, self.max_chars);
        let code = &blake3::hash(text.as_bytes()).to_hex()[..12];
        if let Some((from, to)) = cut {
            let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
            cuts.insert(code.to_owned(), Cut { name: name.to_owned(), from, to });
        }
        format!("<<<BEGIN {name} {code}>>>\n{text}\n<<<END {name} {code}>>>")
    }

    /// A value of any shape: every text in it is fenced where the prompt uses it.
    pub fn value(&self, name: &str, value: &Value) -> Value {
        let fence: Arc<dyn Dress> = Arc::new(Fence { name: name.into(), fences: self.clone() });
        Dressed::value(value, &fence)
    }

    /// `context cut from 140000 to 128000 characters`, of each text that stands cut in this prompt.
    pub fn cuts(&self, prompt: &str) -> Vec<String> {
        let cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        let used = cuts.iter().filter(|(code, _)| prompt.contains(code.as_str()));
        used.map(|(_, Cut { name, from, to })| format!("{name} cut from {from} to {to} characters")).collect()
    }
}

#[derive(Debug)]
struct Fence {
    name: Box<str>,
    fences: Fences,
}

impl Dress for Fence {
    fn text(&self, text: &str) -> String {
        self.fences.text(&self.name, text)
    }
}

/// The text, and its characters before and after if there were too many. Begin and end say most about a long text.
pub(super) fn cut_middle(text: &str, max_chars: usize) -> (String, Option<(usize, usize)>) {
    let chars = text.chars().count();
    if chars <= max_chars {
        return (text.to_owned(), None);
    }
    let half = max_chars / 2;
    let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    let (head, tail) = (&text[..at(half)], &text[at(chars - half)..]);
    (format!("{head}\n[... {} characters left out ...]\n{tail}", chars - 2 * half), Some((chars, 2 * half)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_begin_and_its_end() {
        assert_eq!(cut_middle("äöüß", 4), ("äöüß".to_owned(), None));
        let (text, cut) = cut_middle(&format!("ä{}ß", "x".repeat(98)), 10);
        assert_eq!((text.as_str(), cut), ("äxxxx\n[... 90 characters left out ...]\nxxxxß", Some((100, 10))));
    }

    #[test]
    fn only_cuts_that_the_prompt_shows_are_told() {
        let fences = Fences::new(10);
        let (long, other) = (fences.text("context", &"x".repeat(50)), fences.text("output", &"y".repeat(60)));
        assert_eq!(fences.cuts(&long), ["context cut from 50 to 10 characters"]);
        assert_eq!(fences.cuts("").len() + fences.cuts(&fences.text("input", "short")).len(), 0);
        assert_eq!(fences.cuts(&format!("{long}{other}")).len(), 2);
    }
}
