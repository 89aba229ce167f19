//! A key or password in the settings: as it is, or where it is.
//!
//! A field of type [`SecretString`] takes the key itself or a [`Reference`] to it (`env:NAME`, `file:/path`,
//! `credential:NAME`, `secret:NAME`). The reader ([`super::yaml::read`]) looks a reference up when it meets one, so that
//! what cannot be found is a fault with a place, and so that a plain `String` that begins alike is left alone. What the
//! looking up takes stands in a [`Lookup`], which whoever reads the settings puts around the reading ([`looking_up`]):
//! a plug-in's `parse` has no place for it among its arguments.

use std::{cell::RefCell, fmt, io::Read, path::Path, rc::Rc};

pub use secrecy::ExposeSecret;
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

/// Never shown, wiped when dropped.
#[derive(Debug, Clone)]
pub struct SecretString(secrecy::SecretString);

impl ExposeSecret<str> for SecretString {
    fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for SecretString {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// Where a secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'a> {
    /// `env:NAME`: an environment variable.
    Env(&'a str),
    /// `file:/path`: what a file holds.
    File(&'a Path),
    /// `credential:NAME`: what systemd hands to the service.
    Credential(&'a str),
    /// `secret:NAME`: kept in the store.
    Stored(&'a str),
}

impl<'a> Reference<'a> {
    #[must_use]
    pub fn of(text: &'a str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "env" => Some(Self::Env(rest)),
            "file" => Some(Self::File(Path::new(rest))),
            "credential" => Some(Self::Credential(rest)),
            "secret" => Some(Self::Stored(rest)),
            _ => None,
        }
    }
}

/// Names of credentials and of stored secrets are short words, so that a path or a key is none.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && !text.starts_with('.') && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// That in words.
pub const NAME_RULE: &str = "up to 64 letters, digits, `_`, `-` and `.`, and no `.` in front";

/// Finds what a reference names.
pub trait Lookup {
    /// # Errors
    /// A sentence for the user, without the secret.
    fn look_up(&self, reference: Reference<'_>) -> Result<SecretString, String>;
}

thread_local! {
    static LOOKUP: RefCell<Option<Rc<dyn Lookup>>> = const { RefCell::new(None) };
}

/// Reads with this lookup for every reference that is met.
pub fn looking_up<T>(lookup: Rc<dyn Lookup>, read: impl FnOnce() -> T) -> T {
    struct Restore(Option<Rc<dyn Lookup>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOOKUP.set(self.0.take());
        }
    }
    let _restore = Restore(LOOKUP.replace(Some(lookup)));
    read()
}

/// The secret that a text of the settings is or names.
///
/// # Errors
/// A sentence for the user, without the secret.
pub fn find(text: &str) -> Result<SecretString, String> {
    let Some(reference) = Reference::of(text) else { return Ok(text.into()) };
    // Cloned out: the lookup runs code of others, which may read settings itself.
    let lookup = LOOKUP.with_borrow(Option::clone);
    // Never the reference instead of the key: it would be sent to a service as one.
    lookup.ok_or("references such as `env:NAME` are not looked up here")?.look_up(reference)
}

/// No key is longer; `file:/dev/zero` is no key.
const LONGEST: u64 = 64 * 1024;

/// What a file or a pipe holds, without the line break at its end.
///
/// # Errors
/// How to go on behind the name of what was read: `is empty`.
pub fn from_reader(reader: impl Read) -> Result<SecretString, String> {
    let mut bytes = Vec::new();
    reader.take(LONGEST + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("holds more than {} KiB, which no key does", LONGEST / 1024));
    }
    // Not the decoder's error: it holds the bytes.
    let text = String::from_utf8(bytes).map_err(|_| "does not hold text (UTF-8)")?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err("is empty".to_owned()),
        text => Ok(text.into()),
    }
}

/// [`from_reader`], by path.
///
/// # Errors
/// As there.
pub fn from_file(path: &Path) -> Result<SecretString, String> {
    std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}")).and_then(from_reader)
}

/// The name by which a secret asks to be looked up.
pub(super) const NEWTYPE: &str = "$assayd::util::secret::SecretString";

impl<'de> Deserialize<'de> for SecretString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Take;
        impl<'de> Visitor<'de> for Take {
            type Value = SecretString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            /// From our own reader, which has looked it up.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretString, E> {
                Ok(text.into())
            }

            /// From any other: serde's buffer of a flattened part.
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<SecretString, D::Error> {
                find(&String::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_newtype_struct(NEWTYPE, Take)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::util::yaml;

    struct Upper;

    impl Lookup for Upper {
        fn look_up(&self, reference: Reference<'_>) -> Result<SecretString, String> {
            match reference {
                Reference::Env(name) if is_name(name) => Ok(name.to_uppercase().into()),
                _ => Err("not there".to_owned()),
            }
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        key: Option<SecretString>,
        #[serde(default)]
        headers: BTreeMap<String, SecretString>,
        #[serde(default)]
        note: String,
        #[serde(flatten)]
        more: Option<More>,
    }

    #[derive(Debug, Deserialize)]
    struct More {
        token: Option<SecretString>,
    }

    fn read(text: &str) -> (Option<Config>, Vec<String>) {
        let node = yaml::parse("s.yaml", text.as_bytes()).unwrap().remove(0);
        let mut faults = Vec::new();
        let config = yaml::read(&node, &mut faults);
        (config, faults.iter().map(ToString::to_string).collect())
    }

    fn shown(secret: Option<&SecretString>) -> &str {
        secret.map_or("-", |secret| secret.expose_secret())
    }

    #[test]
    fn references_are_looked_up_in_secrets_and_nowhere_else() {
        let (config, faults) = looking_up(Rc::new(Upper), || read("key: env:a\nheaders: { x: env:b, y: plain }\nnote: env:c\ntoken: env:d"));
        let config = config.unwrap();
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(shown(config.key.as_ref()), "A");
        assert_eq!((shown(config.headers.get("x")), shown(config.headers.get("y"))), ("B", "plain"));
        assert_eq!(config.note, "env:c");
        assert_eq!(shown(config.more.unwrap().token.as_ref()), "D");
    }

    #[test]
    fn what_is_not_found_is_a_fault_at_its_place() {
        let (_, faults) = looking_up(Rc::new(Upper), || read("key: env:a\nheaders:\n  x: file:/y\n"));
        assert_eq!(faults, ["s.yaml:3:6: not there"]);
        let (_, faults) = looking_up(Rc::new(Upper), || read("key: [a]"));
        assert_eq!(faults, ["s.yaml:1:6: expected a string, found a list"]);
        assert_eq!(read("key: env:a").1, ["s.yaml:1:6: references such as `env:NAME` are not looked up here"]);
    }

    #[test]
    fn a_secret_is_text_and_is_not_shown() {
        let (config, _) = read("key: 0123\nnote: x");
        assert_eq!(shown(config.as_ref().unwrap().key.as_ref()), "0123");
        assert!(!format!("{config:?}").contains("0123"));
    }

    #[test]
    fn a_line_break_at_the_end_is_no_part_of_a_key() {
        assert_eq!(from_reader(&b"abc\r\n"[..]).unwrap().expose_secret(), "abc");
        assert_eq!(from_reader(&b"two\nlines\n"[..]).unwrap().expose_secret(), "two\nlines");
        assert_eq!(from_reader(&b"\n"[..]).unwrap_err(), "is empty");
        assert_eq!(from_reader(&b"\xff\xfe"[..]).unwrap_err(), "does not hold text (UTF-8)");
        assert!(from_reader(std::io::repeat(b'x')).unwrap_err().contains("64 KiB"));
    }
}
