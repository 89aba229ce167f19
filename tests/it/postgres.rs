//! Scores as rows of Postgres tables: each once, whatever happens on the way.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    build::{judge, quick, short, with},
    site::{Site, free_port},
    world::{Gate, NewTrace, Postgres},
};

/// Langfuse traces, judged for free, into tables.
fn monitor() -> Value {
    with(quick(), json!({ "schedule": { "every": "1h" }, "metrics": [short()], "publish": [{ "type": "postgres" }] }))
}

async fn site(url: &str) -> Site {
    let mut site = Site::new().await;
    site.settings["connections"]["postgres"] = json!({ "default": { "url": url } });
    site.save();
    site
}

async fn init(site: &Site) {
    let said = site.run(&["postgres", "init"]).await.expect(0).said();
    assert!(said.contains("evaluation_view"), "{said}");
}

#[tokio::test]
async fn the_tables_are_those_that_dashboards_know_and_are_made_once() {
    let Some(postgres) = Postgres::start().await else { return };
    let site = site(&postgres.url()).await;
    let printed = site.run(&["postgres", "init", "--print"]).await.expect(0).stdout;
    assert!(printed.contains("CREATE TABLE IF NOT EXISTS evaluation_dataset"), "{printed}");
    assert_eq!(postgres.count("evaluation_dataset").await, 0);
    for _ in 0..2 {
        init(&site).await;
    }
    // What is printed does the same.
    postgres.run(&printed).await;
    let columns = async |table: &str| {
        let rows = postgres
            .rows(&format!("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = '{table}' ORDER BY ordinal_position"))
            .await;
        rows.iter()
            .map(|row| {
                let kind = match row["data_type"].as_str().unwrap() {
                    "timestamp with time zone" => "timestamptz",
                    "double precision" => "double",
                    kind => kind,
                };
                format!("{} {kind}", row["column_name"].as_str().unwrap())
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(
        columns("evaluation_dataset").await,
        "dataset_id text, query text, expected_output text, actual_output text, additional_input jsonb, acceptance_criteria jsonb, dataset_metadata jsonb, \
         user_tags jsonb, created_at timestamptz, conversation jsonb, source_type text, environment text, source_name text, source_component text, \
         tools_called jsonb, expected_tools jsonb, retrieved_content jsonb, judgment jsonb, critique jsonb, trace jsonb, additional_output jsonb, \
         document_text text, actual_reference jsonb, expected_reference jsonb, latency double, trace_id text, observation_id text, has_errors boolean"
    );
    assert_eq!(
        columns("evaluation_results").await,
        "run_id text, dataset_id text, metric_name text, metric_score double, passed boolean, explanation text, metric_type text, metric_category text, \
         threshold double, signals jsonb, metric_id text, parent text, weight double, source text, metric_metadata jsonb, evaluation_name text, eval_mode text, \
         cost_estimate double, model_name text, llm_provider text, timestamp timestamptz, evaluation_metadata jsonb, version text"
    );
    let view = columns("evaluation_view").await;
    assert!(view.contains("dataset_created_at timestamptz") && view.contains("metric_score double") && view.contains("actual_output text"), "{view}");
    let indexes = postgres.rows("SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'evaluation_%'").await;
    let indexes = indexes.iter().map(|row| row["indexdef"].as_str().unwrap()).collect::<Vec<_>>().join("\n");
    for index in [
        "evaluation_results USING btree (dataset_id)",
        "(run_id)",
        "(\"timestamp\")",
        "evaluation_dataset USING btree (created_at)",
        "(run_id, dataset_id, metric_name)",
    ] {
        assert!(indexes.contains(index), "no index {index} in\n{indexes}");
    }
}

#[tokio::test]
async fn tables_of_another_make_are_told_and_left_alone() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres.run("CREATE TABLE evaluation_results (id INT)").await;
    let site = site(&postgres.url()).await;
    let said = site.run(&["postgres", "init"]).await.expect(1).said();
    assert!(said.contains("other columns"), "{said}");
    assert_eq!(postgres.count("evaluation_dataset").await, 0, "all or nothing");
    let said = site.run(&["postgres", "init", "--schema", "quality"]).await.expect(0).said();
    assert!(said.contains("evaluation_view"), "{said}");
    site.world.langfuse.add_some(3);
    site.monitor("m", &with(monitor(), json!({ "publish": [{ "type": "postgres", "schema": "quality" }] })));
    site.once("m").await;
    assert_eq!(postgres.count("quality.evaluation_results").await, 3);
    let said = site.run(&["postgres", "init", "--connection", "nosuch"]).await.expect(1).said();
    assert!(said.contains("`default`"), "{said}");
}

#[tokio::test]
async fn verdicts_become_rows_and_a_second_run_adds_none() {
    let Some(postgres) = Postgres::start().await else { return };
    let site = site(&postgres.url()).await;
    init(&site).await;
    site.world.langfuse.add_some(12);
    site.monitor(
        "m",
        &with(monitor(), json!({ "description": "Answers", "labels": { "team": "support" }, "environment": "production", "metrics": [short(), judge()] })),
    );
    let report = site.once("m").await;
    assert_eq!(report["published"]["postgres"], json!({ "delivered": 24, "pending": 0 }), "{report}");
    assert_eq!((postgres.count("evaluation_dataset").await, postgres.count("evaluation_results").await), (12, 24));
    let rows = postgres.rows("SELECT * FROM evaluation_view ORDER BY trace_id, metric_name").await;
    let row = &rows[0];
    let exported = site.export(&[]).await;
    let score = exported.iter().find(|score| score["item_id"] == row["trace_id"] && score["metric"] == "helpful").unwrap();
    for (column, value) in [
        ("metric_name", json!("helpful")),
        ("metric_score", score["value"].clone()),
        ("passed", score["passed"].clone()),
        ("explanation", score["reason"].clone()),
        ("metric_type", json!("judge")),
        ("metric_category", json!("SCORE")),
        ("threshold", json!(0.5)),
        ("run_id", score["run_id"].clone()),
        ("metric_id", score["score_id"].clone()),
        ("model_name", score["model"].clone()),
        ("llm_provider", score["provider"].clone()),
        ("evaluation_name", json!("m")),
        ("source_type", json!("langfuse")),
        ("source_name", json!("bot")),
        ("environment", json!("production")),
        ("signals", Value::Null),
    ] {
        assert_eq!(row[column], value, "{column} in {row}");
    }
    assert_eq!(row["evaluation_metadata"]["labels"], json!({ "team": "support" }), "{row}");
    for column in ["query", "actual_output"] {
        assert!(row[column].as_str().is_some_and(|text| !text.is_empty()), "{column} in {row}");
    }
    assert_eq!(row["trace"]["id"], row["trace_id"], "{row}");

    site.once("m").await;
    assert_eq!((postgres.count("evaluation_dataset").await, postgres.count("evaluation_results").await), (12, 24));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_publishing_loses_no_row_and_doubles_none() {
    let Some(postgres) = Postgres::start().await else { return };
    let site = site(&postgres.url()).await;
    init(&site).await;
    const ITEMS: usize = 400;
    site.world.langfuse.add_some(ITEMS);
    // Few rows a transaction, so that a kill falls between two of them; every row waits a little, so that it falls into one.
    postgres
        .run(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END';
             CREATE TRIGGER slow BEFORE INSERT ON evaluation_results FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    let publish = json!([{ "type": "postgres", "chunk_size": 7 }]);
    site.monitor("m", &with(monitor(), json!({ "schedule": { "every": "1s", "on_start": true }, "publish": publish })));
    let (mut chance, mut midway) = (0x9e37_79b9_7f4a_7c15_u64, 0);
    for kill in 0..12 {
        let before = postgres.count("evaluation_results").await;
        let daemon = site.spawn(&["run"]);
        // Every other kill falls into the publishing however slow the machine is, the rest anywhere.
        if kill % 2 == 0 {
            site.wait("a row more", async || (before + 1..).contains(&postgres.count("evaluation_results").await) || before == ITEMS as u64).await;
        }
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        tokio::time::sleep(Duration::from_millis(chance % 400)).await;
        daemon.kill9().await;
        let after = postgres.count("evaluation_results").await;
        midway += usize::from(after > before && after < ITEMS as u64);
    }
    let daemon = site.daemon().await;
    site.wait("every row", async || postgres.count("evaluation_results").await == ITEMS as u64).await;
    assert_eq!(daemon.stop().await, Some(0));
    assert!(midway > 0, "no kill fell into the publishing");
    assert_eq!(postgres.count("evaluation_dataset").await, ITEMS as u64);
    let twice = postgres.rows("SELECT trace_id FROM evaluation_view GROUP BY trace_id HAVING count(*) > 1").await;
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test]
async fn rows_wait_for_a_server_that_is_away_and_arrive_when_it_is_back() {
    let Some(postgres) = Postgres::start().await else { return };
    let port = free_port();
    let site = site(&postgres.url_by(port)).await;
    let gate = Gate::open(port, &postgres).await;
    init(&site).await;
    drop(gate);
    site.world.langfuse.add_some(5);
    site.monitor("m", &with(quick(), json!({ "metrics": [short()], "publish": [{ "type": "postgres" }] })));
    let daemon = site.daemon().await;
    site.says("a sink could not be served.*refused").await;
    assert_eq!(postgres.count("evaluation_results").await, 0);
    let gate = Gate::open(port, &postgres).await;
    site.wait("the rows", async || postgres.count("evaluation_results").await == 5).await;
    drop(gate);
    site.world.langfuse.add(NewTrace::new("late", jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1)));
    site.wait("a judged item", async || site.scored_items("m", "short").await.len() == 6).await;
    let _gate = Gate::open(port, &postgres).await;
    site.wait("the last row", async || postgres.count("evaluation_results").await == 6).await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test]
async fn without_tables_rows_wait_and_the_log_says_what_makes_them() {
    let Some(postgres) = Postgres::start().await else { return };
    let site = site(&postgres.url()).await;
    site.world.langfuse.add_some(2);
    site.monitor("m", &monitor());
    let report = site.once("m").await;
    assert_eq!(report["published"]["postgres"], json!({ "delivered": 0, "pending": 2 }), "{report}");
    let said = site.run(&["validate", "--live"]).await.expect(1).said();
    assert!(said.contains("assayd postgres init"), "{said}");
    init(&site).await;
    let said = site.run(&["validate", "--live"]).await.said();
    assert!(said.contains("has the tables"), "{said}");
}

#[tokio::test]
async fn a_row_that_is_there_stays_or_gives_way_or_is_an_error() {
    let Some(postgres) = Postgres::start().await else { return };
    for (mode, score) in [("do_nothing", 99), ("upsert", 1), ("error", 99)] {
        let port = free_port();
        let mut site = site(&postgres.url()).await;
        site.settings["connections"]["postgres"]["far"] = json!({ "url": postgres.url_by(port) });
        site.save();
        site.world.langfuse.add_some(2);
        for schema in ["near", "far"] {
            postgres.run(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE")).await;
            site.run(&["postgres", "init", "--schema", schema]).await.expect(0);
        }
        let far = json!({ "type": "postgres", "connection": "far", "schema": "far", "on_conflict": mode });
        site.monitor("m", &with(monitor(), json!({ "publish": [{ "type": "postgres", "schema": "near" }, far] })));
        let report = site.once("m").await;
        assert_eq!(report["published"]["postgres:schema=near"]["delivered"], 2, "{report}");
        // While rows wait for the far one, somebody else writes a row of the same key there.
        postgres
            .run(
                "INSERT INTO far.evaluation_dataset SELECT * FROM near.evaluation_dataset WHERE trace_id = 't0000';
                 INSERT INTO far.evaluation_results SELECT * FROM near.evaluation_results WHERE dataset_id IN (SELECT dataset_id FROM far.evaluation_dataset);
                 UPDATE far.evaluation_results SET metric_score = 99, metric_id = 'another'",
            )
            .await;
        let _gate = Gate::open(port, &postgres).await;
        let _daemon = site.daemon().await;
        site.wait("the other row", async || postgres.count("far.evaluation_results").await == 2).await;
        // Rows of one queue are tried again each at its own time.
        let waiting = async || site.run(&["explain", "m", "t0000"]).await.expect(0).stdout.contains("waiting");
        site.wait("the row's fate", async || !waiting().await).await;
        let rows = postgres.rows("SELECT metric_score FROM far.evaluation_view WHERE trace_id = 't0000'").await;
        assert_eq!(rows, [json!({ "metric_score": score })], "{mode}");
        let explained = site.run(&["explain", "m", "t0000"]).await.expect(0).stdout;
        assert_eq!(explained.contains("dead: another score"), mode == "error", "{explained}");
    }
}

#[tokio::test]
async fn a_hostile_row_arrives_as_text_and_one_that_is_refused_holds_up_no_other() {
    let Some(postgres) = Postgres::start().await else { return };
    let site = site(&postgres.url()).await;
    init(&site).await;
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(5);
    let rude = "'); DROP TABLE evaluation_results; -- \" \\ \\u0000 \u{0} \u{1f600} \\x00 {\"a\": 1e999}";
    let lines: Vec<String> = (0..9)
        .map(|i| {
            let output = match i {
                3 => rude.to_owned(),
                5 => "x".repeat(3 << 20),
                _ => format!("answer {i}"),
            };
            json!({ "id": format!("r{i}"), "timestamp": at, "input": rude, "output": output, "tags": [rude], "metadata": { rude: rude } }).to_string()
        })
        .collect();
    site.write("rows.jsonl", lines.join("\n") + "\n");
    // A rule of the table's owner that one row breaks.
    postgres.run("ALTER TABLE evaluation_dataset ADD CHECK (trace_id <> 'r7')").await;
    site.monitor("m", &with(monitor(), json!({ "source": { "type": "file", "path": "rows.jsonl", "settle": "0s" } })));
    let report = site.once("m").await;
    assert_eq!(report["published"]["postgres"]["delivered"], 8, "{report}");
    let rows = postgres.rows("SELECT query, actual_output, user_tags FROM evaluation_view WHERE trace_id = 'r3'").await;
    let clean = rude.replace('\u{0}', "");
    assert_eq!(rows, [json!({ "query": clean, "actual_output": clean, "user_tags": [clean] })]);
    assert_eq!(postgres.rows("SELECT length(actual_output) AS n FROM evaluation_view WHERE trace_id = 'r5'").await[0]["n"], 3 << 20);
    assert_eq!(postgres.count("evaluation_results").await, 8);
    let explained = site.run(&["explain", "m", "r7"]).await.expect(0).stdout;
    assert!(explained.contains("check constraint"), "{explained}");
}

#[tokio::test]
async fn a_row_against_a_rule_of_the_tables_owner_holds_up_no_other_and_a_rule_against_all_loses_none() {
    let Some(postgres) = Postgres::start().await else { return };
    let mut site = site(&postgres.url()).await;
    init(&site).await;
    site.world.langfuse.add_some(9);
    let trigger = |when: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF {when} THEN RAISE EXCEPTION ''not this one''; END IF; RETURN NEW; END';
             CREATE OR REPLACE TRIGGER rule BEFORE INSERT ON evaluation_dataset FOR EACH ROW EXECUTE FUNCTION rule()"
        )
    };
    postgres.run(&trigger("NEW.trace_id = ''t0004''")).await;
    site.monitor("m", &monitor());
    let report = site.once("m").await;
    assert_eq!(report["published"]["postgres"], json!({ "delivered": 8, "pending": 0 }), "{report}");
    let explained = site.run(&["explain", "m", "t0004"]).await.expect(0).stdout;
    assert!(explained.contains("not this one"), "{explained}");

    postgres.run(&trigger("true")).await;
    site.world.langfuse.add_many("all", 3, jiff::SignedDuration::from_mins(20), jiff::SignedDuration::from_mins(5));
    let report = site.once("m").await;
    assert_eq!(report["published"]["postgres"], json!({ "delivered": 0, "pending": 3 }), "{report}");
    postgres.run("DROP TRIGGER rule ON evaluation_dataset").await;

    // A policy, for who is not above it.
    postgres
        .run(
            "DO $$ BEGIN CREATE ROLE assayd_test_policy; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
             GRANT ALL ON ALL TABLES IN SCHEMA public TO assayd_test_policy;
             ALTER TABLE evaluation_dataset ENABLE ROW LEVEL SECURITY;
             CREATE POLICY tenants ON evaluation_dataset USING (true) WITH CHECK (trace_id <> 'last0001')",
        )
        .await;
    site.settings["connections"]["postgres"]["default"]["url"] = json!(format!("{}?options[role]=assayd_test_policy", postgres.url()));
    site.save();
    site.world.langfuse.add_many("last", 2, jiff::SignedDuration::from_mins(10), jiff::SignedDuration::from_mins(5));
    site.once("m").await;
    assert_eq!(postgres.count("evaluation_results").await, 9, "one of the two; those that wait are tried again after a minute");
    let explained = site.run(&["explain", "m", "last0001"]).await.expect(0).stdout;
    assert!(explained.contains("42501"), "{explained}");
    // No right to the table at all is nobody's row.
    postgres.run("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM assayd_test_policy").await;
    site.world.langfuse.add(NewTrace::new("more", jiff::Timestamp::now() - jiff::SignedDuration::from_mins(2)));
    let report = site.once("m").await;
    assert_eq!(report["published"]["postgres"], json!({ "delivered": 0, "pending": 1 }), "{report}");
}
