//! What is counted of each call, under SPEC 5's names.

use std::{sync::OnceLock, time::Duration};

use metrics::{Counter, Gauge, Histogram, SharedString, counter, gauge, histogram};

use crate::providers::{ProviderError, Tokens};

/// The figures of one model at one provider, labelled as the settings name them.
#[derive(Debug)]
pub(super) struct Meter {
    provider: SharedString,
    model: SharedString,
    /// Looked up once, at the first call: by then the recorder is installed.
    hot: OnceLock<Hot>,
}

struct Hot {
    ok: Counter,
    latency: Histogram,
    input: Counter,
    output: Counter,
    /// A gauge, since counters are whole numbers; it only ever grows.
    cost: Gauge,
}

impl std::fmt::Debug for Hot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hot")
    }
}

impl Meter {
    pub(super) fn new(provider: &str, model: &str) -> Self {
        Self { provider: provider.to_owned().into(), model: model.to_owned().into(), hot: OnceLock::new() }
    }

    fn hot(&self) -> &Hot {
        self.hot.get_or_init(|| {
            let (provider, model) = (&self.provider, &self.model);
            Hot {
                ok: counter!("llm_requests_total", "provider" => provider.clone(), "model" => model.clone(), "status" => "ok"),
                latency: histogram!("llm_latency_seconds", "provider" => provider.clone(), "model" => model.clone()),
                input: counter!("llm_tokens_total", "provider" => provider.clone(), "model" => model.clone(), "kind" => "input"),
                output: counter!("llm_tokens_total", "provider" => provider.clone(), "model" => model.clone(), "kind" => "output"),
                cost: gauge!("llm_cost_usd_total", "provider" => provider.clone(), "model" => model.clone()),
            }
        })
    }

    /// One attempt, however it ended.
    pub(super) fn attempt<T>(&self, took: Duration, outcome: &Result<T, ProviderError>) {
        let hot = self.hot();
        hot.latency.record(took.as_secs_f64());
        match outcome {
            Ok(_) => hot.ok.increment(1),
            Err(error) => {
                counter!("llm_requests_total", "provider" => self.provider.clone(), "model" => self.model.clone(), "status" => error.kind()).increment(1);
            }
        }
    }

    pub(super) fn used(&self, tokens: Tokens, cost_usd: Option<f64>) {
        let hot = self.hot();
        hot.input.increment(tokens.input.unwrap_or(0));
        hot.output.increment(tokens.output.unwrap_or(0));
        hot.cost.increment(cost_usd.unwrap_or(0.0));
    }

    pub(super) fn retry(&self, reason: &'static str) {
        counter!("llm_retries_total", "provider" => self.provider.clone(), "reason" => reason).increment(1);
    }
}
