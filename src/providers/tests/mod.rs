//! Both protocols against a server on this machine that answers from a script and keeps what it was sent.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures_util::future::{Either, select};
use serde_json::{Value, json};

use super::*;
use crate::util::backoff::Policy;

type Headers = &'static [(&'static str, &'static str)];

#[derive(Clone, Default)]
struct Server {
    script: Arc<Mutex<VecDeque<(u16, Headers, Value)>>>,
    seen: Arc<Mutex<Vec<(String, HeaderMap, Value)>>>,
}

impl Server {
    fn says(self, status: u16, body: Value) -> Self {
        self.says_with(status, &[], body)
    }

    fn says_with(self, status: u16, headers: Headers, body: Value) -> Self {
        self.script.lock().unwrap().push_back((status, headers, body));
        self
    }

    async fn answer(State(server): State<Self>, uri: Uri, headers: HeaderMap, body: String) -> Response {
        server.seen.lock().unwrap().push((uri.to_string(), headers, serde_json::from_str(&body).unwrap_or_default()));
        let (status, headers, body) = server.script.lock().unwrap().pop_front().expect("an answer is left in the script");
        let mut response = (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        response
    }

    /// Runs the story while the server serves; gives what the server saw.
    async fn during<F: Future<Output = ()>>(self, story: impl FnOnce(String) -> F) -> Vec<(String, HeaderMap, Value)> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let serve = axum::serve(listener, Router::new().fallback(Self::answer).with_state(self.clone())).into_future();
        if let Either::Right((served, _)) = select(Box::pin(story(base)), Box::pin(serve)).await {
            served.unwrap();
        }
        assert!(self.script.lock().unwrap().is_empty(), "the whole script was played");
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn build<C: ProviderConfig + serde::de::DeserializeOwned>(config: Value) -> Result<Arc<dyn Provider>, BuildError> {
    let http = Http::new(reqwest::Client::builder().no_proxy().build().unwrap(), Policy::default());
    serde_json::from_value::<C>(config).unwrap().build(&http)
}

fn openai(base: &str) -> Arc<dyn Provider> {
    build::<openai::OpenAiConfig>(json!({"base_url": format!("{base}/v1/"), "api_key": "sk-secret", "organization": "org", "headers": {"x-extra": "yes"}}))
        .unwrap()
}

fn anthropic(base: &str) -> Arc<dyn Provider> {
    build::<anthropic::AnthropicConfig>(json!({"base_url": base, "api_key": "sk-ant"})).unwrap()
}

fn request(model: &str) -> ChatRequest {
    let schema = json!({"type": "object", "properties": {"minimum": {"type": "number", "minimum": 1, "maximum": 5}}, "required": ["minimum"], "additionalProperties": false});
    ChatRequest {
        model: model.to_owned(),
        system: Some("Grade.".to_owned()),
        messages: vec![Message::user("An answer")],
        temperature: Some(0.0),
        top_p: None,
        stop: Vec::new(),
        max_tokens: 300,
        schema: Some(Arc::new(schema)),
    }
}

fn completion(message: Value, finish: &str) -> Value {
    json!({"id": "c", "model": "gpt-x-2026-01-01", "choices": [{"index": 0, "message": message, "finish_reason": finish}],
           "usage": {"prompt_tokens": 350, "completion_tokens": 120.0, "total_tokens": 470, "prompt_tokens_details": {"cached_tokens": 40}}})
}

fn message(content: Value, stop: &str) -> Value {
    json!({"type": "message", "model": "claude-x", "content": content, "stop_reason": stop,
           "usage": {"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 5}})
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
            let provider = build::<openai::OpenAiConfig>(json!({"base_url": base, "structured": "tool", "max_tokens_field": "max_completion_tokens"})).unwrap();
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
async fn anthropic_sends_no_temperature_where_it_is_known_to_be_refused() {
    let fine = || message(json!([{"type": "text", "text": "{}"}]), "end_turn");
    let seen = Server::default()
        .says(200, fine())
        .says(200, fine())
        .during(async |base| {
            anthropic(&base).chat(&request("claude-opus-5-5")).await.unwrap();
            let newer = build::<anthropic::AnthropicConfig>(json!({"base_url": base, "api_key": "k", "version": "2026-10-21"})).unwrap();
            newer.chat(&request("claude-haiku-4-5")).await.unwrap();
        })
        .await;
    assert!(seen.iter().all(|(_, _, body)| body.get("temperature").is_none()));
}

/// How an answer is classified: `blocked`, `rejected`, or the kind of a transient one.
async fn kind(provider: impl Fn(&str) -> Arc<dyn Provider>, server: Server) -> (String, Option<Duration>) {
    let mut result = None;
    server
        .during(async |base| {
            let error = provider(&base).chat(&request("m")).await.unwrap_err();
            let after = if let ProviderError::Transient { retry_after, .. } = &error { *retry_after } else { None };
            result = Some((error.kind().to_owned(), after));
        })
        .await;
    result.unwrap()
}

#[tokio::test]
async fn openai_errors_are_told_apart() {
    let error = |code: &str| json!({"error": {"message": "m", "type": code, "param": null, "code": code}});
    let table = [
        (401, error("invalid_api_key"), "blocked"),
        (402, json!({"error": "pay"}), "blocked"),
        (403, error("unsupported_country_region_territory"), "blocked"),
        (404, error("model_not_found"), "blocked"),
        (429, error("insufficient_quota"), "blocked"),
        (429, error("rate_limit_exceeded"), "rate_limited"),
        (400, error("context_length_exceeded"), "rejected"),
        (413, json!("too large"), "rejected"),
        (500, error("server_error"), "server_error"),
        (503, json!("<html>"), "overloaded"),
        (200, json!({"error": {"code": 429, "message": "Rate limited upstream"}}), "rate_limited"),
        (200, json!({"error": {"code": 401, "message": "No credentials"}}), "blocked"),
        (200, json!({"error": {"message": "?"}}), "server_error"),
        (200, json!({"choices": []}), "not_json"),
        (200, json!("<html>"), "not_json"),
    ];
    for (status, body, expected) in table {
        assert_eq!(kind(openai, Server::default().says(status, body.clone())).await.0, expected, "{status} {body}");
    }
    let limited = Server::default().says_with(429, &[("retry-after", "7")], error("rate_limit_exceeded"));
    assert_eq!(kind(openai, limited).await, ("rate_limited".to_owned(), Some(Duration::from_secs(7))));
}

#[tokio::test]
async fn anthropic_errors_are_told_apart() {
    let error = |kind: &str, message: &str| json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
    let spend = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "m", "details": {"error_code": "enforced_spend_limit_reached"}}});
    let table = [
        (400, error("invalid_request_error", "prompt is too long"), "rejected"),
        (400, error("invalid_request_error", "You have reached your specified API usage limits."), "blocked"),
        (401, error("authentication_error", "invalid x-api-key"), "blocked"),
        (402, error("billing_error", "m"), "blocked"),
        (403, error("permission_error", "m"), "blocked"),
        (404, error("not_found_error", "model: m"), "blocked"),
        (413, error("request_too_large", "m"), "rejected"),
        (429, error("rate_limit_error", "m"), "rate_limited"),
        (429, spend.clone(), "blocked"),
        (500, error("api_error", "m"), "server_error"),
        (529, error("overloaded_error", "Overloaded"), "overloaded"),
    ];
    for (status, body, expected) in table {
        assert_eq!(kind(anthropic, Server::default().says(status, body.clone())).await.0, expected, "{status} {body}");
    }
    // With a time to wait it is a limit that ends.
    let ends = Server::default().says_with(429, &[("retry-after-ms", "1500")], spend);
    assert_eq!(kind(anthropic, ends).await, ("rate_limited".to_owned(), Some(Duration::from_millis(1500))));
}

#[tokio::test]
async fn a_connection_that_is_cut_is_transient() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let cut = async {
        loop {
            drop(listener.accept().await.unwrap());
        }
    };
    let provider = anthropic(&base);
    let asked = request("m");
    let Either::Left((Err(error), _)) = select(provider.chat(&asked), Box::pin(cut)).await else { panic!("an error") };
    assert_eq!(error.kind(), "transport", "{error}");
}

#[tokio::test]
async fn probes_ask_for_the_models() {
    let seen = Server::default()
        .says(200, json!({"data": []}))
        .says(401, json!({"error": "no"}))
        .during(async |base| {
            openai(&base).models().await.unwrap();
            assert!(matches!(anthropic(&base).models().await, Err(ProviderError::Blocked { .. })));
        })
        .await;
    assert_eq!((seen[0].0.as_str(), seen[1].0.as_str()), ("/v1/models", "/v1/models?limit=1000"));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    assert_eq!(build::<openai::OpenAiConfig>(json!({})).err().unwrap().key, Some("api_key"));
    assert_eq!(build::<openai::OpenAiConfig>(json!({"base_url": "localhost:1"})).err().unwrap().key, Some("base_url"));
    assert_eq!(build::<anthropic::AnthropicConfig>(json!({"api_key": "a\nb"})).err().unwrap().key, Some("api_key"));
    assert_eq!(build::<openai::OpenAiConfig>(json!({"api_key": "k", "headers": {"a b": "c"}})).err().unwrap().key, Some("headers"));
}
