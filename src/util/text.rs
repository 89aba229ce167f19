//! Untrusted text on its way to a person: cut to size and stripped of what a terminal or a log would obey.

/// At most `max` characters; what was cut off is marked by `…`.
#[must_use]
pub fn clip(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => {
            let mut cut: String = text.chars().take(max.saturating_sub(1)).collect();
            cut.push('…');
            cut
        }
    }
}

/// One line for terminals and logs: control characters (escape sequences among them) and line breaks become spaces.
/// Bidirectional overrides, which reorder what a reader sees, go the same way.
#[must_use]
pub fn one_line(text: &str, max: usize) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') { ' ' } else { c })
        .collect();
    clip(clean.trim(), max)
}

/// The text itself if it looks like a word of settings (`interval_minutes`, `gpt-4.1`): short, and of letters, digits, `_`,
/// `-` and `.`. Keys and passwords that a provider gives out are longer; what a user may have put in the wrong place is
/// not repeated in a message.
#[must_use]
pub fn word(text: &str) -> Option<&str> {
    let sound = text.len() <= 24 && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
    sound.then_some(text)
}

/// A number for people: at most four decimals, no trailing zeros (`0.71`, `130`, `1234.5`).
#[must_use]
pub fn figure(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A bound of an interval: two decimals say all there is to say.
#[must_use]
pub fn bound(value: f64) -> String {
    figure((value * 100.0).round() / 100.0)
}

/// The candidate nearest to `word`, if one is near enough to be what was meant.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| {
            // A prefix counts as near: `intervall` and `interval_minutes` share more than edit distance shows.
            let shared = word.chars().zip(candidate.chars()).take_while(|(a, b)| a == b).count();
            let score = strsim::jaro_winkler(word, candidate).max(if shared >= 4 { 0.8 } else { 0.0 });
            (score, candidate)
        })
        .filter(|(score, _)| *score >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_escape_never_survives() {
        assert_eq!(one_line("a\x1b[31mb\r\nc\u{202e}d", 80), "a [31mb  c d");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([0.0, -0.000_01, 130.0, 100.5, 0.712_345, f64::NAN].map(figure), ["0", "0", "130", "100.5", "0.7123", "NaN"]);
    }

    #[test]
    fn clipping_counts_characters_not_bytes() {
        assert_eq!(clip("äöüß", 4), "äöüß");
        assert_eq!(clip("äöüßx", 4), "äöü…");
    }

    #[test]
    fn a_near_word_is_suggested_and_a_far_one_is_not() {
        let keys = ["every", "cron", "interval_minutes", "timezone"];
        assert_eq!(nearest("intervall", keys), Some("interval_minutes"));
        assert_eq!(nearest("crom", keys), Some("cron"));
        assert_eq!(nearest("banana", keys), None);
    }
}
