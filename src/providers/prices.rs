//! What a call costs. The shipped table (`model_prices.json`, see NOTICE.md) has some 700 models; only the rows of the
//! models in use are read from it, in one pass, and nothing else of it stays in memory.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer as _,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::Tokens;

static SHIPPED: &[u8] = include_bytes!("model_prices.json");

/// Prices of one model, in USD per single token. Each is at least 0.
///
/// The names are those of litellm's table, so that a row of it can be pasted.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of a token of the prompt.
    #[serde(deserialize_with = "usd")]
    pub input_cost_per_token: f64,
    /// Of a token of the answer; hidden reasoning counts as answer.
    #[serde(deserialize_with = "usd")]
    pub output_cost_per_token: f64,
    /// Of a prompt token read from the provider's cache. Default: as any other prompt token.
    #[serde(default, deserialize_with = "optional_usd")]
    pub cache_read_input_token_cost: Option<f64>,
    /// Of a prompt token written to the provider's cache. Default: as any other prompt token.
    #[serde(default, deserialize_with = "optional_usd")]
    pub cache_creation_input_token_cost: Option<f64>,
    /// Prices of the whole request where its prompt is longer than 100,000 tokens. Default: the ones without `above`.
    #[serde(default, deserialize_with = "optional_usd")]
    pub input_cost_per_token_above_100k_tokens: Option<f64>,
    /// See `input_cost_per_token_above_100k_tokens`.
    #[serde(default, deserialize_with = "optional_usd")]
    pub output_cost_per_token_above_100k_tokens: Option<f64>,
    /// See `input_cost_per_token_above_100k_tokens`.
    #[serde(default, deserialize_with = "optional_usd")]
    pub cache_read_input_token_cost_above_100k_tokens: Option<f64>,
    /// Prices of the whole request where its prompt is longer than 200,000 tokens.
    #[serde(default, deserialize_with = "optional_usd")]
    pub input_cost_per_token_above_200k_tokens: Option<f64>,
    /// See `input_cost_per_token_above_200k_tokens`.
    #[serde(default, deserialize_with = "optional_usd")]
    pub output_cost_per_token_above_200k_tokens: Option<f64>,
    /// See `input_cost_per_token_above_200k_tokens`.
    #[serde(default, deserialize_with = "optional_usd")]
    pub cache_read_input_token_cost_above_200k_tokens: Option<f64>,
    /// Prices of the whole request where its prompt is longer than 272,000 tokens.
    #[serde(default, deserialize_with = "optional_usd")]
    pub input_cost_per_token_above_272k_tokens: Option<f64>,
    /// See `input_cost_per_token_above_272k_tokens`.
    #[serde(default, deserialize_with = "optional_usd")]
    pub output_cost_per_token_above_272k_tokens: Option<f64>,
    /// See `input_cost_per_token_above_272k_tokens`.
    #[serde(default, deserialize_with = "optional_usd")]
    pub cache_read_input_token_cost_above_272k_tokens: Option<f64>,
}

fn usd<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let price = f64::deserialize(deserializer)?;
    if price.is_finite() && price >= 0.0 { Ok(price) } else { Err(D::Error::custom("a price is a number of at least 0")) }
}

fn optional_usd<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    usd(deserializer).map(Some)
}

/// A price that holds from a length of the prompt on.
type Tier = (u64, Option<f64>);

impl Price {
    /// What a call used, in USD; `None` where either count is unknown.
    ///
    /// With `in` the whole prompt, of which `read` came from the provider's cache and `write` went into it:
    /// `(in - read - write) * P_in + read * P_read + write * P_write + out * P_out`, all prices those of the tier of `in`.
    /// Source: the providers' price pages; the tiers apply to the whole request, not to what lies above.
    #[must_use]
    pub fn cost(&self, tokens: Tokens) -> Option<f64> {
        let (input, output) = (tokens.input?, tokens.output?);
        let of_tier = |base: Option<f64>, tiers: [Tier; 3]| tiers.into_iter().rev().find_map(|(above, price)| price.filter(|_| input > above)).or(base);

        let price_in = of_tier(
            Some(self.input_cost_per_token),
            [
                (100_000, self.input_cost_per_token_above_100k_tokens),
                (200_000, self.input_cost_per_token_above_200k_tokens),
                (272_000, self.input_cost_per_token_above_272k_tokens),
            ],
        )?;
        let price_out = of_tier(
            Some(self.output_cost_per_token),
            [
                (100_000, self.output_cost_per_token_above_100k_tokens),
                (200_000, self.output_cost_per_token_above_200k_tokens),
                (272_000, self.output_cost_per_token_above_272k_tokens),
            ],
        )?;
        let price_read = of_tier(
            self.cache_read_input_token_cost,
            [
                (100_000, self.cache_read_input_token_cost_above_100k_tokens),
                (200_000, self.cache_read_input_token_cost_above_200k_tokens),
                (272_000, self.cache_read_input_token_cost_above_272k_tokens),
            ],
        )
        .unwrap_or(price_in);
        let price_write = self.cache_creation_input_token_cost.unwrap_or(price_in);

        // Counts come from outside: parts that exceed the whole must not make a price negative.
        let read = tokens.cached_input.unwrap_or(0).min(input);
        let write = tokens.cache_write.unwrap_or(0).min(input - read);
        let plain = input - read - write;
        Some(times(plain, price_in) + times(read, price_read) + times(write, price_write) + times(output, price_out))
    }

    /// What a call with at most so many tokens can cost, in USD, however its prompt falls to tiers and caches.
    #[must_use]
    pub fn ceiling(&self, input: u64, output: u64) -> f64 {
        let dearest =
            |base: f64, others: &[(u64, Option<f64>)]| others.iter().filter(|(above, _)| input > *above).filter_map(|(_, price)| *price).fold(base, f64::max);
        let price_in = dearest(
            self.input_cost_per_token,
            &[
                (0, self.cache_read_input_token_cost),
                (0, self.cache_creation_input_token_cost),
                (100_000, self.input_cost_per_token_above_100k_tokens),
                (100_000, self.cache_read_input_token_cost_above_100k_tokens),
                (200_000, self.input_cost_per_token_above_200k_tokens),
                (200_000, self.cache_read_input_token_cost_above_200k_tokens),
                (272_000, self.input_cost_per_token_above_272k_tokens),
                (272_000, self.cache_read_input_token_cost_above_272k_tokens),
            ],
        );
        let price_out = dearest(
            self.output_cost_per_token,
            &[
                (100_000, self.output_cost_per_token_above_100k_tokens),
                (200_000, self.output_cost_per_token_above_200k_tokens),
                (272_000, self.output_cost_per_token_above_272k_tokens),
            ],
        );
        times(input, price_in) + times(output, price_out)
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
fn times(tokens: u64, price: f64) -> f64 {
    tokens as f64 * price
}

/// What the shipped table says a model can do; `None` where it says nothing.
#[expect(clippy::struct_field_names, reason = "the table's names")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Abilities {
    pub supports_sampling_params: Option<bool>,
    pub supports_forced_tool_use: Option<bool>,
    pub supports_native_structured_output: Option<bool>,
}

/// Of a model by its bare name, with or without date.
pub(super) fn abilities(model: &str) -> Abilities {
    let names = [Some(model), undated(model)];
    let names: Vec<&str> = names.into_iter().flatten().collect();
    let rows = shipped(&names.iter().copied().collect());
    let row = names.into_iter().find_map(|name| rows.get(name)).cloned().unwrap_or_default();
    serde_json::from_value(Value::Object(row)).unwrap_or_default()
}

/// Prices of the models in use: the user's first, then the shipped ones.
#[derive(Debug)]
pub struct Prices<'a> {
    own: &'a BTreeMap<String, Price>,
    shipped: HashMap<String, Map<String, Value>>,
}

impl<'a> Prices<'a> {
    /// Of the given pairs of provider and model; others may or may not be found later.
    pub fn of<'m>(own: &'a BTreeMap<String, Price>, models: impl IntoIterator<Item = (&'m str, &'m str)>) -> Self {
        let names: Vec<String> = models.into_iter().flat_map(|(provider, model)| names(provider, model)).collect();
        Self { own, shipped: shipped(&names.iter().map(String::as_str).collect()) }
    }

    /// `provider/model`, else `model`, else each without its date.
    #[must_use]
    pub fn get(&self, provider: &str, model: &str) -> Option<Price> {
        let names = names(provider, model);
        let own = names.iter().find_map(|name| self.own.get(name)).copied();
        own.or_else(|| names.iter().find_map(|name| self.shipped.get(name)).and_then(price))
    }
}

/// The names under which a model may be listed, the most exact first.
fn names(provider: &str, model: &str) -> Vec<String> {
    [Some(model), undated(model)].into_iter().flatten().flat_map(|model| [format!("{provider}/{model}"), model.to_owned()]).collect()
}

/// The model without the date at its end: `claude-haiku-4-5-20251001`, `gpt-4o-2024-08-06`, `name@20251001`.
fn undated(model: &str) -> Option<&str> {
    ["-dddddddd", "-dddd-dd-dd", "@dddddddd"].into_iter().find_map(|form| {
        let start = model.len().checked_sub(form.len()).filter(|start| *start > 0)?;
        let fits =
            model.as_bytes()[start..].iter().zip(form.bytes()).all(|(byte, wanted)| if wanted == b'd' { byte.is_ascii_digit() } else { *byte == wanted });
        fits.then(|| &model[..start])
    })
}

/// The price in a shipped row; `None` where the row has no prices of its own (the table lists some such models).
fn price(row: &Map<String, Value>) -> Option<Price> {
    // Not ours to use: batches cost less and hour-long caches more, and neither is ever asked for.
    let wanted = |key: &str| key.contains("_cost") && !key.ends_with("_batches") && !key.ends_with("_1hr");
    let row = row.iter().filter(|(key, _)| wanted(key)).map(|(key, value)| (key.clone(), value.clone())).collect();
    serde_json::from_value(Value::Object(row)).ok()
}

/// The rows of `names` that the shipped table has, in one pass over it.
fn shipped(names: &HashSet<&str>) -> HashMap<String, Map<String, Value>> {
    struct Wanted<'a>(&'a HashSet<&'a str>);

    impl<'de> Visitor<'de> for Wanted<'_> {
        type Value = HashMap<String, Map<String, Value>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table of models")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Self::Value, A::Error> {
            let mut rows = HashMap::new();
            while let Some(name) = table.next_key::<Cow<'de, str>>()? {
                if self.0.contains(&*name) {
                    rows.insert(name.into_owned(), table.next_value()?);
                } else {
                    table.next_value::<IgnoredAny>()?;
                }
            }
            Ok(rows)
        }
    }

    // The table is part of the program and read whole by a test; were it broken, all prices would be unknown.
    serde_json::Deserializer::from_slice(SHIPPED).deserialize_map(Wanted(names)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(input: u64, output: u64, cached_input: u64, cache_write: u64) -> Tokens {
        Tokens { input: Some(input), output: Some(output), cached_input: Some(cached_input), cache_write: Some(cache_write) }
    }

    fn find(provider: &str, model: &str) -> Option<Price> {
        Prices::of(&BTreeMap::new(), [(provider, model)]).get(provider, model)
    }

    #[test]
    fn costs_follow_the_formula() {
        let price: Price = serde_json::from_str(
            r#"{"input_cost_per_token": 2e-6, "output_cost_per_token": 1e-5, "cache_read_input_token_cost": 2e-7, "cache_creation_input_token_cost": 2.5e-6,
                "input_cost_per_token_above_200k_tokens": 4e-6, "output_cost_per_token_above_200k_tokens": 2e-5, "input_cost_per_token_above_272k_tokens": 8e-6}"#,
        )
        .unwrap();
        let table = [
            (tokens(1_000, 100, 0, 0), 0.002 + 0.001),
            (tokens(1_000, 100, 400, 0), 600.0 * 2e-6 + 400.0 * 2e-7 + 0.001),
            (tokens(1_000, 100, 400, 100), 500.0 * 2e-6 + 400.0 * 2e-7 + 100.0 * 2.5e-6 + 0.001),
            // The tier holds for the whole request, from the first token above on.
            (tokens(200_000, 0, 0, 0), 0.4),
            (tokens(200_001, 10, 0, 0), 200_001.0 * 4e-6 + 10.0 * 2e-5),
            // A tier without a price of its own takes the one below.
            (tokens(300_000, 10, 1_000, 0), 299_000.0 * 8e-6 + 1_000.0 * 2e-7 + 10.0 * 2e-5),
            // More cached than there was: never less than nothing.
            (tokens(10, 0, 50, 50), 10.0 * 2e-7),
        ];
        for (tokens, usd) in table {
            let cost = price.cost(tokens).unwrap();
            assert!((cost - usd).abs() < 1e-12, "{tokens:?}: {cost} instead of {usd}");
        }
    }

    #[test]
    fn the_ceiling_is_above_every_cost() {
        let rows = shipped(&HashSet::from(["claude-haiku-4-5", "claude-sonnet-4-5", "gpt-4o-mini", "gpt-5.4", "gemini/gemini-2.5-pro"]));
        for (name, row) in rows {
            let price = price(&row).unwrap();
            for input in [0, 10, 100_000, 100_001, 200_001, 272_001, 900_000] {
                for (read, write) in [(0, 0), (input, 0), (0, input), (input / 2, input / 3)] {
                    let cost = price.cost(tokens(input, 500, read, write)).unwrap();
                    assert!(price.ceiling(input, 500) >= cost - 1e-12, "{name}: {input} {read} {write}");
                }
            }
        }
    }

    #[test]
    fn an_unknown_count_is_an_unknown_cost_and_never_0() {
        let price = find("openai", "gpt-4o-mini").unwrap();
        assert_eq!(price.cost(Tokens { input: Some(1), ..Tokens::default() }), None);
        assert_eq!(price.cost(Tokens { output: Some(1), ..Tokens::default() }), None);
    }

    #[test]
    fn a_cached_token_costs_as_any_other_where_the_price_says_nothing() {
        let price: Price = serde_json::from_str(r#"{"input_cost_per_token": 1e-6, "output_cost_per_token": 0}"#).unwrap();
        assert!((price.cost(tokens(100, 5, 50, 10)).unwrap() - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn models_are_found_with_and_without_provider_and_date() {
        assert_eq!(find("anthropic", "claude-haiku-4-5").unwrap().input_cost_per_token, 1e-6);
        assert_eq!(find("x", "claude-haiku-4-5-20301231").unwrap().output_cost_per_token, 5e-6);
        assert_eq!(find("x", "gpt-4o-mini-2030-01-01"), find("y", "gpt-4o-mini"));
        assert_eq!(find("x", "gpt-4o-mini@20300101"), find("y", "gpt-4o-mini"));
        assert_eq!(find("azure", "gpt-4.1").unwrap(), find("x", "azure/gpt-4.1").unwrap());
        for unknown in ["", "gpt-4o-mini-2030", "2024-08-06", "-20240806", "no-such-model", "é-20240806"] {
            assert_eq!(find("x", unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_users_price_comes_first() {
        let own: Price = serde_json::from_str(r#"{"input_cost_per_token": 1, "output_cost_per_token": 2}"#).unwrap();
        let user = BTreeMap::from([("gpt-4o-mini".to_owned(), own)]);
        let prices = Prices::of(&user, [("openai", "gpt-4o-mini-2024-07-18")]);
        assert_eq!(prices.get("openai", "gpt-4o-mini-2024-07-18"), Some(own));
    }

    #[test]
    fn a_price_below_nothing_is_refused() {
        for bad in [
            r#"{"input_cost_per_token": -1, "output_cost_per_token": 2}"#,
            r#"{"input_cost_per_token": 1}"#,
            r#"{"input_cost_per_token": 1, "output_cost_per_token": 1, "x": 1}"#,
        ] {
            assert!(serde_json::from_str::<Price>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_whole_shipped_table_can_be_read() {
        let table: HashMap<String, Map<String, Value>> = serde_json::from_slice(SHIPPED).unwrap();
        assert!(table.len() > 700);
        for (name, row) in &table {
            let complete = row.contains_key("input_cost_per_token") && row.contains_key("output_cost_per_token");
            assert_eq!(price(row).is_some(), complete, "{name}");
        }
        assert_eq!(shipped(&HashSet::from(["claude-opus-5-5", "none"])).len(), 1);
    }

    #[test]
    fn abilities_come_from_the_table() {
        let opus = abilities("claude-opus-5-5");
        assert_eq!(
            (opus.supports_native_structured_output, opus.supports_forced_tool_use, opus.supports_sampling_params),
            (Some(true), Some(false), Some(false))
        );
        assert_eq!(abilities("my-own"), Abilities::default());
    }
}
