//! What an edited monitor would do: told from the source and the history, with nothing judged and nothing written.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Row, sqlite::SqliteConnectOptions};

use crate::{
    build::{judge, langfuse, with},
    site::Site,
};

const PER_TOKEN: f64 = 1e-5;

async fn plan(site: &Site, more: &[&str], code: i32) -> Value {
    site.run(&[&["plan", "--format", "json"], more].concat()).await.expect(code).json()
}

/// Every row of every table.
async fn content(site: &Site) -> Vec<String> {
    let mut db = SqliteConnectOptions::new().filename(site.path("state/assayd.db")).connect().await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetch_all(&mut db).await.unwrap();
    let mut all = Vec::new();
    for table in tables {
        let columns: Vec<String> =
            sqlx::query("SELECT name FROM pragma_table_info($1)").bind(&table).fetch_all(&mut db).await.unwrap().iter().map(|row| row.get(0)).collect();
        let quoted = columns.iter().map(|column| format!("quote(\"{column}\")")).collect::<Vec<_>>().join(" || ',' || ");
        let sql = format!("SELECT '{table}: ' || {quoted} FROM \"{table}\" ORDER BY 1");
        all.extend(sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(sql)).fetch_all(&mut db).await.unwrap());
    }
    all
}

/// Answers of a file, ten a run, so many of them good.
struct Answers(String, u32);

impl Answers {
    async fn run(&mut self, site: &Site, good: u32) -> Value {
        for at in 0..10 {
            let output = if at < good { "good" } else { "bad" };
            let at = Timestamp::now() - SignedDuration::from_hours(1);
            self.0 += &format!("{}\n", json!({ "id": format!("a{}", self.1), "timestamp": at.to_string(), "input": "q", "output": output }));
            self.1 += 1;
        }
        site.write("answers.jsonl", &self.0);
        site.once("m").await
    }
}

fn monitor(when: &str) -> Value {
    json!({
        "schedule": { "every": "1h" },
        "source": { "type": "file", "path": "answers.jsonl", "settle": "0s" },
        "metrics": [{ "name": "good", "type": "contains", "field": "output", "any": ["good"] }],
        "alerts": [
            { "name": "worse", "metric": "good", "when": when, "confidence": 0.99, "notify": [{ "slack": "#llm-alerts" }] },
            { "name": "plain", "metric": "good", "when": "mean < 0.2", "over": { "runs": 1 } },
        ],
    })
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("no time: {value}")).parse().unwrap()
}

fn firing(report: &Value) -> bool {
    report["alerts"].as_array().unwrap().iter().any(|alert| alert["name"] == "worse" && alert["state"] == "firing")
}

#[tokio::test]
async fn a_real_drop_is_told_with_its_instant_and_an_edit_is_tried_on_it() {
    let site = Site::new().await;
    site.monitor("m", &monitor("mean < 0.8"));
    let mut answers = Answers(String::new(), 0);
    for _ in 0..8 {
        answers.run(&site, 9).await;
    }
    let mut runs = 0;
    let began = loop {
        runs += 1;
        assert!(runs < 20, "nobody is told of a drop");
        let report = answers.run(&site, 3).await;
        if firing(&report) {
            break time(&report["slot"]);
        }
    };
    let next = time(&answers.run(&site, 3).await["slot"]);
    site.monitor("other", &monitor("mean < 0.8"));
    site.once("other").await;

    let quiet = plan(&site, &[], 0).await;
    assert_eq!((&quiet["monitors"], &quiet["unchanged"]), (&json!([]), &json!(2)), "as they last ran: {quiet}");
    let before = content(&site).await;
    let same = plan(&site, &["monitors/m.yaml"], 0).await;
    let alert = &same["monitors"][0]["alerts"][0];
    let (fired, present) = (time(&alert["fired"][0]["at"]), time(&alert["present"][0]["at"]));
    assert!((began..next).contains(&fired) && (began..next).contains(&present), "{fired} and {present} for {began} to {next}: {alert}");
    assert_eq!(alert["fired"].as_array().unwrap().len(), 1);
    assert_eq!(same["monitors"][0]["alerts"][1]["fired"], json!([]), "a mean of 0.3 is above 0.2");

    site.monitor("m", &monitor("mean < 0.1"));
    let edited = plan(&site, &["--days", "7"], 0).await;
    assert_eq!((&edited["changed"], edited["monitors"].as_array().unwrap().len(), &edited["days"]), (&json!(["m"]), 1, &json!(7)), "{edited}");
    let of = &edited["monitors"][0];
    assert_eq!((&of["keys"], &of["alerts"][0]["fired"]), (&json!(["alerts.worse.when"]), &json!([])), "{of}");
    assert_eq!(of["alerts"][0]["present"].as_array().unwrap().len(), 1, "what the present version said stands beside it");
    assert_eq!(of["run"]["judged"].as_u64(), Some(u64::from(answers.1)), "as if nothing was known: {of}");
    assert_eq!(content(&site).await, before, "nothing is written");
}

#[tokio::test]
async fn it_says_how_soon_a_fall_is_seen_and_where_the_threshold_sits_in_the_noise() {
    let site = Site::new().await;
    site.monitor("m", &monitor("mean < 0.8"));
    let mut answers = Answers(String::new(), 0);
    for _ in 0..6 {
        answers.run(&site, 9).await;
    }
    let falls = async |when: &str| {
        site.monitor("m", &monitor(when));
        plan(&site, &["monitors/m.yaml"], 0).await["monitors"][0]["alerts"][0]["falls"].clone()
    };
    let sound = falls("mean < 0.8").await;
    assert_eq!((&sound["usual"], &sound["scores"], &sound["noise"]), (&json!(0.9), &json!(60), &Value::Null), "{sound}");
    let runs: Vec<Option<f64>> = sound["delays"].as_array().unwrap().iter().map(|delay| delay["runs"].as_f64()).collect();
    assert!(runs[0].is_none() && runs[2].is_some_and(|runs| runs < 200.0), "to 0.85, which is none, 0.8 and 0.7: {runs:?}");
    let noisy = falls("mean < 0.89").await;
    assert!(noisy["noise"].as_str().unwrap().contains("0.89 sits in the noise"), "{noisy}");
    let said = site.run(&["plan"]).await.expect(0).said();
    assert!(sound["n"].as_f64().unwrap() > 2.0, "60 a day, a run an hour: {sound}");
    site.monitor("m", &with(monitor("mean < 0.8"), json!({ "description": "edited" })));
    let said_of_usual = site.run(&["plan"]).await.expect(0).said();
    assert!(said_of_usual.contains("a fall to 0.7 is seen in about") && said_of_usual.contains("m: changed: description"), "{said_of_usual}");
    for part in ["m: changed: alerts.worse.when", "sits in the noise", "cost: nothing is paid for", "would have fired: never"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
}

#[tokio::test]
async fn costs_are_those_of_the_past_or_a_guess_and_nobody_is_asked() {
    let mut site = Site::new().await;
    site.world.langfuse.add_many("t", 24, SignedDuration::from_mins(180), SignedDuration::from_mins(60));
    site.settings["prices"] = json!({ "gpt-4o-mini": { "input_cost_per_token": PER_TOKEN, "output_cost_per_token": PER_TOKEN } });
    site.save();
    site.monitor("m", &langfuse());
    // Before anything has run.
    let first = plan(&site, &[], 0).await;
    let of = &first["monitors"][0];
    assert_eq!((&first["added"], &of["run"]["judgements"]["helpful"], &of["cost"]["by"]), (&json!(["m"]), &json!(24), &json!("prices")), "{first}");
    let guessed = of["cost"]["usd_a_day"].as_f64().unwrap();
    assert!(!site.path("state/assayd.db").exists() && site.world.llm.requests() == 0);

    site.once("m").await;
    let bill = site.world.llm.bill(PER_TOKEN);
    assert!((bill / 4.0..bill * 4.0).contains(&guessed), "{guessed} for {bill}");
    let before = content(&site).await;
    let budgets = json!({ "evaluation": { "budget": [{ "usd": bill / 2.0, "per": "day" }, { "usd": bill * 31.0, "per": "month" }] } });
    site.monitor("m", &with(langfuse(), with(budgets, json!({ "metrics": [with(judge(), json!({ "prompt": "Again: {{ output }}" }))] }))));
    let edited = plan(&site, &[], 0).await;
    let cost = &edited["monitors"][0]["cost"];
    assert!(cost["by"] == "history" && (cost["usd_a_day"].as_f64().unwrap() - bill).abs() < 1e-9, "{bill}: {cost}");
    assert_eq!((&cost["budgets"][0]["fits"], &cost["budgets"][1]["fits"]), (&json!(false), &json!(true)), "{cost}");
    assert!(edited["monitors"][0]["keys"].as_array().unwrap().contains(&json!("metrics.helpful.prompt")), "{edited}");
    assert_eq!((site.world.llm.requests(), content(&site).await == before), (24, true));
}

#[tokio::test]
async fn faults_are_told_beside_the_plan_and_what_is_gone_is_named() {
    let site = Site::new().await;
    site.monitor("m", &monitor("mean < 0.8"));
    Answers(String::new(), 0).run(&site, 9).await;
    std::fs::rename(site.path("monitors/m.yaml"), site.path("m.yaml")).unwrap();
    site.monitor("n", &monitor("mean < 0.8"));
    site.write("monitors/broken.yaml", "name: broken\nschedule: { evry: 1h }\n");
    let found = plan(&site, &[], 1).await;
    assert_eq!((&found["added"], &found["removed"]), (&json!(["n"]), &json!(["m"])), "{found}");
    assert!(found["faults"].to_string().contains("monitors/broken.yaml:2:"), "{found}");
    assert!(site.run(&["plan"]).await.expect(1).stdout.contains("did you mean `every`?"));
}
