//! Embeddings.

use serde::{Deserialize, Serialize};

use super::chat::into_error;
use crate::{
    providers::{
        Embeddings, ProviderError,
        vectors::{Vectors, batches},
        wire::{self, Endpoint},
    },
    util::http::{self, HttpError},
};

/// `OpenAI`'s maximum of one request.
const MOST_TEXTS: usize = 2048;

/// Its maximum is in tokens, and no token is shorter than a byte.
const MOST_BYTES: usize = 300_000;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: &'a [String],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Row>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Row {
    index: usize,
    embedding: Vec<f32>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default, deserialize_with = "wire::count")]
    prompt_tokens: Option<u64>,
}

pub(super) async fn embed(endpoint: &Endpoint, url: &reqwest::Url, model: &str, texts: &[String]) -> Result<Embeddings, ProviderError> {
    let mut all = Vectors::new(model);
    for batch in batches(texts, MOST_TEXTS, MOST_BYTES)? {
        let size = batch.iter().map(String::len).sum::<usize>();
        let body = wire::body(&Body { model, input: batch, encoding_format: "float" }, size + 1024)?;
        let answer = endpoint.post_for_vectors(url, body).await.map_err(into_error)?;
        let list = http::json(&answer).and_then(|list| in_order(list, batch.len())).map_err(|error| into_error(endpoint.complaint(&error)))?;
        all.add(list.data.into_iter().map(|row| row.embedding).collect(), list.model, list.usage.and_then(|usage| usage.prompt_tokens));
    }
    Ok(all.into())
}

/// By `index`; each text has exactly one vector.
fn in_order(mut list: List, count: usize) -> Result<List, HttpError> {
    list.data.sort_by_key(|row| row.index);
    let complete = list.data.len() == count && list.data.iter().enumerate().all(|(at, row)| row.index == at && !row.embedding.is_empty());
    if complete { Ok(list) } else { Err(HttpError::NotJson(format!("not one vector for each of {count} texts"))) }
}
