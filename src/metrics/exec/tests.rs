//! Processes that misbehave, each a few lines of shell.

use std::collections::BTreeMap;

use minijinja::Value as View;
use serde_json::json;

use super::*;
use crate::{model::Case, providers::CallCx};

fn spec(script: &str) -> Spec {
    Spec {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        dir: PathBuf::from("."),
        env: BTreeMap::new(),
        start_timeout: Duration::from_secs(60),
        concurrency: 1,
        memory: None,
        idle: IDLE,
        hidden: Hidden::default(),
    }
}

fn metric(spec: Spec, processes: &Processes) -> Exec {
    // None of these tests waits for it.
    let timeout = Duration::from_secs(3600);
    Exec { processes: processes.clone(), spec: Arc::new(spec), timeout, trace: false, revision: "r".to_owned(), by: None }
}

/// A story of a metric whose process is kept meanwhile.
async fn with<T>(spec: Spec, story: impl AsyncFnOnce(Exec) -> T) -> T {
    let (processes, mut begun) = Processes::new();
    let keep = async {
        while let Some(keeper) = begun.recv().await {
            keeper.await;
        }
    };
    tokio::select! {
        told = story(metric(spec, &processes)) => told,
        () = keep => panic!("nobody keeps the process"),
    }
}

async fn outcome(metric: &dyn Metric) -> Outcome {
    let (case, scores) = (Case::default(), BTreeMap::new());
    let call = CallCx { monitor: "m", metric: "quality", run_id: "run", item_id: "i", budgets: &[], fresh: false, background: None };
    let cx = MetricCx { case: &case, view: &View::from(()), latency_ms: None, cost_usd: None, observations: &[], scores: &scores, call };
    metric.judge(&cx).await.outcomes.remove(0).outcome
}

const HELLO: &str = "echo '{\"hello\": {\"name\": \"x\", \"version\": \"3\"}}';";

fn says(answer: &str) -> String {
    format!("read item; echo '{answer}';")
}

#[tokio::test]
async fn a_noisy_child_of_a_process_that_died_holds_nobody_up() {
    // It left the group, so nobody ends it; it ends when nobody reads what it writes.
    let script = format!("{HELLO} read item; setsid sh -c 'while echo noise >&2; do :; done' & exit 3");
    let outcome = with(spec(&script), async |metric| outcome(&metric).await).await;
    let told = outcome.reason().to_owned();
    assert!(matches!(outcome, Outcome::Failed { .. }) && told.starts_with("sh: it ended: exit code 3"), "{told}");
}

#[tokio::test]
async fn a_process_that_died_is_noticed_though_a_child_holds_its_output() {
    let script = format!("{HELLO} {} sleep 3600 & exit 3", says(r#"{"id": 0, "outcomes": [{"score": 0.5}]}"#));
    with(spec(&script), async |metric| {
        assert!(matches!(outcome(&metric).await, Outcome::Scored { value: 0.5, .. }), "what it said before counts");
        // Started anew it says the same: this item's answer, since ids begin anew too.
        assert!(matches!(outcome(&metric).await, Outcome::Scored { .. }));
    })
    .await;
    let script = format!("{HELLO} read item; sleep 3600 & exit 3");
    let outcome = with(spec(&script), async |metric| outcome(&metric).await).await;
    assert_eq!(outcome, Outcome::Failed { reason: "sh: it ended: exit code 3".to_owned() });
}

#[tokio::test]
async fn a_process_with_nothing_to_do_ends_however_much_it_says() {
    let script = "echo \"{\\\"hello\\\": {\\\"name\\\": \\\"$$\\\"}}\"; while echo noise >&2; do sleep 0.01; done";
    with(Spec { idle: Duration::from_millis(200), ..spec(script) }, async |metric| {
        let first = metric.hello().await.unwrap().name;
        while metric.hello().await.unwrap().name == first {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_no_json_fails_its_item_at_once() {
    let answers = [r#"{"id": 0, "outcomes": [{"score": NaN}]}"#, r#"{"outcomes": [{"score": 1e999}], "id": 1}"#, r#"{"id": 2, "outcomes": [{"score": 1}]}"#];
    let script = format!("{HELLO} {} read end", answers.map(says).concat());
    with(spec(&script), async |metric| {
        for _ in 0..2 {
            let outcome = outcome(&metric).await;
            assert!(matches!(outcome, Outcome::Failed { .. }) && outcome.reason().contains("cannot be read"), "{outcome:?}");
        }
        assert!(matches!(outcome(&metric).await, Outcome::Scored { value: 1.0, .. }), "the same process goes on");
    })
    .await;
}

#[tokio::test]
async fn only_who_a_run_began_with_judges_in_it() {
    let dir = tempfile::tempdir().unwrap();
    // Of its first start it says that it is version 3, of the second 4; and it dies of every item.
    let script =
        "n=$(cat n || echo 3); echo $((n + 1)) > n; echo \"{\\\"hello\\\": {\\\"name\\\": \\\"x\\\", \\\"version\\\": \\\"$n\\\"}}\"; read item; exit 1";
    with(Spec { dir: dir.path().to_owned(), ..spec(script) }, async |metric| {
        let pinned = metric.pin().await.unwrap();
        assert_eq!(pinned.revision, ["r", "x", "3"].join("\0"));
        let outcome = outcome(&*pinned.metric).await;
        assert!(matches!(outcome, Outcome::Deferred { .. }) && outcome.reason().contains("is `x` version `4`"), "{outcome:?}");
    })
    .await;
}

#[tokio::test]
async fn a_run_that_began_without_its_process_judges_by_none() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("test -e sound || {{ touch sound; echo 'no model yet' >&2; exit 1; }}; {HELLO} {}", says(r#"{"id": 0, "outcomes": [{"score": 1}]}"#));
    with(Spec { dir: dir.path().to_owned(), ..spec(&script) }, async |metric| {
        let pinned = metric.pin().await.unwrap();
        while metric.hello().await.is_err() {}
        let late = outcome(&*pinned.metric).await;
        assert!(matches!(late, Outcome::Deferred { .. }) && late.reason().contains("no model yet"), "{late:?}");
        let next = metric.pin().await.unwrap();
        assert!(matches!(outcome(&*next.metric).await, Outcome::Scored { .. }), "the next run has it");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_nobody_starts_defers_the_items_of_a_run() {
    let (processes, _never_run) = Processes::new();
    let pinned = metric(spec(HELLO), &processes).pin().await.unwrap();
    let outcome = outcome(&*pinned.metric).await;
    assert!(matches!(outcome, Outcome::Deferred { .. }) && outcome.reason().contains("no process is ready within 120s"), "{outcome:?}");
}

#[tokio::test]
async fn what_a_process_was_given_is_not_told_by_it() {
    let key = SecretString::from("sk-of-the-metric");
    let leak = r#"{"id": 0, "error": "no access with sk-of-the-metric"}"#;
    let script = format!("{HELLO} {} echo \"died with $KEY\" >&2; exit 1", says(leak));
    let given = Spec { env: BTreeMap::from([("KEY".to_owned(), key.clone())]), hidden: Hidden::of([&key]), ..spec(&script) };
    with(given, async |metric| {
        assert_eq!(outcome(&metric).await, Outcome::Failed { reason: "no access with ***".to_owned() });
    })
    .await;
    let script = format!("{HELLO} read item; echo \"died with $KEY\" >&2; exit 1");
    let given = Spec { env: BTreeMap::from([("KEY".to_owned(), key.clone())]), hidden: Hidden::of([&key]), ..spec(&script) };
    let outcome = with(given, async |metric| outcome(&metric).await).await;
    assert_eq!(outcome.reason(), "sh: it ended: exit code 1; it said last: died with ***");
}

#[test]
fn a_whole_trace_has_its_observations() {
    let config = |trace: bool| serde_json::from_value::<ExecConfig>(json!({ "command": ["x"], "trace": trace })).unwrap();
    assert_eq!((config(true).templates(), config(false).templates()), (vec!["trace.observations"], vec![]));
}
