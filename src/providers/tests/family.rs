//! Azure, HuggingFace and Hyperbolic: `OpenAI`'s protocol in other clothes.

use super::{openai::completion, *};
use crate::providers::{azure::AzureConfig, huggingface::HuggingFaceConfig, hyperbolic::HyperbolicConfig};

pub(super) fn deployment(base: &str) -> Arc<dyn Provider> {
    build::<AzureConfig>(json!({"base_url": base, "api_key": "k-azure", "api_version": "2024-10-21"})).unwrap()
}

pub(super) fn huggingface(base: &str) -> Arc<dyn Provider> {
    build::<HuggingFaceConfig>(json!({"base_url": format!("{base}/v1"), "api_key": "hf_key", "bill_to": "org"})).unwrap()
}

fn hyperbolic(base: &str) -> Arc<dyn Provider> {
    build::<HyperbolicConfig>(json!({"base_url": format!("{base}/v1"), "api_key": "k"})).unwrap()
}

/// Azure's answer says besides what its filter thought of it.
fn filtered(message: Value, finish: &str) -> Value {
    let mut answer = completion(message, finish);
    answer["prompt_filter_results"] = json!([{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": false, "severity": "safe"}}}]);
    answer["choices"][0]["content_filter_results"] = json!({"hate": {"filtered": finish == "content_filter", "severity": "high"}});
    answer
}

#[tokio::test]
async fn azure_has_two_kinds_of_addresses_and_two_of_keys() {
    let fine = || filtered(json!({"content": "{}"}), "stop");
    let table = [
        (json!({"base_url": "", "api_key": "k", "api_version": "2024-10-21"}), "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"),
        (
            json!({"base_url": "/openai/", "token": "t", "api_version": "2025-04-01-preview"}),
            "/openai/deployments/my%20gpt/chat/completions?api-version=2025-04-01-preview",
        ),
        (json!({"base_url": "/openai/v1/", "token": "t", "reasoning_effort": "low"}), "/openai/v1/chat/completions"),
        (json!({"base_url": "", "api_key": "k", "api_version": "preview"}), "/openai/v1/chat/completions?api-version=preview"),
    ];
    let server = table.iter().fold(Server::default(), |server, _| server.says(200, fine()));
    let seen = server
        .during(async |base| {
            for (config, _) in &table {
                let mut config = config.clone();
                config["base_url"] = json!(format!("{base}{}", config["base_url"].as_str().unwrap()));
                build::<AzureConfig>(config).unwrap().chat(&request("my gpt")).await.unwrap();
            }
        })
        .await;
    for ((config, expected), (path, headers, body)) in table.iter().zip(&seen) {
        assert_eq!(path, expected);
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
        let keys = if config.get("token").is_some() { (None, Some("Bearer t")) } else { (Some("k"), None) };
        assert_eq!((header("api-key"), header("authorization")), keys);
        assert_eq!((&body["model"], &body["max_completion_tokens"], body.get("max_tokens")), (&json!("my gpt"), &json!(300), None));
        assert_eq!(body.get("reasoning_effort"), config.get("reasoning_effort"));
    }
}

#[tokio::test]
async fn azure_answers_and_errors_are_told_apart() {
    let severity = json!({"filtered": true, "severity": "high", "explained": "x".repeat(700)});
    let blocked = json!({"error": {
        "message": "The response was filtered due to the prompt triggering content management policy.", "type": null, "param": "prompt", "code": "content_filter", "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": severity}}}});
    let inner = json!({"error": {"message": "m", "code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}});
    let error = |code: Value, message: &str| json!({"error": {"code": code, "message": message}});
    let table = [
        (200, filtered(json!({"content": "{}"}), "stop"), "end: {}"),
        (200, filtered(json!({"content": "half"}), "length"), "length: half"),
        (200, filtered(json!({"content": null}), "content_filter"), "refusal: "),
        (200, filtered(json!({"content": null, "refusal": "no"}), "stop"), "refusal: no"),
        (200, json!({"choices": [{"index": 0, "finish_reason": "content_filter"}]}), "refusal: "),
        (200, json!({"choices": [{"index": 0}]}), "transient not_json"),
        (200, json!({"choices": [], "prompt_filter_results": []}), "transient not_json"),
        (400, blocked, "rejected filtered"),
        (400, inner, "rejected filtered"),
        (400, error(json!("context_length_exceeded"), "m"), "rejected bad_request"),
        (401, json!({"statusCode": 401, "message": "Unauthorized. Access token is missing."}), "blocked auth"),
        (401, error(json!("401"), "Access denied due to invalid subscription key"), "blocked auth"),
        (403, error(json!("403"), "Public access is disabled"), "blocked forbidden"),
        (404, error(json!("DeploymentNotFound"), "The API deployment for this resource does not exist."), "blocked not_found"),
        (404, error(json!("404"), "Resource not found"), "blocked not_found"),
        (408, error(json!("Timeout"), "The operation was timeout."), "transient timeout"),
        (429, error(json!("429"), "Requests have exceeded call rate limit. Please retry after 7 seconds."), "transient rate_limited 7s"),
        (429, error(json!(429), "Please retry after 1 second."), "transient rate_limited 1s"),
        (429, error(json!("insufficient_quota"), "m"), "blocked billing"),
        (500, error(json!("InternalServerError"), "m"), "transient server_error"),
        (503, error(json!("ServiceUnavailable"), "m"), "transient overloaded"),
    ];
    check(deployment, table).await;
    check(deployment, unwell()).await;
}

#[tokio::test]
async fn azure_says_what_a_model_is_there() {
    let missing = json!({"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}});
    let limited = json!({"error": {"code": "429", "message": "m"}});
    Server::default()
        .says(404, missing)
        .says_with(429, &[("retry-after-ms", "250"), ("retry-after", "1")], limited)
        .during(async |base| {
            let error = deployment(&base).chat(&request("gpt-4o")).await.unwrap_err();
            assert!(error.to_string().contains("name of a deployment"), "{error}");
            assert_eq!(told(deployment(&base).chat(&request("gpt-4o")).await), "transient rate_limited 250ms");
        })
        .await;
}

#[tokio::test]
async fn huggingface_routes_bills_and_waits_for_a_model_to_load() {
    let fine = || completion(json!({"content": "{}"}), "stop");
    let seen = Server::default()
        .says(200, fine())
        .says(200, fine())
        .says(400, json!({"error": {"message": "response_format is not supported by this provider"}}))
        .says(200, fine())
        .during(async |base| {
            let provider = huggingface(&base);
            for model in ["org/name", "org/name:hf-inference", "org/name:groq"] {
                provider.chat(&request(model)).await.unwrap();
            }
        })
        .await;
    let (path, headers, body) = &seen[0];
    assert_eq!(
        (path.as_str(), &headers["authorization"], &headers["x-hf-bill-to"]),
        ("/v1/chat/completions", &"Bearer hf_key".parse().unwrap(), &"org".parse().unwrap())
    );
    assert_eq!((&body["model"], &body["max_tokens"]), (&json!("org/name"), &json!(300)));
    let formats: Vec<&Value> = seen.iter().map(|(.., body)| &body["response_format"]["type"]).collect();
    assert_eq!(formats, ["json_schema", "json_object", "json_schema", "json_object"]);
    assert_eq!((seen[1].2["response_format"].get("value"), seen[3].2["response_format"].get("value")), (Some(&json!(request("").schema)), None));

    let table = [
        (200, completion(json!({"content": null}), "length"), "length: "),
        (200, json!({"choices": [{"message": {"content": "x"}}]}), "end: x"),
        (400, json!({"error": "Bad input"}), "rejected bad_request"),
        (401, json!({"error": "Invalid credentials in Authorization header"}), "blocked auth"),
        (402, json!({"error": "You have exceeded your monthly included credits"}), "blocked billing"),
        (403, json!({"error": {"message": "This token has no permission"}}), "blocked forbidden"),
        (404, json!({"message": "Model not found"}), "blocked not_found"),
        (422, json!({"error": ["inputs"]}), "rejected bad_request"),
        (429, json!({"error": "Too many requests"}), "transient rate_limited"),
        (500, json!({"error": "m"}), "transient server_error"),
        (503, json!({"error": "Model org/name is currently loading", "estimated_time": 20.0}), "transient overloaded 20s"),
    ];
    check(huggingface, table).await;
    check(huggingface, unwell()).await;
}

#[tokio::test]
async fn hyperbolic_asks_for_json_and_tells_the_schema() {
    let seen = Server::default()
        .says(200, completion(json!({"content": "{}"}), "stop"))
        .during(async |base| {
            hyperbolic(&base).chat(&request("meta-llama/Llama-3.3-70B-Instruct")).await.unwrap();
            assert_eq!(hyperbolic(&base).embed("m", &["a".to_owned()]).await.unwrap_err().kind(), "unsupported");
        })
        .await;
    let (path, headers, body) = &seen[0];
    assert_eq!((path.as_str(), &headers["authorization"]), ("/v1/chat/completions", &"Bearer k".parse().unwrap()));
    assert_eq!((&body["response_format"], &body["max_tokens"]), (&json!({"type": "json_object"}), &json!(300)));
    assert!(body["messages"][0]["content"].as_str().unwrap().contains("must follow this JSON Schema"));
    let table = [
        (200, completion(json!({"content": "x"}), "content_filter"), "refusal: x"),
        (200, completion(json!({"content": "x", "refusal": null}), "length"), "length: x"),
        (401, json!({"detail": "Invalid token"}), "blocked auth"),
        (402, json!({"message": "Insufficient funds"}), "blocked billing"),
        (404, json!({"object": "error", "message": "The model `m` does not exist."}), "blocked not_found"),
        (429, json!({"error": {"message": "Rate limit"}}), "transient rate_limited"),
        (503, json!({"message": "m"}), "transient overloaded"),
    ];
    check(hyperbolic, table).await;
    check(hyperbolic, unwell()).await;
}
