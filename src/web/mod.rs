//! The HTTP side: health, metrics, reload, a run by hand, the gateway for others ([`openai`]), what
//! Langfuse tells ([`langfuse`]). Handlers read state or send a command; they change nothing
//! themselves. Without a token only loopback clients are served; health is for everyone, webhooks for who
//! can sign them.

mod langfuse;
mod openai;
mod pages;
pub mod silences;

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::mpsc;

use crate::{
    control::{Control, Refusal, RunRequest},
    model::OutboxChange,
    prompts::Prompts,
    providers::Models,
    store::{Health, Store},
    util::secret::{ExposeSecret, SecretString},
};

#[derive(Clone)]
pub struct Web {
    pub control: Control,
    pub store: Store,
    pub metrics: PrometheusHandle,
    /// Monitors are loaded and the daemon is not draining.
    pub ready: Arc<AtomicBool>,
    pub token: Option<SecretString>,
    /// Profiles, for calls from outside.
    pub models: Arc<dyn Models>,
    pub prompts: Prompts,
    /// Takes what goes on beside a request; ended with the daemon.
    pub work: mpsc::UnboundedSender<Work>,
}

/// What goes on beside a request, as a task of its own.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

pub fn router(web: Web) -> Router {
    Router::new()
        .route("/metrics", get(render_metrics))
        .route("/-/reload", post(reload))
        .route("/api/v1/monitors/{name}/runs", post(run_now))
        .route("/api/v1/prompts/refresh", post(refresh_prompts))
        .route("/api/v1/silences", post(silences::post))
        .route("/api/v1/outbox", post(change_outbox))
        .merge(openai::routes())
        .layer(middleware::from_fn_with_state(web.clone(), authorised))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .merge(langfuse::routes())
        .merge(pages::routes())
        .with_state(web)
}

async fn authorised(State(web): State<Web>, ConnectInfo(client): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    let allowed = match &web.token {
        None => client.ip().is_loopback(),
        Some(token) => {
            let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| value.strip_prefix("Bearer "));
            // Hashes compare in constant time, whatever the lengths.
            given.is_some_and(|given| blake3::hash(given.as_bytes()) == blake3::hash(token.expose_secret().as_bytes()))
        }
    };
    if allowed {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, "a bearer token is needed; without `auth` only loopback clients are served\n").into_response()
    }
}

async fn readyz(State(web): State<Web>) -> Response {
    if !web.ready.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n").into_response();
    }
    let health = web.store.health().borrow().clone();
    match health {
        Health::Well => "ready\n".into_response(),
        Health::Unwell(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("the store refuses writes: {reason}\n")).into_response(),
    }
}

async fn render_metrics(State(web): State<Web>) -> Response {
    for queue in web.store.queues().await.unwrap_or_default() {
        crate::telemetry::outbox_pending(&queue.name, queue.waiting);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], web.metrics.render()).into_response()
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::NoSuchMonitor(_) => StatusCode::NOT_FOUND,
        Refusal::Busy(_) | Refusal::Backfilling(_) => StatusCode::CONFLICT,
        Refusal::Unfit(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::Stopping => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{refusal}\n")).into_response()
}

async fn reload(State(web): State<Web>) -> Response {
    match web.control.reload().await {
        Ok(changes) => Json(changes).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshRequest {
    /// All in use where there is none.
    name: Option<String>,
}

async fn refresh_prompts(State(web): State<Web>, Json(request): Json<RefreshRequest>) -> Response {
    Json(web.prompts.refresh(request.name.as_deref()).await).into_response()
}

async fn change_outbox(State(web): State<Web>, Json(change): Json<OutboxChange>) -> Response {
    match web.control.change_outbox(change).await {
        Ok(rows) => Json(serde_json::json!({ "rows": rows })).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

async fn run_now(State(web): State<Web>, Path(name): Path<String>, Json(request): Json<RunRequest>) -> Response {
    match web.control.run_now(name, request).await {
        Ok(report) => Json(report).into_response(),
        Err(refusal) => refused(&refusal),
    }
}
