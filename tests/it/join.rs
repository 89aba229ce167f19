//! Two sources side by side.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    build::{short, with},
    site::Site,
    world::{Child, NewTrace},
};

fn count(report: &Value, key: &str) -> u64 {
    report["counts"][key].as_u64().unwrap_or_else(|| panic!("no count `{key}` in {report}"))
}

fn ago(minutes: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_mins(minutes)
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Two files, joined by `ticket`.
fn joined(changes: Value) -> Value {
    let base = json!({
        "schedule": { "every": "1h" },
        "source": {
            "type": "join", "settle": "0s",
            "left": { "type": "file", "path": "left.jsonl" },
            "right": { "type": "file", "path": "right.jsonl" },
            "on": { "left": ["trace.ticket", "trace.lang"], "right": ["trace.number", "trace.lang"] },
        },
        "metrics": [{ "name": "label", "type": "expression", "value": "trace.right.label" }, { "name": "rights", "type": "expression", "value": "trace.rights / 10" }],
    });
    with(base, changes)
}

fn left(id: &str, ticket: i64, minutes: i64) -> Value {
    json!({ "id": id, "timestamp": ago(minutes).to_string(), "input": "q", "output": "fine", "ticket": ticket.to_string(), "lang": "en" })
}

fn right(ticket: i64, label: f64, minutes: i64) -> Value {
    json!({ "id": format!("r{ticket}-{minutes}"), "timestamp": ago(minutes).to_string(), "number": ticket, "lang": "en", "label": label })
}

async fn values(site: &Site, monitor: &str, metric: &str) -> Vec<(String, f64)> {
    let rows = site.export(&["--monitor", monitor]).await;
    let mut values: Vec<(String, f64)> = rows
        .iter()
        .filter(|row| row["metric"] == metric && row["outcome"] == "scored")
        .map(|row| (row["item_id"].as_str().unwrap().to_owned(), row["value"].as_f64().unwrap()))
        .collect();
    values.sort_by(|a, b| a.0.cmp(&b.0));
    values
}

#[tokio::test]
async fn an_item_has_the_nearest_of_its_right_sides() {
    let site = Site::new().await;
    site.write("left.jsonl", lines(&[left("a", 1, 60), left("b", 2, 50), left("c", 3, 40)]));
    let other = with(right(3, 0.9, 40), json!({ "lang": "de" }));
    // Text and number are the same key.
    site.write(
        "right.jsonl",
        lines(&[right(1, 0.2, 89), right(1, 0.7, 61), right(1, 0.3, 32), right(1, 0.9, 95), right(2, 0.5, 30), right(2, 0.4, 10), other]),
    );
    site.monitor("m", &joined(json!({})));
    let report = site.once("m").await;
    assert_eq!((count(&report, "fetched"), count(&report, "scored")), (2, 2), "{report}");
    assert_eq!(values(&site, "m", "label").await, [("a".to_owned(), 0.7), ("b".to_owned(), 0.5)]);
    assert_eq!(values(&site, "m", "rights").await, [("a".to_owned(), 0.3), ("b".to_owned(), 0.1)], "others lie outside of the buffer");
}

#[tokio::test]
async fn an_item_waits_for_its_right_side_within_the_overlap() {
    let site = Site::new().await;
    site.write("left.jsonl", lines(&[left("a", 1, 20), left("b", 2, 10)]));
    site.write("right.jsonl", lines(&[right(2, 0.5, 9)]));
    site.monitor("m", &joined(json!({})));
    assert_eq!(count(&site.once("m").await, "scored"), 1);
    site.write("right.jsonl", lines(&[right(2, 0.5, 9), right(1, 0.6, 1)]));
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "duplicate")), (1, 1), "{report}");
    assert_eq!(values(&site, "m", "label").await, [("a".to_owned(), 0.6), ("b".to_owned(), 0.5)]);
}

#[tokio::test]
async fn a_left_join_keeps_items_without_a_right_side() {
    let site = Site::new().await;
    site.write("left.jsonl", lines(&[left("a", 1, 20), left("b", 2, 10)]) + "{ broken\n");
    site.write("right.jsonl", lines(&[right(2, 0.5, 9)]));
    site.monitor(
        "m",
        &joined(json!({ "source": { "how": "left" }, "metrics": [short(), { "name": "rights", "type": "expression", "value": "trace.rights / 10" }] })),
    );
    let report = site.once("m").await;
    assert_eq!((count(&report, "scored"), count(&report, "failed")), (2, 1), "{report}");
    assert_eq!(values(&site, "m", "rights").await, [("a".to_owned(), 0.0), ("b".to_owned(), 0.1)]);
}

#[tokio::test]
async fn an_id_of_ones_own_is_the_items() {
    let site = Site::new().await;
    site.write("left.jsonl", lines(&[left("a", 1, 20), left("b", 2, 10)]));
    site.write("right.jsonl", lines(&[right(1, 0.4, 21), right(2, 0.5, 9)]));
    site.monitor("m", &joined(json!({ "source": { "id": "{{ left.id }}/{{ right.number }}" } })));
    site.once("m").await;
    assert_eq!(site.scored_items("m", "label").await, ["a/1", "b/2"]);
    assert_eq!(count(&site.once("m").await, "duplicate"), 2);
    site.monitor("n", &joined(json!({ "source": { "id": "{{ right.nothing }}" } })));
    let report = site.once_with("n", &[], 1).await;
    assert_eq!((count(&report, "failed"), count(&report, "scored")), (2, 0), "{report}");
    assert!(report["error"].as_str().unwrap().starts_with("join: id: "), "{report}");
}

#[tokio::test]
async fn an_expression_that_fits_no_side_is_no_key_that_is_missing() {
    let site = Site::new().await;
    site.write("left.jsonl", lines(&[left("a", 1, 20), left("b", 2, 10)]));
    site.write("right.jsonl", lines(&[right(1, 0.4, 21), right(2, 0.5, 9)]));
    for (name, on, words) in [
        ("left", json!({ "left": ["trace.ticket | trimm"], "right": ["trace.number"] }), "join: on.left: "),
        ("right", json!({ "left": ["trace.ticket"], "right": ["trace.number | trimm"] }), "join: on.right: "),
    ] {
        site.monitor(name, &joined(json!({ "source": { "on": on } })));
        let report = site.once_with(name, &[], 1).await;
        assert!(report["error"].as_str().unwrap().contains(words), "{report}");
    }
}

#[tokio::test]
async fn slack_threads_meet_their_rows() {
    let site = Site::new().await;
    let history = &site.world.slack.history;
    let parents: Vec<String> = (0..4).map(|i| history.thread("C1", ago(60 - i), &[("U1", 0, "?"), ("B1:Bot", 5, "!")])).collect();
    let row = |i: usize| json!({ "id": i, "timestamp": ago(59).to_string(), "row": { "thread_id": parents[i], "label": 0.5 } });
    site.write("right.jsonl", lines(&[row(0), row(2)]));
    site.monitor(
        "m",
        &json!({
            "schedule": { "every": "1h" },
            "source": {
                "type": "join",
                "left": { "type": "slack", "channels": ["C1"] },
                "right": { "type": "file", "path": "right.jsonl" },
                "on": { "left": ["trace.thread_ts"], "right": ["trace.row.thread_id"] },
            },
            "metrics": [{ "name": "label", "type": "expression", "value": "trace.right.row.label" }],
        }),
    );
    site.once("m").await;
    assert_eq!(site.scored_items("m", "label").await, [format!("slack-C1-{}", parents[0]), format!("slack-C1-{}", parents[2])]);
    let said = site.run(&["validate", "--live"]).await.expect(0).said();
    assert!(said.contains("left: Slack") && said.contains("right.jsonl"), "{said}");
}

#[tokio::test]
async fn langfuse_traces_keep_their_steps_and_their_scores() {
    let site = Site::new().await;
    let step = Child { name: "retrieve".to_owned(), kind: "RETRIEVER", input: json!("q"), output: json!("found") };
    site.world.langfuse.add(NewTrace { children: vec![step], ..NewTrace::new("t1", ago(30)) });
    site.write("right.jsonl", lines(&[json!({ "id": 7, "timestamp": ago(30).to_string(), "trace_id": "t1", "label": 0.5 })]));
    let source = json!({
        "type": "join", "name": "bot", "settle": "1m",
        "left": { "type": "langfuse" },
        "right": { "type": "file", "path": "right.jsonl" },
        "on": { "left": ["trace.id"], "right": ["trace.trace_id"] },
    });
    let steps = json!({ "name": "steps", "type": "expression", "value": "trace.observations | length / 10" });
    let monitor = json!({ "schedule": { "every": "1h" }, "source": source, "metrics": [steps], "publish": [{ "type": "langfuse" }] });
    site.monitor("m", &monitor);
    let report = site.once("m").await;
    assert_eq!(report["published"]["langfuse"]["delivered"], 1, "{report}");
    assert_eq!(values(&site, "m", "steps").await, [("t1".to_owned(), 0.1)]);
    site.monitor("n", &with(monitor, json!({ "source": { "id": "{{ left.id }}-{{ right.label }}" }, "publish": [] })));
    site.once("n").await;
    assert_eq!(values(&site, "n", "steps").await, [("t1-0.5".to_owned(), 0.1)]);
}

#[tokio::test]
async fn faults_of_a_source_inside_are_told_with_their_place() {
    let site = Site::new().await;
    let monitor = |source: &str| format!("schedule: {{ every: 1h }}\nsource:\n  type: join\n{source}\nmetrics: [{{ name: short, type: length, max: 9 }}]\n");
    let sound = "  left: { type: file, path: a.jsonl }\n  right: { type: file, path: b.jsonl }\n";
    for (source, line, words) in [
        (
            "  left:\n    type: slack\n    channels: ['#x']\n  right: { type: file, path: b }\n  on: { left: [trace.id], right: [trace.id] }".to_owned(),
            6,
            "no channel's id",
        ),
        (
            "  left:\n    type: file\n    pth: a\n  right: { type: file, path: b }\n  on: { left: [trace.id], right: [trace.id] }".to_owned(),
            6,
            "did you mean `path`?",
        ),
        ("  left: { type: file, path: b }\n  right:\n    type: filo\n  on: { left: [trace.id], right: [trace.id] }".to_owned(), 6, "did you mean `file`?"),
        (format!("{sound}  on: {{ left: [trace.id], right: [] }}"), 6, "as many expressions"),
        (format!("{sound}  on: {{ left: [trace.], right: [trace.id] }}"), 6, "is no expression"),
        (format!("{sound}  on: {{ left: [trace.steps.a.output], right: [trace.id] }}"), 6, "observations are not known yet"),
        (format!("{sound}  on: {{ left: [trace.id], right: [trace.id] }}\n  how: outer"), 7, "`inner`, `left`"),
        (format!("{sound}  on: {{ left: [trace.id], right: [trace.id] }}\n  id: '{{{{ left. }}}}'"), 7, "is no template"),
    ] {
        site.write("monitors/m.yaml", monitor(&source));
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(&format!("m.yaml:{line}:")) && said.contains(words), "{source}:\n{said}");
    }
}
