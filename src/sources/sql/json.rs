//! Rows as JSON text from a database, read so that no digit is lost.

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

/// Deeper values stay text: what reads them again would not go further either.
const DEEPEST: usize = 64;

/// A row, its columns by name. Numbers are as they are where a 64-bit integer or a double keeps their digits, and text where
/// not (`"0.1234567890123456789"`).
///
/// # Errors
/// What is wrong with the query: a column without a name of its own would quietly stand for another.
pub(super) fn row(text: &str) -> Result<Map<String, Value>, String> {
    let columns: Columns = serde_json::from_str(text).map_err(|error| format!("a row is no JSON object: {error}"))?;
    let mut row = Map::new();
    for (column, raw) in columns.0 {
        let value = value(raw, 0).map_err(|error| format!("column `{column}`: {error}"))?;
        if row.insert(column.clone(), value).is_some() {
            return Err(format!("the query gives column `{column}` twice: name them (`a.{column} AS ...`)"));
        }
    }
    Ok(row)
}

/// Each as often as it comes.
struct Columns<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Columns<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a row")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut columns = Vec::new();
                while let Some(column) = map.next_entry()? {
                    columns.push(column);
                }
                Ok(columns)
            }
        }
        deserializer.deserialize_map(All).map(Columns)
    }
}

fn value(raw: &RawValue, depth: usize) -> serde_json::Result<Value> {
    let text = raw.get();
    if depth > DEEPEST {
        return Ok(Value::String(text.to_owned()));
    }
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text)?;
            Value::Object(fields.into_iter().map(|(key, raw)| Ok((key, value(raw, depth + 1)?))).collect::<serde_json::Result<Map<_, _>>>()?)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text)?;
            Value::Array(items.into_iter().map(|raw| value(raw, depth + 1)).collect::<serde_json::Result<_>>()?)
        }
        Some(b'-' | b'0'..=b'9') => number(text),
        _ => serde_json::from_str(text)?,
    })
}

fn number(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return number.into();
    }
    if let Ok(number) = text.parse::<u64>() {
        return number.into();
    }
    let double = text.parse::<f64>().ok().and_then(serde_json::Number::from_f64);
    double.filter(|double| keeps(double, text)).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

/// Whether a double is written with these digits. Of two shortest forms that are equally near (..43.2 and ..43.3 of
/// 890545164456143.25) Rust writes the one and Ryu, which Postgres has, the other.
fn keeps(double: &serde_json::Number, text: &str) -> bool {
    let written = digits(text);
    digits(&double.to_string()) == written || double.as_f64().is_some_and(|double| digits(&format!("{double:e}")) == written)
}

/// The digits that count, and the power of ten of the last one; the same for every way to write a number.
fn digits(text: &str) -> Option<(bool, String, i64)> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let digits = all.trim_end_matches('0');
    let dropped = i64::try_from(all.len() - digits.len()).ok()?;
    let exponent = exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(fraction.len()).ok()?)?.checked_add(dropped)?;
    let digits = digits.trim_start_matches('0');
    Some(if digits.is_empty() { (false, String::new(), 0) } else { (negative, digits.to_owned(), exponent) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn exact(text: &str) -> serde_json::Result<Value> {
        value(serde_json::from_str(text)?, 0)
    }

    #[test]
    fn a_column_that_comes_twice_is_refused() {
        assert_eq!(Value::Object(row(r#"{"id": 1, "x": {"id": 2, "n": 1.50}}"#).unwrap()), json!({ "id": 1, "x": { "id": 2, "n": 1.5 } }));
        let error = row(r#"{"id": 1, "at": 2, "id": 3}"#).unwrap_err();
        assert!(error.contains("column `id` twice: name them"), "{error}");
        assert!(row("[1]").is_err());
    }

    #[test]
    fn a_number_that_no_double_holds_is_text() {
        let text =
            r#"{"a": 1.10, "b": 0.1234567890123456789, "c": [123456789012345678901234567890, 18446744073709551615, -5], "d": 1e400, "e": "x", "f": null}"#;
        assert_eq!(
            exact(text).unwrap(),
            json!({ "a": 1.1, "b": "0.1234567890123456789", "c": ["123456789012345678901234567890", 18_446_744_073_709_551_615_u64, -5], "d": "1e400", "e": "x", "f": null })
        );
    }

    #[test]
    fn both_ways_to_write_a_double_are_the_double() {
        for text in ["890545164456143.2", "890545164456143.3"] {
            assert_eq!(exact(text).unwrap(), json!(890_545_164_456_143.2_f64));
        }
        assert_eq!(exact("890545164456143.25").unwrap(), json!("890545164456143.25"));
    }

    #[test]
    fn what_is_nested_without_end_is_text_at_last() {
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        assert!(exact(&deep).unwrap().to_string().len() > 5000);
    }

    proptest! {
        #[test]
        fn every_double_and_integer_is_itself(double in proptest::num::f64::NORMAL, integer: i64) {
            prop_assert_eq!(exact(&json!(double).to_string()).unwrap(), json!(double));
            prop_assert_eq!(exact(&format!("{double:e}")).unwrap().as_f64(), Some(double));
            prop_assert_eq!(exact(&integer.to_string()).unwrap(), json!(integer));
        }

        #[test]
        fn no_digit_is_lost(whole in 0u64.., fraction in "[0-9]{1,30}") {
            let text = format!("{whole}.{fraction}");
            let read = exact(&text).unwrap();
            match read {
                Value::Number(number) => prop_assert!(keeps(&number, &text)),
                read => prop_assert_eq!(read.as_str(), Some(text.as_str())),
            }
        }
    }
}
