//! Every provider against a server on this machine that answers from a script and keeps what it was sent.

mod anthropic;
mod embeddings;
mod family;
mod ollama;
mod openai;
mod streams;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{
    future::{Either, select},
    stream,
};
use serde_json::{Value, json};

use super::*;
use crate::util::backoff::Policy;

type Headers = &'static [(&'static str, &'static str)];

const NONE: Headers = &[];

/// Path, headers and body of a request.
type Seen = (String, HeaderMap, Value);

/// Status, headers and the body in chunks of an answer.
type Line = (u16, Headers, Vec<Bytes>);

#[derive(Clone, Default)]
struct Server {
    script: Arc<Mutex<VecDeque<Line>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    fn says(self, status: u16, body: Value) -> Self {
        self.says_with(status, NONE, body)
    }

    fn says_with(self, status: u16, headers: Headers, body: Value) -> Self {
        self.sends(status, headers, vec![body.to_string().into()])
    }

    /// Any bytes, in chunks.
    fn sends(self, status: u16, headers: Headers, chunks: Vec<Bytes>) -> Self {
        self.script.lock().unwrap().push_back((status, headers, chunks));
        self
    }

    async fn answer(State(server): State<Self>, uri: Uri, headers: HeaderMap, body: String) -> Response {
        server.seen.lock().unwrap().push((uri.to_string(), headers, serde_json::from_str(&body).unwrap_or_default()));
        let (status, headers, chunks) = server.script.lock().unwrap().pop_front().expect("an answer is left in the script");
        let body = Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, std::convert::Infallible>)));
        let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        response
    }

    /// Runs the story while the server serves; gives what the server saw.
    async fn during<F: Future<Output = ()>>(self, story: impl FnOnce(String) -> F) -> Vec<Seen> {
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

fn http() -> Http {
    Http::new(reqwest::Client::builder().no_proxy().build().unwrap(), Policy::default())
}

fn build<C: ProviderConfig + serde::de::DeserializeOwned>(config: Value) -> Result<Arc<dyn Provider>, BuildError> {
    serde_json::from_value::<C>(config).unwrap().build(&http())
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

/// An answer as `end: text`, an error as `blocked auth`, `rejected bad_request`, `transient rate_limited 7s`.
fn told(result: Result<ChatAnswer, ProviderError>) -> String {
    match result {
        Ok(answer) => format!("{:?}: {}", answer.stop, answer.text).to_lowercase(),
        Err(ProviderError::Transient { kind, retry_after, .. }) => {
            format!("transient {kind}{}", retry_after.map(|after| format!(" {after:?}")).unwrap_or_default())
        }
        Err(ProviderError::Blocked { kind, .. }) => format!("blocked {kind}"),
        Err(ProviderError::Rejected { kind, .. }) => format!("rejected {kind}"),
    }
}

/// Status, body and what a caller is told of it.
type Case = (u16, Value, &'static str);

/// Each case against a provider that knows nothing yet. A text is sent as it is, not as JSON.
async fn check(provider: impl Fn(&str) -> Arc<dyn Provider>, table: impl IntoIterator<Item = Case>) {
    for (status, body, expected) in table {
        let bytes = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
        let server = Server::default().sends(status, NONE, vec![bytes.into()]);
        server.during(async |base| assert_eq!(told(provider(&base).chat(&request("m")).await), expected, "{status} {body}")).await;
    }
}

/// What servers and the proxies before them say in any protocol when they are unwell.
fn unwell() -> [Case; 9] {
    [
        (200, json!("<html><body>Sign in</body></html>"), "transient not_json"),
        (200, json!(""), "transient not_json"),
        (200, json!("{\"id\": \"half"), "transient not_json"),
        (200, json!({}), "transient not_json"),
        (200, json!([]), "transient not_json"),
        (500, json!("<html><body>Internal Server Error</body></html>"), "transient server_error"),
        (502, json!(""), "transient server_error"),
        (504, json!("upstream timed out"), "transient server_error"),
        (408, json!("timeout"), "transient timeout"),
    ]
}

#[tokio::test]
async fn bytes_that_are_no_text_are_no_answer() {
    let answer = b"{\"id\": \"x\", \"done\": true, \"message\": {\"content\": \"\xff\"}, \"content\": [{\"type\": \"text\", \"text\": \"\xff\"}], \"choices\": [{\"message\": {\"content\": \"\xff\"}}]}";
    for provider in [openai::openai, anthropic::anthropic, ollama::ollama] {
        let server = Server::default().sends(200, NONE, vec![Bytes::from_static(answer)]);
        server.during(async |base| assert_eq!(told(provider(&base).chat(&request("m")).await), "transient not_json")).await;
    }
}

#[tokio::test]
async fn an_answer_beyond_all_measure_is_not_read() {
    let chunk = Bytes::from(vec![b' '; 1 << 20]);
    let server = Server::default().sends(200, NONE, vec![chunk; 9]);
    server.during(async |base| assert_eq!(told(openai::openai(&base).chat(&request("m")).await), "rejected too_large")).await;
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
    let provider = anthropic::anthropic(&base);
    let asked = request("m");
    let Either::Left((Err(error), _)) = select(provider.chat(&asked), Box::pin(cut)).await else { panic!("an error") };
    assert_eq!(error.kind(), "transport", "{error}");
}

#[tokio::test]
async fn an_answer_that_is_cut_half_way_is_transient() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let halves: [(&str, bool); 3] = [
        ("content-type: application/json\r\ncontent-length: 100\r\n\r\n{\"id\":", false),
        ("content-type: text/event-stream\r\ncontent-length: 100\r\n\r\ndata: {\"choices\": []}\n\n", true),
        ("content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata: \r\n", true),
    ];
    for (half, streamed) in halves {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = openai::openai(&format!("http://{}", listener.local_addr().unwrap()));
        let cut = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            assert!(connection.read(&mut vec![0; 1 << 16]).await.unwrap() > 0);
            connection.write_all(format!("HTTP/1.1 200 OK\r\n{half}").as_bytes()).await.unwrap();
        };
        let asked = request("m");
        let ask = async { if streamed { streams::read(&provider, &asked).await.1 } else { provider.chat(&asked).await } };
        assert_eq!(told(futures_util::join!(ask, cut).0), "transient transport", "{half}");
    }
}

#[tokio::test]
async fn a_connection_that_never_was_is_told_from_one_that_was_lost() {
    // Bound and let go, so that nobody listens there.
    let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for base in [format!("http://{address}"), "http://no-such-host.invalid".to_owned()] {
        let error = anthropic::anthropic(&base).chat(&request("m")).await.unwrap_err();
        assert_eq!(told(Err(error.clone())), "transient connect", "{error}");
    }
    // The other side speaks no TLS.
    let seen = Server::default().during(async |base| {
        let error = anthropic::anthropic(&base.replace("http:", "https:")).chat(&request("m")).await.unwrap_err();
        assert_eq!(told(Err(error.clone())), "transient connect", "{error}");
    });
    assert!(seen.await.is_empty());
}

#[tokio::test]
async fn probes_ask_for_the_models() {
    let seen = Server::default()
        .says(200, json!({"object": "list", "data": [{"id": "gpt-x", "shutdown_date": null}]}))
        .says(401, json!({"error": "no"}))
        .says(200, json!({"data": [{"type": "model", "id": "claude-x"}], "has_more": false}))
        .says(200, json!({"models": [{"name": "llama3.2:latest", "size": 1}]}))
        .says(200, json!({"data": [{"id": "org/name", "providers": []}]}))
        .says(200, json!({"data": []}))
        .during(async |base| {
            assert_eq!(openai::openai(&base).models().await.unwrap(), ["gpt-x"]);
            assert!(matches!(anthropic::anthropic(&base).models().await, Err(ProviderError::Blocked { .. })));
            assert_eq!(anthropic::anthropic(&base).models().await.unwrap(), ["claude-x"]);
            assert_eq!(ollama::ollama(&base).models().await.unwrap(), ["llama3.2:latest"]);
            assert_eq!(family::huggingface(&base).models().await.unwrap(), ["org/name"]);
            assert!(family::deployment(&base).models().await.unwrap().is_empty());
        })
        .await;
    let paths: Vec<&str> = seen.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(paths, ["/v1/models", "/v1/models?limit=1000", "/v1/models?limit=1000", "/api/tags", "/v1/models", "/openai/models?api-version=2024-10-21"]);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    use super::{anthropic::AnthropicConfig, azure::AzureConfig, openai::OpenAiConfig, openai_compatible::OpenAiCompatibleConfig};
    let key = |built: Result<Arc<dyn Provider>, BuildError>| built.err().unwrap().key.unwrap();
    assert_eq!(key(build::<OpenAiConfig>(json!({}))), "api_key");
    assert_eq!(key(build::<OpenAiConfig>(json!({"base_url": "localhost:1"}))), "base_url");
    assert_eq!(key(build::<AnthropicConfig>(json!({"api_key": "a\nb"}))), "api_key");
    assert_eq!(key(build::<OpenAiConfig>(json!({"api_key": "k", "headers": {"a b": "c"}}))), "headers");
    assert_eq!(key(build::<AzureConfig>(json!({"base_url": "https://x.openai.azure.com"}))), "api_key");
    assert_eq!(key(build::<AzureConfig>(json!({"base_url": "https://x.openai.azure.com", "api_key": "k", "token": "t"}))), "token");
    assert_eq!(key(build::<AzureConfig>(json!({"base_url": "x.openai.azure.com", "api_key": "k"}))), "base_url");
    assert_eq!(key(build::<OpenAiCompatibleConfig>(json!({"base_url": "http://x", "extra_body": {"stream": true}}))), "extra_body");
}

/// By the reader that reads the user's files.
#[test]
fn every_example_is_read_and_built() {
    let mut names = Vec::new();
    for kind in inventory::iter::<ProviderKind>() {
        let mut faults = Vec::new();
        let documents = crate::util::yaml::parse("example.yaml", kind.example.as_bytes()).unwrap();
        let config = (kind.parse)(&documents[0], &mut faults).unwrap_or_else(|| panic!("{}: {faults:?}", kind.name));
        assert!(config.build(&http()).is_ok(), "{}", kind.name);
        names.push(kind.name);
    }
    names.sort_unstable();
    assert_eq!(names, ["anthropic", "azure", "huggingface", "hyperbolic", "ollama", "openai", "openai_compatible"]);
}
