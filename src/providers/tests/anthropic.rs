//! Anthropic's Messages API.

use super::*;
use crate::providers::anthropic::AnthropicConfig;

pub(super) fn anthropic(base: &str) -> Arc<dyn Provider> {
    build::<AnthropicConfig>(json!({"base_url": base, "api_key": "sk-ant"})).unwrap()
}

fn message(content: Value, stop: &str) -> Value {
    json!({"type": "message", "model": "claude-x", "content": content, "stop_reason": stop,
           "usage": {"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 5}})
}

#[tokio::test]
async fn anthropic_asks_natively_and_selects_blocks_by_type() {
    let content = json!([{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "{\"a\":1}"}]);
    let server = Server::default().says(200, message(content, "end_turn"));
    let seen = server
        .during(async |base| {
            let answer = anthropic(&base).chat(&request("claude-haiku-4-5")).await.unwrap();
            assert_eq!((answer.text.as_str(), answer.stop), ("{\"a\":1}", Stop::End));
            assert_eq!(answer.tokens, Tokens { input: Some(60), output: Some(5), cached_input: Some(30), cache_write: Some(20) });
        })
        .await;
    let (path, headers, body) = &seen[0];
    assert_eq!(
        (path.as_str(), &headers["x-api-key"], &headers["anthropic-version"]),
        ("/v1/messages", &"sk-ant".parse().unwrap(), &"2023-06-01".parse().unwrap())
    );
    assert_eq!((&body["system"], &body["max_tokens"], &body["temperature"]), (&json!("Grade."), &json!(300), &json!(0.0)));
    assert_eq!(body["messages"], json!([{"role": "user", "content": "An answer"}]));
    // The bounds go, a property that is called like one stays.
    assert_eq!(
        body["output_config"]["format"],
        json!({"type": "json_schema", "schema": {"type": "object", "properties": {"minimum": {"type": "number"}}, "required": ["minimum"], "additionalProperties": false}})
    );
}

#[tokio::test]
async fn anthropic_by_tool_steps_to_the_native_way_and_remembers_it() {
    let refused =
        json!({"type": "error", "error": {"type": "invalid_request_error", "message": "tool_choice: forced tool use is not supported by this model"}});
    let server = Server::default()
        .says(200, message(json!([{"type": "tool_use", "id": "t", "name": "record", "input": {"a": 1}}]), "tool_use"))
        .says(400, refused)
        .says(200, message(json!([{"type": "text", "text": "{}"}]), "max_tokens"))
        .says(200, message(json!([]), "refusal"));
    let seen = server
        .during(async |base| {
            let provider = anthropic(&base);
            assert_eq!(provider.chat(&request("unlisted-1")).await.unwrap().text, "{\"a\":1}");
            assert_eq!(provider.chat(&request("unlisted-2")).await.unwrap().stop, Stop::Length);
            assert_eq!(provider.chat(&request("unlisted-2")).await.unwrap().stop, Stop::Refusal);
        })
        .await;
    assert_eq!(seen[0].2["tool_choice"], json!({"type": "tool", "name": "record", "disable_parallel_tool_use": true}));
    let ways: Vec<_> = seen.iter().map(|(_, _, body)| (body.get("tools").is_some(), body.get("output_config").is_some())).collect();
    assert_eq!(ways, [(true, false), (true, false), (false, true), (false, true)]);
}

#[tokio::test]
async fn anthropic_answers_come_in_many_shapes() {
    let refusal = json!({"content": [], "stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "x", "explanation": "No."}});
    let table = [
        (200, message(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "stop_sequence"), "end: ab"),
        (200, message(json!([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}]), "max_tokens"), "length: a"),
        (200, message(json!([{"type": "text", "text": "a"}]), "model_context_window_exceeded"), "length: a"),
        (200, message(json!([{"type": "text", "text": "so"}, {"type": "tool_use", "name": "record", "input": {"a": 1}}]), "tool_use"), "end: {\"a\":1}"),
        (200, message(json!([]), "end_turn"), "end: "),
        (200, message(json!([]), "some_new_reason"), "end: "),
        (200, refusal, "refusal: no."),
        (200, json!({"content": [{"type": "text", "text": "a"}]}), "end: a"),
        (200, json!({"content": [{"type": "text", "text": null}], "usage": {"input_tokens": null}}), "end: "),
        (200, json!({"content": [{"type": "text", "text": "a"}], "usage": null}), "end: a"),
        (200, json!({"content": null}), "transient not_json"),
        (200, json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), "transient overloaded"),
    ];
    check(anthropic, table).await;
}

#[tokio::test]
async fn anthropic_sends_no_sampling_parameters_where_they_are_known_to_be_refused() {
    let fine = || message(json!([{"type": "text", "text": "{}"}]), "end_turn");
    let refused = json!({"type": "error", "error": {"type": "invalid_request_error", "message": "top_p: Extra inputs are not permitted"}});
    let seen = Server::default()
        .says(200, fine())
        .says(200, fine())
        .says(400, refused)
        .says(200, fine())
        .during(async |base| {
            let asked = |model| ChatRequest { top_p: Some(0.9), ..request(model) };
            anthropic(&base).chat(&asked("claude-opus-5-5")).await.unwrap();
            let newer = build::<AnthropicConfig>(json!({"base_url": base, "api_key": "k", "version": "2026-10-21"})).unwrap();
            newer.chat(&asked("claude-haiku-4-5")).await.unwrap();
            anthropic(&base).chat(&asked("unlisted")).await.unwrap();
        })
        .await;
    assert_eq!(seen[1].1["anthropic-version"], "2026-10-21");
    let sent: Vec<bool> = seen.iter().map(|(.., body)| body.get("temperature").is_some() || body.get("top_p").is_some()).collect();
    assert_eq!(sent, [false, false, true, false]);
    // A model that always thinks is never forced to use a tool.
    assert!(seen[0].2.get("tools").is_none() && seen[0].2["output_config"]["format"]["type"] == "json_schema");
}

#[tokio::test]
async fn anthropic_errors_are_told_apart() {
    let error = |kind: &str, message: &str| json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
    let spend = |code: &str| json!({"type": "error", "error": {"type": "rate_limit_error", "message": "m", "details": {"error_code": code}}});
    let table = [
        (400, error("invalid_request_error", "prompt is too long"), "rejected bad_request"),
        (400, error("invalid_request_error", "You have reached your specified API usage limits."), "blocked billing"),
        (401, error("authentication_error", "invalid x-api-key"), "blocked auth"),
        (402, error("billing_error", "m"), "blocked billing"),
        (403, error("permission_error", "m"), "blocked forbidden"),
        (404, error("not_found_error", "model: m"), "blocked not_found"),
        (409, error("conflict_error", "m"), "transient refused"),
        (413, error("request_too_large", "m"), "rejected too_large"),
        (429, error("rate_limit_error", "m"), "transient rate_limited"),
        (429, spend("enforced_spend_limit_reached"), "blocked billing"),
        (429, spend("contract_spend_limit_reached"), "blocked billing"),
        (500, error("api_error", "m"), "transient server_error"),
        (504, error("timeout_error", "m"), "transient server_error"),
        (529, error("overloaded_error", "Overloaded"), "transient overloaded"),
    ];
    check(anthropic, table).await;
    check(anthropic, unwell()).await;
    // With a time to wait it is a limit that ends.
    let ends = Server::default().says_with(429, &[("retry-after-ms", "1500")], spend("enforced_spend_limit_reached"));
    ends.during(async |base| assert_eq!(told(anthropic(&base).chat(&request("m")).await), "transient rate_limited 1.5s")).await;
}
