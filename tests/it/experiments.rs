//! Langfuse experiments: the items that were judged, in a dataset, each once in its run, with their scores and means.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, quick, short, with},
    site::Site,
    world::{Fault, Langfuse, Mode, NewTrace, World},
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
    match langfuse.mode() {
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
    assert!(
        published.keys().all(|queue| queue.starts_with("langfuse:experiment=qa/answers#")) && published.values().all(|counts| counts["delivered"] == 12),
        "{report}"
    );

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

/// Free, into one run of a name that no midnight changes.
fn one_run(publish: Value) -> Value {
    let publish = with(json!({ "type": "langfuse", "scores": false, "experiment": { "dataset": "d", "run_name": "all" } }), publish);
    with(quick(), json!({ "metrics": [short()], "publish": [publish] }))
}

fn once_each(langfuse: &Langfuse, n: usize) {
    let items = in_run(langfuse);
    assert_eq!((items.len(), items.iter().collect::<BTreeSet<_>>().len()), (n, n));
}

/// A trace that the next run takes.
fn add(site: &Site, id: &str) {
    site.world.langfuse.add(NewTrace::new(id, jiff::Timestamp::now() - jiff::SignedDuration::from_secs(2)));
}

#[tokio::test]
async fn a_link_whose_answer_was_lost_is_not_made_again() {
    let site = Site::with(Mode::V3).await;
    site.world.langfuse.add_some(2);
    site.monitor("m", &one_run(json!({})));
    let _daemon = site.daemon().await;
    site.until("a run that is known", |world| whole(world, 2)).await;
    site.world.langfuse.links.queue([Fault::Cut]);
    add(&site, "late");
    site.until("the late one", |world| whole(world, 3)).await;
    assert_eq!(site.world.langfuse.links.queued(), 0);
    once_each(&site.world.langfuse, 3);
}

#[tokio::test]
async fn a_run_that_was_read_in_part_is_read_again_before_it_is_added_to() {
    let site = Site::with(Mode::V3).await;
    site.world.langfuse.add_some(120);
    site.monitor("m", &one_run(json!({})));
    site.once("m").await;
    once_each(&site.world.langfuse, 120);
    // The same items, which are all in the run, by a process that knows nothing of it.
    site.monitor("again", &one_run(json!({})));
    site.world.langfuse.fail_page(2);
    let _daemon = site.daemon().await;
    site.wait("all rows", async || site.metric("assayd_outbox_pending", &[]).await == 0.0 && site.scored_items("again", "short").await.len() == 120).await;
    assert!(site.world.langfuse.page_failed());
    once_each(&site.world.langfuse, 120);
}

#[tokio::test]
async fn two_sinks_that_publish_to_one_run_link_each_item_once() {
    let site = Site::with(Mode::V3).await;
    site.world.langfuse.add_some(20);
    site.world.langfuse.writes.latency(Duration::from_millis(5));
    let sink = |metric: &str| json!({ "type": "langfuse", "scores": false, "metrics": [metric], "experiment": { "dataset": "d", "run_name": "all" } });
    let publish = json!([sink("short"), sink("helpful")]);
    site.monitor("m", &with(langfuse(), json!({ "metrics": [short(), judge()], "publish": publish })));
    let report = site.once("m").await;
    assert!(report["published"].as_object().unwrap().values().all(|counts| counts["delivered"] == 20), "{report}");
    once_each(&site.world.langfuse, 20);
    assert_eq!(site.world.langfuse.run_scores().len(), 2);
}

#[tokio::test]
async fn a_server_that_becomes_one_of_v4_loses_no_item() {
    let site = Site::with(Mode::V3).await;
    site.world.langfuse.add_some(2);
    site.monitor("m", &one_run(json!({})));
    let _daemon = site.daemon().await;
    site.until("a run of v3", |world| whole(world, 2)).await;
    // Judged before, published after.
    site.world.langfuse.writes.always(Some(Fault::Status(500)));
    add(&site, "late0");
    add(&site, "late1");
    site.wait("the judgements", async || site.scored_items("m", "short").await.len() == 4).await;
    site.world.langfuse.upgrade();
    site.world.langfuse.writes.always(None);
    let traces = |world: &World| {
        world.langfuse.spans().iter().filter_map(|span| span["langfuse.trace.metadata.source_trace_id"].as_str().map(str::to_owned)).collect::<BTreeSet<_>>()
    };
    site.until("both as items of v4", |world| traces(world).is_superset(&["late0".to_owned(), "late1".to_owned()].into())).await;
    // The source has heard of it too.
    add(&site, "after");
    site.until("an item of a trace read by v4", |world| traces(world).contains("after")).await;
}

#[tokio::test]
async fn a_path_that_is_gone_for_a_moment_does_not_make_a_server_one_of_v3() {
    let site = Site::new().await;
    site.world.langfuse.add_some(2);
    site.world.langfuse.reads.queue([Fault::Status(404)]);
    site.monitor("m", &one_run(json!({})));
    let _daemon = site.daemon().await;
    site.until("an experiment of v4", |world| in_run(&world.langfuse).len() == 2).await;
}

#[tokio::test]
async fn an_item_that_langfuse_refuses_as_a_trace_holds_up_no_other() {
    let site = Site::new().await;
    site.world.langfuse.add_some(6);
    site.world.langfuse.refuse_spans_with("[[item:t0003]]");
    site.monitor("m", &with(one_run(json!({})), json!({ "schedule": { "every": "1h" } })));
    let report = site.once("m").await;
    let published = report["published"].as_object().unwrap().values().next().unwrap().clone();
    assert_eq!((&published["delivered"], &published["pending"]), (&json!(5), &json!(0)), "{report}");
    once_each(&site.world.langfuse, 5);
    let explained = site.run(&["explain", "m", "t0003"]).await.expect(0).stdout;
    assert!(explained.contains("made-up refusal of an export"), "{explained}");
}

#[tokio::test]
async fn a_metric_with_parts_is_published_by_its_name_and_a_part_by_its_own() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.world.llm.words(|_| Some(json!({ "polite_reason": "p", "polite_verdict": true, "useful_reason": "u", "useful_verdict": 4 }).to_string()));
    let quality = json!({ "name": "quality", "type": "judge", "model": "judge", "prompt": "Rate {{ output }}",
        "outputs": { "polite": { "kind": "boolean" }, "useful": { "kind": "score", "min": 1, "max": 5 } } });
    let monitor = |metrics: Value| with(langfuse(), json!({ "metrics": [quality.clone(), short()], "publish": [{ "type": "langfuse", "metrics": metrics }] }));
    site.monitor("m", &monitor(json!(["quality"])));
    let report = site.once("m").await;
    assert_eq!(report["published"]["langfuse:metrics=quality"]["delivered"], 6, "what is not wanted is not queued, so it counts as nothing: {report}");
    let scored = |name: &str| site.world.langfuse.scored(name);
    assert_eq!((scored("quality.polite"), scored("quality.useful"), scored("short")), (3, 3, 0));

    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.world.llm.words(|_| Some(json!({ "polite_reason": "p", "polite_verdict": true, "useful_reason": "u", "useful_verdict": 4 }).to_string()));
    site.monitor("m", &monitor(json!(["quality.polite"])));
    site.run(&["validate"]).await.expect(0);
    site.once("m").await;
    assert_eq!((site.world.langfuse.scored("quality.polite"), site.world.langfuse.scored("quality.useful")), (3, 0));
    site.monitor("m", &monitor(json!(["quality.rude"])));
    let said = site.run(&["validate"]).await.expect(1).stdout;
    assert!(said.contains("no metric `quality.rude`"), "{said}");
}

#[tokio::test]
async fn items_of_another_project_are_no_traces_of_this_one() {
    for mode in [Mode::V3, Mode::V4] {
        let (mut site, other) = (Site::with(mode).await, World::start(mode).await);
        site.settings["connections"]["langfuse"]["other"] = json!({ "base_url": other.langfuse.url, "public_key": "pk-lf-test", "secret_key": "sk-lf-test" });
        site.settings["connections"]["langfuse"]["same"] = site.settings["connections"]["langfuse"]["default"].clone();
        site.save();
        site.world.langfuse.add_some(3);
        site.monitor("m", &with(one_run(json!({ "connection": "other" })), json!({ "schedule": { "every": "1h" } })));
        site.once("m").await;
        let items = other.langfuse.dataset_items("d");
        assert!(items.len() == 3 && items.values().all(|item| item["sourceTraceId"].is_null()), "{mode:?}: {items:?}");
        assert_eq!((in_run(&other.langfuse).len(), other.langfuse.spans().len()), (3, 6), "{mode:?}: each has a trace of its own");

        // Scores on traces that are not there are told, and are no fault.
        let scores = |connection: &str| with(langfuse(), json!({ "publish": [{ "type": "langfuse", "connection": connection }] }));
        for (connection, told) in [("default", false), ("same", false), ("other", true)] {
            site.monitor("m", &scores(connection));
            let said = site.run(&["validate"]).await.expect(0).said();
            assert_eq!(said.contains("warning: monitors/m.yaml:") && said.contains("traces of connection `default`"), told, "{connection}: {said}");
        }
        let _daemon = site.daemon().await;
        site.says("scores are put on the traces of Langfuse connection `other`").await;
    }
}
