//! Named connections (`connections:` in assayd.yaml), used by sources, sinks and alerts alike: where a service is and
//! how to prove who we are. A plug-in asks for one by name; only the plug-in speaks the service's protocol beyond that.

mod email;
mod langfuse;
mod links;
mod postgres;
mod receivers;
mod slack;

use std::collections::BTreeMap;

pub use email::{EmailConnection, MailSecurity, mailboxes};
pub use langfuse::{Dialect, Langfuse, LangfuseConnection, attribute, segment};
pub use links::Links;
pub use postgres::{Postgres, PostgresConnection, PostgresFault};
pub use receivers::{AlertmanagerConnection, PagerdutyConnection, WebhookConnection};
use schemars::JsonSchema;
use serde::Deserialize;
pub use slack::{Slack, SlackConnection, SlackError, slack_cause, slack_client};

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Connections {
    pub langfuse: BTreeMap<String, LangfuseConnection>,
    pub slack: BTreeMap<String, SlackConnection>,
    pub postgres: BTreeMap<String, PostgresConnection>,
    pub webhook: BTreeMap<String, WebhookConnection>,
    pub alertmanager: BTreeMap<String, AlertmanagerConnection>,
    pub pagerduty: BTreeMap<String, PagerdutyConnection>,
    pub email: BTreeMap<String, EmailConnection>,
}

/// The name used where a block names no connection.
pub const DEFAULT: &str = "default";

/// The connection `name` of a kind, or a sentence that says which there are.
///
/// # Errors
/// When there is none of that name.
pub fn find<'a, C>(kind: &str, all: &'a BTreeMap<String, C>, name: &str) -> Result<&'a C, String> {
    all.get(name).ok_or_else(|| {
        let known = all.keys().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
        if known.is_empty() {
            format!("there is no connection `{name}`: add it to assayd.yaml under connections.{kind}.{name}")
        } else {
            format!("there is no {kind} connection `{name}`; assayd.yaml has {known}")
        }
    })
}
