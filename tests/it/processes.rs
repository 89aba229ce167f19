//! Processes of metrics that outlive, hang and tell, seen from outside.

use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, with},
    outside::{exec, items, rows},
    site::Site,
    world::Style,
};

/// Judges by what the item's output says, and leaves its pid and its child's behind.
const FAMILY: &str = r#"
import json, os, subprocess, sys, time
print(json.dumps({"hello": {"name": "family"}}), flush=True)
for line in sys.stdin:
    child = subprocess.Popen(["sleep", "3600"])
    with open("pids.tmp", "w") as pids:
        pids.write(f"{os.getpid()} {child.pid}")
    os.rename("pids.tmp", "pids")
    time.sleep(3600)
"#;

fn alive(site: &Site) -> usize {
    let pids = std::fs::read_to_string(site.path("pids")).unwrap_or_default();
    pids.split_whitespace().filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))).count()
}

#[tokio::test]
async fn a_signal_ends_once_and_all_that_its_metrics_have_started() {
    for signal in ["INT", "TERM"] {
        let site = Site::new().await;
        site.write("family.py", FAMILY);
        site.monitor("m", &with(items(&site, &["hangs"]), json!({ "metrics": [exec("family.py", json!({ "timeout": "1h" }))] })));
        let once = site.spawn(&["once", "m"]);
        site.wait("the process and its child", || async { alive(&site) == 2 }).await;
        once.signal(signal);
        assert_eq!(once.end().await, Some(1));
        site.says("interrupted; the next run finishes what this one has begun").await;
        site.wait("both to be gone", || async { alive(&site) == 0 }).await;
    }
}

#[tokio::test]
async fn a_second_signal_leaves_nothing_behind() {
    let mut site = Site::new().await;
    site.settings["shutdown_grace"] = json!("1h");
    site.save();
    site.write("family.py", FAMILY);
    let spec = json!({ "schedule": { "every": "1s" }, "metrics": [exec("family.py", json!({ "timeout": "1h" }))] });
    site.monitor("m", &with(items(&site, &["hangs"]), spec));
    let daemon = site.daemon().await;
    site.wait("the process and its child", || async { alive(&site) == 2 }).await;
    daemon.signal("TERM");
    site.says("stopping").await;
    assert_eq!(alive(&site), 2, "the run has its grace");
    daemon.signal("TERM");
    assert_eq!(daemon.end().await, Some(1));
    site.wait("both to be gone", || async { alive(&site) == 0 }).await;
}

#[tokio::test]
async fn a_run_ends_by_its_timeout_while_a_metric_says_no_hello() {
    let site = Site::new().await;
    let metric = json!({ "name": "m", "type": "exec", "command": ["sleep", "3600"], "start_timeout": "1h" });
    site.monitor("m", &with(items(&site, &["fine"]), json!({ "schedule": { "timeout": "2s" }, "metrics": [metric] })));
    let report = site.once_with("m", &[], 1).await;
    assert_eq!((report["status"].as_str(), report["error"].as_str()), (Some("failed"), Some("not finished within 2s")), "{report}");
}

/// Tells wherever it can.
const TELLTALE: &str = r#"
import json, os, sys
key = os.environ["KEY"]
print(json.dumps({"hello": {"name": "telltale " + key}}), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    print("on stderr: " + key, file=sys.stderr, flush=True)
    print("on stdout: " + key)
    mood = message["item"]["output"]
    answer = {"id": message["id"], "outcomes": [{"score": 1, "reason": "with " + key, "label": key}], "usage": {"model": key}}
    if mood == "error":
        answer = {"id": message["id"], "error": "401 for " + key}
    elif mood == "shape":
        answer["outcomes"] = key
    elif mood == "dies":
        os._exit(1)
    print(json.dumps(answer), flush=True)
"#;

#[tokio::test]
async fn what_a_process_was_given_is_neither_logged_nor_kept() {
    const KEY: &str = "sk-of-the-metric-1234";
    let mut site = Site::new().await;
    site.env.push(("THEIRS".to_owned(), KEY.to_owned()));
    site.write("telltale.py", TELLTALE);
    let metric = exec("telltale.py", json!({ "env": { "KEY": "env:THEIRS" } }));
    let spec = json!({ "schedule": { "every": "1s" }, "metrics": [metric], "evaluation": { "max_attempts": 1 } });
    site.monitor("m", &with(items(&site, &["fine", "error", "shape", "dies"]), spec));
    let daemon = site.daemon().await;
    site.wait("all to be judged", || async { rows(&site).await.len() == 4 }).await;
    assert_eq!(daemon.stop().await, Some(0));
    for told in ["on stderr: \\*\\*\\*", "on stdout: \\*\\*\\*", "stopped"] {
        site.says(told).await;
    }
    assert!(!site.log().contains(KEY), "{}", site.log());
    let rows = rows(&site).await;
    let told: Vec<String> = rows.iter().map(|row| row.3.to_string()).collect();
    assert!(told.iter().all(|row| row.contains("***") && !row.contains(KEY)), "{told:#?}");
}

/// Fails as a whole at first, then gives parts; and says how often it was asked.
const LATE: &str = r#"
import json, os, sys
print(json.dumps({"hello": {"name": "late"}}), flush=True)
for line in sys.stdin:
    with open("asked", "a") as asked:
        asked.write("x")
    asked = os.path.getsize("asked")
    answer = {"error": "no model yet"} if asked == 1 else {"outcomes": [{"name": "a", "score": 1}, {"name": "b", "score": 0.5}]}
    print(json.dumps({"id": json.loads(line)["id"], **answer}), flush=True)
"#;

/// Kills assayd once it is asked a second time.
const KILLER: &str = r#"
import json, os, signal, sys
print(json.dumps({"hello": {"name": "killer"}}), flush=True)
for line in sys.stdin:
    with open("killed", "a") as asked:
        asked.write("x")
    if os.path.getsize("killed") == 2:
        os.kill(os.getppid(), signal.SIGKILL)
    answer = {"error": "not yet"} if os.path.getsize("killed") == 1 else {"outcomes": [{"score": 1}]}
    print(json.dumps({"id": json.loads(line)["id"], **answer}), flush=True)
"#;

#[tokio::test]
async fn parts_that_came_after_a_failure_are_paid_for_once() {
    let site = Site::new().await;
    site.write("late.py", LATE);
    site.write("killer.py", KILLER);
    let killer = with(exec("killer.py", json!({})), json!({ "name": "n" }));
    let alert = json!({ "name": "failing", "metric": "m.a", "when": "failed_rate > 0.5" });
    site.monitor("m", &with(items(&site, &["fine"]), json!({ "metrics": [exec("late.py", json!({})), killer], "alerts": [alert] })));
    let report = site.once_with("m", &[], 1).await;
    let state = |report: &Value| report["alerts"].as_array().unwrap().iter().find(|alert| alert["name"] == "failing").unwrap()["state"].clone();
    assert_eq!(state(&report), "firing", "what fails as a whole fails for its parts: {report}");
    assert_eq!(site.run(&["once", "m"]).await.code, None, "killed");
    site.once("m").await;
    assert_eq!(std::fs::read_to_string(site.path("asked")).unwrap(), "xx", "an answer that was stored is never paid for again");
    let names: Vec<_> = rows(&site).await.into_iter().map(|row| (row.1, row.2)).collect();
    let scored = |name: &str| (name.to_owned(), "scored".to_owned());
    assert_eq!(names, [scored("m.a"), scored("m.b"), scored("n")]);
}

#[tokio::test]
async fn a_judge_that_fails_is_not_asked_for_ever_because_another_waits() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.world.llm.style(Style::Garbage);
    let waits = with(exec("absent.py", json!({})), json!({ "name": "late" }));
    site.monitor("m", &with(langfuse(), json!({ "metrics": [judge(), waits], "evaluation": { "max_attempts": 2 } })));
    let mut calls = Vec::new();
    for _ in 0..4 {
        let report = site.once_with("m", &[], 1).await;
        assert_eq!(report["counts"]["deferred"], 3, "{report}");
        calls.push(site.world.llm.answered());
    }
    assert!(calls[1] == 2 * calls[0] && calls[3] == calls[1], "two attempts each: {calls:?}");
    // What waited is judged all the same, when it can be; then the item is decided.
    site.write("absent.py", "import json, sys\nprint(json.dumps({'hello': {'name': 'late'}}), flush=True)\nfor line in sys.stdin:\n    print(json.dumps({'id': json.loads(line)['id'], 'outcomes': [{'score': 1}]}), flush=True)\n");
    let mut decided = 0;
    for _ in 0..4 {
        let report = site.run(&["once", "m", "--format", "json"]).await.json();
        decided += report["counts"]["failed"].as_u64().unwrap();
    }
    assert_eq!((decided, site.world.llm.answered(), site.scored_items("m", "late").await.len()), (3, calls[1], 3));
}

#[tokio::test]
async fn a_composite_is_not_made_of_what_its_metric_failed_to_give() {
    for missing in ["not_applicable", "skip"] {
        let site = Site::new().await;
        site.write("late.py", LATE);
        let short = json!({ "name": "short", "type": "length", "max": 100 });
        let all = json!({ "name": "all", "type": "composite", "parts": { "short": 1, "m.b": 1 }, "missing": missing });
        site.monitor("m", &with(items(&site, &["fine"]), json!({ "metrics": [short, exec("late.py", json!({})), all] })));
        let all = async || rows(&site).await.into_iter().find(|row| row.1 == "all").map(|row| (row.2, row.3["value"].as_f64()));
        site.once_with("m", &[], 1).await;
        assert_eq!(all().await, Some(("failed".to_owned(), None)), "{missing}");
        site.once("m").await;
        assert_eq!(all().await, Some(("scored".to_owned(), Some(0.75))), "{missing}: corrected when its part is there");
    }
}
