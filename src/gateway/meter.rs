//! What is counted of each call: under SPEC 5's names, and summed up by day for `assayd usage`.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use metrics::{Counter, Gauge, Histogram, SharedString, counter, gauge, histogram};

use crate::{
    model::{Usage, nano_usd},
    providers::{CallError, ProviderError, Reply, Tokens},
    store::{Store, UsageRow},
};

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

/// (day, provider, model, monitor)
type Line = (String, String, String, String);

/// Sums since the last time they were written down.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<HashMap<Line, UsageRow>>);

impl Tally {
    pub(super) fn add(&self, now: Timestamp, provider: &str, model: &str, monitor: &str, outcome: &Result<Reply, CallError>) {
        // Refused before anybody was asked.
        if matches!(outcome, Err(CallError::OverBudget(_) | CallError::Blocked(_))) {
            return;
        }
        let day = now.to_zoned(TimeZone::UTC).date().to_string();
        let none = Usage::default();
        let (usage, cached) = outcome.as_ref().map_or((&none, false), |reply| (&reply.usage, reply.cached));
        let int = |n: Option<u64>| n.filter(|_| !cached).and_then(|n| i64::try_from(n).ok()).unwrap_or(0);
        let line = (day, provider.to_owned(), model.to_owned(), monitor.to_owned());
        // Nothing under this lock can panic half-way.
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let row = lines.entry(line).or_default();
        row.calls += 1;
        row.errors += i64::from(outcome.is_err());
        row.cached += i64::from(cached);
        row.input_tokens += int(usage.input_tokens);
        row.output_tokens += int(usage.output_tokens);
        row.cost_nano += usage.cost_usd.map_or(0, nano_usd);
    }

    pub(super) async fn write_down(&self, store: &Store) {
        let lines = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let rows: Vec<UsageRow> = lines.into_iter().map(|((day, provider, model, monitor), row)| UsageRow { day, provider, model, monitor, ..row }).collect();
        if !rows.is_empty() {
            // A closed store ends with the process; the sums are for people, no promise hangs on them.
            let _ = store.add_usage(rows).await;
        }
    }
}
