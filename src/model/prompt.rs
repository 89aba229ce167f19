use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

/// A prompt that is kept in Langfuse, as settings name it: `langfuse:NAME@production`, `langfuse:NAME@7`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PromptRef {
    /// Langfuse connection.
    pub connection: String,
    pub name: String,
    pub at: PromptAt,
}

/// Which of a prompt's versions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptAt {
    /// The version that carries this label now.
    Label(String),
    /// From 1 on.
    Version(u32),
}

/// The label of a prompt that is named without one.
const PRODUCTION: &str = "production";

impl PromptRef {
    /// Reads what stands behind `langfuse:`.
    ///
    /// # Errors
    /// A sentence: what a name, a label or a version looks like.
    pub fn new(connection: &str, text: &str) -> Result<Self, String> {
        let (name, at) = match text.rsplit_once('@') {
            None => (text, PromptAt::Label(PRODUCTION.to_owned())),
            Some((name, at)) => (name, at_of(at)?),
        };
        if name.is_empty() || name.trim() != name || name.chars().count() > 255 || name.contains('|') || name.chars().any(char::is_control) {
            return Err("a prompt in Langfuse is `langfuse:NAME`, `langfuse:NAME@LABEL` or `langfuse:NAME@VERSION`; a name has 1 to 255 characters and no `|`"
                .to_owned());
        }
        Ok(Self { connection: connection.to_owned(), name: name.to_owned(), at })
    }

    /// As the store keeps it, and as Langfuse is asked: `label` or `version`, and its value.
    #[must_use]
    pub fn selector(&self) -> (&'static str, String) {
        match &self.at {
            PromptAt::Label(label) => ("label", label.clone()),
            PromptAt::Version(version) => ("version", version.to_string()),
        }
    }
}

fn at_of(text: &str) -> Result<PromptAt, String> {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()) {
        return match text.parse() {
            Ok(version) if version > 0 => Ok(PromptAt::Version(version)),
            _ => Err(format!("`@{}` is no version of a prompt: versions count from 1", text.get(..20).unwrap_or(text))),
        };
    }
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | '.');
    if (1..=36).contains(&text.len()) && text.chars().all(sound) {
        Ok(PromptAt::Label(text.to_owned()))
    } else {
        Err("behind `@` stands a version (`@7`) or a label of Langfuse: up to 36 of a-z, 0-9, `_`, `-` and `.`".to_owned())
    }
}

impl fmt::Display for PromptRef {
    /// `NAME@production`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.selector().1)
    }
}

/// One version of a prompt, as Langfuse gave it: tags of other prompts are resolved, variables are not filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptVersion {
    pub version: u32,
    #[serde(default)]
    pub labels: Vec<String>,
    /// Other prompts that its text is composed of, by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub made_of: BTreeSet<String>,
    pub prompt: PromptText,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptText {
    Text(String),
    /// In its order.
    Chat(Vec<ChatTurn>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatTurn {
    pub role: String,
    pub content: String,
}

/// The prompt that a metric judged with in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptUse {
    pub name: String,
    pub version: u32,
}

impl fmt::Display for PromptUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{}", self.name, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_a_name_with_a_label_or_a_version() {
        let read = |text: &str| PromptRef::new("default", text).map(|prompt| (prompt.name.clone(), prompt.at));
        let label = |label: &str| PromptAt::Label(label.to_owned());
        assert_eq!(read("judge"), Ok(("judge".to_owned(), label("production"))));
        assert_eq!(read("team/judge@staging-2"), Ok(("team/judge".to_owned(), label("staging-2"))));
        assert_eq!(read("me@work@7"), Ok(("me@work".to_owned(), PromptAt::Version(7))));
        for wrong in ["", "@7", "judge@", "judge@0", "judge@99999999999", "judge@Production", "a|b", " judge", "judge@two words"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
