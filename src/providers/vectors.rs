//! What embeddings share: how many texts a request takes, and one result out of several answers.

use super::{Embeddings, ProviderError, Tokens};

/// The parts of `texts` that one request takes, in order.
///
/// # Errors
/// When a text is empty: no provider has a vector for it.
pub(super) fn batches(texts: &[String], most: usize, bytes: usize) -> Result<Vec<&[String]>, ProviderError> {
    if let Some(at) = texts.iter().position(String::is_empty) {
        return Err(ProviderError::Rejected { kind: "bad_request", message: format!("text {at} is empty, and an empty text has no vector") });
    }
    let mut batches = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (at, text) in texts.iter().enumerate() {
        if at > start && (at - start == most || size + text.len() > bytes) {
            batches.push(&texts[start..at]);
            (start, size) = (at, 0);
        }
        size += text.len();
    }
    if start < texts.len() {
        batches.push(&texts[start..]);
    }
    Ok(batches)
}

/// The vectors of all requests so far.
pub(super) struct Vectors(Embeddings);

impl Vectors {
    pub(super) fn new(model: &str) -> Self {
        Self(Embeddings { vectors: Vec::new(), model: model.to_owned(), tokens: Tokens { input: Some(0), output: Some(0), ..Tokens::default() } })
    }

    /// Adds one answer; what one of them does not count is unknown of all.
    pub(super) fn add(&mut self, vectors: Vec<Vec<f32>>, model: Option<String>, input: Option<u64>) {
        self.0.vectors.extend(vectors);
        self.0.model = model.filter(|model| !model.is_empty()).unwrap_or_else(|| std::mem::take(&mut self.0.model));
        self.0.tokens.input = self.0.tokens.input.zip(input).map(|(sum, input)| sum + input);
    }
}

impl From<Vectors> for Embeddings {
    fn from(vectors: Vectors) -> Self {
        vectors.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_to_both_bounds_and_to_the_order() {
        let texts: Vec<String> = ["aa", "b", "cccccc", "d", "e", "f"].map(str::to_owned).to_vec();
        let cut: Vec<Vec<&str>> = batches(&texts, 2, 4).unwrap().into_iter().map(|batch| batch.iter().map(String::as_str).collect()).collect();
        assert_eq!(cut, [vec!["aa", "b"], vec!["cccccc"], vec!["d", "e"], vec!["f"]]);
        assert!(batches(&[], 2, 4).unwrap().is_empty());
        assert_eq!(batches(&["a".to_owned(), String::new()], 2, 4).unwrap_err().kind(), "bad_request");
    }
}
