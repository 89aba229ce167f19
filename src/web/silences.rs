//! Silences are added and ended here: by `POST /api/v1/silences`, and by `assayd silence` where no daemon runs.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::Web;
use crate::{
    control::SilenceOrder,
    store::{Closed, SilenceRow, Store},
};

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
