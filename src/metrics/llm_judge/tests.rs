use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::{
    model::Case,
    providers::{CallCx, CallError, Question, Reply, Role, Stop},
};

/// A line of the cases file: what a model said, and what becomes of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    text: String,
    #[serde(default)]
    stop: String,
    #[serde(default)]
    output: String,
    reason: Option<String>,
    score: Option<f64>,
    passed: Option<bool>,
    label: Option<String>,
    fault: Option<String>,
}

fn output(name: &str) -> Output {
    match name {
        "" => Output::Score { min: 1.0, max: 5.0 },
        "percent" => Output::Score { min: 0.0, max: 100.0 },
        "unit" => Output::Score { min: 0.0, max: 1.0 },
        "signed" => Output::Score { min: -1.0, max: 1.0 },
        "boolean" => Output::Boolean {},
        "categories" => Output::Categories { categories: ["rude", "dry", "kind"].map(str::to_owned).to_vec(), passing: Vec::new() },
        other => panic!("no output `{other}`"),
    }
}

fn reply(text: &str, stop: Stop) -> Reply {
    let usage = Usage { input_tokens: Some(100), output_tokens: Some(10), cost_usd: Some(0.5), ..Usage::default() };
    Reply { text: text.to_owned(), stop, usage, id: None, cached: false }
}

#[test]
fn answers_of_real_models_are_read_or_refused() {
    let lines = include_str!("../../../tests/fixtures/judge_answers.jsonl").lines();
    let lines: Vec<Line> = lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    assert!(lines.len() >= 200);
    let mut wrong = Vec::new();
    for line in lines {
        let stop = match line.stop.as_str() {
            "" => Stop::End,
            "length" => Stop::Length,
            "refusal" => Stop::Refusal,
            other => panic!("no stop `{other}`"),
        };
        let read = output(&line.output).read(&reply(&line.text, stop));
        let right = match &read {
            Ok(Outcome::Scored { raw, label, passed, reason, .. }) => {
                line.fault.is_none()
                    && (*raw, label, *passed) == (line.score, &line.label, line.passed)
                    && line.reason.as_ref().is_none_or(|expected| expected == reason)
            }
            Ok(_) => false,
            Err(fault) => line.fault.as_ref().is_some_and(|words| fault.to_string().contains(words)),
        };
        if !right {
            wrong.push(format!("{}: {read:?} of {:?}", line.name, line.text));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
