//! Where alerts go beside Slack. A webhook's address and a routing key let anybody raise alarms: both are secrets.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::util::secret::SecretString;

/// A service of your own that takes the payload of Alertmanager's webhooks.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookConnection {
    #[schemars(with = "String")]
    pub url: SecretString,
    /// Sent with each request, such as `authorization`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretString>,
}

/// An Alertmanager; it groups, routes and repeats by its own rules.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertmanagerConnection {
    /// Such as `http://alertmanager:9093`.
    pub base_url: String,
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, SecretString>,
}

/// A service of PagerDuty, by its Events API v2.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PagerdutyConnection {
    /// Integration key of the service.
    #[schemars(with = "String")]
    pub routing_key: SecretString,
    /// Default `https://events.pagerduty.com`.
    #[serde(default = "pagerduty")]
    pub base_url: String,
}

fn pagerduty() -> String {
    "https://events.pagerduty.com".to_owned()
}
