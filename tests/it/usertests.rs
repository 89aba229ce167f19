//! `assayd test`: users' own tests of their monitors, over the real pipeline, calling nobody.

use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, with},
    site::{Site, to_yaml},
};

/// A judge, a free metric and two alerts, one of which waits for two runs.
fn monitor() -> Value {
    let low = json!({ "name": "helpful-low", "metric": "helpful", "when": "mean < 0.8", "over": { "runs": 1 }, "for": 2 });
    let refusing = json!({ "name": "refusing", "metric": "refusal", "when": "pass_rate < 0.5", "over": "24h" });
    let refusal = json!({ "name": "refusal", "type": "regex", "field": "output", "pattern": "(?i)i can't", "invert": true });
    let gated = with(judge(), json!({ "when": "scores.refusal.passed" }));
    with(langfuse(), json!({ "metrics": [refusal, gated], "alerts": [low, refusing], "source": { "filter": "trace.name != 'health'" } }))
}

fn tests(tests: Value) -> String {
    to_yaml(&json!({ "monitor": "m", "tests": tests }))
}

#[tokio::test]
async fn a_drop_is_told_as_it_is_written() {
    let site = Site::new().await;
    site.monitor("m", &monitor());
    let story = json!([{
        "name": "a drop is told, and over when it is over",
        "runs": [
            {
                "traces": [
                    { "id": "t1", "input": "hi", "output": "Hello" }, { "id": "t2", "input": "hi", "output": "I can't" },
                    { "id": "ping", "name": "health", "output": "pong" },
                ],
                "verdicts": { "t1": { "helpful": 0.25 } },
                "expect": {
                    "status": "succeeded",
                    "decisions": { "t1": "scored", "t2": "scored", "ping": "filtered" },
                    "scores": { "t1": { "refusal": 1, "helpful": 0.25 }, "t2": { "refusal": 0 } },
                    "alerts": { "helpful-low": "pending", "refusing": "inactive" },
                },
            },
            { "expect": { "alerts": { "helpful-low": "firing" }, "decisions": { "t1": "scored" } } },
            { "repeat": 30, "expect": { "alerts": { "helpful-low": "firing" } } },
            { "traces": [{ "id": "t9", "input": "hi", "output": "Hello" }], "verdicts": { "*": { "helpful": { "value": 1, "reason": "kind" } } },
              "expect": { "alerts": { "helpful-low": "resolved" } } },
        ],
    }, {
        "name": "a judge that fails is no low score",
        "runs": [{ "at": "2026-03-01T12:00:00Z", "traces": [{ "id": "a", "input": "hi", "output": "x" }, { "id": "b", "input": "hi", "output": "x" }],
                   "verdicts": { "a": { "helpful": { "failed": "overloaded" } }, "b": { "helpful": { "deferred": "no key" } } },
                   "expect": { "decisions": { "a": "failed", "b": "deferred" }, "alerts": { "helpful-low": "no_data", "judge-blocked": "firing" } } }],
    }]);
    site.write("monitors/m.test.yaml", tests(story));
    let output = site.run(&["test"]).await.expect(0);
    assert!(output.stdout.contains("monitors/m.test.yaml") && output.stdout.contains("ok      a drop is told"), "{output:?}");
    assert!(output.stderr.contains("2 tests, 0 failed"), "{output:?}");
    assert_eq!((site.world.llm.requests(), site.world.langfuse.listings()), (0, 0), "nobody is called");
    assert!(!site.path("state").exists(), "nothing is kept");
}

#[tokio::test]
async fn what_is_not_as_expected_is_told_with_what_was_found() {
    let site = Site::new().await;
    site.monitor("m", &monitor());
    let runs = json!([{
        "traces": [{ "id": "t1", "input": "hi", "output": "Hello" }, { "id": "old", "output": "x", "timestamp": "2020-01-01T00:00:00Z" }],
        "verdicts": { "t1": { "helpful": true } },
        "expect": { "decisions": { "t1": "filtered", "old": "scored" }, "scores": { "t1": { "helpful": 0.5 } }, "alerts": { "helpful-low": "firing" } },
    }]);
    site.write("monitors/sub/more_test.yaml", tests(json!([{ "name": "wrong", "runs": runs }])));
    let output = site.run(&["test", "monitors/sub"]).await.expect(1);
    for part in [
        "FAILED  wrong",
        "run 1 at 2026-01-01T00:00:00Z: item t1: expected filtered, found scored (2 of 2 metrics gave a score)",
        "item old: expected scored, found not fetched",
        "score t1 helpful: expected 0.5, found 1",
        "alert helpful-low: expected firing, found inactive",
    ] {
        assert!(output.stdout.contains(part), "no `{part}` in\n{}", output.stdout);
    }
    let told = site.run(&["test", "--format", "json"]).await.expect(1).json();
    assert_eq!((&told["failed"], &told["tests"][0]["ok"], told["tests"][0]["mismatches"].as_array().unwrap().len()), (&json!(1), &json!(false), 4), "{told}");
}

#[tokio::test]
async fn a_wrong_test_is_named_with_its_place_and_is_no_monitor() {
    let site = Site::new().await;
    site.monitor("m", &monitor());
    let run = |run: Value| json!([{ "name": "x", "runs": [with(json!({ "traces": [{ "id": "a" }] }), run)] }]);
    for (wrong, told) in [
        (run(json!({ "verdicts": { "a": { "helpfull": 1 } } })), "did you mean `helpful`?"),
        (run(json!({ "verdicts": { "a": { "refusal": 1 } } })), "`refusal` is computed"),
        (run(json!({ "verdicts": { "a": { "helpful": 1.5 } } })), "a value lies in [0, 1]"),
        (run(json!({ "expect": { "alerts": { "helpful-lo": "firing" } } })), "did you mean `helpful-low`?"),
        (run(json!({ "expect": { "decisions": { "a": "scorred" } } })), "scorred"),
        (run(json!({ "traces": [{ "output": "x" }] })), "a trace needs an `id`"),
        (json!([{ "name": "x", "runs": [{ "repeat": 3 }] }]), "the first run of a test has `traces`"),
    ] {
        site.write("monitors/m.test.yaml", tests(wrong));
        let said = site.run(&["test"]).await.expect(1).said();
        assert!(said.contains("monitors/m.test.yaml:") && said.contains(told), "no `{told}` in {said}");
    }
    site.write("monitors/m.test.yaml", "monitor: mm\ntests: []\n");
    assert!(site.run(&["test"]).await.expect(1).said().contains("there is no valid monitor `mm`, did you mean `m`?"));
    assert!(site.run(&["validate"]).await.expect(0).said().contains("1 monitors in 1 files"));
    site.run(&["test", "nowhere.test.yaml"]).await.expect(1);
}

#[tokio::test]
async fn the_tests_that_we_ship_hold() {
    let site = Site::new().await;
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/monitors");
    let output = site.run(&["--monitors", shipped, "--config", concat!(env!("CARGO_MANIFEST_DIR"), "/assayd.yaml"), "test"]).await.expect(0);
    assert!(!output.stdout.is_empty(), "{output:?}");
}
