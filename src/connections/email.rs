//! Where mail is handed in.

use lettre::message::Mailbox;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::util::{secret::SecretString, text::one_line};

/// A server that takes mail (SMTP).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmailConnection {
    pub host: String,
    /// Default: 587 with `starttls`, 465 with `tls`, 25 with `none`.
    pub port: Option<u16>,
    /// Default `starttls`.
    #[serde(default)]
    pub security: MailSecurity,
    /// Default: none, for a server that asks for none.
    pub username: Option<String>,
    #[schemars(with = "Option<String>")]
    pub password: Option<SecretString>,
    /// Who it is from: `assayd@example.com`, or `assayd <assayd@example.com>`.
    #[serde(deserialize_with = "mailbox")]
    #[schemars(with = "String")]
    pub from: Mailbox,
}

/// How a mail server is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MailSecurity {
    /// In the clear at first, and never further than that without encryption.
    #[default]
    Starttls,
    Tls,
    /// Nothing is encrypted: for a server on the same machine.
    None,
}

fn mailbox<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Mailbox, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| serde::de::Error::custom(format!("`{}` is no address of a mailbox; write it like `assayd@example.com`", one_line(&text, 80))))
}

/// The mailboxes that a text names, separated by commas.
///
/// # Errors
/// A sentence: one of them is none, or there is none.
pub fn mailboxes(text: &str) -> Result<Vec<Mailbox>, String> {
    let read = |part: &str| part.trim().parse().map_err(|_| format!("`{}` is no address of a mailbox", one_line(part, 80)));
    text.split(',').map(read).collect()
}
