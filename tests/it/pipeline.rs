//! fetch -> extract -> dedup -> sample: which traces are judged, and that none is lost or judged twice.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{demo, judge, langfuse, short, with},
    site::Site,
    world::{Child, Mode, NewTrace},
};

fn count(report: &Value, key: &str) -> u64 {
    report["counts"][key].as_u64().unwrap_or_else(|| panic!("no count `{key}` in {report}"))
}

fn minutes(n: i64) -> SignedDuration {
    SignedDuration::from_mins(n)
}

#[tokio::test]
async fn real_answers_from_a_file_are_drawn_and_judged_without_a_model() {
    let site = Site::new().await;
    site.monitor("answers", &demo(&site));
    let report = site.once("answers").await;
    assert_eq!((count(&report, "fetched"), count(&report, "scored"), count(&report, "sampled_out")), (300, 100, 200), "{report}");
    assert_eq!(report["status"], "succeeded");
    assert_eq!(report["metrics"]["short"]["n"], 100);
    let rows = site.export(&["--monitor", "answers"]).await;
    assert_eq!(rows.len(), 200);
    assert!(rows.iter().all(|row| row["outcome"] == "scored" && (0.0..=1.0).contains(&row["value"].as_f64().unwrap())));
    assert_eq!(count(&site.once("answers").await, "scored"), 0);
    assert_eq!(site.world.llm.requests(), 0);
}

#[tokio::test]
async fn a_growing_file_is_followed() {
    let site = Site::new().await;
    let line =
        |i: i64| format!("{}\n", json!({ "key": format!("k{i}"), "at": (Timestamp::now() - minutes(60 - i)).to_string(), "input": "q", "output": "fine" }));
    site.write("grows.jsonl", (0..5).map(line).collect::<String>());
    site.monitor(
        "m",
        &json!({
            "schedule": { "every": "1h" },
            "source": { "type": "file", "path": "grows.jsonl", "id_field": "key", "timestamp_field": "at", "settle": "0s" },
            "metrics": [short()],
        }),
    );
    assert_eq!(count(&site.once("m").await, "scored"), 5);
    site.write("grows.jsonl", (0..9).map(line).collect::<String>());
    assert_eq!(count(&site.once("m").await, "scored"), 4);
    assert_eq!(site.scored_items("m", "short").await, (0..9).map(|i| format!("k{i}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_broken_line_is_an_outcome_with_its_number_and_the_others_are_judged() {
    let site = Site::new().await;
    let good =
        |i: i64| json!({ "id": format!("g{i}"), "timestamp": (Timestamp::now() - minutes(50 - i)).to_string(), "input": "q", "output": "fine" }).to_string();
    site.write("lines.jsonl", [good(1), "{ this is not json".to_owned(), good(2), "[1, 2]".to_owned(), good(3)].join("\n"));
    site.monitor("m", &json!({ "schedule": { "every": "1h" }, "source": { "type": "file", "path": "lines.jsonl", "settle": "0s" }, "metrics": [short()] }));
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "failed")), (3, 2), "{report}");
    assert_eq!(site.scored_items("m", "short").await, ["g1", "g2", "g3"]);
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "failed")), (0, 0), "a broken line is told once: {report}");
}

/// The whole way, for a server and a judge.
async fn from_langfuse_to_the_judge_and_back(mode: Mode, profile: &str) {
    let site = Site::with(mode).await;
    site.world.langfuse.add_some(37);
    site.monitor("m", &with(langfuse(), json!({ "metrics": [with(judge(), json!({ "model": profile }))] })));
    let report = site.once("m").await;
    assert_eq!(report["status"], "succeeded", "{report}");
    assert_eq!(count(&report, "scored"), 37, "{report}");
    assert_eq!(report["published"]["langfuse"]["delivered"], 37, "{report}");
    // The shipped prices know the one model and not the other, whose cost stays unknown.
    assert_eq!(report["cost_usd"].as_f64().unwrap() > 0.0, profile == "judge", "{report}");
    let shown = site.world.langfuse.scores();
    assert_eq!(shown.len(), 37);
    for ((trace, name), rows) in &shown {
        assert_eq!((name.as_str(), rows.len()), ("helpful", 1), "{trace}");
        // 0.8 of the way from 1 to 5, on the scale from 0 to 1.
        assert!((rows[0].value.as_f64().unwrap() - 0.8).abs() < 1e-9, "{:?}", rows[0]);
        assert_eq!(rows[0].comment.as_deref(), Some("because of the evidence"));
        assert_eq!(rows[0].data_type.as_deref(), Some("NUMERIC"));
    }
    let row = &site.export(&[]).await[0];
    assert!((row["raw"].as_f64().unwrap() - 4.2).abs() < 1e-9, "{row}");
    assert_eq!((&row["passed"], &row["trace_id"]), (&json!(true), &row["item_id"]), "{row}");
    assert!(row["input_tokens"].as_u64().unwrap() > 0 && row["output_tokens"] == 20, "{row}");
    assert_eq!(count(&site.once("m").await, "scored"), 0);
    assert_eq!(site.world.llm.most_calls(), 1);
}

#[tokio::test]
async fn langfuse_v4_is_judged_by_an_openai_model() {
    from_langfuse_to_the_judge_and_back(Mode::V4, "judge").await;
}

#[tokio::test]
async fn langfuse_v4_is_judged_by_an_anthropic_model() {
    from_langfuse_to_the_judge_and_back(Mode::V4, "judge-a").await;
}

#[tokio::test]
async fn langfuse_v3_is_judged_by_an_openai_model() {
    from_langfuse_to_the_judge_and_back(Mode::V3, "judge").await;
}

#[tokio::test]
async fn langfuse_v3_is_judged_by_an_anthropic_model() {
    from_langfuse_to_the_judge_and_back(Mode::V3, "judge-a").await;
}

fn heuristic(changes: Value) -> Value {
    with(with(langfuse(), json!({ "metrics": [short()], "publish": [] })), changes)
}

#[tokio::test]
async fn young_traces_are_left_until_they_are_settled() {
    let site = Site::new().await;
    site.world.langfuse.add_many("old", 20, minutes(60), minutes(30));
    site.world.langfuse.add_many("young", 4, SignedDuration::from_secs(20), SignedDuration::from_secs(5));
    site.monitor("m", &heuristic(json!({ "source": { "settle": "1m" } })));
    assert_eq!(count(&site.once("m").await, "scored"), 20);
    site.monitor("m", &heuristic(json!({ "source": { "settle": "0s" } })));
    assert_eq!(count(&site.once("m").await, "scored"), 4);
}

#[tokio::test]
async fn a_trace_that_arrives_late_within_the_overlap_is_judged() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        site.world.langfuse.add_many("t", 20, minutes(60), minutes(30));
        site.monitor("m", &heuristic(json!({ "source": { "overlap": "20m" } })));
        assert_eq!(count(&site.once("m").await, "scored"), 20);
        site.world.langfuse.add_many("late", 3, minutes(45), minutes(5));
        let report = site.once("m").await;
        assert_eq!(count(&report, "scored"), 3, "{mode:?} {report}");
        assert!(count(&report, "duplicate") > 0, "{mode:?} {report}");
    }
}

#[tokio::test]
async fn a_limit_takes_the_oldest_first_and_leaves_no_gap() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        site.world.langfuse.add_some(50);
        site.monitor("m", &heuristic(json!({ "source": { "limit": 7 } })));
        for run in 1..=9 {
            let scored = count(&site.once("m").await, "scored") as usize;
            let all = site.scored_items("m", "short").await;
            let expected: Vec<_> = (0..50.min(7 * run)).map(|i| format!("t{i:04}")).collect();
            assert_eq!(all, expected, "{mode:?}, run {run}, scored {scored}");
        }
    }
}

#[tokio::test]
async fn more_traces_of_one_millisecond_than_the_limit_are_all_judged() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        let at = Timestamp::now() - minutes(40);
        for i in 0..25 {
            site.world.langfuse.add(NewTrace::new(format!("b{i:04}"), at));
        }
        site.world.langfuse.add_many("t", 10, minutes(30), minutes(10));
        site.monitor("m", &heuristic(json!({ "source": { "limit": 10 } })));
        for _ in 0..6 {
            assert!(count(&site.once("m").await, "scored") <= 10);
        }
        assert_eq!(site.scored_items("m", "short").await.len(), 35, "{mode:?}");
    }
}

#[tokio::test]
async fn many_pages_are_read_to_their_end() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        site.world.langfuse.add_some(2300);
        site.monitor("m", &heuristic(json!({ "source": { "limit": 5000 } })));
        let report = site.once("m").await;
        assert_eq!(count(&report, "scored"), 2300, "{mode:?} {report}");
    }
}

#[tokio::test]
async fn a_seed_makes_a_draw_repeatable() {
    let mut drawn = Vec::new();
    for seed in [7, 7, 8] {
        let site = Site::new().await;
        let first = Timestamp::now() - minutes(60);
        for i in 0..40 {
            site.world.langfuse.add(NewTrace::new(format!("t{i:04}"), first + minutes(i / 2)));
        }
        site.monitor("m", &heuristic(json!({ "sampling": { "strategy": "random", "n": 10, "seed": seed } })));
        let report = site.once("m").await;
        assert_eq!((count(&report, "scored"), count(&report, "sampled_out")), (10, 30), "{report}");
        drawn.push(site.scored_items("m", "short").await);
    }
    assert_eq!(drawn[0], drawn[1]);
    assert_ne!(drawn[0], drawn[2]);
}

#[tokio::test]
async fn an_item_is_drawn_or_not_drawn_once() {
    let site = Site::new().await;
    site.world.langfuse.add_some(40);
    site.monitor("m", &heuristic(json!({ "source": { "overlap": "24h" }, "sampling": { "strategy": "random", "n": 10 } })));
    assert_eq!(count(&site.once("m").await, "scored"), 10);
    let before = site.scored_items("m", "short").await;
    for _ in 0..3 {
        assert_eq!(count(&site.once("m").await, "scored"), 0);
    }
    assert_eq!(site.scored_items("m", "short").await, before);
}

#[tokio::test]
async fn most_recent_and_oldest_take_from_their_ends() {
    let site = Site::new().await;
    site.world.langfuse.add_some(20);
    for (strategy, expected) in [("most_recent", ["t0017", "t0018", "t0019"]), ("oldest", ["t0000", "t0001", "t0002"])] {
        site.monitor(strategy, &heuristic(json!({ "sampling": { "strategy": strategy, "n": 3 } })));
        site.once(strategy).await;
        assert_eq!(site.scored_items(strategy, "short").await, expected);
    }
}

#[tokio::test]
async fn equal_rates_draw_equal_items_for_every_monitor() {
    let site = Site::new().await;
    site.world.langfuse.add_some(200);
    for name in ["one", "two"] {
        site.monitor(name, &heuristic(json!({ "source": { "name": name }, "sampling": { "strategy": "rate", "rate": 0.3 } })));
        site.once(name).await;
    }
    let (one, two) = (site.scored_items("one", "short").await, site.scored_items("two", "short").await);
    assert_eq!(one, two);
    // Six standard deviations off 60.
    assert!((21..100).contains(&one.len()), "{}", one.len());
    site.monitor("more", &heuristic(json!({ "sampling": { "strategy": "rate", "rate": 0.6 } })));
    site.once("more").await;
    let more: BTreeSet<_> = site.scored_items("more", "short").await.into_iter().collect();
    assert!(one.iter().all(|item| more.contains(item)), "a higher rate draws what a lower one draws, and more");
}

#[tokio::test]
async fn what_is_always_wanted_is_drawn_in_addition() {
    let site = Site::new().await;
    site.world.langfuse.add_some(20);
    for i in 0..3 {
        site.world.langfuse.add(NewTrace { metadata: json!({ "vip": true }), ..NewTrace::new(format!("vip{i}"), Timestamp::now() - minutes(20 + i)) });
    }
    site.monitor("m", &heuristic(json!({ "sampling": { "strategy": "random", "n": 2, "seed": 1, "always": "trace.metadata.vip" } })));
    site.once("m").await;
    let items = site.scored_items("m", "short").await;
    assert!(["vip0", "vip1", "vip2"].iter().all(|vip| items.iter().any(|item| item == vip)), "{items:?}");
    assert!((3..=5).contains(&items.len()), "{items:?}");
}

#[tokio::test]
async fn filters_leave_out_what_a_monitor_is_not_about() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        let at = |i: i64| Timestamp::now() - minutes(30 - i);
        let base = |id: &str, i: i64| NewTrace { tags: vec!["prod".to_owned()], metadata: json!({ "tenant": "acme" }), ..NewTrace::new(id, at(i)) };
        site.world.langfuse.add(base("wanted", 1));
        site.world.langfuse.add(NewTrace { name: "other".to_owned(), ..base("name", 2) });
        site.world.langfuse.add(NewTrace { tags: vec![], ..base("tag", 3) });
        site.world.langfuse.add(NewTrace { environment: "staging".to_owned(), ..base("environment", 4) });
        site.world.langfuse.add(NewTrace { metadata: json!({ "tenant": "test" }), ..base("expression", 5) });
        let source = json!({ "names": ["answer"], "tags": ["prod"], "environment": "production", "filter": "trace.metadata.tenant != \"test\"" });
        site.monitor("m", &heuristic(json!({ "source": source })));
        let report = site.once("m").await;
        assert_eq!(site.scored_items("m", "short").await, ["wanted"], "{mode:?}");
        assert!(count(&report, "filtered") >= 1, "{mode:?} {report}");
        let explained = site.run(&["explain", "m", "expression"]).await.expect(0).stdout;
        assert!(explained.contains("filtered"), "{explained}");
    }
}

pub fn with_steps(id: &str) -> NewTrace {
    let step = |name: &str, kind, input: Value, output: Value| Child { name: name.to_owned(), kind, input, output };
    NewTrace {
        children: vec![
            step("retrieve", "RETRIEVER", json!({ "query": "first" }), json!("Passwords are reset under Settings.")),
            step("retrieve", "RETRIEVER", json!({ "query": "second" }), json!("Ask the help desk.")),
            step("generate", "GENERATION", json!("System: be kind\nQuestion: Where do I click?\nEnd"), json!("Under Settings.")),
        ],
        ..NewTrace::new(id, Timestamp::now() - minutes(20))
    }
}

#[tokio::test]
async fn steps_and_patterns_reach_the_judge() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        site.world.langfuse.add(with_steps("s1"));
        let extract = json!({
            "input": "{{ trace.steps.generate.variables.question }}",
            "context": "{{ trace.steps.retrieve[1].output }}",
            "patterns": { "generate": { "input": "Question: (?P<question>.*)" } },
        });
        let metric = with(judge(), json!({ "prompt": "[[item:s1]] Q={{ input }} C={{ context }} A={{ output }}" }));
        site.monitor("m", &with(langfuse(), json!({ "extract": extract, "metrics": [metric] })));
        let report = site.once("m").await;
        let explained = site.run(&["explain", "m", "s1"]).await.stdout;
        assert_eq!(count(&report, "scored"), 1, "{mode:?}: {explained}");
        let prompt = site.world.llm.prompts().concat();
        assert!(prompt.contains("Where do I click?") && !prompt.contains("be kind"), "{prompt}");
        assert!(prompt.contains("Ask the help desk.") && !prompt.contains("Passwords are reset"), "{prompt}");
        assert!(site.world.langfuse.children_served() > 0);
    }
}

#[tokio::test]
async fn children_are_fetched_only_where_something_uses_them() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        site.world.langfuse.add(with_steps("s1"));
        site.monitor("m", &heuristic(json!({})));
        assert_eq!(count(&site.once("m").await, "scored"), 1, "{mode:?}");
        assert_eq!(site.world.langfuse.children_served(), 0, "{mode:?}");
    }
}

#[tokio::test]
async fn a_missing_variable_is_an_outcome_and_never_an_empty_string_judged() {
    for (on_missing, decision, status) in [("skip", "not_applicable", 0), ("fail", "failed", 0)] {
        let site = Site::new().await;
        for (id, metadata) in [("has", json!({ "tenant": "acme" })), ("lacks", json!({}))] {
            site.world.langfuse.add(NewTrace { metadata, ..NewTrace::new(id, Timestamp::now() - minutes(20)) });
        }
        let extract = json!({ "context": "{{ trace.metadata.tenant }}", "on_missing": on_missing });
        site.monitor("m", &with(langfuse(), json!({ "extract": extract })));
        let report = site.once_with("m", &[], status).await;
        assert_eq!((count(&report, "scored"), count(&report, decision)), (1, 1), "{on_missing}: {report}");
        assert_eq!(site.world.llm.calls().get("lacks"), None);
        let explained = site.run(&["explain", "m", "lacks"]).await.expect(0).stdout;
        assert!(explained.replace(' ', "_").contains(decision) && explained.contains("tenant"), "{explained}");
    }
}

#[tokio::test]
async fn structured_input_is_shown_to_the_judge_as_it_was() {
    for mode in [Mode::V4, Mode::V3] {
        let site = Site::with(mode).await;
        let messages = json!({ "messages": [{ "role": "user", "content": "[[item:j]] a \"quoted\" question" }] });
        site.world.langfuse.add(NewTrace { input: messages, ..NewTrace::new("j", Timestamp::now() - minutes(20)) });
        site.monitor("m", &with(langfuse(), json!({ "extract": { "input": "{{ trace.input.messages[0].content }}" } })));
        assert_eq!(count(&site.once("m").await, "scored"), 1, "{mode:?}");
        assert!(site.world.llm.prompts().concat().contains("a \"quoted\" question"), "{:?}", site.world.llm.prompts());
    }
}

#[tokio::test]
async fn every_fetched_item_ends_in_exactly_one_decision() {
    let site = Site::new().await;
    for i in 0..34 {
        let tenant = if i < 4 { "test" } else { "acme" };
        site.world.langfuse.add(NewTrace { metadata: json!({ "tenant": tenant }), ..NewTrace::new(format!("x{i}"), Timestamp::now() - minutes(25)) });
    }
    site.monitor("m", &heuristic(json!({ "source": { "filter": "trace.metadata.tenant != \"test\"" }, "sampling": { "strategy": "random", "n": 10 } })));
    let report = site.once("m").await;
    let decided: u64 = ["filtered", "duplicate", "sampled_out", "deferred", "not_applicable", "scored", "failed"].iter().map(|key| count(&report, key)).sum();
    assert_eq!(decided, count(&report, "fetched"), "{report}");
    assert_eq!((count(&report, "filtered"), count(&report, "scored"), count(&report, "sampled_out")), (4, 10, 20), "{report}");
}

#[tokio::test]
async fn what_must_hold_of_steps_is_asked_of_them_alone() {
    for mode in [Mode::V3, Mode::V4] {
        let site = Site::with(mode).await;
        site.world.langfuse.add(with_steps("a"));
        let flow = json!({ "name": "flow", "type": "trace", "order": ["retrieve", "generate"], "retries": { "retrieve": 0 }, "must_not": ["fallback"], "limits": { "*": { "latency": "1h" } } });
        site.monitor("m", &with(langfuse(), json!({ "metrics": [flow] })));
        assert_eq!(count(&site.once("m").await, "scored"), 1, "{mode:?}");
        let rows = site.export(&[]).await;
        assert_eq!((rows[0]["value"].as_f64(), rows[0]["passed"].as_bool()), (Some(0.75), Some(false)), "{mode:?} {rows:?}");
        assert_eq!(rows[0]["reason"], "`retrieve` occurs 2 times; 1 are the most", "{mode:?}");
        assert_eq!(site.world.llm.answered(), 0);
    }
}

#[tokio::test]
async fn a_trace_without_steps_fails_what_must_hold_of_them() {
    let site = Site::new().await;
    site.world.langfuse.add(NewTrace::new("bare", Timestamp::now() - minutes(20)));
    let flow = json!({ "name": "flow", "type": "trace", "must": ["retrieve"] });
    site.monitor("m", &with(langfuse(), json!({ "metrics": [flow] })));
    assert_eq!(count(&site.once("m").await, "scored"), 1);
    let rows = site.export(&[]).await;
    assert_eq!((rows[0]["passed"].as_bool(), rows[0]["reason"].as_str()), (Some(false), Some("`retrieve` does not occur")), "{rows:?}");

    let file = json!({ "schedule": { "every": "1h" }, "source": { "type": "file", "path": "a.jsonl" }, "metrics": [flow] });
    site.monitor("m", &file);
    let said = site.run(&["validate"]).await.expect(1).said();
    assert!(said.contains("monitors/m.yaml:") && said.contains("the items of a source of type `file` have none"), "{said}");
}
