//! Settings of the gateway beside providers and profiles: `budget`, `cache`, `hooks`, `environments`.

use std::{collections::BTreeMap, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    model::Budget,
    util::{
        duration::Human,
        one_or_many::one_or_many,
        secret::{self, SecretString},
        text,
    },
};

/// One budget, or a list of them; of each period at most one.
///
/// # Errors
/// The deserializer's, or the period that is there twice.
pub(super) fn budgets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Budget>, D::Error> {
    let budgets: Vec<Budget> = one_or_many(deserializer)?;
    let twice = budgets.iter().enumerate().find(|(at, budget)| budgets[..*at].iter().any(|other| other.per == budget.per));
    match twice {
        Some((_, budget)) => Err(D::Error::custom(format!("`per: {}` is there twice, and only one of the two can hold", budget.per.as_str()))),
        None => Ok(budgets),
    }
}

/// Answers kept beyond the process, and how much of them in memory.
#[derive(Debug, Clone)]
pub struct CacheSpec {
    /// `redis://...`; without it, the store.
    pub redis: Option<SecretString>,
    /// Answers in memory, in MiB. Default 32.
    pub memory_mb: u64,
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self { redis: None, memory_mb: 32 }
    }
}

/// `cache:` with more than its place.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Cache")]
struct CacheFile {
    /// `sqlite` (the store), or `redis://HOST` / `rediss://HOST`.
    #[schemars(with = "String")]
    url: SecretString,
    /// Answers kept in memory, in MiB. Default 32.
    memory_mb: Option<u64>,
}

impl CacheSpec {
    fn at<E: Error>(url: SecretString) -> Result<Self, E> {
        use crate::util::secret::ExposeSecret;
        match url.expose_secret() {
            // Of one that was not looked up nothing is known, and nobody connects to it.
            "sqlite" | super::secrets::UNNEEDED => Ok(Self::default()),
            redis if redis.starts_with("redis://") || redis.starts_with("rediss://") => Ok(Self { redis: Some(url), ..Self::default() }),
            // Not repeated: it may hold a password.
            _ => Err(E::custom("a cache is `sqlite` or an address that begins with `redis://` or `rediss://`")),
        }
    }
}

impl<'de> Deserialize<'de> for CacheSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = CacheSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`sqlite`, `redis://...`, or a map with `url`")
            }

            fn visit_str<E: Error>(self, url: &str) -> Result<CacheSpec, E> {
                CacheSpec::at(secret::find(url).map_err(E::custom)?)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CacheSpec, A::Error> {
                let file = CacheFile::deserialize(MapAccessDeserializer::new(map))?;
                let memory_mb = file.memory_mb.unwrap_or(CacheSpec::default().memory_mb);
                Ok(CacheSpec { memory_mb, ..CacheSpec::at(file.url)? })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for CacheSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CacheSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let file = generator.subschema_for::<CacheFile>();
        json_schema!({ "anyOf": [{ "type": "string" }, file] })
    }
}

/// Of a profile: that its answers are kept.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeepSpec {
    /// How long.
    pub ttl: Human,
    /// Also answers at a temperature above 0, which are meant to differ. Default false.
    #[serde(default)]
    pub random: bool,
}

/// An entry of `environments:`, chosen by `ASSAYD_ENV`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentSpec {
    /// What `default` stands for where a profile is named.
    pub profile: Option<String>,
    /// Hooks of the profiles that name none.
    pub hooks: Option<String>,
}

/// An entry of `hooks:`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HooksSpec {
    /// Told of a call before it goes.
    pub before: Vec<HookSpec>,
    /// Told after it returned.
    pub after: Vec<HookSpec>,
}

/// One hook: a name, or a name with what it needs.
#[derive(Debug, Clone)]
pub enum HookSpec {
    LogRequest,
    LogUsage,
    Guard,
    Record,
    /// The name of the connection.
    Langfuse(String),
    Webhook(SecretString),
}

const NAMES: [&str; 5] = ["log_request", "log_usage", "guard", "record", "langfuse"];

impl<'de> Deserialize<'de> for HookSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = HookSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "one of {}, or `webhook: URL`, or `langfuse: CONNECTION`", NAMES.join(", "))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<HookSpec, E> {
                match name {
                    "log_request" => Ok(HookSpec::LogRequest),
                    "log_usage" => Ok(HookSpec::LogUsage),
                    "guard" => Ok(HookSpec::Guard),
                    "record" => Ok(HookSpec::Record),
                    "langfuse" => Ok(HookSpec::Langfuse("default".to_owned())),
                    other => {
                        let hint = text::nearest(other, NAMES).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
                        Err(E::custom(format!("unknown hook `{}`{hint}", text::one_line(other, 40))))
                    }
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HookSpec, A::Error> {
                let hook = match map.next_key::<String>()?.as_deref() {
                    Some("webhook") => HookSpec::Webhook(map.next_value()?),
                    Some("langfuse") => HookSpec::Langfuse(map.next_value()?),
                    _ => return Err(A::Error::custom("a hook with settings is `webhook: URL` or `langfuse: CONNECTION`")),
                };
                match map.next_key::<String>()? {
                    None => Ok(hook),
                    Some(_) => Err(A::Error::custom("one hook an entry")),
                }
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for HookSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HookSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let settings = json_schema!({
            "type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": false,
            "properties": {
                "langfuse": { "type": "string", "description": "The connection that the calls go to." },
                "webhook": { "type": "string", "description": "Where each call is posted as JSON." },
            },
        });
        json_schema!({ "anyOf": [{ "enum": NAMES }, settings] })
    }
}

/// The environment in use.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    pub profile: Option<String>,
    pub hooks: Option<String>,
}

/// The one that `ASSAYD_ENV` names.
///
/// # Errors
/// That there is none of that name.
pub(super) fn chosen(environments: &BTreeMap<String, EnvironmentSpec>, name: Option<&str>) -> Result<Environment, String> {
    let Some(name) = name.filter(|_| !environments.is_empty()) else { return Ok(Environment::default()) };
    match environments.get(name) {
        Some(EnvironmentSpec { profile, hooks }) => Ok(Environment { profile: profile.clone(), hooks: hooks.clone() }),
        None => {
            let known = environments.keys().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
            Err(format!("ASSAYD_ENV is `{}`, and `environments` has {known}", text::one_line(name, 40)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::{config::secrets::Unneeded, util::secret::looking_up};

    #[test]
    fn the_address_of_a_cache_may_stand_elsewhere() {
        let read = |text: &str| serde_json::from_value::<CacheSpec>(serde_json::json!(text));
        assert!(read("redis://somewhere").unwrap().redis.is_some() && read("sqlite").unwrap().redis.is_none());
        assert!(!read("http://user:hidden@somewhere").unwrap_err().to_string().contains("hidden"));
        // A command that calls nobody does not look it up, and is no worse for it.
        assert!(looking_up(Rc::new(Unneeded), || read("env:REDIS_URL")).unwrap().redis.is_none());
    }

    #[test]
    fn a_period_has_one_budget() {
        #[derive(Debug, Deserialize)]
        struct Written(#[serde(deserialize_with = "budgets")] Vec<Budget>);
        let read = |value: serde_json::Value| serde_json::from_value::<Written>(value).map(|written| written.0.len());
        assert_eq!(read(serde_json::json!({ "usd": 1, "per": "day" })).unwrap(), 1);
        assert_eq!(read(serde_json::json!([{ "usd": 1, "per": "day" }, { "usd": 5, "per": "month" }])).unwrap(), 2);
        let error = read(serde_json::json!([{ "usd": 1, "per": "day" }, { "usd": 5, "per": "day" }])).unwrap_err();
        assert!(error.to_string().contains("`per: day` is there twice"), "{error}");
    }
}
