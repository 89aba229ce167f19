//! An answer in parts, as they come: `profile`'s way, with what was said sent on at once. So nothing is tried again, and no
//! fallback asked, once a part was sent.

use futures_util::StreamExt;
use tokio::{sync::mpsc, time::Instant};

use super::profile::{Fault, Ladder, Profile, in_time};
use crate::providers::{CallCx, CallError, ChatAnswer, ChatRequest, Part, Piece, ProviderError, Question, Reply};

/// Where the parts of an answer go.
type Outlet = mpsc::Sender<Result<Part, CallError>>;

/// Why a stream ended without its end.
enum Dry {
    /// Before its first part: another profile may be asked.
    Nothing(CallError),
    Partly(CallError),
}

async fn send(out: &Outlet, part: Result<Part, CallError>) {
    // Nobody listens any more: then the whole stream is dropped, this future included.
    let _ = out.send(part).await;
}

impl Ladder {
    /// `ask`, with the parts of the answer sent on as they come.
    pub(super) async fn pour(&self, question: &Question, cx: CallCx<'_>, out: &Outlet) {
        let mut first = None;
        for rung in &self.rungs {
            match rung.pour(question, cx, out).await {
                Ok(()) => return,
                Err(Dry::Nothing(error)) if self.goes_down_on(&error) => {
                    first.get_or_insert(error);
                }
                Err(Dry::Nothing(error) | Dry::Partly(error)) => return send(out, Err(error)).await,
            }
        }
        if let Some(error) = first {
            send(out, Err(error)).await;
        }
    }
}

impl Profile {
    /// `answer`, with the parts sent on: what comes in parts is neither taken from the cache nor kept.
    async fn pour(&self, question: &Question, cx: CallCx<'_>, out: &Outlet) -> Result<(), Dry> {
        let request = self.request(question);
        let told = self.tell_before(&request, &cx);
        let begun = Instant::now();
        let mut sent = false;
        let outcome = self.pour_until(&request, cx, out, &mut sent).await;
        self.tell_after(told, begun.elapsed(), cx, &outcome);
        match outcome {
            Ok(reply) => {
                send(out, Ok(Part::End(reply))).await;
                Ok(())
            }
            Err(error) if sent => Err(Dry::Partly(error)),
            Err(error) => Err(Dry::Nothing(error)),
        }
    }

    /// Nothing is tried again once a part was sent on.
    async fn pour_until(&self, request: &ChatRequest, cx: CallCx<'_>, out: &Outlet, sent: &mut bool) -> Result<Reply, CallError> {
        let mut started = None;
        let mut attempt = 1;
        loop {
            let fault = match self.pour_once(request, cx, &mut started, out, sent).await {
                Ok(answer) => return Ok(self.reply(answer, started)),
                Err(fault) => fault,
            };
            let (error, again) = self.verdict(fault, attempt, started);
            match again.filter(|_| !*sent) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
            attempt += 1;
        }
    }

    /// As [`Profile::attempt`]; `sent` becomes true with the first part that is sent on.
    async fn pour_once(
        &self,
        request: &ChatRequest,
        cx: CallCx<'_>,
        started: &mut Option<Instant>,
        out: &Outlet,
        sent: &mut bool,
    ) -> Result<ChatAnswer, Fault> {
        let (hold, mut reservation) = self.admit(request, cx).await.map_err(Fault::Refused)?;
        reservation.begin();
        let begun = Instant::now();
        started.get_or_insert(begun);
        let mut pieces = self.provider.stream(request);
        let outcome = loop {
            // The bound is on silence: a long answer that keeps coming is no hang.
            let next = in_time(self.timeout, async { pieces.next().await.unwrap_or_else(|| Err(cut_off())) }).await;
            match next {
                Ok(Piece::Text(text)) => {
                    *sent = true;
                    send(out, Ok(Part::Text(text))).await;
                }
                Ok(Piece::End(answer)) => break Ok(answer),
                Err(error) => break Err(error),
            }
        };
        drop(pieces);
        self.meter.attempt(begun.elapsed(), &outcome);
        self.settle(hold, reservation, &outcome, *sent);
        outcome.map_err(Fault::Provider)
    }
}

fn cut_off() -> ProviderError {
    ProviderError::Transient { kind: "transport", message: "the answer ended without its end".to_owned(), retry_after: None }
}
