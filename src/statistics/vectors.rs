//! Reading stats_vectors.json: results that other people's packages gave (scipy, statsmodels, ppi-python,
//! krippendorff, confseq). `ASSAYD_STATS_VECTORS` names another copy.

use serde_json::Value;

/// The cases of a group.
pub fn group(name: &str) -> Vec<Value> {
    let path = std::env::var("ASSAYD_STATS_VECTORS").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stats_vectors.json").to_owned());
    let file = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let cases = items(&serde_json::from_str(&file).unwrap(), name);
    assert!(!cases.is_empty(), "{name} has cases");
    cases
}

/// Within the file's tolerance.
pub fn close(found: f64, expected: f64, case: &Value) {
    within(found, expected, 1e-9 + 1e-8 * expected.abs(), case);
}

/// The same of bounds that were searched for.
pub fn close_bound(found: f64, expected: f64, case: &Value) {
    within(found, expected, 1e-6, case);
}

fn within(found: f64, expected: f64, tolerance: f64, case: &Value) {
    assert!(found == expected || (found - expected).abs() <= tolerance, "{found} instead of {expected}: {case:.300}");
}

/// `low` and `high`.
pub fn bounds(found: super::Interval, case: &Value) {
    close(found.low, real(case, "low"), case);
    close(found.high, real(case, "high"), case);
}

pub fn items(case: &Value, key: &str) -> Vec<Value> {
    case[key].as_array().unwrap_or_else(|| panic!("{key} is a list")).clone()
}

pub fn real(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap_or_else(|| panic!("{key} is a number: {case}"))
}

pub fn natural(case: &Value, key: &str) -> u64 {
    maybe_count(case, key).unwrap_or_else(|| panic!("{key} is a count: {case}"))
}

pub fn maybe_count(case: &Value, key: &str) -> Option<u64> {
    case[key].as_u64()
}

pub fn flag(case: &Value, key: &str) -> bool {
    case[key].as_bool().unwrap_or_else(|| panic!("{key} is true or false: {case}"))
}

pub fn text(case: &Value, key: &str) -> String {
    case[key].as_str().unwrap_or_else(|| panic!("{key} is a text: {case}")).to_owned()
}

pub fn list(case: &Value, key: &str) -> Vec<f64> {
    items(case, key).iter().map(|number| number.as_f64().unwrap()).collect()
}

pub fn lists(case: &Value, key: &str) -> Vec<Vec<f64>> {
    items(case, key).iter().map(|row| row.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()).collect()
}
