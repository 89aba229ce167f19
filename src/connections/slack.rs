use schemars::JsonSchema;
use serde::Deserialize;

use crate::util::secret::SecretString;

/// A Slack workspace: a bot token (threads, edits, resolves in place) or an incoming webhook (plain messages).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SlackConnection {
    /// Bot token (`xoxb-...`) with `chat:write`.
    #[schemars(with = "Option<String>")]
    pub token: Option<SecretString>,
    /// Incoming webhook; its URL is a secret. Used when there is no token.
    #[schemars(with = "Option<String>")]
    pub webhook_url: Option<SecretString>,
    /// To check requests that come from Slack.
    #[schemars(with = "Option<String>")]
    pub signing_secret: Option<SecretString>,
    /// Base of the Web API.
    #[serde(default = "default_api_url")]
    pub api_url: String,
}

fn default_api_url() -> String {
    "https://slack.com/api/".to_owned()
}
