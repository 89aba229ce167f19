//! Prompts kept in Langfuse: what a run judges with, and that nobody but Langfuse can make it judge with another.

use std::sync::{Arc, Mutex};

use axum::{Json, Router, routing::post};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use crate::{
    build::{judge, langfuse, quick, with},
    site::Site,
    world::{Fault, NewTrace, WEBHOOK_SECRET, prompt_event, signature},
};

fn kept(prompt: &str) -> Value {
    json!([with(judge(), json!({ "prompt": prompt }))])
}

/// A site whose monitor `m` judges with the prompt `judge`, as it stands in Langfuse.
async fn site(base: Value) -> Site {
    let mut site = Site::new().await;
    site.settings["connections"]["langfuse"]["default"]["webhook_secret"] = json!(WEBHOOK_SECRET);
    site.settings["notify"] = json!([{ "slack": "#llm-ops" }]);
    site.save();
    site.world.langfuse.put_prompt("judge", json!("FIRST. Question: {{input}} Answer: {{ output }} As JSON: {\"score\": 3}"), &["production"]);
    site.monitor("m", &with(base, json!({ "metrics": kept("langfuse:judge@production") })));
    site
}

/// One more trace, young enough for the next run.
fn trace(site: &Site, id: &str) {
    site.world.langfuse.add(NewTrace::new(id, Timestamp::now() - SignedDuration::from_mins(5)));
}

fn asked(site: &Site, word: &str) -> usize {
    site.world.llm.prompts().iter().filter(|prompt| prompt.contains(word)).count()
}

/// Sends a body with its header; the status of the answer.
async fn hook(site: &Site, header: Option<&str>, body: &[u8]) -> u16 {
    let client = reqwest::Client::new();
    let mut request = client.post(format!("http://127.0.0.1:{}/webhooks/langfuse", site.port)).body(body.to_vec());
    if let Some(header) = header {
        request = request.header("x-langfuse-signature", header);
    }
    request.send().await.unwrap().status().as_u16()
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

#[tokio::test]
async fn a_signed_webhook_changes_the_prompt_of_the_next_run_without_a_restart() {
    let site = site(quick()).await;
    trace(&site, "a");
    let _daemon = site.daemon().await;
    site.until("a judgement by the first version", |_| asked(&site, "FIRST. Question:") == 1).await;
    let reads = site.world.langfuse.prompt_reads();
    site.more_runs("m", 3).await;
    assert_eq!(site.world.langfuse.prompt_reads(), reads, "runs within a minute share what was read");

    let version = site.world.langfuse.put_prompt("judge", json!("SECOND. {{output}}"), &["production"]);
    let body = prompt_event("evt-1", "judge", version).to_string();
    let (time, told) = (now(), std::time::Instant::now());
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, time, body.as_bytes())), body.as_bytes()).await, 202);
    assert!(told.elapsed() < std::time::Duration::from_secs(1));
    trace(&site, "b");
    site.until("a judgement by the second version", |_| asked(&site, "SECOND. ") == 1).await;
    assert_eq!(asked(&site, "FIRST."), 1, "no item is judged again");
    site.until("both scores at the server", |world| world.langfuse.scored("helpful") == 2).await;
    let rows = site.export(&[]).await;
    let revisions: std::collections::BTreeSet<_> = rows.iter().map(|row| row["metric_revision"].as_str().unwrap()).collect();
    assert_eq!((rows.len(), revisions.len()), (2, 2), "a changed prompt is a new revision: {rows:?}");

    site.until("a message in Slack", |world| !world.slack.messages().is_empty()).await;
    let text = site.world.slack.messages()[0].to_string();
    for part in ["judge", "v2", "created", "production, latest", "Jane &lt;!channel&gt; Doe", "Judged with by m."] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    let listed = site.run(&["prompts", "list", "--format", "json"]).await.expect(0).json();
    assert_eq!((&listed[0]["prompt"], &listed[0]["wanted"], &listed[0]["version"]), (&json!("judge"), &json!("production"), &json!(2)), "{listed}");
    assert_eq!(listed[0]["monitors"], json!(["m"]));
    let shown = site.run(&["prompts", "show", "judge"]).await.expect(0).stdout;
    assert!(shown.contains("judge v2") && shown.contains("SECOND. {{output}}"), "{shown}");
}

#[tokio::test]
async fn what_is_forged_stale_replayed_or_too_large_changes_nothing() {
    let site = site(quick()).await;
    trace(&site, "a");
    let _daemon = site.daemon().await;
    site.until("a judgement", |_| asked(&site, "FIRST.") == 1).await;
    let body = prompt_event("evt-1", "judge", 2).to_string();
    let body = body.as_bytes();
    let good = signature(WEBHOOK_SECRET, now(), body);
    assert_eq!(hook(&site, Some(&good), body).await, 202);
    site.until("a message", |world| world.slack.messages().len() == 1).await;
    site.more_runs("m", 2).await;
    // At worst one look too many: whether it was taken before is known only when the store answers.
    assert_eq!(hook(&site, Some(&good), body).await, 400, "replayed");
    site.more_runs("m", 2).await;
    let reads = site.world.langfuse.prompt_reads();

    site.world.langfuse.put_prompt("judge", json!("SECOND. {{output}}"), &["production"]);
    assert_eq!(hook(&site, None, body).await, 401);
    assert_eq!(hook(&site, Some(&signature("lf-whsec_another", now(), body)), body).await, 401);
    assert_eq!(hook(&site, Some(&good), &body[..body.len() - 1]).await, 401);
    let other = prompt_event("evt-2", "judge", 2).to_string();
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now() - 301, other.as_bytes())), other.as_bytes()).await, 401, "stale");
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now() + 310, other.as_bytes())), other.as_bytes()).await, 401, "from the future");
    let large = vec![b' '; (1 << 20) + 1];
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now(), &large)), &large).await, 413);
    let broken = b"{\"id\":\"evt-3\",\"type\":\"prompt-version\"}";
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now(), broken)), broken).await, 400);
    let monitor_alert = br#"{"id":"evt-4","type":"monitor-alert","payload":{}}"#;
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now(), monitor_alert)), monitor_alert).await, 202, "what is not ours is not refused");

    trace(&site, "b");
    site.until("a second judgement", |_| asked(&site, "FIRST.") == 2).await;
    assert_eq!((asked(&site, "SECOND."), site.world.langfuse.prompt_reads(), site.world.slack.messages().len()), (0, reads, 1));
    for (result, n) in [("accepted", 1.0), ("replayed", 1.0), ("forged", 3.0), ("stale", 2.0), ("too_large", 1.0), ("malformed", 1.0), ("ignored", 1.0)] {
        assert_eq!(site.metric("assayd_webhooks_total", &[("result", result)]).await, n, "{result}");
    }
    assert!(!site.log().contains(WEBHOOK_SECRET));
}

#[tokio::test]
async fn an_event_taken_before_a_kill_is_a_replay_after_it() {
    let mut site = site(quick()).await;
    let told: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (keep, listener) = (Arc::clone(&told), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    // Clients need a token; Langfuse has none, and signs.
    site.settings["auth"] = json!({ "token": "let-me-in" });
    site.settings["connections"]["langfuse"]["default"]["notify_url"] = json!(format!("http://{}/told", listener.local_addr().unwrap()));
    site.save();
    let router = Router::new().route("/told", post(async move |Json(body): Json<Value>| keep.lock().unwrap().push(body)));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let daemon = site.daemon().await;
    let body = prompt_event("evt-1", "judge", 2).to_string();
    let header = signature(WEBHOOK_SECRET, now(), body.as_bytes());
    assert_eq!(hook(&site, Some(&header), body.as_bytes()).await, 202);
    site.wait("a call of notify_url", async || !told.lock().unwrap().is_empty()).await;
    let call = told.lock().unwrap()[0].clone();
    assert_eq!((&call["event"], &call["prompt"], &call["version"], &call["monitors"]), (&json!("prompt-changed"), &json!("judge"), &json!(2), &json!(["m"])));
    daemon.kill9().await;
    let _daemon = site.daemon().await;
    assert_eq!(hook(&site, Some(&header), body.as_bytes()).await, 400);
    // Slack is told at least once: the kill may have come between its answer and the record of it.
    site.until("the message", |world| !world.slack.messages().is_empty()).await;
    assert!(site.world.slack.messages().len() <= 2);
    assert_eq!(told.lock().unwrap().len(), 1);
    server.abort();
}

#[tokio::test]
async fn while_langfuse_gives_no_prompts_the_last_good_one_is_judged_with() {
    let site = site(langfuse()).await;
    trace(&site, "a");
    site.once("m").await;
    // A new process has nothing in memory.
    for (n, fault) in [Fault::Status(500), Fault::Drop, Fault::Html, Fault::Status(429)].into_iter().enumerate() {
        site.world.langfuse.prompts.always(Some(fault));
        trace(&site, &format!("b{n}"));
        let report = site.once("m").await;
        assert_eq!((&report["counts"]["scored"], &report["prompts"]["helpful"]["version"]), (&json!(1), &json!(1)), "{fault:?}: {report}");
    }
    assert_eq!(asked(&site, "FIRST."), 5);
}

#[tokio::test]
async fn refused_keys_block_the_metric_and_what_was_read_before_is_judged_with_no_longer() {
    let site = site(quick()).await;
    trace(&site, "a");
    site.once("m").await;
    for status in [401, 403] {
        site.world.langfuse.prompts.always(Some(Fault::Status(status)));
        trace(&site, &format!("b{status}"));
        let report = site.once_with("m", &[], 1).await;
        assert_eq!((&report["counts"]["scored"], asked(&site, "FIRST.")), (&json!(0), 1), "{report}");
        let blocked = report["judge_blocked"].as_str().unwrap();
        assert!(blocked.contains("refuses the keys of connection `default`") && blocked.contains(&status.to_string()), "{blocked}");
        assert!(report["counts"]["deferred"].as_u64().unwrap() > 0 && report["counts"]["failed"] == 0, "{report}");
    }
    let _daemon = site.daemon().await;
    site.until("an alert", |world| world.slack.messages().iter().any(|message| message.to_string().contains("judge-blocked"))).await;
    site.world.langfuse.prompts.always(None);
    // Read again within a minute: then what waited is judged.
    let body = prompt_event("evt-1", "judge", 1).to_string();
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now(), body.as_bytes())), body.as_bytes()).await, 202);
    site.until("all scores", |world| world.langfuse.scored("helpful") == 3).await;
}

#[tokio::test]
async fn a_webhook_that_finds_the_store_busy_is_taken_when_it_is_not() {
    let site = site(quick()).await;
    trace(&site, "a");
    let _daemon = site.daemon().await;
    site.until("a judgement", |_| asked(&site, "FIRST.") == 1).await;
    let reads = site.world.langfuse.prompt_reads();
    // Somebody else writes, for longer than Langfuse waits.
    let mut store = SqliteConnection::connect(&format!("sqlite://{}", site.path("state/assayd.db").display())).await.unwrap();
    sqlx::raw_sql("PRAGMA busy_timeout = 20000; BEGIN IMMEDIATE").execute(&mut store).await.unwrap();
    let body = prompt_event("evt-1", "judge", 2).to_string();
    let header = signature(WEBHOOK_SECRET, now(), body.as_bytes());
    assert_eq!(hook(&site, Some(&header), body.as_bytes()).await, 202, "or Langfuse sends it again, and is told that it was taken");
    site.until("a fresh look all the same", |world| world.langfuse.prompt_reads() > reads).await;
    assert!(site.world.slack.messages().is_empty());
    sqlx::raw_sql("ROLLBACK").execute(&mut store).await.unwrap();
    store.close().await.unwrap();
    site.until("the message", |world| !world.slack.messages().is_empty()).await;
    assert_eq!(hook(&site, Some(&header), body.as_bytes()).await, 400, "replayed");
}

#[tokio::test]
async fn a_change_of_a_prompt_names_who_judges_with_one_that_is_composed_of_it() {
    let mut site = site(quick()).await;
    // A second name for the same project, with the same secret.
    site.settings["connections"]["langfuse"]["again"] = site.settings["connections"]["langfuse"]["default"].clone();
    site.save();
    site.world.langfuse.put_prompt("tone", json!("BE KIND."), &["production"]);
    site.world.langfuse.put_prompt("judge", json!("@@@langfusePrompt:name=tone|label=production@@@ {{output}}"), &["production"]);
    let metric = with(judge(), json!({ "prompt": "langfuse:judge@production", "connection": "again" }));
    site.monitor("other", &with(quick(), json!({ "metrics": [metric] })));
    trace(&site, "a");
    let _daemon = site.daemon().await;
    site.until("judgements by both", |_| asked(&site, "BE KIND.") == 2).await;
    let body = prompt_event("evt-1", "tone", 2).to_string();
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now(), body.as_bytes())), body.as_bytes()).await, 202);
    site.until("a message in Slack", |world| !world.slack.messages().is_empty()).await;
    let text = site.world.slack.messages()[0].to_string();
    assert!(text.contains("prompt tone v2 was created") && text.contains("Judged with by m, other."), "{text}");
}

#[tokio::test]
async fn without_any_good_prompt_items_wait_and_come_back() {
    let site = site(langfuse()).await;
    site.world.langfuse.prompts.always(Some(Fault::Status(500)));
    trace(&site, "a");
    let report = site.once_with("m", &[], 1).await;
    assert_eq!((&report["counts"]["deferred"], site.world.llm.requests()), (&json!(1), 0), "{report}");
    assert!(report["judge_blocked"].as_str().unwrap().contains("judge@production"), "{report}");
    site.world.langfuse.prompts.always(None);
    assert_eq!(site.once("m").await["counts"]["scored"], 1);
}

#[tokio::test]
async fn a_prompt_that_is_gone_or_cannot_be_filled_in_blocks_its_metric_with_a_reason() {
    let site = site(langfuse()).await;
    trace(&site, "a");
    site.once("m").await;
    let reason = async |site: &Site| {
        let report = site.once_with("m", &[], 1).await;
        assert!(report["counts"]["deferred"].as_u64().unwrap() > 0 && report["counts"]["failed"] == 0, "{report}");
        report["judge_blocked"].as_str().unwrap().to_owned()
    };
    trace(&site, "b");
    site.world.langfuse.delete_prompt("judge");
    let said = reason(&site).await;
    assert!(said.contains("Prompt not found: 'judge' with label 'production'"), "{said}");
    // What Langfuse said holds while it says nothing.
    site.world.langfuse.prompts.always(Some(Fault::Status(500)));
    assert!(reason(&site).await.contains("Prompt not found"));
    site.world.langfuse.prompts.always(None);
    let listed = site.run(&["prompts", "list"]).await.expect(0).stdout;
    assert!(listed.contains("not found"), "{listed}");

    for (prompt, words) in [
        (json!("Rate {{question}}"), "`question`"),
        (json!("Rate @@@langfusePrompt:name=tone|label=production@@@"), "unresolved"),
        (json!([{ "type": "placeholder", "name": "history" }]), "`history`"),
        (json!([{ "role": "system", "content": "Be strict." }]), "user's"),
    ] {
        site.world.langfuse.put_prompt("judge", prompt, &["production"]);
        let said = reason(&site).await;
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    assert_eq!(site.world.llm.requests(), 1);
    site.world.langfuse.put_prompt("judge", json!("MENDED {{output}}"), &["production"]);
    assert_eq!(site.once("m").await["counts"]["scored"], 1);
    assert_eq!(asked(&site, "MENDED <<<BEGIN output"), 1, "text from a trace is fenced");
}

#[tokio::test]
async fn a_version_stays_and_a_chat_keeps_its_roles_and_its_variables() {
    let site = site(langfuse()).await;
    let chat = json!([
        { "type": "chatmessage", "role": "system", "content": "STRICT for {{tenant}}." },
        { "type": "chatmessage", "role": "user", "content": "CHAT Q: {{query}}" },
        { "role": "assistant", "content": "And the answer?" },
        { "role": "user", "content": "{{output}}" },
    ]);
    site.world.langfuse.put_prompt("team/chat judge", chat, &["staging"]);
    let version = site.world.langfuse.put_prompt("judge", json!("SECOND. {{output}}"), &["production"]);
    assert_eq!(version, 2);
    let metrics = json!([
        with(judge(), json!({ "name": "first", "prompt": "langfuse:judge@1" })),
        with(judge(), json!({ "name": "chat", "prompt": "langfuse:team/chat judge@staging", "variables": { "query": "input", "tenant": "metadata.tenant" } })),
    ]);
    site.monitor("m", &with(langfuse(), json!({ "extract": { "metadata": { "tenant": "acme" } }, "metrics": metrics })));
    trace(&site, "a");
    let report = site.once("m").await;
    assert_eq!(report["prompts"], json!({ "first": { "name": "judge", "version": 1 }, "chat": { "name": "team/chat judge", "version": 1 } }));
    let prompts = site.world.llm.prompts();
    assert_eq!((prompts.len(), asked(&site, "FIRST."), asked(&site, "SECOND.")), (2, 1, 0));
    let chat = prompts.iter().find(|prompt| prompt.contains("CHAT Q:")).unwrap();
    for part in ["And the answer?", "<<<BEGIN input", "<<<BEGIN output"] {
        assert!(chat.contains(part), "no `{part}` in {chat}");
    }
}

#[tokio::test]
async fn the_next_alert_says_that_the_prompt_has_changed() {
    let site = site(quick()).await;
    let alert = json!({ "name": "low", "metric": "helpful", "when": "mean < 0.8", "over": "24h", "notify": [{ "slack": "#llm-alerts" }] });
    site.monitor("m", &with(quick(), json!({ "metrics": kept("langfuse:judge@production"), "alerts": [alert] })));
    site.world.llm.verdict(|prompt| if prompt.contains("SECOND.") { 0.0 } else { 1.0 });
    trace(&site, "a");
    let _daemon = site.daemon().await;
    site.until("a judgement", |_| asked(&site, "FIRST.") == 1).await;
    site.more_runs("m", 1).await;
    let version = site.world.langfuse.put_prompt("judge", json!("SECOND. {{output}}"), &["production"]);
    let body = prompt_event("evt-1", "judge", version).to_string();
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now(), body.as_bytes())), body.as_bytes()).await, 202);
    trace(&site, "b");
    let alerts = |site: &Site| site.world.slack.messages().into_iter().filter(|message| message["channel"] == "#llm-alerts").collect::<Vec<_>>();
    site.until("the alert", |_| !alerts(&site).is_empty()).await;
    let text = alerts(&site)[0].to_string();
    assert!(text.contains("prompt judge v1 -&gt; v2"), "{text}");
}

#[tokio::test]
async fn the_alert_on_a_part_or_on_what_is_made_of_it_says_so_too() {
    let site = site(quick()).await;
    let parts = with(judge(), json!({ "prompt": "langfuse:judge@production", "outputs": { "useful": { "kind": "boolean" } } }));
    let mut parts = parts.as_object().unwrap().clone();
    parts.remove("output");
    let both = json!({ "name": "both", "type": "composite", "parts": { "helpful.useful": 1 } });
    let alert = |metric: &str| json!({ "name": format!("{metric}-low"), "metric": metric, "when": "mean < 0.8", "over": "24h", "notify": [{ "slack": "#llm-alerts" }] });
    site.monitor("m", &with(quick(), json!({ "metrics": [parts, both], "alerts": [alert("helpful.useful"), alert("both")] })));
    site.world.llm.words(|prompt| Some(json!({ "useful_reason": "u", "useful_verdict": !prompt.contains("SECOND.") }).to_string()));
    trace(&site, "a");
    let _daemon = site.daemon().await;
    site.until("a judgement", |_| asked(&site, "FIRST.") == 1).await;
    site.more_runs("m", 1).await;
    let version = site.world.langfuse.put_prompt("judge", json!("SECOND. {{output}}"), &["production"]);
    let body = prompt_event("evt-1", "judge", version).to_string();
    assert_eq!(hook(&site, Some(&signature(WEBHOOK_SECRET, now(), body.as_bytes())), body.as_bytes()).await, 202);
    trace(&site, "b");
    let alerts = |site: &Site| site.world.slack.messages().into_iter().filter(|message| message["channel"] == "#llm-alerts").collect::<Vec<_>>();
    site.until("both alerts", |_| !alerts(&site).is_empty()).await;
    let text = alerts(&site)[0].to_string();
    assert_eq!(text.matches("prompt judge v1 -&gt; v2").count(), 2, "{text}");
}

#[tokio::test]
async fn references_that_cannot_hold_are_told_where_they_stand() {
    let site = site(langfuse()).await;
    for (change, words) in [
        (json!({ "prompt": "langfuse:judge@Production" }), "label of Langfuse"),
        (json!({ "prompt": "langfuse:judge@0" }), "versions count from 1"),
        (json!({ "prompt": "langfuse:judge", "connection": "elsewhere" }), "no langfuse connection `elsewhere`"),
        (json!({ "prompt": "langfuse:judge", "variables": { "query": "input +" } }), "`query` is no expression"),
        (json!({ "variables": { "query": "input" } }), "only a prompt kept in Langfuse"),
    ] {
        site.monitor("m", &with(langfuse(), json!({ "metrics": [with(judge(), change)] })));
        let said = site.run(&["validate"]).await.expect(1).stdout;
        assert!(said.contains("monitors/m.yaml:") && said.contains(words), "no `{words}` in {said}");
    }
}

#[tokio::test]
async fn prompts_are_refreshed_by_hand_beside_a_daemon_and_without_one() {
    let site = site(langfuse()).await;
    let refreshed = site.run(&["prompts", "refresh", "--format", "json"]).await.expect(0).json();
    assert_eq!(refreshed[0]["version"], 1, "{refreshed}");
    let _daemon = site.daemon().await;
    site.world.langfuse.put_prompt("judge", json!("SECOND. {{output}}"), &["production"]);
    let refreshed = site.run(&["prompts", "refresh", "judge", "--format", "json"]).await.expect(0).json();
    assert_eq!((&refreshed[0]["version"], &refreshed[0]["monitors"]), (&json!(2), &json!(["m"])), "{refreshed}");
    site.run(&["prompts", "refresh", "nobody"]).await.expect(2);
    site.world.langfuse.delete_prompt("judge");
    let refreshed = site.run(&["prompts", "refresh"]).await.expect(1).stdout;
    assert!(refreshed.contains("not found"), "{refreshed}");
}
