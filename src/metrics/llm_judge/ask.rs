//! Asking for one verdict: a question, at most one more, and what is kept where both were in vain.
//!
//! An answer of the wrong form is shown to the model together with its fault; one that was cut off is asked for again with
//! more room, and never completed; a refusal stands. A second answer is the last one: a model that misses the form twice in
//! one conversation misses it a third time too, and a failed item comes back in a later run anyway.

use std::sync::Arc;

use super::{Asked, Judge, MetricCx, fence::cut_middle, verdict::Fault};
use crate::{
    model::{Outcome, Usage, Wait},
    providers::{CallError, Message, Question, Reply},
    util::text,
};

/// Tokens that a second question asks for at most: a verdict is two sentences, so what ran out of room was thinking, and
/// no model in use gives less. It bounds what one item can cost.
const MAX_ROOM: u32 = 8192;
/// Room of an answer that was cut off and told neither its limit nor its tokens: what profiles have unless told.
const USUAL_ROOM: u32 = 1024;
/// Characters of an answer that the model is shown again.
const MAX_SHOWN: usize = 2000;
/// Characters of an answer that are kept for `assayd explain`.
const MAX_KEPT: usize = 2000;

/// The verdicts, or why there are none and what the model said instead.
pub(super) struct Sample {
    /// One of each output, all scored; or the one that stands for all.
    pub outcomes: Result<Vec<Outcome>, Outcome>,
    pub answer: Option<String>,
}

impl From<Result<Vec<Outcome>, Outcome>> for Sample {
    fn from(outcomes: Result<Vec<Outcome>, Outcome>) -> Self {
        Self { outcomes, answer: None }
    }
}

impl Judge {
    /// As it is put first.
    pub(super) fn question(&self, asked: &Asked, sample: usize) -> Question {
        Question {
            system: Some(asked.system.iter().fold(self.system.clone(), |system, more| format!("{system}\n\n{more}"))),
            messages: asked.messages.clone(),
            max_tokens: self.max_tokens,
            schema: Some(Arc::clone(&self.schema)),
            sample: u32::try_from(sample).unwrap_or(u32::MAX),
            ..Question::default()
        }
    }

    /// One of the metric's samples, counted from 0.
    pub(super) async fn once(&self, asked: &Asked, sample: usize, cx: &MetricCx<'_>, usage: &mut Usage) -> Sample {
        let question = self.question(asked, sample);
        let first = match self.call(question.clone(), cx, usage).await {
            Ok(reply) => reply,
            Err(outcome) => return Err(outcome).into(),
        };
        let fault = match self.output.read(&first) {
            Ok(outcomes) => return Ok(outcomes).into(),
            Err(fault) => fault,
        };
        let failed = |reason: String, text: &str| Sample { outcomes: Err(Outcome::Failed { reason }), answer: kept(text) };
        let Some(question) = self.again(question, &first, &fault) else {
            return failed(format!("the judge's answer {fault}"), &first.text);
        };
        tracing::debug!(metric = cx.call.metric, item = cx.call.item_id, sample, %fault, "the judge is asked again");
        match self.call(question, cx, usage).await {
            Ok(second) => match self.output.read(&second) {
                Ok(outcomes) => Ok(outcomes).into(),
                Err(again) => failed(format!("the judge's second answer {again}"), if second.text.trim().is_empty() { &first.text } else { &second.text }),
            },
            Err(Outcome::Failed { reason }) => failed(format!("the judge's answer {fault}; asked again: {reason}"), &first.text),
            // Nothing is lost by waiting: what was paid for held no verdict.
            Err(deferred) => Err(deferred).into(),
        }
    }

    async fn call(&self, question: Question, cx: &MetricCx<'_>, usage: &mut Usage) -> Result<Reply, Outcome> {
        match self.model.ask(question, cx.call).await {
            Ok(reply) => {
                add(usage, &reply.usage);
                Ok(reply)
            }
            Err(CallError::Blocked(reason)) => Err(Outcome::Deferred { reason, wait: Wait::Judge }),
            Err(CallError::OverBudget(reason)) => Err(Outcome::Deferred { reason, wait: Wait::Budget }),
            Err(CallError::Failed { message: reason, .. }) => Err(Outcome::Failed { reason }),
        }
    }

    /// The second question, where one makes sense.
    fn again(&self, question: Question, reply: &Reply, fault: &Fault) -> Option<Question> {
        match fault {
            Fault::Refused(_) => None,
            Fault::Cut => {
                let used = reply.usage.output_tokens.and_then(|tokens| u32::try_from(tokens).ok());
                let had = self.max_tokens.or(used).unwrap_or(USUAL_ROOM).max(1);
                (had < MAX_ROOM).then(|| Question { max_tokens: Some(had.saturating_mul(2).min(MAX_ROOM)), ..question })
            }
            Fault::Form(fault) => {
                let mut messages = question.messages;
                // No protocol takes a message without text.
                let said = if reply.text.trim().is_empty() { "(empty)".to_owned() } else { cut_middle(reply.text.trim(), MAX_SHOWN).0 };
                messages.push(Message::assistant(said));
                let form = self.output.form();
                messages.push(Message::user(format!("Your answer {fault}. Give your verdict again, as nothing but a JSON object of this form: {form}")));
                Some(Question { messages, ..question })
            }
        }
    }
}

fn kept(answer: &str) -> Option<String> {
    let line = text::one_line(&cut_middle(answer, MAX_KEPT - 100).0, MAX_KEPT);
    (!line.is_empty()).then_some(line)
}

fn add(total: &mut Usage, one: &Usage) {
    let sum = |a: Option<u64>, b: Option<u64>| a.map_or(b, |a| Some(a + b.unwrap_or(0)));
    total.provider.clone_from(&one.provider);
    total.model.clone_from(&one.model);
    total.input_tokens = sum(total.input_tokens, one.input_tokens);
    total.output_tokens = sum(total.output_tokens, one.output_tokens);
    total.cost_usd = total.cost_usd.map_or(one.cost_usd, |cost| Some(cost + one.cost_usd.unwrap_or(0.0)));
    total.latency_ms = sum(total.latency_ms, one.latency_ms);
}
