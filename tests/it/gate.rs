//! Release checks: judged in random order, only as long as needed, and nothing twice.

use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, with},
    site::Site,
};

/// A file of answers, of which one in `bad` is bad.
async fn answers(n: u32, bad: u32) -> Site {
    let site = Site::new().await;
    let lines: String = (0..n)
        .map(|at| {
            let output = if at % bad == 0 { "bad" } else { "good" };
            format!("{}\n", json!({ "id": at.to_string(), "timestamp": "2026-11-01T00:00:00Z", "input": "q", "output": output }))
        })
        .collect();
    site.write("s.jsonl", lines);
    site.monitor(
        "m",
        &json!({
            "schedule": { "every": "1h" },
            "source": { "type": "file", "path": "s.jsonl", "settle": "0s", "lookback": "3650d" },
            "metrics": [{ "name": "good", "type": "contains", "field": "output", "any": ["good"] }],
        }),
    );
    site
}

async fn gate(site: &Site, more: &[&str], code: i32) -> Value {
    site.run(&[&["gate", "m", "--format", "json"], more].concat()).await.expect(code).json()
}

#[tokio::test]
async fn a_release_passes_or_fails_after_as_many_items_as_it_takes() {
    let site = answers(400, 50).await;
    let found = gate(&site, &["--threshold", "0.8"], 0).await;
    assert_eq!((&found["answer"], &found["population"]), (&json!("pass"), &json!(400)));
    let n = found["n"].as_u64().unwrap();
    assert!(n < 60, "clear after a few: {found}");
    assert!(found["low"].as_f64().unwrap() <= 0.98 && 0.98 <= found["high"].as_f64().unwrap(), "{found}");
    let found = gate(&site, &["--threshold", "0.999"], 1).await;
    assert_eq!(found["answer"], "fail");
    let said = site.run(&["gate", "m", "--threshold", "0.8"]).await.expect(0).said();
    assert!(said.contains("pass: good of m is at 0.8 or better; wrong with a probability of at most 0.05"), "{said}");
    // Items that were under way when it was known are recorded too; the second check used what the first had judged.
    let most = n.max(found["n"].as_u64().unwrap());
    let judged = site.scored_items("m", "good").await.len() as u64;
    assert!((most..=most + 8).contains(&judged), "{judged} items were judged for {most} that were needed");
}

#[tokio::test]
async fn a_check_pays_for_nothing_twice_and_leaves_the_rest_to_the_runs() {
    let site = Site::new().await;
    site.world.langfuse.add_many("t", 120, SignedDuration::from_mins(90), SignedDuration::from_mins(30));
    site.world.llm.verdict(|_| 1.0);
    site.monitor("m", &with(langfuse(), json!({ "alerts": [{ "name": "high", "metric": "helpful", "when": "mean > 0.2", "notify": [{ "slack": "#x" }] }] })));
    let found = gate(&site, &["--threshold", "0.5"], 0).await;
    let judged = usize::try_from(found["n"].as_u64().unwrap()).unwrap();
    assert!(judged < 60, "{found}");
    let calls = site.world.llm.requests();
    assert!(calls >= judged && calls <= judged + 8, "those under way when it was known are recorded too: {calls} calls, {found}");
    assert!(site.world.slack.messages().is_empty(), "no alert looks at a release check");
    assert_eq!(gate(&site, &["--threshold", "0.5"], 0).await["n"], found["n"]);
    assert_eq!(site.world.llm.requests(), calls, "what is known is not asked again");

    let report = site.once("m").await;
    assert_eq!(report["counts"]["scored"], 120 - calls, "{report}");
    assert_eq!(site.world.llm.requests(), 120);
    assert_eq!(site.world.langfuse.scored("helpful"), 120, "each once, whoever judged it");
}

#[tokio::test]
async fn a_check_of_one_judge_among_several_hears_what_it_said() {
    let site = Site::new().await;
    site.world.langfuse.add_many("t", 60, SignedDuration::from_mins(90), SignedDuration::from_mins(30));
    site.world.llm.verdict(|_| 1.0);
    site.monitor("m", &with(langfuse(), json!({ "metrics": [judge(), with(judge(), json!({ "name": "polite" }))] })));
    for metric in ["helpful", "polite"] {
        let found = gate(&site, &["--metric", metric, "--threshold", "0.5"], 0).await;
        assert!(found["n"].as_u64().unwrap() > 5 && found["left_out"] == 0, "{found}");
    }
}

#[tokio::test]
async fn items_that_a_run_did_not_draw_are_judged_by_a_check() {
    let site = answers(200, 2).await;
    let path = site.path("monitors/m.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{text}sampling: {{ strategy: random, n: 5 }}\n")).unwrap();
    assert_eq!(site.once("m").await["counts"]["sampled_out"], 195);
    let found = gate(&site, &["--threshold", "0.9"], 1).await;
    assert!(found["n"].as_u64().unwrap() > 5 && found["population"] == 200, "{found}");
}

#[tokio::test]
async fn without_an_answer_the_check_says_why() {
    let mut site = Site::new().await;
    site.world.langfuse.add_many("t", 60, SignedDuration::from_mins(90), SignedDuration::from_mins(30));
    site.world.llm.verdict(|prompt| if prompt.len() % 2 == 0 { 1.0 } else { 0.0 });
    site.settings["prices"] = json!({ "gpt-4o-mini": { "input_cost_per_token": 1e-5, "output_cost_per_token": 1e-5 } });
    site.save();
    site.monitor("m", &with(langfuse(), json!({ "evaluation": { "concurrency": 1, "budget": { "usd": 0.01, "per": "day" } } })));
    let found = gate(&site, &["--threshold", "0.5"], 3).await;
    assert_eq!(found["answer"], "undecided");
    assert!(found["reason"].as_str().unwrap().contains("budget"), "{found}");
    let said = site.run(&["gate", "m", "--threshold", "2"]).await.expect(2).said();
    assert!(said.contains("--threshold lies between"), "{said}");
    let said = site.run(&["gate", "m", "--metric", "helpfull"]).await.expect(2).said();
    assert!(said.contains("no metric `helpfull` (helpful)"), "{said}");
}
