//! The draw: what takes part in it, and what becomes of items that fail before it.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{langfuse, short, with},
    site::Site,
    world::NewTrace,
};

fn count(report: &Value, key: &str) -> u64 {
    report["counts"][key].as_u64().unwrap_or_else(|| panic!("no count `{key}` in {report}"))
}

fn minutes(n: i64) -> SignedDuration {
    SignedDuration::from_mins(n)
}

fn heuristic(changes: Value) -> Value {
    with(with(langfuse(), json!({ "metrics": [short()], "publish": [] })), changes)
}

#[tokio::test]
async fn what_is_always_wanted_and_drawn_anyway_takes_part_in_the_draw() {
    let site = Site::new().await;
    site.world.langfuse.add_some(5);
    site.world.langfuse.add(NewTrace { metadata: json!({ "vip": true }), ..NewTrace::new("old", Timestamp::now() - minutes(300)) });
    site.world.langfuse.add(NewTrace { metadata: json!({ "vip": true }), ..NewTrace::new("newest", Timestamp::now() - minutes(2)) });
    site.monitor("m", &heuristic(json!({ "sampling": { "strategy": "most_recent", "n": 1, "always": "trace.metadata.vip" } })));
    site.once("m").await;
    assert_eq!(site.scored_items("m", "short").await, ["newest", "old"], "the one is drawn as the newest of all, the other added");
}

#[tokio::test]
async fn what_fits_no_item_fails_the_run_and_loses_none() {
    let site = Site::new().await;
    site.world.langfuse.add_some(6);
    let sound = || heuristic(json!({ "sampling": { "strategy": "random", "n": 4 } }));
    for (name, changes, words) in [
        ("filter", json!({ "source": { "filter": "trace.name | lowr == 'answer'" } }), "filter: "),
        ("always", json!({ "sampling": { "always": "trace.name | lowr == 'answer'" } }), "sampling.always: "),
        ("extract", json!({ "extract": { "context": "{{ trace.name | lowr }}" } }), "extract.context: "),
    ] {
        site.monitor(name, &with(sound(), changes.clone()));
        let report = site.once_with(name, &[], 1).await;
        assert_eq!((&report["status"], count(&report, "failed")), (&json!("failed"), 6), "{report}");
        assert!(report["error"].as_str().unwrap().starts_with(words), "{report}");
        // Mended, they are drawn as new ones are: no more than a run pays for.
        site.monitor(name, &sound());
        let report = site.once(name).await;
        assert_eq!((count(&report, "scored"), count(&report, "sampled_out"), count(&report, "failed")), (4, 2, 0), "{report}");
        let item = &site.scored_items(name, "short").await[0];
        let explained = site.run(&["explain", name, item]).await.expect(0).stdout;
        assert!(explained.contains(words) && explained.contains("decision   scored"), "what failed before is told: {explained}");
        assert_eq!(count(&site.once(name).await, "scored"), 0);

        // Attempts have an end.
        let last = format!("{name}-last");
        site.monitor(&last, &with(with(sound(), changes), json!({ "evaluation": { "max_attempts": 2 } })));
        for failed in [6, 6] {
            assert_eq!(count(&site.once_with(&last, &[], 1).await, "failed"), failed, "{last}");
        }
        site.monitor(&last, &sound());
        let report = site.once(&last).await;
        assert_eq!((count(&report, "scored"), count(&report, "failed")), (0, 0), "{report}");
    }
}

#[tokio::test]
async fn a_run_of_which_some_items_fail_before_the_draw_is_partial() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    site.world.langfuse.add(NewTrace { metadata: json!({ "n": "x" }), ..NewTrace::new("odd", Timestamp::now() - minutes(20)) });
    site.monitor("m", &heuristic(json!({ "source": { "filter": "not trace.metadata.n or trace.metadata.n - 1 > 0" } })));
    let report = site.once("m").await;
    assert_eq!((&report["status"], count(&report, "scored"), count(&report, "failed")), (&json!("partial"), 3, 1), "{report}");
    assert!(report["error"].as_str().unwrap().starts_with("filter: "), "{report}");
}
