//! Slack's mrkdwn as a reader sees it.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

/// `[1]`, `[2, 3]`, `【4:0†source】`, with the space before it.
static MARK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[ \t]*(?:\[\^?\d{1,3}(?:\s?[,\u{2013}-]\s?\d{1,3})*\]|【[^】\n]{1,80}】)").expect("the pattern is sound"));

/// The list of sources under an answer: an optional heading, then lines that begin with a mark, to the end.
static LIST: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)\n+(?:[*_]*(?:sources|references|citations)[*_]*:?[*_]*[ \t]*\n+)?(?:[ \t]*(?:[-*\u{2022}][ \t]+)?(?:\[\^?\d{1,3}\]|【[^】\n]{1,80}】)[^\n]*\n*)+$")
        .expect("the pattern is sound")
});

/// What Slack puts before the address that somebody typed; a reader sees the first two, not the others.
const LINKED: [&str; 4] = ["https://", "http://", "mailto:", "tel:"];

/// `<@U1>`, `<#C1|name>`, `<!here>`, `<https://u|label>` and `&amp;` as text. `name` tells what a mention of a member
/// becomes, by the member's id and the label that Slack gave it, if any.
pub(super) fn decode(raw: &str, name: impl Fn(&str, Option<&str>) -> String) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    // A `<` that was typed is `&lt;`, so what stands here begins a token; one without an end is kept as it is.
    while let Some((before, token, after)) = rest.split_once('<').and_then(|(before, rest)| rest.split_once('>').map(|(token, after)| (before, token, after))) {
        out.push_str(&entities(before));
        out.push_str(&reference(token, &name));
        rest = after;
    }
    out.push_str(&entities(rest));
    out
}

fn reference(token: &str, name: impl Fn(&str, Option<&str>) -> String) -> String {
    let (target, label) = match token.split_once('|') {
        Some((target, label)) => (target, Some(label).filter(|label| !label.is_empty())),
        None => (token, None),
    };
    let shown = |label: &str| entities(label).into_owned();
    match target.chars().next() {
        Some('@') => entities(&name(&target[1..], label)).into_owned(),
        Some('#') => format!("#{}", label.map_or_else(|| target[1..].to_owned(), shown)),
        // `<!date^1767229300^{date}|fallback>`, `<!subteam^S1|@team>`, `<!here>`
        Some('!') => match (label, target[1..].split_once('^')) {
            (Some(label), _) => shown(label),
            (None, Some((_, id))) => format!("@{id}"),
            (None, None) => format!("@{}", &target[1..]),
        },
        _ => {
            let target = entities(target);
            let without = |schemes: &[&str]| schemes.iter().find_map(|scheme| target.strip_prefix(scheme)).unwrap_or(&target).to_owned();
            match label.map(entities) {
                // Slack makes a link of what looks like one: the label is what was typed.
                Some(label) if label == target || label.trim_end_matches('/') == without(&LINKED).trim_end_matches('/') => label.into_owned(),
                Some(label) => format!("{label} ({target})"),
                None => without(&LINKED[2..]),
            }
        }
    }
}

/// The three that Slack writes.
fn entities(text: &str) -> Cow<'_, str> {
    if text.contains('&') { Cow::Owned(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")) } else { Cow::Borrowed(text) }
}

/// Without marks of citation and the list of sources at the end. Code is left as it is: `a[1]` there is no citation.
pub(super) fn without_citations(text: &str) -> String {
    let text = LIST.replace(text, "");
    // Between backticks, one or three, every second piece is code.
    text.split('`').enumerate().map(|(at, piece)| if at % 2 == 0 { MARK.replace_all(piece, "") } else { Cow::Borrowed(piece) }).collect::<Vec<_>>().join("`")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(raw: &str) -> String {
        decode(raw, |id, label| format!("@{}", label.unwrap_or(id)))
    }

    #[test]
    fn tokens_become_what_a_reader_sees() {
        for (raw, seen) in [
            ("<@U1> and <@U2|jane>", "@U1 and @jane"),
            ("in <#C1|support> or <#C2>", "in #support or #C2"),
            ("<!here> <!subteam^S1|@crew> <!subteam^S2> <!date^1767229300^{date}|1 January>", "@here @crew @S2 1 January"),
            ("<https://a.example/x?a=1&amp;b=2|the docs>", "the docs (https://a.example/x?a=1&b=2)"),
            ("<https://a.example> <http://a.example|a.example> <mailto:a@b.example|a@b.example>", "https://a.example a.example a@b.example"),
            ("<https://a.example/|a.example> <https://a.example|e> <tel:+49301|+49301>", "a.example e (https://a.example) +49301"),
            ("1 &lt; 2 &amp;&amp; &amp;lt;b&gt;", "1 < 2 && &lt;b>"),
            ("no end <https://a.example", "no end <https://a.example"),
            ("", ""),
        ] {
            assert_eq!(decoded(raw), seen, "{raw}");
        }
    }

    #[test]
    fn citations_go_and_code_stays() {
        for (with, without) in [
            ("Paris [1] is it [2, 3].", "Paris is it."),
            ("So it is【4:0†source】.", "So it is."),
            ("use `a[1]` as in [1]", "use `a[1]` as in"),
            ("```\nx[0] = 1\n```\nfine[12]", "```\nx[0] = 1\n```\nfine"),
            ("An answer [1].\n\n*Sources:*\n[1] <a> b\n[2] c", "An answer."),
            ("An answer.\n[1] https://a.example\n[2] https://b.example\n", "An answer."),
            ("[draft] and [2026] stay", "[draft] and [2026] stay"),
        ] {
            assert_eq!(without_citations(with), without, "{with}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_decoded_and_stripped_without_harm(raw in "[<>@#!|&a-c1\\[\\]`【】†\n ;^é]{0,60}") {
            let seen = decoded(&raw);
            without_citations(&seen);
            if !raw.contains(['<', '&']) {
                prop_assert_eq!(seen, raw);
            }
        }
    }
}
