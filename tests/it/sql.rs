//! Rows of a database as items: by Postgres and by SQLite.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

use crate::{
    build::{judge, short, with},
    site::Site,
    world::Postgres,
};

const TABLE: &str =
    "CREATE TABLE answers (id BIGINT PRIMARY KEY, created_at TIMESTAMPTZ, input TEXT, output TEXT, tags TEXT[], metadata JSONB, price NUMERIC, user_id BIGINT)";

/// Rows `from..=to`, `apart` of each other (an interval); the newest is a minute old.
fn insert(from: u32, to: u32, apart: &str) -> String {
    format!(
        "INSERT INTO answers SELECT i, now() - interval '1 minute' - ({to} - i) * interval '{apart}', 'Question ' || i, 'Answer ' || i,
            ARRAY['gold'], '{{\"tenant\": \"a\"}}', 0.1234567890123456789, i FROM generate_series({from}, {to}) AS i"
    )
}

fn monitor() -> Value {
    json!({
        "schedule": { "every": "1h" },
        "source": {
            "type": "sql", "name": "answers", "settle": "0s", "lookback": "24h", "limit": 100_000,
            "query": "SELECT * FROM answers WHERE created_at >= :since AND created_at < :until",
        },
        "sampling": { "strategy": "all" },
        "metrics": [short()],
    })
}

async fn site(postgres: &Postgres) -> Site {
    let mut site = Site::new().await;
    site.settings["connections"]["postgres"] = json!({ "default": { "url": postgres.url() } });
    site.save();
    site
}

async fn items(site: &Site) -> BTreeSet<String> {
    let items = site.scored_items("m", "short").await;
    let set: BTreeSet<String> = items.iter().cloned().collect();
    assert_eq!(set.len(), items.len(), "an item was judged twice");
    set
}

#[tokio::test]
async fn rows_become_verdicts_and_a_second_run_takes_only_what_is_new() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres.run(&format!("{TABLE}; {}", insert(1, 30, "1 minute"))).await;
    let site = site(&postgres).await;
    let prompt = "Rate the answer. {{ input }} / {{ output }} / {{ trace.row.price }} / {{ trace.user_id }} / {{ trace.tags }} / {{ trace.metadata.tenant }}";
    site.run(&["postgres", "init"]).await.expect(0);
    site.monitor("m", &with(monitor(), json!({ "metrics": [with(judge(), json!({ "prompt": prompt }))], "publish": [{ "type": "postgres" }] })));
    let report = site.once("m").await;
    assert_eq!((&report["status"], &report["counts"]["scored"]), (&json!("succeeded"), &json!(30)), "{report}");
    let prompts = site.world.llm.prompts();
    let asked = prompts.iter().find(|prompt| prompt.contains("\nQuestion 7\n")).unwrap();
    for column in ["Answer 7", "0.1234567890123456789", "7", "[\"gold\"]", "a"] {
        assert!(asked.contains(&format!("\n{column}\n")), "{column} as it is in {asked}");
    }
    assert_eq!(postgres.count("evaluation_results").await, 30);
    postgres.run(&insert(31, 31, "1 minute")).await;
    let report = site.once("m").await;
    assert_eq!(report["counts"]["scored"], 1, "{report}");
    site.once("m").await;
    assert_eq!(postgres.count("evaluation_results").await, 31);
}

#[tokio::test]
async fn pages_lose_no_row_whether_times_are_far_apart_or_the_same() {
    let Some(postgres) = Postgres::start().await else { return };
    // 1,300 rows of one instant (a bulk import), and as many far apart, in an order of their own on the disk.
    postgres.run(&format!("{TABLE}; {}; {}", insert(1301, 2600, "10 seconds"), insert(1, 1300, "0 seconds"))).await;
    let site = site(&postgres).await;
    for (name, query) in [
        ("m", "SELECT * FROM answers WHERE created_at >= :since AND created_at < :until -- whole"),
        ("limited", "SELECT * FROM answers WHERE created_at >= :since AND created_at < :until ORDER BY created_at LIMIT :limit;"),
    ] {
        site.monitor(name, &with(monitor(), json!({ "source": { "query": query } })));
        let report = site.once(name).await;
        assert_eq!((&report["counts"]["scored"], &report["counts"]["duplicate"]), (&json!(2600), &json!(0)), "{report}");
    }
    assert_eq!(items(&site).await.len(), 2600);
}

#[tokio::test]
async fn a_run_that_takes_few_leaves_the_rest_to_the_next() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres.run(&format!("{TABLE}; {}", insert(1, 50, "0 seconds"))).await;
    let site = site(&postgres).await;
    site.monitor("m", &with(monitor(), json!({ "source": { "limit": 20 } })));
    for scored in [20, 20, 10, 0] {
        let report = site.once("m").await;
        assert_eq!(report["counts"]["scored"], scored, "{report}");
    }
}

#[tokio::test]
async fn a_row_that_lacks_a_required_column_is_an_item_that_failed() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres.run(&format!("{TABLE}; {}; UPDATE answers SET output = NULL WHERE id = 2", insert(1, 3, "1 minute"))).await;
    let site = site(&postgres).await;
    site.monitor("m", &with(monitor(), json!({ "source": { "required": ["output"] } })));
    let report = site.once("m").await;
    assert_eq!((&report["counts"]["scored"], &report["counts"]["failed"]), (&json!(2), &json!(1)), "{report}");
    let explained = site.run(&["explain", "m", "2"]).await.expect(0).stdout;
    assert!(explained.contains("the row has no `output`"), "{explained}");
}

#[tokio::test]
async fn a_column_that_no_row_has_fails_the_run_and_no_item() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres.run(&format!("{TABLE}; {}", insert(1, 3, "1 minute"))).await;
    let site = site(&postgres).await;
    site.monitor("m", &with(monitor(), json!({ "source": { "required": ["outptu"] } })));
    let report = site.once_with("m", &[], 1).await;
    assert!(report["error"].as_str().unwrap().contains("no column `outptu` (`required`); did you mean `output`?"), "{report}");
    site.monitor("m", &with(monitor(), json!({ "source": { "required": ["output"] } })));
    assert_eq!(site.once("m").await["counts"]["scored"], 3);
}

#[tokio::test]
async fn two_columns_of_one_name_are_refused() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres.run(&format!("{TABLE}; {}", insert(1, 3, "1 minute"))).await;
    let site = site(&postgres).await;
    let query = "SELECT a.*, b.id FROM answers a JOIN answers b ON b.id = 4 - a.id WHERE a.created_at >= :since AND a.created_at < :until";
    site.monitor("m", &with(monitor(), json!({ "source": { "query": query } })));
    let report = site.once_with("m", &[], 1).await;
    assert!(report["error"].as_str().unwrap().contains("column `id` twice: name them"), "{report}");
}

#[tokio::test]
async fn a_row_that_could_not_be_read_is_judged_when_it_changed_so_that_it_can() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres.run(&format!("{TABLE}; {}; UPDATE answers SET output = NULL WHERE id = 2", insert(1, 3, "1 minute"))).await;
    let site = site(&postgres).await;
    site.monitor("m", &with(monitor(), json!({ "source": { "required": ["output"], "rejudge": "on_change" } })));
    assert_eq!(site.once("m").await["counts"]["scored"], 2);
    assert_eq!(site.once("m").await["counts"]["duplicate"], 3);
    postgres.run("UPDATE answers SET output = 'Answer' WHERE id = 2").await;
    assert_eq!(site.once("m").await["counts"]["scored"], 1);
}

#[tokio::test]
async fn a_query_without_its_window_is_refused_with_its_place() {
    let site = Site::new().await;
    site.write(
        "monitors/m.yaml",
        "name: m\nschedule: { every: 1h }\nsource:\n  type: sql\n  path: answers.db\n  query: SELECT * FROM answers\nmetrics: [ { name: short, type: length, max: 10 } ]\n",
    );
    let said = site.run(&["validate"]).await.expect(1).stdout;
    assert!(said.contains("monitors/m.yaml:6:10") && said.contains(":since"), "{said}");
    site.write(
        "monitors/m.yaml",
        "name: m\nschedule: { every: 1h }\nsource:\n  type: sql\n  query: SELECT * FROM answers WHERE at >= :sinse AND at < :until\nmetrics: [ { name: short, type: length, max: 10 } ]\n",
    );
    let said = site.run(&["validate"]).await.expect(1).stdout;
    assert!(said.contains("connections.postgres.default"), "{said}");
}

#[tokio::test]
async fn a_query_can_only_read_and_only_for_its_time() {
    let Some(postgres) = Postgres::start().await else { return };
    postgres
        .run(&format!("{TABLE}; {}; CREATE FUNCTION spoil() RETURNS int LANGUAGE sql VOLATILE AS 'DELETE FROM answers RETURNING 1'", insert(1, 3, "1 minute")))
        .await;
    let site = site(&postgres).await;
    let window = "FROM answers WHERE created_at >= :since AND created_at < :until";
    for (query, word) in [
        (format!("SELECT *, spoil() {window}"), "read-only"),
        (format!("SELECT *, pg_sleep(30) {window}"), "timeout"),
        (format!("SELECT *, nosuch {window}"), "nosuch"),
        (format!("SELECT created_at {window}"), "`id`"),
        (format!("SELECT * {window} ORDER BY created_at DESC LIMIT :limit"), "order"),
    ] {
        site.monitor("m", &with(monitor(), json!({ "source": { "query": query, "timeout": "1s" } })));
        let output = site.run(&["once", "m"]).await.expect(1).said();
        assert!(output.contains(word), "{query}: {output}");
    }
    assert_eq!(postgres.count("answers").await, 3);
}

#[tokio::test]
async fn a_server_that_is_away_fails_the_run_without_telling_the_password() {
    let mut site = Site::new().await;
    let port = crate::site::free_port();
    site.settings["connections"]["postgres"] = json!({ "default": { "url": format!("postgres://me:hunter2@127.0.0.1:{port}/answers") } });
    site.settings["retry"] = json!({ "attempts": 1 });
    site.save();
    site.monitor("m", &monitor());
    let said = site.run(&["once", "m"]).await.expect(1).said();
    assert!(said.contains(&format!("127.0.0.1:{port}/answers")) && said.to_lowercase().contains("refused") && !said.contains("hunter2"), "{said}");
    let said = site.run(&["validate", "--live"]).await.expect(1).said();
    assert!(said.to_lowercase().contains("refused") && !said.contains("hunter2"), "{said}");
}

#[tokio::test]
async fn a_sqlite_file_is_read_and_stays_as_it_is() {
    let site = Site::new().await;
    let mut file = SqliteConnectOptions::new().filename(site.path("answers.db")).create_if_missing(true).connect().await.unwrap();
    sqlx::raw_sql(
        "CREATE TABLE answers (id TEXT, at INTEGER, input TEXT, output TEXT, tags TEXT, good BOOLEAN, vector BLOB);
         WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1500)
         INSERT INTO answers SELECT 'a' || n, unixepoch() - 1 - n % 700, 'Q' || n, 'A' || n, '[\"gold\"]', n % 2, x'00ff' FROM numbers",
    )
    .execute(&mut file)
    .await
    .unwrap_or_else(|error| panic!("{error}"));
    file.close().await.unwrap();
    let before = std::fs::read(site.path("answers.db")).unwrap();
    let source =
        json!({ "path": "answers.db", "timestamp_column": "at", "query": "SELECT * FROM answers WHERE at >= unixepoch(:since) AND at < unixepoch(:until)" });
    let metric = json!({ "name": "short", "type": "expression", "value": "trace.row.good in [true, false] and trace.tags == ['gold'] and trace.row.vector == '\\\\x00ff'" });
    site.monitor("m", &with(monitor(), json!({ "source": source, "metrics": [metric] })));
    let report = site.once("m").await;
    assert_eq!((&report["counts"]["scored"], &report["metrics"]["short"]["mean"]), (&json!(1500), &json!(1.0)), "{report}");
    let again = site.once("m").await;
    assert_eq!(again["counts"]["scored"], 0, "{again}");
    assert!(before == std::fs::read(site.path("answers.db")).unwrap());
    let said = site.run(&["validate", "--live"]).await.said();
    assert!(said.contains("answers.db opens"), "{said}");
}
