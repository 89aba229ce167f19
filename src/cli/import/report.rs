//! What the user is told about an import: everything that stood in the old file, by what became of it.

use crate::util::{
    text::one_line,
    yaml::{Fault, Span},
};

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    Decide,
    Contradiction,
    Changed,
    Unknown,
    Taken,
}

/// In the order in which they are told: what asks for something first.
const FATES: [(Fate, &str); 5] = [
    (Fate::Decide, "needs a decision"),
    (Fate::Contradiction, "contradicted itself in the old file"),
    (Fate::Changed, "means something else now"),
    (Fate::Unknown, "not known, and left out"),
    (Fate::Taken, "taken over"),
];

/// A key of the old file: where its value stands, and its path (`source.limit`).
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub at: Span,
    pub key: String,
}

/// Gathered while the old file is read.
#[derive(Debug, Default)]
pub(super) struct Report {
    said: Vec<(Fate, Place, String)>,
    /// What is wrong with the old file itself. With any of these nothing is written.
    pub faults: Vec<Fault>,
}

impl Report {
    pub(super) fn say(&mut self, fate: Fate, place: &Place, message: impl Into<String>) {
        self.said.push((fate, place.clone(), message.into()));
    }

    pub(super) fn fault(&mut self, place: &Place, message: impl Into<String>) {
        let key = if place.key.is_empty() { String::new() } else { format!("`{}`: ", one_line(&place.key, 80)) };
        self.faults.push(Fault::new(&place.at, format!("{key}{}", message.into())));
    }

    /// Whether anything was said of a key or of what it stands in.
    #[cfg(test)]
    pub(super) fn speaks_of(&self, key: &str) -> bool {
        self.said.iter().any(|(_, place, _)| place.key == key)
    }

    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        for (fate, title) in FATES {
            let mut lines: Vec<_> = self.said.iter().filter(|(is, ..)| *is == fate).collect();
            lines.sort_by(|a, b| a.1.at.cmp(&b.1.at));
            if !lines.is_empty() {
                out.push_str(&format!("{title}:\n"));
            }
            for (_, place, message) in lines {
                out.push_str(&format!("  {}: {}: {}\n", place.at, one_line(&place.key, 80), one_line(message, 600)));
            }
        }
        out
    }
}
