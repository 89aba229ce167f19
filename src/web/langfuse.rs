//! `POST /webhooks/langfuse`. Needs no token: the signature over the body is the proof.

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};

use super::Web;
use crate::{
    prompts::{Refusal, Taken},
    telemetry,
};

/// The longest body taken: an event holds the whole prompt.
const MAX_BODY: usize = 1 << 20;

const SIGNATURE: &str = "x-langfuse-signature";

pub(super) fn routes() -> Router<Web> {
    Router::new().route("/webhooks/langfuse", post(hear))
}

async fn hear(State(web): State<Web>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    // Byte for byte, and nothing of it is read before the signature is.
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &format!("the event is larger than {MAX_BODY} bytes"));
    };
    let signature = head.headers.get(SIGNATURE).and_then(|value| value.to_str().ok());
    match web.prompts.hear(signature, &body).await {
        Ok(taken) => {
            telemetry::webhook(if taken == Taken::Prompt { "accepted" } else { "ignored" });
            (StatusCode::ACCEPTED, "taken\n").into_response()
        }
        Err(refusal) => {
            let status = match refusal {
                Refusal::NoSecret | Refusal::Forged | Refusal::Stale => StatusCode::UNAUTHORIZED,
                Refusal::Replayed | Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
                Refusal::Busy => StatusCode::SERVICE_UNAVAILABLE,
            };
            refused(status, refusal.kind(), &refusal.to_string())
        }
    }
}

fn refused(status: StatusCode, kind: &'static str, reason: &str) -> Response {
    telemetry::webhook_refused(kind, reason);
    (status, format!("{reason}\n")).into_response()
}
