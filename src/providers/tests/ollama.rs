//! Ollama's own protocol.

use super::*;
use crate::providers::ollama::OllamaConfig;

pub(super) fn ollama(base: &str) -> Arc<dyn Provider> {
    build::<OllamaConfig>(json!({"base_url": base})).unwrap()
}

fn generate(base: &str) -> Arc<dyn Provider> {
    build::<OllamaConfig>(json!({"base_url": base, "api": "generate", "num_ctx": 4096})).unwrap()
}

fn done(content: &str, reason: &str) -> Value {
    json!({"model": "llama3.2", "created_at": "2026-11-01T00:00:00Z", "message": {"role": "assistant", "content": content, "thinking": "hm"}, "done": true,
           "done_reason": reason, "total_duration": 5_000_000_000_u64, "prompt_eval_count": 26, "eval_count": 12})
}

#[tokio::test]
async fn ollama_asks_by_schema_and_reads_the_answer() {
    let seen = Server::default()
        .says(200, done("{}", "stop"))
        .says(200, done("{}", "stop"))
        .during(async |base| {
            let answer = ollama(&base).chat(&request("llama3.2")).await.unwrap();
            assert_eq!((answer.text.as_str(), answer.stop, answer.model.as_str()), ("{}", Stop::End, "llama3.2"));
            assert_eq!(answer.tokens, Tokens { input: Some(26), output: Some(12), ..Tokens::default() });
            let knobs = json!({"base_url": base, "api_key": "k", "keep_alive": -1, "think": "low", "num_ctx": 32768, "headers": {"x-a": "b"}});
            build::<OllamaConfig>(knobs).unwrap().chat(&ChatRequest { schema: None, stop: vec!["END".to_owned()], ..request("llama3.2") }).await.unwrap();
        })
        .await;
    let (path, headers, body) = &seen[0];
    assert_eq!((path.as_str(), headers.get("authorization")), ("/api/chat", None));
    assert_eq!((&body["stream"], &body["format"], &body["truncate"]), (&json!(false), &json!(request("").schema), &json!(false)));
    assert_eq!(body["options"], json!({"num_ctx": 8192, "num_predict": 300, "temperature": 0.0}));
    assert_eq!((body.get("think"), body.get("keep_alive")), (None, None));
    assert!(body["messages"][0]["content"].as_str().unwrap().starts_with("Grade.\n\nAnswer with one JSON object"));
    let (_, headers, body) = &seen[1];
    assert_eq!((&headers["authorization"], &headers["x-a"]), (&"Bearer k".parse().unwrap(), &"b".parse().unwrap()));
    assert_eq!((&body["keep_alive"], &body["think"], body.get("format")), (&json!(-1), &json!("low"), None));
    assert_eq!(body["options"], json!({"num_ctx": 32768, "num_predict": 300, "temperature": 0.0, "stop": ["END"]}));
}

#[tokio::test]
async fn ollama_generates_from_one_prompt() {
    let answer = || json!({"model": "m", "response": "x", "done": true, "done_reason": "stop", "prompt_eval_count": 0, "eval_count": 1});
    let seen = Server::default()
        .says(200, answer())
        .says(200, answer())
        .during(async |base| {
            let told = generate(&base).chat(&request("m")).await.unwrap();
            assert_eq!((told.text.as_str(), told.tokens.input), ("x", None));
            let talk =
                ChatRequest { messages: vec![Message::user("a"), Message::assistant("b"), Message::user("c")], system: None, schema: None, ..request("m") };
            generate(&base).chat(&talk).await.unwrap();
        })
        .await;
    let (path, _, body) = &seen[0];
    assert_eq!((path.as_str(), &body["prompt"], &body["options"]["num_ctx"]), ("/api/generate", &json!("An answer"), &json!(4096)));
    assert!(body["system"].as_str().unwrap().starts_with("Grade.") && body.get("messages").is_none());
    assert_eq!((&seen[1].2["prompt"], seen[1].2.get("system")), (&json!("User: a\n\nAssistant: b\n\nUser: c"), None));
}

#[tokio::test]
async fn ollama_answers_and_errors_are_told_apart() {
    let cut = |count: u64| json!({"message": {"content": "x"}, "done": true, "done_reason": "stop", "prompt_eval_count": count});
    let table = [
        (200, done("half", "length"), "length: half"),
        (200, done("", "stop"), "end: "),
        (200, json!({"message": {"role": "assistant", "content": null}, "done": true}), "end: "),
        (200, json!({"message": {"content": "x"}, "done": true}), "end: x"),
        (200, json!({"message": {"content": "x"}, "done": false}), "transient transport"),
        (200, cut(8191), "end: x"),
        (200, cut(8192), "rejected too_large"),
        (200, json!({"error": "llama runner process has terminated"}), "transient server_error"),
        (400, json!({"error": "invalid options: temperature"}), "rejected bad_request"),
        (400, json!({"error": "the input length exceeds the context length"}), "rejected too_large"),
        (401, json!({"error": "unauthorized"}), "blocked auth"),
        (403, json!({"error": "this model requires a subscription"}), "blocked forbidden"),
        (404, json!({"error": "model 'm' not found"}), "blocked not_found"),
        (429, json!({"error": "too many concurrent requests"}), "transient rate_limited"),
        (500, json!({"error": "llama runner process no longer running: -1"}), "transient server_error"),
        (502, json!({"error": "upstream"}), "transient server_error"),
        (503, json!({"error": "server busy, please try again. maximum pending requests exceeded"}), "transient overloaded"),
    ];
    check(ollama, table).await;
    check(ollama, unwell()).await;
    let missing = Server::default().says(404, json!({"error": "model 'llama9' not found"}));
    missing
        .during(async |base| {
            let error = ollama(&base).chat(&request("llama9")).await.unwrap_err();
            assert!(error.to_string().contains("`ollama pull llama9`"), "{error}");
        })
        .await;
}

#[tokio::test]
async fn ollama_steps_down_where_a_server_refuses_and_remembers_it() {
    let seen = Server::default()
        .says(400, json!({"error": "\"m\" does not support thinking"}))
        .says(400, json!({"error": "json: cannot unmarshal object into Go struct field ChatRequest.format of type string"}))
        .says(400, json!({"error": "invalid format"}))
        .says(200, done("{}", "stop"))
        .says(200, done("{}", "stop"))
        .during(async |base| {
            let provider = build::<OllamaConfig>(json!({"base_url": base, "think": true})).unwrap();
            provider.chat(&request("m")).await.unwrap();
            provider.chat(&request("m")).await.unwrap();
        })
        .await;
    let asked: Vec<_> = seen.iter().map(|(.., body)| (body.get("think").is_some(), body.get("format").map(Value::is_object))).collect();
    assert_eq!(asked, [(true, Some(true)), (false, Some(true)), (false, Some(false)), (false, None), (false, None)]);
}
