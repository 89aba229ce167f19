//! The parts of a long notice as sections, within what a message may hold.

use slack_morphism::blocks::SlackBlock;

use super::render::{escape, section};

// Slack takes 3000 characters a section, 50 blocks, and about 12 000 characters in all, of which header, sentence and context may
// take a quarter.
const SECTION: usize = 3_000;
const ALL: usize = 8_500;
/// Of one line.
const LINE: usize = 400;

/// Each part's first line in bold, and as many parts to a section as fit. `lines`: untrusted text, a part each.
pub(super) fn parts(lines: &[String]) -> Vec<SlackBlock> {
    let (mut sections, mut total, mut shown) = (vec![String::new()], 0, 0);
    for text in lines.iter().map(|part| written(part)).take_while(|text| {
        total += text.chars().count() + 2;
        total <= ALL
    }) {
        shown += 1;
        add(&mut sections, &text);
    }
    if shown < lines.len() {
        add(&mut sections, &format!("and {} more monitors", lines.len() - shown));
    }
    sections.into_iter().filter(|text| !text.is_empty()).map(section).collect()
}

/// To the last section, or to one more.
fn add(sections: &mut Vec<String>, text: &str) {
    if let Some(last) = sections.last_mut()
        && last.chars().count() + 2 + text.chars().count() <= SECTION
    {
        let gap = if last.is_empty() { "" } else { "\n\n" };
        last.push_str(gap);
        last.push_str(text);
        return;
    }
    sections.push(text.to_owned());
}

/// One part, at most a section long: lines that do not fit are left out.
fn written(part: &str) -> String {
    let mut text = String::new();
    for (at, line) in part.lines().enumerate() {
        let line = escape(line, LINE);
        let line = if at == 0 && !line.is_empty() { format!("*{line}*") } else { line };
        if text.chars().count() + line.chars().count() + 3 > SECTION {
            text.push_str("\n…");
            break;
        }
        if at > 0 {
            text.push('\n');
        }
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OBEYED: [char; 4] = ['<', '>', '`', '\u{202e}'];

    fn texts(lines: &[String]) -> Vec<String> {
        parts(lines).iter().map(|block| serde_json::to_value(block).unwrap()["text"]["text"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn parts_share_a_section_and_the_rest_is_counted() {
        assert_eq!(texts(&["m\na: <1>".to_owned(), "n\nno scores".to_owned()]), ["*m*\na: &lt;1&gt;\n\n*n*\nno scores"]);
        assert_eq!(texts(&[]), Vec::<String>::new());
        let many: Vec<String> = (0..300).map(|n| format!("monitor-{n}\n{}", "a: 0.8 (0.7 to 0.9), n 30\n".repeat(3))).collect();
        let found = texts(&many);
        assert!(found.len() > 1 && found.last().unwrap().contains("\n\nand 2"), "{found:?}");
    }

    proptest! {
        #[test]
        fn slacks_limits_hold_for_any_text(parts in proptest::collection::vec(("[&<>a `\u{202e}]{0,40}", 1usize..60, 1usize..80), 0..60)) {
            let lines: Vec<String> = parts.iter().map(|(text, long, lines)| vec![text.repeat(*long); *lines].join("\n")).collect();
            let found = texts(&lines);
            prop_assert!(found.len() <= 40 && found.iter().all(|text| !text.is_empty() && text.encode_utf16().count() <= 3_000));
            prop_assert!(found.iter().map(|text| text.chars().count()).sum::<usize>() <= 9_000);
            prop_assert!(!found.iter().any(|text| text.contains(OBEYED)));
        }
    }
}
