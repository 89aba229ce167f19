//! A call, told.

use std::{sync::Arc, time::Duration};

use crate::{
    model::Usage,
    providers::{CallCx, CallError, ChatRequest, Message, Reply, Role, Stop},
    store::CallRow,
};

/// A call, as hooks see it.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct Call {
    pub at: jiff::Timestamp,
    pub trace_id: String,
    pub monitor: String,
    pub metric: String,
    pub item_id: String,
    pub profile: String,
    pub provider: String,
    pub model: String,
    pub system: Option<String>,
    pub messages: Vec<Message>,
    pub schema: Option<Arc<serde_json::Value>>,
    pub outcome: Option<Outcome>,
}

/// How a call ended.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct Outcome {
    pub took: Duration,
    /// Text and why it ended, or what went wrong and its kind.
    pub result: Result<(String, Stop), (String, &'static str)>,
    pub usage: Usage,
    pub cached: bool,
}

impl Call {
    pub(in crate::gateway) fn new(at: jiff::Timestamp, cx: &CallCx<'_>, profile: &str, provider: &str, request: &ChatRequest) -> Self {
        Self {
            at,
            trace_id: cx.trace_id(),
            monitor: cx.monitor.to_owned(),
            metric: cx.metric.to_owned(),
            item_id: cx.item_id.to_owned(),
            profile: profile.to_owned(),
            provider: provider.to_owned(),
            model: request.model.clone(),
            system: request.system.clone(),
            messages: request.messages.clone(),
            schema: request.schema.clone(),
            outcome: None,
        }
    }

    pub(in crate::gateway) fn ended(mut self, took: Duration, outcome: &Result<Reply, CallError>) -> Self {
        let (result, usage, cached) = match outcome {
            Ok(reply) => (Ok((reply.text.clone(), reply.stop)), reply.usage.clone(), reply.cached),
            Err(error) => {
                let kind = match error {
                    CallError::Blocked(_) => "blocked",
                    CallError::OverBudget(_) => "over_budget",
                    CallError::Failed { kind, .. } => kind,
                };
                (Err((error.to_string(), kind)), Usage::default(), false)
            }
        };
        self.outcome = Some(Outcome { took, result, usage, cached });
        self
    }

    /// Of its texts.
    pub(super) fn bytes(&self) -> usize {
        let answer = match self.outcome.as_ref().map(|outcome| &outcome.result) {
            Some(Ok((text, _)) | Err((text, _))) => text.len(),
            None => 0,
        };
        self.system.as_deref().map_or(0, str::len) + self.messages.iter().map(|message| message.text.len()).sum::<usize>() + answer
    }

    /// System, then the messages, each under its role.
    fn prompt(&self) -> String {
        let system = self.system.iter().map(|system| format!("system: {system}"));
        let messages = self.messages.iter().map(|message| format!("{}: {}", message.role.as_str(), message.text));
        system.chain(messages).collect::<Vec<_>>().join("\n\n")
    }

    pub(super) fn question(&self) -> &str {
        self.messages.iter().rev().find(|message| message.role == Role::User).map(|message| message.text.as_str()).unwrap_or_default()
    }

    fn status(&self) -> &'static str {
        match &self.outcome {
            None => "begun",
            Some(Outcome { cached: true, .. }) => "cached",
            Some(Outcome { result: Ok(_), .. }) => "ok",
            Some(Outcome { result: Err((_, kind)), .. }) => kind,
        }
    }

    pub(super) fn row(&self) -> CallRow {
        let outcome = self.outcome.as_ref();
        let usage = outcome.map(|outcome| outcome.usage.clone()).unwrap_or_default();
        CallRow {
            trace_id: self.trace_id.clone(),
            monitor: self.monitor.clone(),
            metric: self.metric.clone(),
            item_id: self.item_id.clone(),
            profile: self.profile.clone(),
            provider: usage.provider.unwrap_or_else(|| self.provider.clone()),
            model: usage.model.unwrap_or_else(|| self.model.clone()),
            prompt: self.prompt(),
            response: outcome.and_then(|outcome| outcome.result.as_ref().ok()).map(|(text, _)| text.clone()),
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            latency_ms: outcome.map_or(0, |outcome| u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX)),
            cost_usd: usage.cost_usd,
            status: self.status().to_owned(),
            error: outcome.and_then(|outcome| outcome.result.as_ref().err()).map(|(message, _)| message.clone()),
            created_us: self.at.as_microsecond(),
        }
    }
}
