//! Answers in pieces, as the wire cuts them.

use futures_util::StreamExt;

use super::{
    anthropic::anthropic,
    family::deployment,
    ollama::ollama,
    openai::{completion, openai},
    *,
};

const EVENTS: Headers = &[("content-type", "text/event-stream; charset=utf-8")];
const LINES: Headers = &[("content-type", "application/x-ndjson")];

/// In chunks of a few bytes, so that nothing ends where a chunk does.
fn chunked(text: &str) -> Vec<Bytes> {
    text.as_bytes().chunks(7).map(Bytes::copy_from_slice).collect()
}

/// `data:` lines without names.
fn data(documents: &[Value]) -> String {
    documents.iter().map(|document| format!("data: {document}\n\n")).collect()
}

/// As Anthropic sends them: named, with CR LF.
fn named(events: &[Value]) -> String {
    events.iter().map(|event| format!("event: {}\r\ndata: {event}\r\n\r\n", event["type"].as_str().unwrap())).collect()
}

fn lines(documents: &[Value]) -> String {
    documents.iter().map(|document| format!("{document}\n")).collect()
}

fn chunk(delta: Value, finish: Value) -> Value {
    json!({"id": "c-1", "object": "chat.completion.chunk", "model": "gpt-x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": null})
}

/// The texts of the pieces, and how it ended.
pub(super) async fn read(provider: &Arc<dyn Provider>, request: &ChatRequest) -> (Vec<String>, Result<ChatAnswer, ProviderError>) {
    let mut pieces = provider.stream(request);
    let mut texts = Vec::new();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(Piece::Text(text)) => texts.push(text),
            Ok(Piece::End(answer)) => {
                assert_eq!(texts.concat(), answer.text, "the pieces are the answer");
                assert!(pieces.next().await.is_none(), "nothing comes after the end");
                return (texts, Ok(answer));
            }
            Err(error) => {
                assert!(pieces.next().await.is_none(), "nothing comes after an error");
                return (texts, Err(error));
            }
        }
    }
    panic!("a stream ends with an end or an error")
}

/// Each body as the answer to a first request: what a caller is told.
async fn check(provider: fn(&str) -> Arc<dyn Provider>, headers: Headers, table: &[(String, &str)]) {
    for (body, expected) in table {
        let server = Server::default().sends(200, headers, chunked(body));
        server.during(async |base| assert_eq!(told(read(&provider(&base), &request("m")).await.1), *expected, "{body}")).await;
    }
}

#[tokio::test]
async fn openai_streams_text_and_tells_the_tokens_at_the_end() {
    let usage = json!({"id": "c-1", "model": "gpt-x", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}});
    let documents = [
        json!({"id": "", "object": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}),
        chunk(json!({"role": "assistant", "content": ""}), Value::Null),
        chunk(json!({"content": "{\"ä\":"}), Value::Null),
        chunk(json!({"reasoning_content": "hm", "content": null}), Value::Null),
        chunk(json!({"content": "\"€😀\"}"}), Value::Null),
        chunk(json!({}), json!("stop")),
        usage,
    ];
    let body = format!(": keep-alive\n\n{}data: [DONE]\n\n", data(&documents));
    for provider in [openai, deployment] {
        let seen = Server::default().sends(200, EVENTS, chunked(&body)).during(async |base| {
            let (texts, answer) = read(&provider(&base), &request("m")).await;
            let answer = answer.unwrap();
            assert_eq!((texts.len(), answer.text.as_str(), answer.stop), (2, "{\"ä\":\"€😀\"}", Stop::End));
            assert_eq!((answer.id.as_deref(), answer.model.as_str()), (Some("c-1"), "gpt-x"));
            assert_eq!(answer.tokens, Tokens { input: Some(9), output: Some(4), cached_input: Some(2), cache_write: None });
        });
        let body = &seen.await[0].2;
        assert_eq!((&body["stream"], &body["stream_options"]), (&json!(true), &json!({"include_usage": true})));
    }
}

#[tokio::test]
async fn openai_streams_end_in_many_ways() {
    let call = |arguments: &str| chunk(json!({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}), Value::Null);
    let other = chunk(json!({"tool_calls": [{"index": 1, "function": {"name": "x", "arguments": "no"}}]}), Value::Null);
    let text = || chunk(json!({"content": "a"}), Value::Null);
    let finish = |reason: &str| chunk(json!({}), json!(reason));
    let done = |documents: &[Value]| format!("{}data: [DONE]\n\n", data(documents));
    let error = |code: Value, kind: &str| json!({"error": {"message": "m", "type": kind, "code": code}});
    let table = [
        (done(&[call("{\"a\""), call(":1}"), other, finish("tool_calls")]), "end: {\"a\":1}"),
        (done(&[text(), finish("length")]), "length: a"),
        (done(&[text(), finish("content_filter")]), "refusal: a"),
        (done(&[chunk(json!({"refusal": "I will "}), Value::Null), chunk(json!({"refusal": "not"}), json!("stop"))]), "refusal: i will not"),
        (done(&[finish("stop")]), "end: "),
        // Without the last empty line, as some proxies leave it.
        (format!("{}data: [DONE]", data(&[text(), finish("stop")])), "end: a"),
        (data(&[text(), finish("stop")]), "transient transport"),
        (data(&[text()]), "transient transport"),
        (String::new(), "transient transport"),
        (done(&[]), "transient not_json"),
        (done(&[json!({"choices": [], "usage": null})]), "transient not_json"),
        (data(&[text(), error(Value::Null, "server_error")]), "transient server_error"),
        (data(&[text(), error(json!(429), "x")]), "transient rate_limited"),
        (data(&[text(), error(json!("insufficient_quota"), "insufficient_quota")]), "blocked billing"),
        (data(&[error(json!("content_filter"), "x")]), "rejected filtered"),
        ("data: {\"choices\": [\n\n".to_owned(), "transient not_json"),
        ("data: <html>\n\n".to_owned(), "transient not_json"),
    ];
    check(openai, EVENTS, &table).await;
    check(openai, &[("content-type", "text/html")], &[("<html>Sign in</html>".to_owned(), "transient not_json")]).await;
    // A server that does not stream gives all at once; one that does not say that it streams does so all the same.
    check(openai, &[("content-type", "application/json")], &[(completion(json!({"content": "whole"}), "stop").to_string(), "end: whole")]).await;
    check(openai, NONE, &[(done(&[text(), finish("stop")]), "end: a")]).await;
}

#[tokio::test]
async fn a_stream_that_is_refused_at_its_start_is_asked_for_differently() {
    let refuse = |param: &str| json!({"error": {"message": format!("Unsupported parameter: '{param}'"), "param": param, "code": "unsupported_parameter"}});
    let late = json!({"error": {"code": 400, "message": "response_format is not supported"}});
    let fine = || chunked(&format!("{}data: [DONE]\n\n", data(&[chunk(json!({"content": "{}"}), json!("stop"))])));
    let seen = Server::default()
        .says(400, refuse("stream_options"))
        .says(400, refuse("temperature"))
        .sends(200, EVENTS, chunked(&data(&[late])))
        .sends(200, EVENTS, fine())
        .sends(200, EVENTS, fine())
        .during(async |base| {
            let provider = openai(&base);
            assert_eq!(told(read(&provider, &request("m")).await.1), "end: {}");
            assert_eq!(told(read(&provider, &request("m")).await.1), "end: {}");
        })
        .await;
    let asked: Vec<_> = seen
        .iter()
        .map(|(.., body)| (body.get("stream_options").is_some(), body.get("temperature").is_some(), body["response_format"]["type"].as_str().unwrap()))
        .collect();
    let schema = "json_schema";
    assert_eq!(asked, [(true, true, schema), (false, true, schema), (false, false, schema), (false, false, "json_object"), (false, false, "json_object")]);
}

#[tokio::test]
async fn anthropic_streams_text_thoughts_and_tool_input() {
    let start = json!({"type": "message_start", "message": {"id": "msg_1", "model": "claude-x", "content": [], "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}}});
    let delta = |index: u32, delta: Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
    let block = |index: u32, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
    let stop = |reason: &str| json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 42}});
    let (ping, end) = (json!({"type": "ping"}), json!({"type": "message_stop"}));
    let text = named(&[
        start.clone(),
        block(0, json!({"type": "thinking", "thinking": ""})),
        delta(0, json!({"type": "thinking_delta", "thinking": "hm"})),
        delta(0, json!({"type": "signature_delta", "signature": "s"})),
        json!({"type": "content_block_stop", "index": 0}),
        ping,
        block(1, json!({"type": "text", "text": ""})),
        delta(1, json!({"type": "text_delta", "text": "ä"})),
        delta(1, json!({"type": "text_delta", "text": "😀"})),
        json!({"type": "something_new", "index": 1}),
        stop("end_turn"),
        end.clone(),
    ]);
    let tool = named(&[
        start,
        block(0, json!({"type": "text", "text": ""})),
        delta(0, json!({"type": "text_delta", "text": "I record it."})),
        block(1, json!({"type": "tool_use", "id": "t", "name": "record", "input": {}})),
        delta(1, json!({"type": "input_json_delta", "partial_json": ""})),
        delta(1, json!({"type": "input_json_delta", "partial_json": "{\"a\""})),
        delta(1, json!({"type": "input_json_delta", "partial_json": ":1}"})),
        stop("tool_use"),
        end,
    ]);
    let seen = Server::default()
        .sends(200, EVENTS, chunked(&text))
        .sends(200, EVENTS, chunked(&tool))
        .during(async |base| {
            let (texts, answer) = read(&anthropic(&base), &request("claude-haiku-4-5")).await;
            let answer = answer.unwrap();
            assert_eq!((texts.len(), answer.text.as_str(), answer.id.as_deref(), answer.model.as_str()), (2, "ä😀", Some("msg_1"), "claude-x"));
            assert_eq!(answer.tokens, Tokens { input: Some(15), output: Some(42), cached_input: Some(5), cache_write: None });
            let (texts, answer) = read(&anthropic(&base), &request("unlisted")).await;
            assert_eq!((texts, answer.unwrap().text), (vec!["{\"a\"".to_owned(), ":1}".to_owned()], "{\"a\":1}".to_owned()));
        })
        .await;
    assert!(seen.iter().all(|(.., body)| body["stream"] == json!(true)));
}

#[tokio::test]
async fn anthropic_streams_end_in_many_ways() {
    let start = || json!({"type": "message_start", "message": {"id": "m"}});
    let text = || json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}});
    let stop = |delta: Value| json!({"type": "message_delta", "delta": delta});
    let end = || json!({"type": "message_stop"});
    let error = |kind: &str| json!({"type": "error", "error": {"type": kind, "message": "m"}});
    let refusal = stop(json!({"stop_reason": "refusal", "stop_details": {"type": "refusal", "explanation": "No."}}));
    let table = [
        (named(&[start(), text(), stop(json!({"stop_reason": "max_tokens"})), end()]), "length: a"),
        (named(&[start(), refusal, end()]), "refusal: no."),
        (named(&[start(), text(), stop(json!({"stop_reason": "end_turn"}))]), "transient transport"),
        (named(&[start(), text()]), "transient transport"),
        (named(&[start(), end()]), "transient not_json"),
        (named(&[start(), text(), error("overloaded_error")]), "transient overloaded"),
        (named(&[error("api_error")]), "transient server_error"),
        (named(&[error("authentication_error")]), "blocked auth"),
        (named(&[start(), json!({"type": "error"})]), "transient server_error"),
        ("event: message_start\ndata: {]\n\n".to_owned(), "transient not_json"),
    ];
    check(anthropic, EVENTS, &table).await;
}

#[tokio::test]
async fn ollama_streams_lines() {
    let part = |text: &str| json!({"model": "m", "message": {"role": "assistant", "content": text}, "done": false});
    let last = |reason: &str, count: u64| json!({"model": "m", "message": {"content": "!"}, "done": true, "done_reason": reason, "prompt_eval_count": count, "eval_count": 3});
    let body = lines(&[part("ä"), part(""), part("😀"), last("stop", 5)]);
    let seen = Server::default()
        .sends(200, LINES, chunked(&body))
        .during(async |base| {
            let (texts, answer) = read(&ollama(&base), &request("m")).await;
            let answer = answer.unwrap();
            assert_eq!((texts.len(), answer.text.as_str(), answer.stop), (3, "ä😀!", Stop::End));
            assert_eq!(answer.tokens, Tokens { input: Some(5), output: Some(3), ..Tokens::default() });
        })
        .await;
    assert_eq!(seen[0].2["stream"], json!(true));
    let table = [
        (lines(&[part("a"), last("length", 5)]).trim_end().to_owned(), "length: a!"),
        (lines(&[part("a"), last("stop", 9000)]), "rejected too_large"),
        (lines(&[part("a")]), "transient transport"),
        (String::new(), "transient transport"),
        (lines(&[part("a"), json!({"error": "an error was encountered while running the model"})]), "transient server_error"),
        (lines(&[json!({"error": "llama runner process has terminated"})]), "transient server_error"),
        ("<html>\n".to_owned(), "transient not_json"),
    ];
    check(ollama, LINES, &table).await;
}
