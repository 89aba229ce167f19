//! What a process writes on standard output: answers, and what libraries print.

use std::{collections::BTreeMap, sync::LazyLock};

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Spec,
    outside::Answer,
    queue::{Fault, Item},
};
use crate::util::text;

/// An item that the process has.
pub(super) struct Flight {
    pub item: Item,
    pub since: Instant,
    pub tries: u32,
}

/// By the ids that the process was told.
pub(super) type Flights = BTreeMap<u64, Flight>;

static ID: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#""id"\s*:\s*([0-9]{1,19})\s*[,}]"#).expect("a pattern of ours"));

/// One line of the process; true when it was an answer.
pub(super) fn read(spec: &Spec, line: &str, flights: &mut Flights) -> bool {
    #[derive(Deserialize)]
    struct Message {
        id: u64,
        #[serde(flatten)]
        answer: Answer,
    }
    match serde_json::from_str::<Message>(line) {
        Ok(Message { id, answer }) => match flights.remove(&id) {
            Some(flight) => {
                let _ = flight.item.answer.send(Ok((answer, flight.since.elapsed())));
                true
            }
            None => {
                stray(spec, line);
                false
            }
        },
        Err(error) => {
            // An answer that is known by its id and cannot be read fails its item at once, instead of after the timeout.
            match id_of(line, flights).and_then(|id| flights.remove(&id)) {
                Some(flight) => {
                    let reason = spec.hidden.out_of(&format!("an answer that cannot be read ({error}): {line}"));
                    flight.item.refuse(Fault::Failed(text::one_line(&reason, 400)));
                }
                None => stray(spec, line),
            }
            false
        }
    }
}

/// Whose answer this was meant to be. Looked for in the text where that is no JSON: Python writes NaN and Infinity.
fn id_of(line: &str, flights: &Flights) -> Option<u64> {
    if !line.trim_start().starts_with('{') {
        return None;
    }
    match serde_json::from_str::<Value>(line) {
        Ok(value) => value.get("id")?.as_u64(),
        Err(_) => ID.captures_iter(line).filter_map(|found| found[1].parse().ok()).find(|id| flights.contains_key(id)),
    }
}

/// Libraries print.
pub(super) fn stray(spec: &Spec, line: &str) {
    if !line.trim().is_empty() {
        tracing::info!(command = spec.name(), "on standard output, and no message: {}", text::one_line(&spec.hidden.out_of(line), 300));
    }
}
