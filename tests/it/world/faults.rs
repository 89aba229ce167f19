use std::{collections::VecDeque, convert::Infallible, sync::Mutex, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// What a service does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error answer; 429, 503 and 529 come with `Retry-After: 1`.
    Status(u16),
    /// The connection goes away before a byte of the body.
    Drop,
    /// Half of the true answer, then the connection goes away.
    Cut,
    /// No answer for as long as anybody waits.
    Hang,
    /// 200 and a proxy's page.
    Html,
    /// 200 and 50 MB of it.
    Huge,
    /// 200 and what is no text.
    NoText,
}

/// Faults to order. A queue comes before what is `always` so; a share strikes by a fixed sequence of chances.
#[derive(Default)]
pub struct Faults(Mutex<Orders>);

#[derive(Default)]
struct Orders {
    queue: VecDeque<Fault>,
    always: Option<Fault>,
    share: Option<(Vec<Fault>, f64)>,
    latency: Duration,
    chance: u64,
}

impl Faults {
    pub fn queue(&self, faults: impl IntoIterator<Item = Fault>) {
        self.0.lock().unwrap().queue.extend(faults);
    }

    pub fn always(&self, fault: Option<Fault>) {
        self.0.lock().unwrap().always = fault;
    }

    pub fn share(&self, fault: Fault, share: f64) {
        self.shares(vec![fault], share);
    }

    /// One of these, each as often as the others.
    pub fn shares(&self, faults: Vec<Fault>, share: f64) {
        self.0.lock().unwrap().share = Some((faults, share));
    }

    pub fn latency(&self, latency: Duration) {
        self.0.lock().unwrap().latency = latency;
    }

    /// How many queued faults have not struck yet.
    pub fn queued(&self) -> usize {
        self.0.lock().unwrap().queue.len()
    }

    /// Waits as long as a call takes here; then what is to go wrong with it.
    pub async fn strike(&self) -> Option<Fault> {
        let (latency, fault) = self.0.lock().unwrap().next();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if fault == Some(Fault::Hang) {
            std::future::pending::<Infallible>().await;
        }
        fault
    }
}

impl Orders {
    fn next(&mut self) -> (Duration, Option<Fault>) {
        // splitmix64: the same chances in every run of a test.
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.chance;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let chance = ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
        let share = self.share.as_ref().filter(|(_, share)| chance < *share).map(|(faults, share)| {
            let at = (chance / share * faults.len() as f64) as usize;
            faults[at.min(faults.len() - 1)]
        });
        (self.latency, self.queue.pop_front().or(self.always).or(share))
    }
}

/// The answer that a fault makes; `truth` is what would have been answered, for a cut.
pub fn answer(fault: Fault, truth: &[u8]) -> Response {
    match fault {
        Fault::Status(status) => {
            let status = StatusCode::from_u16(status).unwrap();
            let body = axum::Json(
                json!({ "error": { "type": "fault", "message": format!("made-up {status}"), "code": null }, "message": format!("made-up {status}"), "ok": false }),
            );
            match status.as_u16() {
                429 | 503 | 529 => (status, [(header::RETRY_AFTER, "1")], body).into_response(),
                _ => (status, body).into_response(),
            }
        }
        Fault::Html => ([(header::CONTENT_TYPE, "text/html")], "<!doctype html><html><body><h1>Sign in to the proxy</h1></body></html>").into_response(),
        Fault::Huge => ([(header::CONTENT_TYPE, "application/json")], vec![b' '; 50 << 20]).into_response(),
        Fault::NoText => ([(header::CONTENT_TYPE, "application/json")], vec![b'{', b'"', 0xff, 0xfe, b'"', b'}']).into_response(),
        Fault::Drop | Fault::Hang => broken(Vec::new(), 100),
        Fault::Cut => broken(truth[..truth.len() / 2].to_vec(), truth.len()),
    }
}

/// A body that promises `length` bytes and breaks after `head`.
fn broken(head: Vec<u8>, length: usize) -> Response {
    let parts = [Ok(Bytes::from(head)), Err(std::io::Error::other("cut"))];
    let body = Body::from_stream(futures_util::stream::iter(parts));
    ([(header::CONTENT_TYPE, "application/json".to_owned()), (header::CONTENT_LENGTH, length.to_string())], body).into_response()
}
