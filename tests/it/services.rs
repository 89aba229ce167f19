//! Services of others, seen from their side: what they are sent, by which key, and what a redirect means.

use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};

use crate::{
    build::{langfuse, with},
    outside::{items, rows},
    pipeline::with_steps,
    site::Site,
    world::NewTrace,
};

type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// A service that fails while it has been asked fewer than so many times, with the key and the item of each request; and
/// an address that only redirects.
async fn service(sound_from: usize) -> (String, Seen, tokio::task::JoinHandle<()>) {
    let seen = Seen::default();
    let of_judge = seen.clone();
    let judge = move |headers: HeaderMap, Json(body): Json<Value>| async move {
        let mut seen = of_judge.lock().unwrap();
        seen.push((headers["idempotency-key"].to_str().unwrap().to_owned(), body["item"].clone()));
        let told = headers.get("x-key").map(|key| key.to_str().unwrap().to_owned()).unwrap_or_default();
        if seen.len() < sound_from {
            Json(json!({ "error": format!("no model for {told}") }))
        } else {
            Json(json!({ "outcomes": [{ "score": 1, "reason": told }] }))
        }
    };
    let moved = || async { (StatusCode::TEMPORARY_REDIRECT, [("location", "/judge/")]) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/judge", post(judge)).route("/moved", post(moved));
    (url, seen, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
}

#[tokio::test]
async fn a_judgement_has_one_key_in_all_runs_and_no_other_has_it() {
    let (url, seen, server) = service(3).await;
    let site = Site::new().await;
    let metric = |name: &str| json!({ "name": name, "type": "http", "url": format!("{url}/judge"), "headers": { "x-key": "key-of-the-service" } });
    site.monitor("m", &with(items(&site, &["fine"]), json!({ "metrics": [metric("one"), metric("two")] })));
    site.once_with("m", &[], 1).await;
    site.once("m").await;
    let keys: Vec<String> = seen.lock().unwrap().iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys.len(), 4);
    assert!(keys[0] != keys[1] && keys[..2] == keys[2..], "{keys:?}");
    assert!(rows(&site).await.iter().all(|row| row.3["reason"] == "***"), "a service tells no key on");
    server.abort();
}

#[tokio::test]
async fn an_address_that_redirects_is_waited_for() {
    let (url, _, server) = service(0).await;
    let site = Site::new().await;
    let metric = json!({ "name": "m", "type": "http", "url": format!("{url}/moved") });
    site.monitor("m", &with(items(&site, &["fine"]), json!({ "metrics": [metric], "evaluation": { "max_attempts": 1 } })));
    for _ in 0..2 {
        let report = site.once_with("m", &[], 1).await;
        assert_eq!(report["counts"]["deferred"], 1, "{report}");
        assert!(report["error"].as_str().unwrap().contains("HTTP 307: a redirect, which is not followed; the answer has a Location"), "{report}");
    }
    server.abort();
}

#[tokio::test]
async fn an_item_says_whose_it_is_and_a_whole_trace_has_its_steps() {
    let (url, seen, server) = service(0).await;
    let site = Site::new().await;
    let (user, session) = (Some("u1".to_owned()), Some("s1".to_owned()));
    site.world.langfuse.add(NewTrace { tags: vec!["prod".to_owned()], user, session, environment: "production".to_owned(), ..with_steps("t1") });
    let metric = |name: &str, trace: bool| json!({ "name": name, "type": "http", "url": format!("{url}/judge"), "trace": trace });
    site.monitor("m", &with(langfuse(), json!({ "metrics": [metric("bare", false)] })));
    site.monitor("n", &with(langfuse(), json!({ "metrics": [metric("whole", true)] })));
    for monitor in ["m", "n"] {
        assert_eq!(site.once(monitor).await["counts"]["scored"], 1);
    }
    let seen = seen.lock().unwrap();
    for (_, item) in &*seen {
        let of_trace = ["tags", "user_id", "session_id", "environment"].map(|key| item[key].clone());
        assert_eq!(of_trace, [json!(["prod"]), json!("u1"), json!("s1"), json!("production")], "{item}");
    }
    let (bare, whole) = (&seen[0].1, &seen[1].1["trace"]);
    assert!(bare.get("trace").is_none());
    assert!(whole["observations"].as_array().is_some_and(|steps| !steps.is_empty()), "{whole}");
    assert_eq!(whole["steps"]["retrieve"]["name"], "retrieve", "{whole}");
    server.abort();
}
