//! Metrics of others: `exec`, a process that is told items as JSON lines, and `http`, a service that they are posted to.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Json, Router, http::StatusCode, routing::post};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{langfuse, short, with},
    site::Site,
    world::NewTrace,
};

/// Where the examples that we ship are.
fn example(name: &str) -> String {
    format!("{}/examples/exec/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A file source with these outputs, one item each: `i0`, `i1` ...
pub fn items(site: &Site, outputs: &[&str]) -> Value {
    let at = Timestamp::now() - SignedDuration::from_mins(9);
    let line = |(n, output): (usize, &&str)| json!({ "id": format!("i{n}"), "timestamp": at.to_string(), "input": "?", "output": output }).to_string() + "\n";
    site.write("items.jsonl", outputs.iter().enumerate().map(line).collect::<String>());
    json!({ "schedule": { "every": "1h" }, "source": { "type": "file", "path": "items.jsonl", "settle": "0s" } })
}

pub fn exec(script: &str, rest: Value) -> Value {
    with(json!({ "name": "m", "type": "exec", "command": ["python3", script] }), rest)
}

pub async fn rows(site: &Site) -> Vec<(String, String, String, Value)> {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let mut rows: Vec<_> = site.export(&[]).await.iter().map(|row| (text(row, "item_id"), text(row, "metric"), text(row, "outcome"), row.clone())).collect();
    rows.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    rows
}

#[tokio::test]
async fn a_python_function_judges_in_one_process_for_all_runs() {
    let site = Site::new().await;
    site.world.langfuse.add_some(12);
    let metric = exec(&example("brevity.py"), json!({ "concurrency": 4, "threshold": 0.5 }));
    site.monitor("m", &with(langfuse(), json!({ "schedule": { "every": "1s" }, "metrics": [metric] })));
    let daemon = site.daemon().await;
    site.until("all scores", |world| world.langfuse.scored("m") == 12).await;
    for n in 0..3 {
        site.world.langfuse.add(NewTrace::new(format!("later{n}"), Timestamp::now() - SignedDuration::from_mins(2)));
    }
    site.until("the later ones", |world| world.langfuse.scored("m") == 15).await;
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(site.log().matches("a metric's process is ready").count(), 1, "{}", site.log());
    for (_, _, outcome, row) in rows(&site).await {
        assert_eq!((outcome.as_str(), row["passed"].as_bool(), row["reason"].as_str().unwrap().ends_with(" words")), ("scored", Some(true), true), "{row}");
    }
}

/// What a process may do with an item: the item's output says which.
const MOODY: &str = r#"
import json, os, subprocess, sys, time
print("a library says hello")
print(json.dumps({"hello": {"name": "moody", "version": os.environ.get("VERSION", "1")}}), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    mood = message["item"]["output"]
    answer = {"id": message["id"], "outcomes": [{"score": 0.5}]}
    if mood == "parts":
        answer["outcomes"] = [{"name": "kind", "score": 0.9, "passed": True}, {"name": "tone", "score": 1, "label": "dry"},
                              {"name": "sources", "not_applicable": "none"}, {"name": "facts", "error": "no key"}]
        answer["usage"] = {"model": "gpt-4o", "cost_usd": 0.25, "input_tokens": 7}
    elif mood == "noise":
        print("some noise\n\n{\"id\": 99999, \"outcomes\": []}")
    elif mood == "raises":
        answer = {"id": message["id"], "error": "ValueError: \x1b[31mbad"}
    elif mood == "dies":
        print("no disk left", file=sys.stderr, flush=True)
        os._exit(3)
    elif mood == "hangs":
        time.sleep(3600)
    elif mood == "nan":
        answer["outcomes"] = [{"score": float("nan")}]
    elif mood == "off":
        answer["outcomes"] = [{"score": 1.5}]
    elif mood == "shape":
        answer["outcomes"] = "yes"
    elif mood == "flood":
        answer["outcomes"] = [{"score": 1, "reason": "x" * (5 << 20)}]
    elif mood == "hungry":
        bytearray(1 << 30)
    elif mood == "parent":
        child = subprocess.Popen(["sleep", "3600"])
        answer["outcomes"] = [{"score": 1, "reason": f"pids {os.getpid()} {child.pid}"}]
    elif mood == "environment":
        answer["outcomes"] = [{"score": 1, "reason": f"{os.environ.get('KEY')} {os.environ.get('SECRET')}"}]
    print(json.dumps(answer), flush=True)
"#;

#[tokio::test]
async fn whatever_a_process_does_each_item_ends_with_a_score_or_a_reason() {
    let site = Site::new().await;
    site.write("moody.py", MOODY);
    let moods = ["fine", "parts", "noise", "raises", "dies", "hangs", "nan", "off", "shape", "flood", "hungry", "fine"];
    let metric = exec("moody.py", json!({ "timeout": "3s", "memory_mb": 600, "concurrency": 3 }));
    let gated = with(metric.clone(), json!({ "name": "gated", "when": "scores.m.kind.passed" }));
    let all = json!({ "name": "all", "type": "composite", "parts": { "m.kind": 1, "m.tone": 1 } });
    let spec = json!({ "metrics": [metric, all, gated], "evaluation": { "max_attempts": 1 }, "alerts": [{ "name": "rude", "metric": "m.kind", "when": "mean < 0.5" }] });
    site.monitor("m", &with(items(&site, &moods), spec));
    let report = site.once("m").await;
    assert_eq!((report["counts"]["scored"].as_u64(), report["counts"]["failed"].as_u64()), (Some(3), Some(9)), "{report}");
    assert_eq!(report["metrics"]["m.kind"]["mean"], json!(0.9), "{report}");
    assert_eq!(report["cost_usd"], json!(0.5), "{report}");

    let rows = rows(&site).await;
    let of = |item: usize, metric: &str| {
        let id = format!("i{item}");
        rows.iter().find(|row| row.0 == id && row.1 == metric).map(|row| (row.2.as_str(), row.3["reason"].as_str().unwrap().to_owned()))
    };
    assert_eq!(["kind", "tone", "sources", "facts"].map(|part| of(1, &format!("m.{part}")).unwrap().0), ["scored", "scored", "not_applicable", "failed"]);
    assert_eq!(of(1, "m"), None);
    assert_eq!([of(1, "all"), of(1, "gated.kind"), of(2, "m"), of(2, "gated")].map(|row| row.unwrap().0), ["scored", "scored", "scored", "not_applicable"]);
    for (item, why) in [
        (3, "ValueError"),
        (4, "exit code 3; it said last: no disk left"),
        (5, "no answer within 3s"),
        (6, "cannot be read"),
        (7, "not in [0, 1]"),
        (8, "cannot be read"),
        (9, "more than 4 MiB"),
        (10, "MemoryError"),
    ] {
        let (outcome, reason) = of(item, "m").unwrap();
        assert!(outcome == "failed" && reason.contains(why), "{item}: {outcome} {reason}");
    }
    assert!(!site.run(&["explain", "m", "i3"]).await.expect(0).said().contains('\u{1b}'));
}

#[tokio::test]
async fn a_process_and_its_children_end_with_the_daemon_and_see_no_keys_of_ours() {
    let mut site = Site::new().await;
    site.env.push(("SECRET".to_owned(), "of-assayd".to_owned()));
    site.env.push(("THEIRS".to_owned(), "of-the-metric".to_owned()));
    site.write("moody.py", MOODY);
    let metric = exec("moody.py", json!({ "env": { "KEY": "env:THEIRS" } }));
    site.monitor("m", &with(items(&site, &["parent", "environment"]), json!({ "schedule": { "every": "1s" }, "metrics": [metric] })));
    let daemon = site.daemon().await;
    site.more_runs("m", 1).await;
    let reasons: Vec<String> = rows(&site).await.iter().map(|row| row.3["reason"].as_str().unwrap().to_owned()).collect();
    assert_eq!(reasons[1], "*** None", "it has the key, and does not tell it on");
    let pids: Vec<&str> = reasons[0].strip_prefix("pids ").unwrap().split(' ').collect();
    let alive = || pids.iter().filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))).count();
    assert_eq!(alive(), 2);
    assert_eq!(daemon.stop().await, Some(0));
    site.wait("both to be gone", || async { alive() == 0 }).await;
}

#[tokio::test]
async fn a_process_that_cannot_start_defers_its_items_until_it_can() {
    let site = Site::new().await;
    let metric = exec("moody.py", json!({ "start_timeout": "20s" }));
    site.monitor("m", &with(items(&site, &["fine", "fine"]), json!({ "metrics": [metric] })));
    let report = site.once_with("m", &[], 1).await;
    assert_eq!((report["status"].as_str(), report["counts"]["deferred"].as_u64()), (Some("failed"), Some(2)), "{report}");
    assert!(report.to_string().contains("can't open file"), "{report}");
    site.write("moody.py", MOODY);
    assert_eq!(site.once("m").await["counts"]["scored"], 2);
}

#[tokio::test]
async fn another_version_of_a_process_is_another_revision() {
    let site = Site::new().await;
    site.write("moody.py", MOODY);
    for version in ["1", "2"] {
        let outputs = if version == "1" { vec!["fine"] } else { vec!["fine", "fine"] };
        let metric = exec("moody.py", json!({ "env": { "VERSION": version } }));
        site.monitor("m", &with(items(&site, &outputs), json!({ "metrics": [metric] })));
        assert_eq!(site.once("m").await["counts"]["scored"], 1);
    }
    let rows = rows(&site).await;
    assert_ne!(rows[0].3["metric_revision"], rows[1].3["metric_revision"]);
}

#[tokio::test]
async fn a_service_judges_what_is_posted_and_an_item_waits_while_it_refuses() {
    let (calls, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::<Value>::new())));
    let (counted, items_seen) = (calls.clone(), seen.clone());
    let judge = move |Json(body): Json<Value>| async move {
        // Busy at first: asked again.
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            return (StatusCode::SERVICE_UNAVAILABLE, Json(Value::Null));
        }
        items_seen.lock().unwrap().push(body["item"].clone());
        (StatusCode::OK, Json(json!({ "outcomes": [{ "name": "a", "score": 0.25 }, { "name": "b", "score": 1 }] })))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/judge", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, Router::new().route("/judge", post(judge))).await.unwrap() });

    let site = Site::new().await;
    let metric = |url: &str| json!({ "name": "m", "type": "http", "url": url, "trace": true, "headers": { "authorization": "Bearer t" } });
    let spec = items(&site, &["one", "two"]);
    let nowhere = with(spec.clone(), json!({ "metrics": [metric(&format!("{url}/nowhere"))] }));
    site.monitor("m", &nowhere);
    assert_eq!(site.once_with("m", &[], 1).await["counts"]["deferred"], 2);
    site.monitor("m", &with(spec, json!({ "metrics": [metric(&url)] })));
    assert_eq!(site.once("m").await["counts"]["scored"], 2);
    let rows = rows(&site).await;
    assert_eq!(
        rows.iter().map(|row| (row.1.as_str(), row.3["value"].as_f64().unwrap())).collect::<Vec<_>>(),
        [("m.a", 0.25), ("m.b", 1.0), ("m.a", 0.25), ("m.b", 1.0)]
    );
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|item| item["trace"]["output"] == item["output"] && item["metadata"].is_object()), "{seen:?}");
    server.abort();
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_their_place() {
    let site = Site::new().await;
    for (metric, fault) in [
        (json!({ "name": "m", "type": "exec", "command": [] }), "names no program"),
        (json!({ "name": "m", "type": "exec", "command": ["x"], "concurrency": 0 }), "at least 1"),
        (json!({ "name": "m", "type": "http", "url": "ftp://x" }), "an http or https URL"),
        (json!({ "name": "m.x", "type": "exec", "command": ["x"] }), "has no dot"),
    ] {
        site.monitor("m", &with(short(), json!({ "metrics": [metric] })));
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(fault) && said.contains("monitors/m.yaml:"), "{said}");
    }
}

/// The smallest thing that fits a JSON schema: what a model says that agrees with everything.
fn agreeing(schema: &Value, root: &Value) -> Value {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return agreeing(&root["$defs"][name], root);
    }
    if let Some(first) = schema["enum"].get(0).or_else(|| schema["anyOf"].get(0).map(|any| &any["const"]).filter(|value| !value.is_null())) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("object") => schema["properties"].as_object().into_iter().flatten().map(|(key, part)| (key.clone(), agreeing(part, root))).collect(),
        Some("array") => json!([agreeing(&schema["items"], root)]),
        Some("number" | "integer") => json!(1),
        Some("boolean") => json!(true),
        _ => json!("yes"),
    }
}

/// A model for evaluation frameworks: each asks for JSON of its own form, by `response_format` or in its system message.
async fn framework_model() -> (String, tokio::task::JoinHandle<()>) {
    let answer = |Json(request): Json<Value>| async move {
        let system = request["messages"][0]["content"].as_str().unwrap_or_default();
        let in_system = system.find('{').and_then(|at| serde_json::Deserializer::from_str(&system[at..]).into_iter::<Value>().next()?.ok());
        let by_format = request["response_format"]["json_schema"].get("schema").cloned();
        let said = by_format.or(in_system).map_or_else(|| json!({ "score": 8, "reason": "It helps." }), |schema| agreeing(&schema, &schema));
        Json(json!({
            "id": "c1", "object": "chat.completion", "created": 1, "model": request["model"],
            "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": said.to_string() } }],
            "usage": { "prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18 },
        }))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, Router::new().route("/v1/chat/completions", post(answer))).await.unwrap() });
    (url, server)
}

/// What a framework's metrics make of ten real answers; `None` where the framework is not installed. CI sets
/// `ASSAYD_TEST_REQUIRE_FRAMEWORKS`, and there it is a failure.
async fn by_framework(variable: &str, package: &str, script: &str) -> Option<Vec<(String, String, String, Value)>> {
    let python = std::env::var(variable).unwrap_or_else(|_| "python3".to_owned());
    let there = std::process::Command::new(&python).args(["-c", &format!("import {package}")]).output().is_ok_and(|output| output.status.success());
    if !there {
        assert!(std::env::var("ASSAYD_TEST_REQUIRE_FRAMEWORKS").is_err(), "{python} has no {package}");
        eprintln!("NOT TRIED: {python} has no {package}; {variable} names a Python that has it");
        return None;
    }
    let (url, server) = framework_model().await;
    let mut site = Site::new().await;
    site.env.push(("OPENAI_API_KEY".to_owned(), "sk-framework".to_owned()));
    let answers: String = include_str!("../fixtures/answers.jsonl").lines().take(10).map(|line| format!("{line}\n")).collect();
    site.write("answers.jsonl", answers);
    let env = json!({ "OPENAI_API_KEY": "env:OPENAI_API_KEY", "OPENAI_BASE_URL": url });
    let metric = json!({ "name": "m", "type": "exec", "command": [python, example(script)], "env": env, "concurrency": 4 });
    let source = json!({ "type": "file", "path": "answers.jsonl", "lookback": "3650d", "settle": "0s" });
    site.monitor("m", &json!({ "schedule": { "every": "1h" }, "source": source, "extract": { "context": "{{ trace.input }}" }, "metrics": [metric] }));
    assert_eq!(site.once("m").await["counts"]["scored"], 10, "{:?}", site.export(&[]).await.first());
    server.abort();
    Some(rows(&site).await)
}

#[tokio::test]
async fn deepeval_judges_real_answers() {
    let Some(rows) = by_framework("ASSAYD_TEST_DEEPEVAL_PYTHON", "deepeval", "deepeval_metrics.py").await else { return };
    let value = |metric: &str| rows.iter().filter(|row| row.1 == metric).map(|row| row.3["value"].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!((value("m.answer_relevancy"), value("m.helpful")), (vec![1.0; 10], vec![0.8; 10]));
    assert!(rows.iter().all(|row| row.3["passed"] == true && !row.3["reason"].as_str().unwrap().is_empty()), "{rows:?}");
}

#[tokio::test]
async fn ragas_judges_real_answers() {
    let Some(rows) = by_framework("ASSAYD_TEST_RAGAS_PYTHON", "ragas", "ragas_metrics.py").await else { return };
    assert_eq!(rows.iter().map(|row| (row.1.as_str(), row.3["value"].as_f64())).collect::<Vec<_>>(), vec![("m", Some(1.0)); 10]);
}
