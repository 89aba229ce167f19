//! The notifier against a server shaped like Slack's Web API and webhooks.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};

use super::{render::tests::event, *};
use crate::model::{AlertEvent, AlertEventKind};

/// What happened in a group that people know of, or do not; the number tells news apart.
fn news(n: u32, first: bool, changes: Vec<AlertEvent>, members: Vec<AlertEvent>) -> News {
    let labels = std::collections::BTreeMap::from([("monitor".to_owned(), "support-answers".to_owned())]);
    News { id: format!("key-{n}"), key: "key".to_owned(), labels, changes, members, first, louder: false }
}

/// Of the one alert of a group.
fn one(n: u32, kind: AlertEventKind) -> News {
    news(n, kind == AlertEventKind::Firing, vec![event(kind)], vec![event(kind)])
}

fn at(thread: &str) -> SoFar {
    SoFar { thread: Some(thread.to_owned()), ..SoFar::default() }
}

/// The end of telling: what is known then.
async fn tell(slack: &SlackNotifier, news: &News, mut so_far: SoFar) -> SoFar {
    slack.notify(news, "#llm", &mut so_far).await.unwrap();
    so_far
}

async fn fail(slack: &SlackNotifier, target: &str) -> NotifyError {
    slack.notify(&one(1, AlertEventKind::Firing), target, &mut SoFar::default()).await.unwrap_err()
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// (method or `hook`, body), in order.
    calls: Vec<(String, Value)>,
    /// Answers given instead of a good one.
    planned: VecDeque<Response>,
}

impl Fake {
    fn plan(&self, answer: impl IntoResponse) {
        self.0.lock().unwrap().planned.push_back(answer.into_response());
    }

    fn refuse(&self, code: &str) {
        self.plan(Json(json!({ "ok": false, "error": code })));
    }

    fn calls(&self) -> Vec<(String, Value)> {
        self.0.lock().unwrap().calls.clone()
    }

    fn methods(&self) -> Vec<String> {
        self.calls().into_iter().map(|(method, _)| method).collect()
    }
}

async fn api(State(fake): State<Fake>, Path(method): Path<String>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    let mut inner = fake.0.lock().unwrap();
    let ts = format!("1700000000.{:06}", inner.calls.len() + 1);
    inner.calls.push((method.clone(), body.clone()));
    if let Some(planned) = inner.planned.pop_front() {
        return planned;
    }
    if headers["authorization"] != "Bearer xoxb-test" {
        return Json(json!({ "ok": false, "error": "invalid_auth" })).into_response();
    }
    match method.as_str() {
        // A message in a shape the library does not know: only channel and ts may matter.
        "chat.postMessage" => Json(json!({ "ok": true, "channel": "C1", "ts": ts, "message": { "odd": true } })).into_response(),
        "chat.update" => Json(json!({ "ok": true, "channel": body["channel"], "ts": body["ts"] })).into_response(),
        "auth.test" => Json(json!({ "ok": true, "team": "test", "user": "assayd" })).into_response(),
        _ => Json(json!({ "ok": false, "error": "unknown_method" })).into_response(),
    }
}

async fn hook(State(fake): State<Fake>, Json(body): Json<Value>) -> Response {
    let mut inner = fake.0.lock().unwrap();
    inner.calls.push(("hook".to_owned(), body));
    inner.planned.pop_front().unwrap_or_else(|| "ok".into_response())
}

/// Runs `story` beside a server, on the same task.
async fn with_slack<T>(story: impl AsyncFnOnce(Fake, String) -> T) -> T {
    let fake = Fake::default();
    let app = Router::new().route("/api/{method}", post(api)).route("/hook", post(hook)).with_state(fake.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::select! {
        served = axum::serve(listener, app) => unreachable!("the server ended: {served:?}"),
        told = story(fake, base) => told,
    }
}

fn bot(base: &str) -> SlackNotifier {
    SlackNotifier::new(&SlackConnection { token: Some("xoxb-test\n".into()), webhook_url: None, signing_secret: None, api_url: format!("{base}/api/") }, None)
        .unwrap()
}

fn by_webhook(base: &str) -> SlackNotifier {
    SlackNotifier::new(
        &SlackConnection { token: None, webhook_url: Some(format!("{base}/hook").into()), signing_secret: None, api_url: "https://slack.com/api/".into() },
        None,
    )
    .unwrap()
}

#[tokio::test]
async fn one_firing_is_one_message_with_a_thread_and_an_edit() {
    with_slack(async |fake, base| {
        let slack = bot(&base);
        let thread = tell(&slack, &one(1, AlertEventKind::Firing), SoFar::default()).await.thread.unwrap();
        assert_eq!(thread, "C1:1700000000.000001");
        for (n, kind) in [(2, AlertEventKind::Repeat), (3, AlertEventKind::Resolved)] {
            assert_eq!(tell(&slack, &one(n, kind), at(&thread)).await.thread.as_ref(), Some(&thread));
        }

        let calls = fake.calls();
        assert_eq!(fake.methods(), ["chat.postMessage", "chat.update", "chat.postMessage", "chat.update", "chat.postMessage"]);
        let (first, repeat, edit, last) = (&calls[0].1, &calls[2].1, &calls[3].1, &calls[4].1);
        assert_eq!((first["channel"].as_str(), &first["thread_ts"]), (Some("#llm"), &Value::Null));
        assert_eq!(
            first["metadata"]["event_payload"],
            json!({ "fingerprint": "support-answers/helpful-low/1767226500000-1", "state": "firing", "id": "key-1.0" })
        );
        assert_eq!(first["unfurl_links"], json!(false));
        assert_eq!(first["blocks"][0]["text"]["text"], "🔴 Firing: helpful-low · support-answers");
        assert_eq!((&repeat["channel"], &repeat["thread_ts"]), (&json!("C1"), &json!("1700000000.000001")));
        assert_eq!((&edit["channel"], &edit["ts"]), (&json!("C1"), &json!("1700000000.000001")));
        assert_eq!(edit["blocks"][0]["text"]["text"], "✅ Resolved: helpful-low · support-answers");
        assert_eq!(last["thread_ts"], json!("1700000000.000001"));
    })
    .await;
}

#[tokio::test]
async fn several_alerts_are_one_message_whose_thread_tells_what_happens() {
    let named = |alert: &str, kind| AlertEvent { alert: alert.to_owned(), ..event(kind) };
    with_slack(async |fake, base| {
        let slack = bot(&base);
        let (low, slow) = (named("low", AlertEventKind::Firing), named("slow", AlertEventKind::Firing));
        let both = vec![low.clone(), slow.clone()];
        let thread = tell(&slack, &news(1, true, both.clone(), both), SoFar::default()).await.thread.unwrap();
        let over = named("low", AlertEventKind::Resolved);
        tell(&slack, &news(2, false, vec![over.clone()], vec![over, slow]), at(&thread)).await;

        let calls = fake.calls();
        assert_eq!(fake.methods(), ["chat.postMessage", "chat.update", "chat.postMessage"]);
        assert_eq!(calls[0].1["blocks"][0]["text"]["text"], "🔴 Firing: 2 alerts · support-answers");
        assert_eq!(calls[1].1["blocks"][0]["text"]["text"], "🔴 Firing: 1 alert, resolved: 1 · support-answers");
        let lines: Vec<&str> = [1, 2].map(|at| calls[1].1["blocks"][at]["text"]["text"].as_str().unwrap().lines().next().unwrap()).into();
        assert_eq!(lines, ["🔴 *slow · support-answers* firing", "✅ *low · support-answers* resolved"], "what still fires comes first");
        assert_eq!(calls[2].1["thread_ts"], "1700000000.000001");
    })
    .await;
}

#[tokio::test]
async fn a_group_too_long_for_a_message_goes_on_in_its_thread_and_is_taken_up_where_it_stopped() {
    with_slack(async |fake, base| {
        let slack = bot(&base);
        let many: Vec<AlertEvent> =
            (0..90).map(|n| AlertEvent { alert: format!("alert-{n:02}"), summary: "x".repeat(400), ..event(AlertEventKind::Firing) }).collect();
        let news = news(1, true, many.clone(), many);
        fake.plan(Json(json!({ "ok": true, "channel": "C1", "ts": "1.1" })));
        fake.refuse("ratelimited");
        let mut so_far = SoFar::default();
        slack.notify(&news, "#llm", &mut so_far).await.unwrap_err();
        assert_eq!((so_far.thread.as_deref(), so_far.pages), (Some("C1:1.1"), 1));
        slack.notify(&news, "#llm", &mut so_far).await.unwrap();
        let posts = fake.calls();
        assert!(posts.len() > 3 && posts[1..].iter().all(|(_, post)| post["thread_ts"] == "1.1"), "{:?}", fake.methods());
        assert_eq!(posts[1].1, posts[2].1, "the page that was refused, and nothing before it");
        let text = serde_json::to_string(&posts).unwrap();
        assert!((0..90).all(|n| text.contains(&format!("alert-{n:02}"))));
    })
    .await;
}

#[tokio::test]
async fn links_lead_to_the_daemon_and_to_a_silence() {
    let url = Url::parse("https://assayd.test/eval/").unwrap();
    let seen = |external: Option<&Url>, kind| serde_json::to_value(&pages::standing(&one(1, kind), external)[0]).unwrap().to_string();
    let linked = seen(Some(&url), AlertEventKind::Firing);
    assert!(linked.contains("<https://assayd.test/eval/|assayd>"), "{linked}");
    assert!(
        linked.contains("<https://assayd.test/eval/silences/new?matcher=alertname%3Dhelpful-low&amp;matcher=monitor%3Dsupport-answers|Silence>"),
        "{linked}"
    );
    assert!(!seen(Some(&url), AlertEventKind::Resolved).contains("Silence"));
    let told = seen(None, AlertEventKind::Firing);
    assert!(told.contains("assayd silence add --for 2h --comment WHY alertname=helpful-low monitor=support-answers"), "{told}");
}

#[tokio::test]
async fn a_deleted_message_is_replaced_by_a_fresh_one() {
    with_slack(async |fake, base| {
        fake.refuse("message_not_found");
        let told = tell(&bot(&base), &one(2, AlertEventKind::Resolved), at("C1:1.0")).await;
        assert_eq!(told.thread.as_deref(), Some("C1:1700000000.000002"));
        assert_eq!(fake.methods(), ["chat.update", "chat.postMessage"]);
        assert_eq!((&fake.calls()[1].1["channel"], &fake.calls()[1].1["thread_ts"]), (&json!("#llm"), &Value::Null));
    })
    .await;
}

#[tokio::test]
async fn a_message_that_may_not_be_edited_gets_its_reply() {
    with_slack(async |fake, base| {
        fake.refuse("edit_window_closed");
        let told = tell(&bot(&base), &one(2, AlertEventKind::Resolved), at("C1:1.0")).await;
        assert_eq!(told.thread.as_deref(), Some("C1:1.0"));
        assert_eq!(fake.calls()[1].1["thread_ts"], json!("1.0"));
    })
    .await;
}

#[tokio::test]
async fn a_webhook_gets_a_message_an_event() {
    with_slack(async |fake, base| {
        let slack = by_webhook(&base);
        // As Slack answers (text), and without a content type, which the library takes for JSON.
        for kind in [AlertEventKind::Firing, AlertEventKind::Resolved] {
            assert_eq!(tell(&slack, &one(1, kind), SoFar::default()).await.thread, None);
            fake.plan(Response::new(axum::body::Body::from("ok")));
        }
        let headers: Vec<_> = fake.calls().iter().map(|(_, body)| body["blocks"][0]["text"]["text"].clone()).collect();
        assert_eq!(headers, ["🔴 Firing: helpful-low · support-answers", "✅ Resolved: helpful-low · support-answers"]);
    })
    .await;
}

/// (dead, what the outbox is told to wait, the message)
async fn verdict(answer: impl IntoResponse) -> (bool, Option<u64>, String) {
    with_slack(async |fake, base| {
        fake.plan(answer);
        verdict_of(fail(&bot(&base), "#llm").await)
    })
    .await
}

fn verdict_of(error: NotifyError) -> (bool, Option<u64>, String) {
    match error {
        NotifyError::Dead(message) => (true, None, message),
        NotifyError::Retry { message, retry_after, .. } => (false, retry_after.as_ref().map(Duration::as_secs), message),
    }
}

#[tokio::test]
async fn only_a_message_that_slack_cannot_read_is_dead() {
    let refusal = |code: &str| Json(json!({ "ok": false, "error": code, "response_metadata": { "messages": ["[ERROR] too long"] } }));
    assert_eq!(verdict(refusal("invalid_blocks")).await, (true, None, "Slack cannot read the message: invalid_blocks ([ERROR] too long)".into()));
    for (code, wait) in
        [("invalid_auth", Some(600)), ("not_in_channel", Some(600)), ("missing_scope", Some(600)), ("news_to_us", Some(600)), ("internal_error", None)]
    {
        let (dead, retry_after, message) = verdict(refusal(code)).await;
        assert_eq!((dead, retry_after), (false, wait), "{message}");
        assert!(message.contains(code), "{message}");
    }
    assert_eq!(verdict((StatusCode::TOO_MANY_REQUESTS, [("retry-after", "30")], refusal("ratelimited"))).await.1, Some(30));
    assert_eq!(verdict((StatusCode::SERVICE_UNAVAILABLE, "<html>")).await, (false, None, "Slack answered HTTP 503".into()));
    let (dead, retry_after, message) = verdict("<html>a proxy's page</html>").await;
    assert_eq!((dead, retry_after), (false, None), "{message}");
}

#[tokio::test]
async fn a_webhooks_words_are_understood() {
    with_slack(async |fake, base| {
        // A webhook each: what is measured is the error, not the pace.
        for (status, word, expected) in [
            (400, "invalid_payload", (true, None)),
            (404, "no_service", (false, Some(600))),
            (410, "channel_is_archived", (false, Some(600))),
            (500, "rollup_error", (false, None)),
        ] {
            fake.plan((StatusCode::from_u16(status).unwrap(), word));
            let (dead, wait, message) = verdict_of(fail(&by_webhook(&base), "").await);
            assert_eq!((dead, wait), expected, "{message}");
            assert!(!message.contains("/hook"), "the address is a secret: {message}");
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_there_is_tried_again_and_names_no_secret() {
    let (dead, _, message) = verdict_of(fail(&by_webhook("http://127.0.0.1:9"), "").await);
    assert!(!dead && message.contains("refused") && !message.contains("hook"), "{message}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_after_ten_seconds() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slack = bot(&format!("http://{}", listener.local_addr().unwrap()));
    let told = async {
        // Connected for real, then the clock runs ahead.
        let call = fail(&slack, "#llm");
        tokio::pin!(call);
        let held = tokio::select! { accepted = listener.accept() => accepted.unwrap(), told = &mut call => unreachable!("{told:?}") };
        tokio::time::pause();
        let told = call.await;
        drop(held);
        told
    };
    let (dead, _, message) = verdict_of(told.await);
    assert!(!dead && message.contains("within 10s"), "{message}");
}

#[tokio::test]
async fn the_probe_names_who_we_are() {
    with_slack(async |fake, base| {
        assert_eq!(bot(&base).probe().await.unwrap(), "Slack: assayd in test");
        fake.refuse("invalid_auth");
        assert!(bot(&base).probe().await.unwrap_err().contains("token needs to be replaced"));
    })
    .await;
}

#[test]
fn a_useless_connection_is_refused_when_it_is_built() {
    let connection = SlackConnection { token: None, webhook_url: None, signing_secret: None, api_url: "https://slack.com/api/".into() };
    let error = |connection: SlackConnection| SlackNotifier::new(&connection, None).err().unwrap();
    assert_eq!(error(connection.clone()), "the Slack connection has neither token nor webhook_url");
    assert!(error(SlackConnection { token: Some("xoxb a".into()), ..connection.clone() }).contains("token"));
    let broken = error(SlackConnection { webhook_url: Some("hooks.slack.com/SECRET".into()), ..connection.clone() });
    assert!(broken.contains("webhook_url") && !broken.contains("SECRET"), "{broken}");
    assert!(error(SlackConnection { token: Some("xoxb-a".into()), api_url: "slack.com".into(), ..connection }).contains("slack.com"));
}
