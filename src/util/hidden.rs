//! Secrets that somebody else was given: taken out of whatever they say, since what they say goes into logs, reasons and
//! messages.

use std::sync::Arc;

use super::secret::{ExposeSecret, SecretString};

/// Shorter values are words and numbers, which a text has anyway.
const SHORTEST: usize = 6;

/// What must not be told.
#[derive(Debug, Clone, Default)]
pub struct Hidden(Arc<[SecretString]>);

impl Hidden {
    /// Each value as it is and as JSON writes it, each line of it, and what stands behind its first word (`Bearer KEY`).
    #[must_use]
    pub fn of<'a>(secrets: impl IntoIterator<Item = &'a SecretString>) -> Self {
        let mut pieces: Vec<String> = Vec::new();
        for secret in secrets {
            let whole = secret.expose_secret().trim();
            let behind = whole.split_once(' ').map(|(_, behind)| behind.trim());
            for piece in whole.lines().chain([whole]).chain(behind) {
                let in_json = serde_json::to_string(piece).unwrap_or_default();
                pieces.extend([piece.to_owned(), in_json.trim_matches('"').to_owned()]);
            }
        }
        pieces.retain(|piece| piece.chars().count() >= SHORTEST);
        // A piece of a longer one must not be taken out of it first: the rest would be told.
        pieces.sort_by(|a, b| (b.len(), b).cmp(&(a.len(), a)));
        pieces.dedup();
        Self(pieces.into_iter().map(SecretString::from).collect())
    }

    /// The text with `***` for each of them.
    #[must_use]
    pub fn out_of(&self, text: &str) -> String {
        let told = |text: String, secret: &SecretString| {
            let secret = secret.expose_secret();
            if text.contains(secret) { text.replace(secret, "***") } else { text }
        };
        self.0.iter().fold(text.to_owned(), told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_not_told_again() {
        let secrets = ["sk-key-1", "Bearer t0ken-of-mine", "pa\"ss\\word", "first-line\nsecond-line", "sk-key-1-longer", "short", "1"].map(SecretString::from);
        let hidden = Hidden::of(&secrets);
        for (text, told) in [
            ("the key sk-key-1 and sk-key-1-longer", "the key *** and ***"),
            ("header Bearer t0ken-of-mine; token t0ken-of-mine", "header ***; token ***"),
            (r#"{"env": "pa\"ss\\word"} pa"ss\word"#, r#"{"env": "***"} ***"#),
            ("first-line, second-line", "***, ***"),
            ("a short 1", "a short 1"),
        ] {
            assert_eq!(hidden.out_of(text), told);
        }
        assert!(!format!("{hidden:?}").contains("sk-key"));
    }
}
