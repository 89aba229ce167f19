//! Langfuse experiments: the items that were judged, in a dataset, each once in its run, with their scores and means.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, quick, short, with},
    site::Site,
    world::{Fault, Langfuse, Mode, World},
};

fn publish() -> Value {
    json!([{ "type": "langfuse", "scores": true, "experiment": { "dataset": "qa/answers", "run_name": "{{ monitor }} {{ date }}", "metadata": { "team": "support" }, "tags": ["nightly"] } }])
}

fn experiment(base: Value) -> Value {
    with(base, json!({ "description": "Answers of the bot", "extract": { "expected": "Click it.", "metadata": { "tenant": "acme" } }, "publish": publish() }))
}

/// Dataset items in the run, as the server has them, repeats included.
fn in_run(langfuse: &Langfuse) -> Vec<String> {
    let of_span = |span: &std::collections::BTreeMap<String, Value>| span["langfuse.experiment.item.id"].as_str().map(str::to_owned);
    match langfuse.mode {
        Mode::V3 => langfuse.run_items().iter().map(|link| link["datasetItemId"].as_str().unwrap().to_owned()).collect(),
        Mode::V4 => langfuse.spans().iter().filter(|span| span["name"] == "experiment-item-run").filter_map(of_span).collect(),
    }
}

/// To nine places: a mean has a last bit of its own.
fn about(value: &Value) -> f64 {
    (value.as_f64().unwrap() * 1e9).round() / 1e9
}

fn whole(world: &World, n: usize) -> bool {
    in_run(&world.langfuse).len() >= n && world.langfuse.run_scores().iter().any(|row| row.metadata["n"] == n)
}

#[tokio::test]
async fn a_run_becomes_an_experiment_of_v4() {
    let site = Site::new().await;
    site.world.langfuse.add_some(12);
    site.monitor("m", &experiment(langfuse()));
    let report = site.once("m").await;
    let published = report["published"].as_object().unwrap();
    assert!(published.keys().all(|queue| queue.starts_with("langfuse:qa/answers#")) && published.values().all(|counts| counts["delivered"] == 12), "{report}");

    let items = site.world.langfuse.dataset_items("qa/answers");
    assert_eq!(items.len(), 12);
    let item = items.values().find(|item| item["sourceTraceId"] == "t0003").unwrap();
    assert_eq!((&item["expectedOutput"], &item["metadata"]["metadata"]["tenant"]), (&json!("Click it."), &json!("acme")), "{item}");
    assert!(item["input"].as_str().unwrap().contains("[[item:t0003]]"), "{item}");

    let spans = site.world.langfuse.spans();
    assert_eq!((spans.len(), in_run(&site.world.langfuse).into_iter().collect::<BTreeSet<_>>()), (24, items.keys().cloned().collect()));
    let experiments: BTreeSet<&str> = spans.iter().map(|span| span["langfuse.experiment.id"].as_str().unwrap()).collect();
    assert_eq!(experiments.len(), 1);
    for span in &spans {
        assert_eq!(span["langfuse.environment"], "sdk-experiment");
        assert!(span["langfuse.experiment.name"].as_str().unwrap().starts_with("m 20"), "{span:?}");
        assert!(span["langfuse.experiment.metadata"].as_str().unwrap().contains("support") && span["langfuse.observation.output"].is_string(), "{span:?}");
        let task = &span["langfuse.experiment.item.root_observation_id"];
        assert!(*task == span["spanId"] || spans.iter().any(|child| child["spanId"] == *task && child["parentSpanId"] == span["spanId"]), "{span:?}");
    }
    // A score on the trace that was judged, and one on the experiment's.
    let scores = site.world.langfuse.scores();
    assert_eq!(scores.len(), 24);
    assert!(scores.values().all(|rows| rows.len() == 1));
    let tasks: BTreeSet<&str> = spans.iter().filter(|span| !span["parentSpanId"].is_null()).map(|span| span["spanId"].as_str().unwrap()).collect();
    assert_eq!(scores.values().flatten().filter(|row| row.observation_id.as_deref().is_some_and(|id| tasks.contains(id))).count(), 12);
    let means = site.world.langfuse.run_scores();
    assert_eq!((means.len(), means[0].name.as_str(), means[0].dataset_run_id.as_deref()), (1, "helpful", experiments.first().copied()));
    assert_eq!((about(&means[0].value), &means[0].metadata["n"]), (0.8, &json!(12)));

    let again = site.once("m").await;
    assert_eq!((&again["counts"]["fetched"], site.world.langfuse.spans().len()), (&json!(12), 24), "its own traces are not fetched: {again}");
}

#[tokio::test]
async fn a_run_becomes_a_dataset_run_of_v3_that_links_to_the_traces() {
    let site = Site::with(Mode::V3).await;
    site.world.langfuse.add_some(12);
    site.monitor("m", &experiment(with(langfuse(), json!({ "metrics": [short(), judge()] }))));
    site.once("m").await;
    let links = site.world.langfuse.run_items();
    let traces: BTreeSet<&str> = links.iter().map(|link| link["traceId"].as_str().unwrap()).collect();
    assert_eq!((links.len(), traces.len(), traces.contains("t0011"), site.world.langfuse.spans().len()), (12, 12, true, 0));
    assert_eq!(site.world.langfuse.scores().len(), 24, "on the traces themselves");
    let means: Vec<(String, f64)> = site.world.langfuse.run_scores().into_iter().map(|row| (row.name, about(&row.value))).collect();
    assert_eq!(means, [("helpful".to_owned(), 0.8), ("short".to_owned(), 1.0)]);
    // A later run of the same day goes on with the same experiment.
    site.world.llm.verdict(|_| 0.2);
    site.world.langfuse.add_many("later", 4, jiff::SignedDuration::from_mins(20), jiff::SignedDuration::from_mins(5));
    site.once("m").await;
    assert_eq!(site.world.langfuse.run_items().len(), 16);
    let means = site.world.langfuse.run_scores();
    let helpful = means.iter().find(|row| row.name == "helpful").unwrap();
    assert_eq!((means.len(), &helpful.metadata["n"], about(&helpful.value)), (2, &json!(16), 0.65));
}

#[tokio::test]
async fn traces_with_feedback_stay_the_traces_that_they_are() {
    for mode in [Mode::V3, Mode::V4] {
        let site = Site::with(mode).await;
        site.world.langfuse.add_some(3);
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(45);
        site.write(
            "feedback.jsonl",
            (0..2).map(|i| format!("{}\n", json!({ "timestamp": at, "trace": format!("t000{i}"), "thumb": "up" }))).collect::<String>(),
        );
        let join = |changes: Value| {
            let on = json!({ "left": ["trace.id"], "right": ["trace.trace"] });
            let source =
                json!({ "type": "join", "settle": "0s", "left": { "type": "langfuse" }, "right": { "type": "file", "path": "feedback.jsonl" }, "on": on });
            let publish = json!([{ "type": "langfuse", "scores": false, "experiment": { "dataset": "rated" } }]);
            json!({ "schedule": { "every": "1h" }, "source": with(source, changes), "metrics": [short()], "publish": publish })
        };
        site.monitor("m", &join(json!({})));
        site.once("m").await;
        let items = site.world.langfuse.dataset_items("rated");
        let sources: BTreeSet<&str> = items.values().filter_map(|item| item["sourceTraceId"].as_str()).collect();
        assert_eq!((items.len(), sources), (2, BTreeSet::from(["t0000", "t0001"])), "{mode:?}");
        assert_eq!((in_run(&site.world.langfuse).len(), site.world.langfuse.spans().len()), (2, if mode == Mode::V3 { 0 } else { 4 }), "{mode:?}");
        // By an id of its own no trace is known.
        site.monitor("other", &join(json!({ "id": "{{ left.id }}-rated" })));
        site.once("other").await;
        let items = site.world.langfuse.dataset_items("rated");
        assert_eq!((items.len(), items.values().filter(|item| item["sourceTraceId"].is_null()).count()), (4, 2), "{mode:?}");
    }
}

#[tokio::test]
async fn items_from_elsewhere_get_a_trace_of_their_own() {
    for mode in [Mode::V3, Mode::V4] {
        let site = Site::with(mode).await;
        let mut spec = crate::build::demo(&site);
        spec["sampling"]["n"] = json!(5);
        spec["metrics"] = json!([short()]);
        spec["publish"] = json!([{ "type": "langfuse", "scores": false, "experiment": { "dataset": "files" } }]);
        site.monitor("m", &spec);
        site.once("m").await;
        let items = site.world.langfuse.dataset_items("files");
        assert!(items.len() == 5 && items.values().all(|item| item["sourceTraceId"].is_null()), "{mode:?}: {items:?}");
        assert_eq!((site.world.langfuse.spans().len(), in_run(&site.world.langfuse).len()), (10, 5), "{mode:?}");
        let scores = site.world.langfuse.scores();
        assert!(scores.len() == 5 && scores.values().flatten().all(|row| row.environment.as_deref() == Some("sdk-experiment")), "{mode:?}: {scores:?}");
        assert_eq!(site.world.langfuse.run_scores().len(), 1, "{mode:?}");
    }
}

#[tokio::test]
async fn only_the_metrics_that_are_named_are_published() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    let monitor = |metrics: Value| with(langfuse(), json!({ "metrics": [short(), judge()], "publish": [{ "type": "langfuse", "metrics": metrics }] }));
    site.monitor("m", &monitor(json!(["short"])));
    site.once("m").await;
    assert_eq!((site.world.langfuse.scored("short"), site.world.langfuse.scored("helpful"), site.export(&[]).await.len()), (3, 0, 6));
    site.monitor("m", &monitor(json!(["helpfull"])));
    let said = site.run(&["validate"]).await.expect(1).stdout;
    assert!(said.contains("no metric `helpfull`, did you mean `helpful`?"), "{said}");
    site.monitor("m", &with(langfuse(), json!({ "publish": [{ "type": "langfuse", "experiment": { "dataset": "d", "run_name": "{{ monitr }}" } }] })));
    let said = site.run(&["validate"]).await.expect(1).stdout;
    assert!(said.contains("`run_name`"), "{said}");
}

#[tokio::test]
async fn answers_that_are_lost_double_nothing() {
    for mode in [Mode::V3, Mode::V4] {
        let site = Site::with(mode).await;
        site.world.langfuse.add_some(15);
        site.world.langfuse.writes.shares(vec![Fault::Cut, Fault::Status(503), Fault::Drop], 0.15);
        site.monitor("m", &experiment(quick()));
        let _daemon = site.daemon().await;
        site.wait_within(Duration::from_secs(120), "the whole experiment", async || whole(&site.world, 15)).await;
        let items = in_run(&site.world.langfuse);
        assert_eq!((items.len(), items.iter().collect::<BTreeSet<_>>().len()), (15, 15), "{mode:?}");
        assert_eq!(site.world.langfuse.dataset_items("qa/answers").len(), 15, "{mode:?}");
    }
}

async fn no_kill_loses_or_doubles(mode: Mode) {
    const TRACES: usize = 60;
    let site = Site::with(mode).await;
    site.world.langfuse.add_some(TRACES);
    site.world.langfuse.writes.latency(Duration::from_millis(10));
    site.monitor("m", &experiment(with(quick(), json!({ "metrics": [short(), judge()] }))));
    let mut chance: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..15 {
        let mut daemon = site.spawn(&["run"]);
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        tokio::time::sleep(Duration::from_millis(100 + chance % 900)).await;
        assert!(daemon.runs(), "the daemon ended by itself:\n{}", daemon.log());
        daemon.kill9().await;
    }
    let daemon = site.daemon().await;
    site.wait_within(Duration::from_secs(120), "the whole experiment", async || whole(&site.world, TRACES)).await;
    site.more_runs("m", 2).await;
    assert_eq!(daemon.stop().await, Some(0));
    let items = in_run(&site.world.langfuse);
    assert_eq!((items.len(), items.iter().collect::<BTreeSet<_>>().len()), (TRACES, TRACES), "each item is once in the run");
    assert_eq!(site.world.langfuse.dataset_items("qa/answers").len(), TRACES);
    assert_eq!(site.world.langfuse.run_scores().len(), 2);
    let scores = site.world.langfuse.scores();
    assert_eq!(scores.len(), TRACES * if mode == Mode::V3 { 2 } else { 4 });
    assert!(scores.values().all(|rows| rows.len() == 1));
}

#[tokio::test]
async fn no_kill_loses_or_doubles_an_item_of_an_experiment_of_v3() {
    no_kill_loses_or_doubles(Mode::V3).await;
}

#[tokio::test]
async fn no_kill_loses_or_doubles_an_item_of_an_experiment_of_v4() {
    no_kill_loses_or_doubles(Mode::V4).await;
}

#[tokio::test]
async fn the_judges_calls_are_traces_of_their_own_that_are_never_judged() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.monitor("m", &with(langfuse(), json!({ "publish": [{ "type": "langfuse", "trace_calls": true }] })));
    site.monitor("quiet", &langfuse());
    site.once("m").await;
    let spans = site.world.langfuse.spans();
    assert_eq!(spans.len(), 3, "{spans:?}");
    for span in &spans {
        let text = |key: &str| span[key].as_str().unwrap_or_default();
        assert_eq!((text("langfuse.environment"), text("langfuse.observation.type")), ("langfuse-assayd", "generation"));
        assert!(
            text("langfuse.observation.input").contains("[[item:t000") && text("langfuse.observation.output").contains("because of the evidence"),
            "{span:?}"
        );
        assert!(text("langfuse.observation.metadata.item_id").starts_with("t000"), "{span:?}");
    }
    let again = site.once("m").await;
    assert_eq!(again["counts"]["fetched"], 3, "{again}");
    site.once("quiet").await;
    assert_eq!(site.world.langfuse.spans().len(), 3);
}
