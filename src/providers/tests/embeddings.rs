//! Vectors of texts.

use super::{
    family::{deployment, huggingface},
    ollama::ollama,
    openai::openai,
    *,
};

type Make = fn(&str) -> Arc<dyn Provider>;

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("text {at}")).collect()
}

fn rows(indices: impl IntoIterator<Item = usize>) -> Value {
    let data: Vec<Value> = indices.into_iter().map(|index| json!({"object": "embedding", "index": index, "embedding": [index, 0.5]})).collect();
    json!({"object": "list", "data": data, "model": "e-1", "usage": {"prompt_tokens": 7, "total_tokens": 7}})
}

#[tokio::test]
async fn vectors_are_in_the_texts_order_and_large_lists_go_in_parts() {
    let seen = Server::default()
        .says(200, rows([2, 0, 1]))
        .says(200, rows((0..2048).rev()))
        .says(200, rows([0]))
        .says(200, rows([0]))
        .during(async |base| {
            let few = openai(&base).embed("e", &texts(3)).await.unwrap();
            assert_eq!(few.vectors, [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]);
            assert_eq!((few.model.as_str(), few.tokens), ("e-1", Tokens { input: Some(7), output: Some(0), ..Tokens::default() }));
            let many = openai(&base).embed("e", &texts(2049)).await.unwrap();
            assert_eq!((many.vectors.len(), many.vectors[2047][0], many.vectors[2048][0], many.tokens.input), (2049, 2047.0, 0.0, Some(14)));
            deployment(&base).embed("e", &texts(1)).await.unwrap();
            assert!(openai(&base).embed("e", &[]).await.unwrap().vectors.is_empty());
        })
        .await;
    let paths: Vec<&str> = seen.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(paths, ["/v1/embeddings", "/v1/embeddings", "/v1/embeddings", "/openai/deployments/e/embeddings?api-version=2024-10-21"]);
    assert_eq!(seen[0].2, json!({"model": "e", "input": ["text 0", "text 1", "text 2"], "encoding_format": "float"}));
    assert_eq!((&seen[2].2["input"], seen[1].2["input"].as_array().unwrap().len()), (&json!(["text 2048"]), 2048));
}

#[tokio::test]
async fn ollama_and_huggingface_have_addresses_of_their_own() {
    let seen = Server::default()
        .says(200, json!({"model": "e", "embeddings": [[1, 2], [3, 4]], "prompt_eval_count": 5}))
        .says(200, json!([[1, 2], [3, 4]]))
        .during(async |base| {
            let vectors = ollama(&base).embed("e", &texts(2)).await.unwrap();
            assert_eq!((vectors.vectors, vectors.tokens.input), (vec![vec![1.0, 2.0], vec![3.0, 4.0]], Some(5)));
            let vectors = huggingface(&base).embed("org/e:hf-inference", &texts(2)).await.unwrap();
            assert_eq!((vectors.vectors, vectors.tokens.input), (vec![vec![1.0, 2.0], vec![3.0, 4.0]], None));
        })
        .await;
    assert_eq!((seen[0].0.as_str(), &seen[0].2), ("/api/embed", &json!({"model": "e", "input": ["text 0", "text 1"], "truncate": false})));
    assert_eq!((seen[1].0.as_str(), &seen[1].2), ("/hf-inference/models/org/e/pipeline/feature-extraction", &json!({"inputs": ["text 0", "text 1"]})));
    assert_eq!(seen[1].1["x-hf-bill-to"], "org");
}

#[tokio::test]
async fn vectors_that_are_missing_or_doubled_are_no_answer() {
    let table: [(Make, u16, Value, &str); 12] = [
        (openai, 200, rows([0]), "not_json"),
        (openai, 200, rows([0, 0]), "not_json"),
        (openai, 200, rows([0, 2]), "not_json"),
        (openai, 200, json!({"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": [1]}]}), "not_json"),
        (openai, 429, json!({"error": {"code": "insufficient_quota", "message": "m"}}), "billing"),
        (ollama, 200, json!({"embeddings": [[1]]}), "not_json"),
        (ollama, 400, json!({"error": "the input length exceeds the context length"}), "too_large"),
        (ollama, 404, json!({"error": "model \"e\" not found, try pulling it first"}), "not_found"),
        (huggingface, 200, json!([[[1, 2]], [[1, 2]]]), "unsupported"),
        (huggingface, 200, json!([[1, 2]]), "not_json"),
        (huggingface, 200, json!([[], []]), "not_json"),
        (huggingface, 503, json!({"error": "loading", "estimated_time": 3.5}), "overloaded"),
    ];
    for (provider, status, body, kind) in table {
        let server = Server::default().says(status, body.clone());
        server.during(async |base| assert_eq!(provider(&base).embed("e", &texts(2)).await.unwrap_err().kind(), kind, "{body}")).await;
    }
    Server::default()
        .during(async |base| {
            for provider in [openai, ollama, huggingface, deployment] {
                let error = provider(&base).embed("e", &["a".to_owned(), String::new()]).await.unwrap_err();
                assert!(matches!(error, ProviderError::Rejected { kind: "bad_request", .. }), "{error}");
            }
        })
        .await;
}
