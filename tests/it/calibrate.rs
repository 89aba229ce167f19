//! Calibration: how far a judge agrees with people, and what they would have said of all.

use serde_json::{Value, json};

use crate::site::Site;

/// 400 answers, of which the judge passes every one that is not a tenth.
async fn judged() -> Site {
    let site = Site::new().await;
    let lines: String = (0..400)
        .map(|n| {
            let output = if n % 10 == 0 { "poor" } else { "well put" };
            format!("{}\n", json!({ "id": format!("a{n}"), "timestamp": "2026-11-01T00:00:00Z", "input": "q", "output": output }))
        })
        .collect();
    site.write("answers.jsonl", lines);
    site.monitor(
        "m",
        &json!({
            "schedule": { "every": "1h" },
            "source": { "type": "file", "path": "answers.jsonl", "settle": "0s", "lookback": "3650d" },
            "metrics": [{ "name": "good", "type": "contains", "field": "output", "any": ["well"] }],
        }),
    );
    site.once("m").await;
    site
}

/// People find every fifth of the first hundred bad: all that the judge failed, and ten that it passed.
fn labels() -> String {
    (0..100).map(|n| format!("a{n},{}\n", if n % 5 == 0 { "bad" } else { "good" })).collect()
}

async fn calibrated(site: &Site, more: &[&str]) -> Value {
    let args = [&["calibrate", "m", "--labels", "labels.csv", "--format", "json"], more].concat();
    site.run(&args).await.expect(0).json()
}

#[tokio::test]
async fn labels_say_how_far_a_judge_is_to_be_trusted() {
    let site = judged().await;
    site.write("labels.csv", format!("item_id,label\n{}nobody,good\n", labels()));
    let found = calibrated(&site, &[]).await;
    assert_eq!(found["confusion"], json!({ "good_passed": 80, "good_failed": 0, "bad_passed": 10, "bad_failed": 10 }));
    assert_eq!((&found["labelled"], &found["not_judged"], &found["unlabelled"]), (&json!(100), &json!(1), &json!(300)));
    assert_eq!(found["agreement"], 0.9);
    // By hand: observed 0.9, by chance 0.8 * 0.9 + 0.2 * 0.1 = 0.74.
    assert!((found["kappa"].as_f64().unwrap() - (0.9 - 0.74) / (1.0 - 0.74)).abs() < 1e-9, "{found}");
    let disagreements = found["disagreements"].as_array().unwrap();
    assert_eq!(disagreements.len(), 10);
    assert!(disagreements.iter().all(|item| item["people"] == 0.0 && item["judge"] == 1.0));

    let by_hand = &found["corrected"];
    assert!(by_hand["method"].as_str().unwrap().starts_with("Rogan-Gladen"));
    let random = &calibrated(&site, &["--drawn", "random"]).await["corrected"];
    assert_eq!(random["method"], "PPI++");
    let verdict = &calibrated(&site, &["--drawn", "verdict"]).await["corrected"];
    for corrected in [by_hand, random, verdict] {
        let (low, high) = (corrected["interval"]["low"].as_f64().unwrap(), corrected["interval"]["high"].as_f64().unwrap());
        assert!(low < 0.8 && 0.8 < high && corrected["mean"].as_f64().unwrap() < 0.87, "people would give 0.8 where the judge gives 0.9: {corrected}");
    }
    let said = site.run(&["calibrate", "m", "--labels", "labels.csv"]).await.expect(0).said();
    for part in ["agreement 0.9", "substantial", "people: bad", "they disagree on 10", "people would give"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
}

#[tokio::test]
async fn labels_that_cannot_be_used_are_told() {
    let site = judged().await;
    site.write("labels.csv", "item_id,label\na1,perhaps\n");
    let said = site.run(&["calibrate", "m", "--labels", "labels.csv"]).await.expect(1).said();
    assert!(said.contains("line 2: `perhaps` is no label"), "{said}");
    site.write("labels.csv", "item_id,label\nother,good\n");
    let said = site.run(&["calibrate", "m", "--labels", "labels.csv"]).await.expect(1).said();
    assert!(said.contains("of 1 labelled items 0 were judged by good"), "{said}");
    site.run(&["calibrate", "m", "--labels", "labels.csv", "--metric", "goood"]).await.expect(2);
}

#[tokio::test]
async fn a_simulation_tells_what_the_alerts_would_do() {
    let site = judged().await;
    let said = site.run(&["simulate", "m"]).await.expect(1).said();
    assert!(said.contains("no alert that could be tried"), "{said}");
    let text = std::fs::read_to_string(site.path("monitors/m.yaml")).unwrap();
    site.write("monitors/m.yaml", format!("{text}alerts: [{{ name: low, metric: good, when: mean < 0.85, confidence: 0.99 }}]\n"));
    let found = site.run(&["simulate", "m", "--lives", "10", "--format", "json"]).await.expect(0).json();
    let rules = found[0]["rules"].as_array().unwrap();
    let alarms = |name: &str| rules.iter().find(|rule| rule["rule"] == name).unwrap()["false_alarms_a_month"]["mean"].as_f64().unwrap();
    assert_eq!(found[0]["mean"], 0.9);
    assert!(alarms("this alert") <= alarms("plain threshold on each run"));
    let again = site.run(&["simulate", "m", "--lives", "10", "--format", "json"]).await.expect(0).json();
    assert_eq!(found, again, "the same seed, the same figures");
    let said = site.run(&["simulate", "m", "--lives", "2"]).await.expect(0).said();
    assert!(said.contains("alarms a month as things are") && said.contains("runs until told of 0.8"), "{said}");
}
