use schemars::JsonSchema;
use serde::Deserialize;

use crate::util::secret::SecretString;

/// A Postgres database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConnection {
    /// `postgres://user:password@host/database`; it holds a password, so it is a secret.
    #[schemars(with = "String")]
    pub url: SecretString,
}
