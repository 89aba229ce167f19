//! A call as a generation in Langfuse: one OTLP span, in OTLP's JSON form (ids in hex, 64-bit integers as strings), sent to
//! `/api/public/otel/v1/traces`. Attribute names are Langfuse's own (`langfuse.observation.*`).

use serde_json::{Value, json};

use super::Call;
use crate::connections::{Langfuse, attribute};

/// Hidden from the views of production.
const ENVIRONMENT: &str = "langfuse-assayd";

pub(super) async fn send(langfuse: &Langfuse, call: &Call) -> Result<(), String> {
    let span = span(call);
    langfuse.http().send(|| langfuse.spans(std::slice::from_ref(&span)), |_| Ok(())).await.map_err(|error| error.to_string())
}

fn span(call: &Call) -> Value {
    let row = call.row();
    let begin = call.at.as_nanosecond();
    let end = begin + i128::from(row.latency_ms) * 1_000_000;
    let span_id = &blake3::hash(format!("{}{begin}{}", row.trace_id, row.prompt).as_bytes()).to_hex()[..16];
    let input: Vec<Value> = (call.system.iter().map(|system| json!({ "role": "system", "content": system })))
        .chain(call.messages.iter().map(|message| json!({ "role": message.role, "content": message.text })))
        .collect();
    let mut attributes = vec![
        attribute("langfuse.observation.type", "generation"),
        attribute("langfuse.environment", ENVIRONMENT),
        attribute("langfuse.observation.model.name", &row.model),
        attribute("langfuse.observation.input", &Value::from(input).to_string()),
        attribute("langfuse.observation.metadata.profile", &row.profile),
        attribute("langfuse.observation.metadata.monitor", &row.monitor),
        attribute("langfuse.observation.metadata.metric", &row.metric),
        attribute("langfuse.observation.metadata.item_id", &row.item_id),
    ];
    if let Some(response) = &row.response {
        attributes.push(attribute("langfuse.observation.output", response));
    }
    if let (Some(input), Some(output)) = (row.input_tokens, row.output_tokens) {
        attributes.push(attribute("langfuse.observation.usage_details", &json!({ "input": input, "output": output, "total": input + output }).to_string()));
    }
    if let Some(cost) = row.cost_usd {
        attributes.push(attribute("langfuse.observation.cost_details", &json!({ "total": cost }).to_string()));
    }
    if let Some(error) = &row.error {
        attributes.push(attribute("langfuse.observation.level", "ERROR"));
        attributes.push(attribute("langfuse.observation.status_message", error));
    }
    json!({
        "traceId": row.trace_id, "spanId": span_id, "name": format!("assayd {}", row.profile), "kind": 3,
        "startTimeUnixNano": begin.to_string(), "endTimeUnixNano": end.to_string(), "attributes": attributes,
        "status": { "code": if row.error.is_some() { 2 } else { 1 } },
    })
}
