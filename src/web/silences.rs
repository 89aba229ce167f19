//! Silences are added and ended here: by `POST /api/v1/silences`, and by `assayd silence` where no daemon runs.

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::Web;
use crate::{
    control::SilenceOrder,
    store::{Closed, SilenceRow, Store},
};

/// A form for a silence, which messages link to; it holds nothing that would need a token.
pub(super) fn pages() -> Router<Web> {
    // Its script and this server alone: whatever a link brings stays text.
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'";
    let page =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY)], text) });
    Router::new()
        .route("/silences/new", page("text/html; charset=utf-8", include_str!("silence.html")))
        .route("/silences/new.js", page("text/javascript; charset=utf-8", include_str!("silence.js")))
}

pub(super) async fn post(State(web): State<Web>, Json(order): Json<SilenceOrder>) -> Response {
    if let SilenceOrder::Add(silence) = &order
        && let Err(message) = silence.check()
    {
        return (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response();
    }
    match obey(&web.store, &order).await {
        Ok(done) => Json(done).into_response(),
        Err(closed) => (StatusCode::SERVICE_UNAVAILABLE, format!("{closed}\n")).into_response(),
    }
}

/// False where there is no such silence to end.
///
/// # Errors
/// `Closed`.
pub async fn obey(store: &Store, order: &SilenceOrder) -> Result<bool, Closed> {
    match order {
        SilenceOrder::Add(silence) => {
            let row = SilenceRow {
                id: silence.id.clone(),
                starts_us: silence.starts.as_microsecond(),
                ends_us: silence.ends.as_microsecond(),
                // Plain data: it always serialises.
                body: serde_json::to_string(silence).unwrap_or_default(),
            };
            store.add_silence(row).await?;
            tracing::info!(silence = %silence.id, author = %silence.author, until = %silence.ends, "a silence was added");
            Ok(true)
        }
        SilenceOrder::Expire(id, at) => store.expire_silence(id, at.as_microsecond()).await,
    }
}
