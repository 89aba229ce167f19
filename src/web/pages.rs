//! What people see in a browser: where messages lead to. These pages hold nothing that would need a token.

use axum::{Router, http::header, routing::get};

use super::Web;

/// A page's own script and this server alone: whatever a link brings stays text.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<Web> {
    let page =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY)], text) });
    let html = "text/html; charset=utf-8";
    Router::new()
        .route("/", page(html, include_str!("pages/index.html")))
        .route("/silences/new", page(html, include_str!("pages/silence.html")))
        .route("/silences/new.js", page("text/javascript; charset=utf-8", include_str!("pages/silence.js")))
}
