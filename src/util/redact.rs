//! Hiding what should not leave the machine: addresses, numbers of people and cards, keys. What is found is replaced by its
//! kind in brackets (`[email]`), so that a reader still sees what stood there.
//!
//! A guess either way: it errs towards hiding where a form is plain (a key's prefix, an `@`), and towards leaving alone
//! where digits could be anything, so that scores, dates, counts and ids stay. No substitute for not sending a text.
//!
//! Linear in the text; what holds nothing is handed back as it is.

use std::{borrow::Cow, net::Ipv6Addr, ops::Range, sync::LazyLock};

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What can be hidden. Where two overlap, the one named first here gives its name to both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// API keys by their prefix, bearer tokens, JSON web tokens, PEM blocks, passwords in URLs and behind `password=`.
    Secret,
    Email,
    /// Payment cards: 13 to 19 digits of a known issuer, with a sound check digit.
    Card,
    /// IPv4 and IPv6.
    Ip,
    /// `+49 30 1234567`, `(555) 123-4567`, `555-123-4567`, `030 1234567`, `06 12 34 56 78`.
    Phone,
}

impl Kind {
    #[must_use]
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Secret => "[secret]",
            Self::Email => "[email]",
            Self::Card => "[card]",
            Self::Ip => "[ip]",
            Self::Phone => "[phone]",
        }
    }

    fn find(self, text: &str, found: &mut Vec<(Range<usize>, Self)>) {
        let mut add = |range: Range<usize>| found.push((range, self));
        match self {
            Self::Secret => secrets(text, &mut add),
            Self::Email => EMAIL.find_iter(text).for_each(|email| add(email.range())),
            Self::Card => DIGITS.find_iter(text).for_each(|run| cards(text, run.range(), &mut add)),
            Self::Ip => addresses(text, &mut add),
            Self::Phone => phones(text, &mut add),
        }
    }
}

/// Passes over a text: what is hidden may part what stood beside it, and so show a number that was a piece of a word. The
/// second pass finds that; more are for texts made to need them.
const MAX_PASSES: usize = 4;

/// The text with everything of these kinds replaced.
#[must_use]
pub fn redact<'a>(text: &'a str, kinds: &[Kind]) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..MAX_PASSES {
        match pass(&text, kinds) {
            Some(hidden) => text = Cow::Owned(hidden),
            None => break,
        }
    }
    text
}

/// `None` where there is nothing to hide.
fn pass(text: &str, kinds: &[Kind]) -> Option<String> {
    let mut found = Vec::new();
    kinds.iter().for_each(|kind| kind.find(text, &mut found));
    if found.is_empty() {
        return None;
    }
    found.sort_unstable_by_key(|(range, kind)| (range.start, *kind));
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    let mut rest = found.into_iter().peekable();
    while let Some((mut range, mut kind)) = rest.next() {
        // What overlaps is one piece: half of an address would still be one.
        while let Some((next, other)) = rest.next_if(|(next, _)| next.start < range.end) {
            range.end = range.end.max(next.end);
            kind = kind.min(other);
        }
        out.push_str(&text[done..range.start]);
        out.push_str(kind.placeholder());
        done = range.end;
    }
    out.push_str(&text[done..]);
    Some(out)
}

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this file are checked by its tests")
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| pattern(r"[\p{L}\p{N}._%+\-]+@[\p{L}\p{N}\-]+(?:\.[\p{L}\p{N}\-]+)*\.\p{L}{2,}"));

/// Digits with single blanks or hyphens between them.
static DIGITS: LazyLock<Regex> = LazyLock::new(|| pattern(r"[0-9](?:[ \-]?[0-9]){12,}"));

static IP_V4: LazyLock<Regex> = LazyLock::new(|| pattern(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"));

static IP_V6: LazyLock<Regex> = LazyLock::new(|| pattern(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*"));

static PHONES: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    [
        // International.
        pattern(r"(?:\+|\b00)[1-9][0-9]{0,2}(?:[ .\-/]?\(?[0-9]{1,6}\)?){1,6}"),
        // North America.
        pattern(r"(?:\([0-9]{3}\) ?|[0-9]{3}[ .\-])[0-9]{3}[ .\-][0-9]{4}"),
        // With an area code that begins with 0.
        pattern(r"\(?0[1-9][0-9]{1,3}\)?[ /\-][0-9]{3,8}(?:[ \-][0-9]{2,8}){0,2}|0[1-9](?:[ .][0-9]{2}){4}"),
    ]
});

/// Keys that their own form gives away.
static KEYS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)
        -----BEGIN\ [A-Z0-9\ ]{1,40}-----(?:\s*[A-Za-z\-]{1,40}:\ [^\n]*\n)*[A-Za-z0-9+/=\s\\]*(?:-----END\ [A-Z0-9\ ]{1,40}-----)?
        | \b(?:
            sk-[A-Za-z0-9_\-]{16,} | pk-lf-[A-Za-z0-9\-]{16,} | (?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}
            | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,} | glpat-[A-Za-z0-9_\-]{16,}
            | (?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16} | AIza[0-9A-Za-z_\-]{30,} | ya29\.[0-9A-Za-z_\-]{20,}
            | xox[a-z]-[A-Za-z0-9\-]{10,} | xapp-[A-Za-z0-9\-]{10,} | hf_[A-Za-z0-9]{20,} | npm_[A-Za-z0-9]{30,} | gsk_[A-Za-z0-9]{20,}
            | AGE-SECRET-KEY-1[0-9A-Z]{50,} | SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}
            | eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]*)?
        )",
    )
});

/// What an `Authorization` header has; with a digit in it, because both words are English too.
static BEARER: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)\b(?:bearer|basic)\s+([A-Za-z0-9._~+/=\-]{16,})"));

/// Secrets that what stands before them gives away; the group is the secret.
static NAMED: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    [
        pattern(r"(?i)\bhooks\.slack\.com/services/([A-Za-z0-9/]{16,})"),
        pattern(r"[A-Za-z][A-Za-z0-9+.\-]*://[^/\s:@]*:([^/\s@]+)@"),
        // Behind `=` anything; behind `:` only what is quoted or looks like no word, because prose has colons.
        pattern(
            r#"(?ix)(?:\b|_)(?:password|passwd|passphrase|pwd|secret|secret_?key|api[_\-]?key|access[_\-]?key|private[_\-]?key|(?:access|auth|refresh|id|bearer|api)[_\-]?token|token)
            (?: \\?["']?\s*=\s*\\?["']? ([^\s"'\\&,;<>\[\]{}()]{4,})
              | \\?["']?\s*:\s*\\?"([^"\\\n]{4,})\\?"
              | \\?["']?\s*:\s*\\?'([^'\\\n]{4,})\\?'
              | :[\ \t]*([^\s"'\\&,;<>\[\]{}()]*[0-9][^\s"'\\&,;<>\[\]{}()]*) )"#,
        ),
    ]
});

fn secrets(text: &str, add: &mut impl FnMut(Range<usize>)) {
    KEYS.find_iter(text).for_each(|key| add(key.range()));
    for found in BEARER.captures_iter(text).filter_map(|found| found.get(1)) {
        if found.as_str().bytes().any(|byte| byte.is_ascii_digit()) {
            add(found.range());
        }
    }
    for found in NAMED.iter().flat_map(|named| named.captures_iter(text)) {
        let Some(value) = found.iter().skip(1).flatten().next() else { continue };
        // A short number is a count or a score.
        let number = value.len() < 8 && value.as_str().parse::<f64>().is_ok();
        if !number && value.as_str() != Kind::Secret.placeholder() {
            add(value.range());
        }
    }
}

/// Whether what stands there is not a piece of something longer: a word, a decimal, a version.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let joined = |c: char| c.is_alphanumeric() || c == '_';
    let before = text[..range.start].chars().next_back();
    let mut behind = text[range.end..].chars();
    let next = behind.next();
    let goes_on = next == Some('.') && behind.next().is_some_and(|c| c.is_ascii_digit());
    !before.is_some_and(|c| joined(c) || c == '.') && !next.is_some_and(joined) && !goes_on
}

/// Cards in a run of digits, which may have others before and behind: an expiry date, a security code.
fn cards(text: &str, run: Range<usize>, add: &mut impl FnMut(Range<usize>)) {
    let mut groups = Vec::new();
    let mut at = run.start;
    for group in text[run].split([' ', '-']) {
        groups.push(at..at + group.len());
        at += group.len() + 1;
    }
    let mut first = 0;
    while first < groups.len() {
        let last = (first..groups.len().min(first + 5)).find(|last| {
            let range = groups[first].start..groups[*last].end;
            is_printed_as_card(&groups[first..=*last]) && is_card(&text[range.clone()]) && stands_alone(text, &range)
        });
        if let Some(last) = last {
            add(groups[first].start..groups[last].end);
        }
        first = last.unwrap_or(first) + 1;
    }
}

/// In one piece, or in groups that begin with one of four digits and have at least four: a list of scores has none.
fn is_printed_as_card(groups: &[Range<usize>]) -> bool {
    match groups {
        [one] => one.len() >= 13,
        [first, middle @ .., last] => first.len() == 4 && middle.iter().all(|group| (4..=6).contains(&group.len())) && last.len() >= 3,
        [] => false,
    }
}

/// Issuer, length and check digit (ISO/IEC 7812).
fn is_card(text: &str) -> bool {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_digit).map(|digit| digit - b'0').collect();
    let issued = match digits.as_slice() {
        [4, ..] => matches!(digits.len(), 13 | 16 | 19),
        [5, 1..=5, ..] | [2, 2..=7, ..] | [3, 5, ..] => digits.len() == 16,
        [3, 4 | 7, ..] => digits.len() == 15,
        [3, 0 | 6 | 8 | 9, ..] => digits.len() == 14,
        [6, ..] => (16..=19).contains(&digits.len()),
        _ => false,
    };
    let double = |digit: u8| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let sum: u32 = digits.iter().rev().enumerate().map(|(at, digit)| u32::from(if at % 2 == 0 { *digit } else { double(*digit) })).sum();
    issued && sum.is_multiple_of(10)
}

fn addresses(text: &str, add: &mut impl FnMut(Range<usize>)) {
    for found in IP_V4.find_iter(text) {
        if found.as_str().split('.').all(|part| part.parse::<u8>().is_ok()) && stands_alone(text, &found.range()) {
            add(found.range());
        }
    }
    for found in IP_V6.find_iter(text) {
        // The end of a sentence, or a colon of it, belongs to nobody.
        let address = found.as_str().trim_end_matches('.');
        let address = address.strip_suffix(':').filter(|rest| !rest.ends_with(':')).unwrap_or(address);
        let range = found.start()..found.start() + address.len();
        // `a::b` is a path in many languages.
        let has_digit = address.bytes().any(|byte| byte.is_ascii_digit());
        if has_digit && address.parse::<Ipv6Addr>().is_ok() && stands_alone(text, &range) {
            add(range);
        }
    }
}

fn phones(text: &str, add: &mut impl FnMut(Range<usize>)) {
    for found in PHONES.iter().flat_map(|phones| phones.find_iter(text)) {
        let digits = found.as_str().bytes().filter(u8::is_ascii_digit).count();
        // `+12345678` and `+1.2345678` are differences as well, `0012345678` is a number of an order.
        let plain = found.as_str().starts_with('+') && digits >= 10 && !found.as_str().contains('.');
        let number = !plain && found.as_str().parse::<f64>().is_ok();
        let before = text[..found.start()].chars().next_back();
        let behind = &text[found.end()..];
        let goes_on = behind.starts_with(['-', ':', '/', ',']) && behind[1..].starts_with(|c: char| c.is_ascii_digit());
        let in_something = matches!(before, Some('-' | '+' | '/' | ':')) || goes_on;
        if (8..=15).contains(&digits) && !number && !in_something && stands_alone(text, &found.range()) {
            add(found.range());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Kind; 5] = [Kind::Secret, Kind::Email, Kind::Card, Kind::Ip, Kind::Phone];

    #[test]
    fn what_should_not_leave_is_hidden() {
        let pem = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nMIIEow+/=\nabc\n-----END RSA PRIVATE KEY-----";
        let cut = "-----BEGIN PRIVATE KEY-----\\nMIIEvQ";
        for (text, hidden) in [
            ("Write to jane.doe+x@mail.example.co.uk, please.", "Write to [email], please."),
            ("<a href=\"mailto:müller@bücher.example\">", "<a href=\"mailto:[email]\">"),
            ("a@b.io;c@d.io", "[email];[email]"),
            ("card 4111 1111 1111 1111 12/27 123", "card [card] 12/27 123"),
            ("4111-1111-1111-1111.", "[card]."),
            ("{\"number\":\"5555555555554444\"}", "{\"number\":\"[card]\"}"),
            ("Amex 3782 822463 10005", "Amex [card]"),
            ("from 192.168.0.1:8080 to 10.0.0.255.", "from [ip]:8080 to [ip]."),
            ("http://127.0.0.1/x 10.0.0.0/8", "http://[ip]/x [ip]/8"),
            ("at 2001:db8::ff00:42:8329, [fe80::1]:80, ::1 and ::ffff:10.1.2.3.", "at [ip], [[ip]]:80, [ip] and [ip]."),
            ("call +49 30 1234567 or +1 (555) 123-4567", "call [phone] or [phone]"),
            ("+15551234567, (555) 123-4567, 555-123-4567, 555.123.4567", "[phone], [phone], [phone], [phone]"),
            ("030 1234567, 0171-1234567, 020 7946 0958, 06 12 34 56 78", "[phone], [phone], [phone], [phone]"),
            ("0049 30 1234567", "[phone]"),
            ("sk-ant-made-up-0123456789", "[secret]"),
            ("key=sk-proj-AbCdEfGhIjKlMnOp1234, next", "key=[secret], next"),
            ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[secret]"),
            ("AKIAIOSFODNN7EXAMPLE is gone", "[secret] is gone"),
            ("xoxb-1234567890-abcdefghij", "[secret]"),
            ("https://hooks.slack.com/services/T0000/B0000/madeup12", "https://hooks.slack.com/services/[secret]"),
            ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: Bearer [secret]"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_def-1", "[secret]"),
            ("postgres://app:hunter2@db.example.com/x", "postgres://app:[secret]/x"),
            ("redis://:hunter2@cache:6379", "redis://:[secret]@cache:6379"),
            ("password=hunter2&user=x", "password=[secret]&user=x"),
            ("{\"password\": \"correct horse\", \"score\": 4}", "{\"password\": \"[secret]\", \"score\": 4}"),
            ("{\\\"api_key\\\": \\\"abcd1234\\\"}", "{\\\"api_key\\\": \\\"[secret]\\\"}"),
            ("DB_PASSWORD: hunter2", "DB_PASSWORD: [secret]"),
            ("{'client_secret': 'p@ss.word'}", "{'client_secret': '[secret]'}"),
            (pem, "[secret]"),
            (cut, "[secret]"),
        ] {
            assert_eq!(redact(text, &ALL), hidden, "{text}");
        }
    }

    #[test]
    fn scores_and_other_numbers_stay() {
        for text in [
            r#"{"score": 4}"#,
            r#"{"reason": "4.5 of 5, 80 %, up +0.12345678", "score": 0.4111111111111111}"#,
            r#"{"score": 4111111111111111.5, "total_tokens": 1234567, "token": 5, "max_tokens": 300}"#,
            "[4, 5, 4, 3, 5, 4, 4, 5, 3, 4, 5, 5, 4, 4, 5, 1]",
            "4 5 4 3 5 4 4 5 3 4 5 5 4 4 5 1 4 4 4 4 4 4 4 2 5",
            "2026-11-01T01:04:40.123456Z, 2026-11-01 01:04:40+01:00, 01/02/2026 10:30, 12:30:45",
            "1790000000000000 1790000000 1234567890123456 +12345678 +1.2345678",
            "550e8400-e29b-41d4-a716-446655440000 4bf92f3577b34da6a3ce929d0e0e4736",
            "v1.2.3, 1.2.3.4.5, 256.1.1.1, std::fmt::Debug, a::b, aa:bb:cc:dd:ee:ff, ratio 3:4",
            "order 0012345678, room 030, 555-1234, 100 200 300",
            "The password: please change it. Their secret: none. basic internationalization, a bearer of understanding",
            "me @ home, @handle, user@localhost, $PASSWORD, tokens = 1200",
            "",
        ] {
            assert!(matches!(redact(text, &ALL), Cow::Borrowed(same) if same == text), "{text} became {}", redact(text, &ALL));
        }
    }

    #[test]
    fn only_what_is_asked_for_is_hidden() {
        let text = "a@b.io from 10.0.0.1, password=hunter2";
        assert_eq!(redact(text, &[Kind::Ip]), "a@b.io from [ip], password=hunter2");
        assert_eq!(redact(text, &[]), text);
        assert_eq!(redact("password=a@b.io!x", &[Kind::Email, Kind::Secret]), "password=[secret]");
    }

    #[test]
    fn kinds_are_words_of_settings() {
        let kinds: Vec<Kind> = serde_json::from_str(r#"["email", "phone", "card", "ip", "secret"]"#).unwrap();
        assert_eq!(kinds.len(), 5);
    }

    /// A rule that looked back over the text for each piece would not end within a day.
    #[test]
    fn long_texts_come_to_an_end() {
        for part in ["a@b.cc.1", "4111 ", "1.2.3.", "a:", "+49 ", "password=", "-----BEGIN A-----", "bearer ", "://a:", "eyJaaaaaaaa.", "0"] {
            let text = part.repeat(40_000);
            assert!(redact(&text, &ALL).len() <= text.len() * 8, "{part}");
        }
    }

    proptest! {
        #[test]
        fn twice_is_once(parts in prop::collection::vec(prop_oneof![
            "[ -~äß\n]{0,12}",
            "[0-9 .:+()/-]{0,20}",
            Just("jane@example.com".to_owned()),
            Just("4111 1111 1111 1111".to_owned()),
            Just("192.168.0.1".to_owned()),
            Just("fe80::1".to_owned()),
            Just("+49 30 1234567".to_owned()),
            Just("ghp_abcdefghijklmnopqrstuvwxyz".to_owned()),
            Just("\"password\": \"".to_owned()),
            Just("token=".to_owned()),
        ], 0..8)) {
            let once = redact(&parts.concat(), &ALL).into_owned();
            let twice = redact(&once, &ALL);
            prop_assert_eq!(&*twice, &*once);
        }

        #[test]
        fn words_are_handed_back_as_they_are(text in "[a-zA-ZäöüßÄ ,.;!?\n]{0,200}") {
            prop_assert!(matches!(redact(&text, &ALL), Cow::Borrowed(same) if same == text));
        }
    }
}
