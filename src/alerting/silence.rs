//! Who is not told, and why. A muted alert keeps its state and gathers what it gathers; once nothing mutes it any more and it
//! still fires, people are told. Whoever was told that a firing began is told that it ended, muted or not.

use std::{collections::BTreeMap, fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp};
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::machine::{AlertMemory, Reason, Step, Verdict};
use crate::model::{AlertEventKind, AlertState};

/// `LABEL=VALUE`, with `=`, `!=`, `=~` or `!~`; a regex has to match the whole value. A label that is missing is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Matcher {
    label: String,
    sign: Sign,
    value: String,
    regex: Option<Regex>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Is,
    IsNot,
    Fits,
    FitsNot,
}

impl Sign {
    /// Two-character signs first.
    const ALL: [(&'static str, Self); 4] = [("=~", Self::Fits), ("!~", Self::FitsNot), ("!=", Self::IsNot), ("=", Self::Is)];
}

impl Matcher {
    #[must_use]
    pub fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.label).map_or("", String::as_str);
        let fits = self.regex.as_ref().is_some_and(|regex| regex.is_match(value));
        match self.sign {
            Sign::Is => value == self.value,
            Sign::IsNot => value != self.value,
            Sign::Fits => fits,
            Sign::FitsNot => !fits,
        }
    }
}

impl FromStr for Matcher {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{}` is no matcher; write it like `monitor=support-answers` or `severity=~\"warning|info\"`", crate::util::text::one_line(text, 80));
        let at = text.find(['=', '!']).ok_or_else(wrong)?;
        let (label, rest) = (text[..at].trim(), &text[at..]);
        let (sign_text, sign) = Sign::ALL.into_iter().find(|(sign, _)| rest.starts_with(sign)).ok_or_else(wrong)?;
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if label.is_empty() || !label.chars().all(known) {
            return Err(wrong());
        }
        let value = rest[sign_text.len()..].trim();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        let regex = match sign {
            Sign::Is | Sign::IsNot => None,
            Sign::Fits | Sign::FitsNot => {
                Some(Regex::new(&format!("^(?:{value})$")).map_err(|_| format!("`{}` is no regular expression", crate::util::text::one_line(value, 80)))?)
            }
        };
        Ok(Self { label: label.to_owned(), sign, value: value.to_owned(), regex })
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = Sign::ALL.into_iter().find(|(_, sign)| *sign == self.sign).map_or("=", |(text, _)| text);
        write!(f, "{}{sign}\"{}\"", self.label, self.value)
    }
}

impl TryFrom<String> for Matcher {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Matcher> for String {
    fn from(matcher: Matcher) -> Self {
        matcher.to_string()
    }
}

/// A silence that nobody remembers is an alert that nobody gets.
pub const LONGEST_DAYS: i64 = 90;

/// Alerts that people do not want to hear of for a while.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Silence {
    pub id: String,
    /// All have to fit; never empty.
    pub matchers: Vec<Matcher>,
    pub starts: Timestamp,
    pub ends: Timestamp,
    pub author: String,
    pub comment: String,
}

impl Silence {
    /// `labels` are those of the monitor, that of the alert's `by`, `alertname`, `monitor`, `metric` and `severity`.
    #[must_use]
    pub fn mutes(&self, labels: &BTreeMap<String, String>, now: Timestamp) -> bool {
        self.starts <= now && now < self.ends && self.matchers.iter().all(|matcher| matcher.fits(labels))
    }

    /// Whether it can be meant.
    ///
    /// # Errors
    /// A sentence: it would mute everything, for ever or never.
    pub fn check(&self) -> Result<(), String> {
        let length = self.ends.duration_since(self.starts);
        if self.matchers.is_empty() {
            return Err("a silence needs a matcher, such as `monitor=support-answers`".to_owned());
        }
        if length.is_zero() || length.is_negative() || length > SignedDuration::from_hours(LONGEST_DAYS * 24) {
            return Err(format!("a silence ends after it begins, and within {LONGEST_DAYS} days"));
        }
        Ok(())
    }

    /// As it is kept: its times stand beside it, since ending it early changes them. `None` where it no longer reads.
    #[must_use]
    pub fn read(body: &str, starts_us: i64, ends_us: i64) -> Option<Self> {
        let time = |us| Timestamp::from_microsecond(us).ok();
        Some(Self { starts: time(starts_us)?, ends: time(ends_us)?, ..serde_json::from_str(body).ok()? })
    }

    /// pending | active | expired
    #[must_use]
    pub fn state(&self, now: Timestamp) -> &'static str {
        if now < self.starts {
            "pending"
        } else if now < self.ends {
            "active"
        } else {
            "expired"
        }
    }
}

/// What becomes of a step where something mutes the alert (`by`), or nothing does any more.
#[must_use]
pub fn mute(before: &AlertMemory, step: Step, by: Option<&str>) -> Step {
    let Step { mut memory, verdict } = step;
    let fires = memory.state == AlertState::Firing;
    let verdict = match (verdict, by) {
        (Verdict::Notify(AlertEventKind::Firing | AlertEventKind::Repeat, _), Some(by)) => {
            memory.untold = before.untold || before.state != AlertState::Firing;
            Verdict::Quiet(Reason::Muted(by.to_owned()))
        }
        (Verdict::Notify(AlertEventKind::Resolved, _), _) if before.untold => {
            memory.untold = false;
            Verdict::Quiet(Reason::NobodyWasTold)
        }
        (_, None) if fires && before.untold => {
            memory.untold = false;
            memory.last_sent_at = memory.last_sent_at.max(memory.held_at);
            Verdict::Notify(AlertEventKind::Firing, Reason::NoLongerMuted)
        }
        (verdict, _) => verdict,
    };
    Step { memory, verdict }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        alerting::{Hold, Observed, Rule, step},
        util::duration::Human,
    };

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn matchers_are_those_of_alertmanager() {
        let of = labels(&[("alertname", "low"), ("team", "support-eu")]);
        for (text, fits) in [
            ("alertname=low", true),
            ("alertname=\"low\"", true),
            ("alertname!=low", false),
            ("team=~support-.*", true),
            ("team=~support", false),
            ("team!~support", true),
            ("nobody=", true),
            ("nobody!=x", true),
        ] {
            assert_eq!(text.parse::<Matcher>().unwrap().fits(&of), fits, "{text}");
        }
        for text in ["", "low", "=x", "a b=c", "team=~("] {
            assert!(text.parse::<Matcher>().is_err(), "{text}");
        }
        let matcher: Matcher = "team=~a|b".parse().unwrap();
        assert_eq!(matcher.to_string(), "team=~\"a|b\"");
        assert!(matcher.to_string().parse::<Matcher>().unwrap().fits(&labels(&[("team", "b")])), "what is shown reads back");
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + minute * 60).unwrap()
    }

    /// (bad, muted) a minute apart; what people are told.
    fn story(seen: &[(bool, bool)]) -> String {
        let rule = Rule { hold: Hold::Runs(1), repeat: Human::hours(4), keep: Human::secs(0) };
        let mut memory = AlertMemory::default();
        let mut lines = Vec::new();
        for (minute, (bad, muted)) in seen.iter().enumerate() {
            let now = at(i64::try_from(minute).unwrap());
            let next = mute(&memory, step(&memory, &rule, &Observed::Breached(*bad), now, &minute.to_string()), muted.then_some("silence x"));
            let told = if let Verdict::Notify(kind, _) = &next.verdict { format!("{kind:?}") } else { "-".to_owned() };
            lines.push(format!("{minute} {:<9}{told:<9}{}", next.memory.state.as_str(), next.verdict.reason()));
            memory = next.memory;
        }
        lines.join("\n")
    }

    #[test]
    fn people_are_told_when_a_silence_ends_and_not_before() {
        insta::assert_snapshot!(story(&[(true, true), (true, true), (true, false), (true, false), (false, false)]), @"
        0 firing   -        muted: silence x
        1 firing   -        still firing, said before
        2 firing   Firing   still firing, and no longer muted
        3 firing   -        still firing, said before
        4 resolved Resolved the condition no longer holds
        ");
    }

    #[test]
    fn what_began_and_ended_in_silence_is_never_told() {
        insta::assert_snapshot!(story(&[(true, true), (false, true), (false, false), (true, false)]), @"
        0 firing   -        muted: silence x
        1 resolved -        it ended before anybody was told
        2 inactive -        the condition does not hold
        3 firing   Firing   the condition holds
        ");
    }

    #[test]
    fn who_was_told_of_the_beginning_is_told_of_the_end() {
        insta::assert_snapshot!(story(&[(true, false), (true, true), (false, true)]), @"
        0 firing   Firing   the condition holds
        1 firing   -        still firing, said before
        2 resolved Resolved the condition no longer holds
        ");
    }

    #[test]
    fn a_silence_has_a_beginning_and_an_end() {
        let silence = Silence {
            id: "s".to_owned(),
            matchers: vec!["alertname=low".parse().unwrap()],
            starts: at(1),
            ends: at(3),
            author: String::new(),
            comment: String::new(),
        };
        let of = labels(&[("alertname", "low")]);
        assert_eq!([0, 1, 2, 3].map(|minute| silence.mutes(&of, at(minute))), [false, true, true, false]);
        assert_eq!([0, 1, 3].map(|minute| silence.state(at(minute))), ["pending", "active", "expired"]);
        assert!(!silence.mutes(&labels(&[("alertname", "other")]), at(1)));
    }
}
