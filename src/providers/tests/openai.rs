//! `OpenAI`, and what its client does for the whole family.

use super::*;
use crate::providers::openai::OpenAiConfig;

pub(super) fn openai(base: &str) -> Arc<dyn Provider> {
    build::<OpenAiConfig>(json!({"base_url": format!("{base}/v1/"), "api_key": "sk-secret", "organization": "org", "headers": {"x-extra": "yes"}})).unwrap()
}

pub(super) fn completion(message: Value, finish: &str) -> Value {
    json!({"id": "c", "model": "gpt-x-2026-01-01", "choices": [{"index": 0, "message": message, "finish_reason": finish}],
           "usage": {"prompt_tokens": 350, "completion_tokens": 120.0, "total_tokens": 470, "prompt_tokens_details": {"cached_tokens": 40}}})
}

#[tokio::test]
async fn openai_asks_by_schema_and_reads_the_answer() {
    let server = Server::default().says(200, completion(json!({"role": "assistant", "content": "{\"a\":1}", "refusal": null}), "stop"));
    let seen = server
        .during(async |base| {
            let answer = openai(&base).chat(&request("gpt-x")).await.unwrap();
            assert_eq!((answer.text.as_str(), answer.stop, answer.model.as_str()), ("{\"a\":1}", Stop::End, "gpt-x-2026-01-01"));
            assert_eq!(answer.tokens, Tokens { input: Some(350), output: Some(120), cached_input: Some(40), cache_write: None });
        })
        .await;
    let (path, headers, body) = &seen[0];
    assert_eq!(path, "/v1/chat/completions");
    assert_eq!(
        (&headers["authorization"], &headers["openai-organization"], &headers["x-extra"]),
        (&"Bearer sk-secret".parse().unwrap(), &"org".parse().unwrap(), &"yes".parse().unwrap())
    );
    assert_eq!(body["messages"], json!([{"role": "system", "content": "Grade."}, {"role": "user", "content": "An answer"}]));
    assert_eq!(body["response_format"], json!({"type": "json_schema", "json_schema": {"name": "verdict", "strict": true, "schema": request("").schema}}));
    assert_eq!((&body["max_tokens"], &body["temperature"], &body["max_completion_tokens"]), (&json!(300), &json!(0.0), &Value::Null));
}

#[tokio::test]
async fn openai_answers_come_in_many_shapes() {
    let call = json!([{"id": "1", "type": "function", "function": {"name": "record", "arguments": "{\"a\":1}"}}]);
    let object = json!([{"id": "1", "type": "function", "function": {"name": "record", "arguments": {"a": 1}}}]);
    let table = [
        (completion(json!({"content": null, "refusal": "I will not"}), "stop"), "I will not", Stop::Refusal),
        (completion(json!({"content": "{\"a\":"}), "length"), "{\"a\":", Stop::Length),
        (completion(json!({"content": null}), "length"), "", Stop::Length),
        (completion(json!({"content": ""}), "content_filter"), "", Stop::Refusal),
        (completion(json!({"content": null, "tool_calls": call}), "tool_calls"), "{\"a\":1}", Stop::End),
        (completion(json!({"content": null, "tool_calls": object}), "stop"), "{\"a\":1}", Stop::End),
        (completion(json!({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "x"}]}), "stop"), "x", Stop::End),
        (json!({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": null}}), "x", Stop::End),
    ];
    let server = table.iter().fold(Server::default(), |server, (body, ..)| server.says(200, body.clone()));
    server
        .during(async |base| {
            let provider = openai(&base);
            for (body, text, stop) in &table {
                let answer = provider.chat(&request("m")).await.unwrap();
                assert_eq!((answer.text.as_str(), answer.stop), (*text, *stop), "{body}");
            }
        })
        .await;
}

#[tokio::test]
async fn openai_steps_down_where_a_server_refuses_and_remembers_it() {
    let refuse = |message: &str, param: &str, code: &str| json!({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}});
    let fine = || completion(json!({"content": "{}"}), "stop");
    let server = Server::default()
        .says(400, refuse("Unsupported value: 'temperature' does not support 0", "temperature", "unsupported_value"))
        .says(400, refuse("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens", "unsupported_parameter"))
        .says(400, json!({"error": {"message": "This response_format type is unavailable now"}}))
        .says(400, json!({"error": "'response_format.type' must be text"}))
        .says(200, fine())
        .says(200, fine());
    let seen = server
        .during(async |base| {
            let provider = openai(&base);
            provider.chat(&request("m")).await.unwrap();
            provider.chat(&request("m")).await.unwrap();
        })
        .await;
    let formats: Vec<_> = seen.iter().map(|(_, _, body)| body["response_format"]["type"].as_str()).collect();
    assert_eq!(formats, [Some("json_schema"), Some("json_schema"), Some("json_schema"), Some("json_object"), None, None]);
    for (_, _, body) in &seen[4..] {
        assert_eq!((&body["temperature"], &body["max_tokens"], &body["max_completion_tokens"]), (&Value::Null, &Value::Null, &json!(300)));
        assert!(body["messages"][0]["content"].as_str().unwrap().starts_with("Grade.\n\nAnswer with one JSON object"));
    }
}

#[tokio::test]
async fn a_refusal_that_no_step_mends_ends() {
    let refuse = || json!({"error": {"message": "Unknown parameter: max_tokens, max_completion_tokens, response_format, temperature not supported"}});
    let server = (0..5).fold(Server::default(), |server, _| server.says(400, refuse()));
    server.during(async |base| assert!(matches!(openai(&base).chat(&request("m")).await, Err(ProviderError::Rejected { .. })))).await;
}

#[tokio::test]
async fn openai_by_tool() {
    let server = Server::default().says(200, completion(json!({"content": "x"}), "stop"));
    let seen = server
        .during(async |base| {
            let provider = build::<OpenAiConfig>(json!({"base_url": base, "structured": "tool", "max_tokens_field": "max_completion_tokens"})).unwrap();
            provider.chat(&request("m")).await.unwrap();
        })
        .await;
    let (path, headers, body) = &seen[0];
    assert_eq!(path, "/chat/completions");
    assert!(headers.get("authorization").is_none());
    assert_eq!(body["tools"][0]["type"], "function");
    assert_eq!(body["tool_choice"], json!({"type": "function", "function": {"name": "record"}}));
    assert_eq!((&body["max_completion_tokens"], body.get("response_format")), (&json!(300), None));
}

#[tokio::test]
async fn openai_errors_are_told_apart() {
    let error = |code: &str| json!({"error": {"message": "m", "type": code, "param": null, "code": code}});
    let table = [
        (400, error("context_length_exceeded"), "rejected bad_request"),
        (400, error("unsupported_parameter"), "rejected bad_request"),
        (400, error("invalid_json_schema"), "rejected bad_request"),
        (400, error("billing_hard_limit_reached"), "blocked billing"),
        (401, error("invalid_api_key"), "blocked auth"),
        (402, json!({"error": "pay"}), "blocked billing"),
        (403, error("unsupported_country_region_territory"), "blocked forbidden"),
        (404, error("model_not_found"), "blocked not_found"),
        (409, json!({"error": {"message": "conflict"}}), "transient refused"),
        (413, json!("too large"), "rejected too_large"),
        (422, json!({"message": "unprocessable"}), "rejected bad_request"),
        (429, error("insufficient_quota"), "blocked billing"),
        (429, error("rate_limit_exceeded"), "transient rate_limited"),
        (500, error("server_error"), "transient server_error"),
        (503, error("slow_down"), "transient overloaded"),
        (200, json!({"error": {"code": 429, "message": "Rate limited upstream"}}), "transient rate_limited"),
        (200, json!({"error": {"code": 401, "message": "No credentials"}}), "blocked auth"),
        (200, json!({"error": {"code": "402", "message": "No credits"}}), "blocked billing"),
        (200, json!({"error": {"type": "invalid_request_error", "code": null, "message": "?"}}), "rejected bad_request"),
        (200, json!({"error": {"message": "?"}}), "transient server_error"),
        (200, json!({"error": "?"}), "transient server_error"),
        (200, json!({"choices": []}), "transient not_json"),
        (200, json!({"choices": null}), "transient not_json"),
    ];
    check(openai, table).await;
    check(openai, unwell()).await;
    let limited = Server::default().says_with(429, &[("retry-after", "7")], error("rate_limit_exceeded"));
    limited.during(async |base| assert_eq!(told(openai(&base).chat(&request("m")).await), "transient rate_limited 7s")).await;
}

#[tokio::test]
async fn a_parameter_that_a_model_does_not_know_is_left_out_of_all_further_calls() {
    let refuse = |param: &str| json!({"error": {"message": format!("Unsupported parameter: '{param}' is not supported with this model."), "param": param, "code": "unsupported_parameter"}});
    let asked = ChatRequest { top_p: Some(0.5), stop: vec!["END".to_owned()], ..request("gpt-6-x") };
    let fine = || completion(json!({"content": "{}"}), "stop");
    let seen = Server::default()
        .says(400, refuse("top_p"))
        .says(400, refuse("stop"))
        .says(400, refuse("reasoning_effort"))
        .says(400, json!({"error": {"message": "Unexpected role 'developer', expected one of 'system', 'user'"}}))
        .says(400, json!({"error": {"message": "System role not supported"}}))
        .says(200, fine())
        .says(200, fine())
        .during(async |base| {
            let own = openai_compatible(json!({"base_url": base, "reasoning_effort": "low", "system_role": "developer"}));
            own.chat(&asked).await.unwrap();
            own.chat(&asked).await.unwrap();
        })
        .await;
    let first = &seen[0].2;
    assert_eq!((&first["top_p"], &first["stop"], &first["reasoning_effort"]), (&json!(0.5), &json!(["END"]), &json!("low")));
    let roles: Vec<&str> = seen.iter().map(|(.., body)| body["messages"][0]["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["developer", "developer", "developer", "developer", "system", "user", "user"]);
    for (.., body) in &seen[5..] {
        assert_eq!(body["messages"], json!([{"role": "user", "content": "Grade.\n\nAn answer"}]));
        assert!(["top_p", "temperature", "stop", "reasoning_effort"].iter().all(|gone| body.get(gone).is_none()), "{body}");
    }
}

fn openai_compatible(config: Value) -> Arc<dyn Provider> {
    build::<crate::providers::openai_compatible::OpenAiCompatibleConfig>(config).unwrap()
}

#[tokio::test]
async fn a_compatible_server_is_spoken_to_as_the_settings_say() {
    let fine = || completion(json!({"content": "{}"}), "stop");
    let seen = Server::default()
        .says(200, fine())
        .says(200, fine())
        .during(async |base| {
            openai_compatible(json!({"base_url": format!("{base}/v1")})).chat(&request("m")).await.unwrap();
            let knobs = json!({
                "base_url": format!("{base}/v1?tenant=a"), "api_key": "k", "headers": {"x-a": "b"}, "extra_body": {"guided": {"a": 1}, "max_tokens": 7},
                "max_tokens_field": "max_completion_tokens", "structured": "prompt", "send_temperature": false, "system_role": "user",
            });
            openai_compatible(knobs).chat(&request("m")).await.unwrap();
        })
        .await;
    let (path, headers, body) = &seen[0];
    assert_eq!((path.as_str(), headers.get("authorization")), ("/v1/chat/completions", None));
    assert_eq!((&body["max_tokens"], &body["temperature"], &body["messages"][0]["role"]), (&json!(300), &json!(0.0), &json!("system")));
    assert_eq!(body["response_format"]["type"], "json_schema");
    let (path, headers, body) = &seen[1];
    assert_eq!(
        (path.as_str(), &headers["authorization"], &headers["x-a"]),
        ("/v1/chat/completions?tenant=a", &"Bearer k".parse().unwrap(), &"b".parse().unwrap())
    );
    assert_eq!((&body["max_completion_tokens"], &body["max_tokens"], &body["guided"]), (&json!(300), &json!(7), &json!({"a": 1})));
    assert_eq!((body.get("temperature"), body.get("response_format"), body["messages"].as_array().unwrap().len()), (None, None, 1));
    assert!(body["messages"][0]["content"].as_str().unwrap().starts_with("Grade.\n\nAnswer with one JSON object"));
}
