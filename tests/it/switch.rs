//! What a team that comes from a scheduled script has to find again: Slack's threads with the rows of its database, in
//! the tables and the experiment at once; and the same verdicts wherever the same traces are read from.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    build::{judge, short, with},
    site::Site,
    world::{Child, Mode, NewTrace, Postgres},
};

fn count(report: &Value, key: &str) -> u64 {
    report["counts"][key].as_u64().unwrap_or_else(|| panic!("no count `{key}` in {report}"))
}

async fn site(mode: Mode, postgres: &Postgres) -> Site {
    let mut site = Site::with(mode).await;
    site.settings["connections"]["postgres"] = json!({ "default": { "url": postgres.url() } });
    site.save();
    site.run(&["postgres", "init"]).await.expect(0);
    site
}

const BOT: &str = "B1:Support Bot";
const TICKETS: &str =
    "CREATE TABLE tickets (id BIGINT PRIMARY KEY, created_at TIMESTAMPTZ, channel TEXT, thread_ts TEXT, product TEXT, solution TEXT, documents JSONB)";

/// A thread, and the row that the team's own service wrote of it.
struct Ticket {
    number: usize,
    began: Timestamp,
    thread_ts: String,
}

impl Ticket {
    /// The thread begins as many minutes ago.
    fn open(site: &Site, number: usize, minutes: i64) -> Self {
        let began = Timestamp::now() - SignedDuration::from_mins(minutes);
        let (asked, answer) = (format!("[[item:{number}]] My order {number} did not come."), format!("Order {number} is on its way."));
        let parts = [("U1", 0, asked.as_str()), (BOT, 5, answer.as_str()), ("U1", 20, "Thank you!")];
        Self { number, began, thread_ts: site.world.slack.history.thread("C1", began, &parts) }
    }

    fn item_id(&self) -> String {
        format!("slack-C1-{}", self.thread_ts)
    }

    async fn book(&self, postgres: &Postgres) {
        let Self { number, began, thread_ts } = self;
        let values = format!("{number}, '{began}', 'C1', '{thread_ts}', 'p{}', 'Say when {number} comes.', '[\"Terms of {number}\"]'", number % 3);
        postgres.run(&format!("INSERT INTO tickets VALUES ({values})")).await;
    }
}

/// Tickets of the last hours; a row for each.
async fn tickets(site: &Site, postgres: &Postgres, n: usize) -> Vec<Ticket> {
    postgres.run(TICKETS).await;
    let tickets: Vec<Ticket> = (0..n).map(|number| Ticket::open(site, number, 4 * (n - number) as i64 + 5)).collect();
    for ticket in &tickets {
        ticket.book(postgres).await;
    }
    tickets
}

fn support() -> Value {
    json!({
        "description": "Support in Slack",
        "environment": "production",
        "schedule": { "every": "1h" },
        "source": {
            "type": "join", "name": "support", "settle": "0s", "lookback": "24h", "overlap": "12h",
            "left": { "type": "slack", "channels": ["C1"], "bot_names": ["Support Bot"] },
            "right": { "type": "sql", "query": "SELECT * FROM tickets WHERE created_at >= :since AND created_at < :until", "required": ["thread_ts"] },
            "on": { "left": ["trace.channel_id", "trace.thread_ts"], "right": ["trace.row.channel", "trace.row.thread_ts"] },
        },
        "sampling": { "strategy": "all" },
        "extract": {
            "expected": "{{ trace.right.row.solution }}",
            "retrieved_content": "{{ trace.right.row.documents }}",
            "metadata": { "product": "{{ trace.right.row.product }}" },
        },
        "metrics": [short(), with(judge(), json!({ "prompt": "{{ conversation }}\nA good answer: {{ expected }}\nRate the answer: {{ output }}" }))],
        "publish": [
            { "type": "postgres", "chunk_size": 7 },
            { "type": "langfuse", "scores": false, "experiment": { "dataset": "support", "run_name": "{{ monitor }}" } },
        ],
    })
}

/// What both places have.
#[derive(Debug, PartialEq)]
struct Published {
    rows: u64,
    items: u64,
    in_run: Vec<String>,
    dataset: usize,
    /// Scores of items, then of the run.
    scores: (usize, usize),
}

impl Published {
    async fn see(site: &Site, postgres: &Postgres) -> Self {
        Self { rows: postgres.count("evaluation_view").await, items: postgres.count("evaluation_dataset").await, ..Self::of_langfuse(site) }
    }

    fn of_langfuse(site: &Site) -> Self {
        let langfuse = &site.world.langfuse;
        let scores = langfuse.scores().values().map(Vec::len).sum();
        Self { rows: 0, items: 0, in_run: in_run(site), dataset: langfuse.dataset_items("support").len(), scores: (scores, langfuse.run_scores().len()) }
    }

    fn experiment(&self) -> [usize; 4] {
        [self.dataset, self.in_run.len(), self.scores.0, self.scores.1]
    }

    /// Each ticket once, with both its scores.
    #[track_caller]
    fn is_whole(&self, tickets: usize) {
        let once: BTreeSet<&String> = self.in_run.iter().collect();
        assert_eq!((self.in_run.len(), once.len(), self.dataset), (tickets, tickets, tickets), "items in the run, each once, and in the dataset");
        assert_eq!((self.rows, self.items), (2 * tickets as u64, tickets as u64), "rows of evaluation_view and evaluation_dataset");
        assert_eq!(self.scores, (2 * tickets, 2), "scores of the run's items, and means");
    }
}

/// Dataset items in the run, repeats included.
fn in_run(site: &Site) -> Vec<String> {
    let langfuse = &site.world.langfuse;
    match langfuse.mode() {
        Mode::V3 => langfuse.run_items().iter().map(|link| link["datasetItemId"].as_str().unwrap().to_owned()).collect(),
        Mode::V4 => {
            let of = |name: &str| langfuse.spans().into_iter().filter(|span| span["name"] == name).collect::<Vec<_>>();
            let roots = of("experiment-item-run");
            assert_eq!(roots.len(), of("experiment-item-task").len());
            roots.iter().map(|span| span["langfuse.experiment.item.id"].as_str().unwrap().to_owned()).collect()
        }
    }
}

async fn threads_with_rows_reach_tables_and_an_experiment(mode: Mode) {
    const TICKETS: usize = 20;
    let Some(postgres) = Postgres::start().await else { return };
    let site = site(mode, &postgres).await;
    let tickets = tickets(&site, &postgres, TICKETS).await;
    let late = Ticket::open(&site, TICKETS, 4);
    site.world.llm.verdict(|prompt| if prompt.contains("Say when 7 comes.") { 0.25 } else { 0.75 });
    site.monitor("m", &support());
    let report = site.once("m").await;
    assert_eq!((&report["status"], count(&report, "fetched"), count(&report, "scored")), (&json!("succeeded"), 20, 20), "{report}");
    let published = Published::see(&site, &postgres).await;
    published.is_whole(TICKETS);

    // The verdicts that assayd keeps are those in the table, beside what was judged.
    let rows = postgres.rows("SELECT * FROM evaluation_view WHERE metric_name = 'helpful' ORDER BY trace_id").await;
    let exported = site.export(&[]).await;
    for (row, ticket) in rows.iter().zip(&tickets) {
        let score = exported.iter().find(|score| score["item_id"] == ticket.item_id() && score["metric"] == "helpful").unwrap();
        let number = ticket.number;
        for (column, value) in [
            ("trace_id", json!(ticket.item_id())),
            ("metric_score", score["value"].clone()),
            ("passed", json!(number != 7)),
            ("run_id", report["run_id"].clone()),
            ("evaluation_name", json!("m")),
            ("environment", json!("production")),
            ("source_type", json!("join")),
            ("source_name", json!("support")),
            ("query", json!(format!("[[item:{number}]] My order {number} did not come."))),
            ("actual_output", json!(format!("Order {number} is on its way."))),
            ("expected_output", json!(format!("Say when {number} comes."))),
            ("retrieved_content", json!([format!("Terms of {number}")])),
            ("dataset_metadata", json!({ "product": format!("p{}", number % 3) })),
        ] {
            assert_eq!(row[column], value, "{column} in {row}");
        }
        let roles: Vec<&Value> = row["conversation"].as_array().unwrap().iter().map(|turn| &turn["role"]).collect();
        assert_eq!(roles, ["user", "assistant", "user"], "{row}");
    }
    // So they are in the experiment.
    let items = site.world.langfuse.dataset_items("support");
    assert!(items.values().all(|item| item["sourceTraceId"].is_null() && item["expectedOutput"].as_str().unwrap().starts_with("Say when")), "{items:?}");
    let scores = site.world.langfuse.scores();
    let low = scores.values().flatten().filter(|score| score.name == "helpful" && score.value.as_f64().unwrap() < 0.5).count();
    assert_eq!(low, 1);
    let means = site.world.langfuse.run_scores();
    let mean = means.iter().find(|score| score.name == "helpful").unwrap();
    assert!((mean.value.as_f64().unwrap() - (19.0 * 0.75 + 0.25) / 20.0).abs() < 1e-9 && mean.metadata["n"] == TICKETS, "{mean:?}");

    // A second run adds nothing anywhere, and asks no model.
    let asked = site.world.llm.requests();
    let again = site.once("m").await;
    assert_eq!((count(&again, "duplicate"), count(&again, "scored")), (20, 0), "{again}");
    assert_eq!((Published::see(&site, &postgres).await, site.world.llm.requests()), (published, asked));

    // The thread whose row comes late is judged when it is there.
    late.book(&postgres).await;
    assert_eq!(count(&site.once("m").await, "scored"), 1);
    Published::see(&site, &postgres).await.is_whole(TICKETS + 1);
}

#[tokio::test]
async fn threads_with_rows_reach_tables_and_an_experiment_of_v4() {
    threads_with_rows_reach_tables_and_an_experiment(Mode::V4).await;
}

#[tokio::test]
async fn threads_with_rows_reach_tables_and_an_experiment_of_v3() {
    threads_with_rows_reach_tables_and_an_experiment(Mode::V3).await;
}

async fn no_kill_loses_or_doubles_a_verdict(mode: Mode, mut chance: u64) {
    const TICKETS: usize = 60;
    const KILLS: u64 = 12;
    let Some(postgres) = Postgres::start().await else { return };
    let site = site(mode, &postgres).await;
    tickets(&site, &postgres, TICKETS).await;
    // A row of a transaction takes its time, and so does an answer of Langfuse: kills fall into both.
    postgres
        .run(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END';
             CREATE TRIGGER slow BEFORE INSERT ON evaluation_results FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    // v3 is told of items one by one.
    site.world.langfuse.writes.latency(Duration::from_millis(if mode == Mode::V3 { 10 } else { 60 }));
    site.world.llm.faults.latency(Duration::from_millis(10));
    let spec = with(support(), json!({ "schedule": { "every": "1s", "on_start": true }, "evaluation": { "concurrency": 4 } }));
    site.monitor("m", &spec);
    let whole = [TICKETS, TICKETS, 2 * TICKETS, 2];
    let (mut in_postgres, mut in_langfuse) = (0, 0);
    for kill in 1..=KILLS {
        let before = Published::see(&site, &postgres).await;
        let mut daemon = site.spawn(&["run"]);
        // By turns as soon as the one or the other place has got something new, and a moment after.
        let goal = async || match kill % 2 {
            0 => postgres.count("evaluation_results").await > before.rows || before.rows == 2 * TICKETS as u64,
            _ => Published::of_langfuse(&site).experiment() != before.experiment() || before.experiment() == whole,
        };
        site.wait("something to be published", goal).await;
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        tokio::time::sleep(Duration::from_millis(chance % 60)).await;
        assert!(daemon.runs(), "kill {kill}: the daemon ended by itself:\n{}", daemon.log());
        daemon.kill9().await;
        let after = Published::see(&site, &postgres).await;
        in_postgres += u64::from(after.rows > before.rows && after.rows < 2 * TICKETS as u64);
        in_langfuse += u64::from(after.experiment() != before.experiment() && after.experiment() != whole);
    }
    let daemon = site.daemon().await;
    let everything = async || {
        let means = site.world.langfuse.run_scores();
        let whole = means.len() == 2 && means.iter().all(|mean| mean.metadata["n"] == TICKETS);
        whole && postgres.count("evaluation_results").await == 2 * TICKETS as u64 && in_run(&site).len() >= TICKETS
    };
    site.wait_within(Duration::from_secs(120), "everything to be published", everything).await;
    site.more_runs("m", 2).await;
    assert_eq!(daemon.stop().await, Some(0));
    Published::see(&site, &postgres).await.is_whole(TICKETS);
    let twice = postgres.rows("SELECT trace_id, metric_name FROM evaluation_view GROUP BY 1, 2 HAVING count(*) > 1").await;
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(site.export(&[]).await.len(), 2 * TICKETS);
    assert!(in_postgres > 0 && in_langfuse > 0, "kills in the middle of publishing: {in_postgres} among rows, {in_langfuse} among an experiment's parts");
}

#[tokio::test]
async fn no_kill_loses_or_doubles_a_verdict_in_tables_and_an_experiment_of_v4() {
    no_kill_loses_or_doubles_a_verdict(Mode::V4, 0x9e37_79b9_7f4a_7c15).await;
}

#[tokio::test]
async fn no_kill_loses_or_doubles_a_verdict_in_tables_and_an_experiment_of_v3() {
    no_kill_loses_or_doubles_a_verdict(Mode::V3, 0xd1b5_4a32_d192_ed03).await;
}

/// A trace of a product, before anything has read it.
struct Answer {
    id: String,
    at: Timestamp,
    input: Value,
    output: Value,
    tags: Vec<String>,
    user: String,
    session: Option<String>,
    metadata: Value,
}

/// Real questions and answers, again and again under ids of their own; some of them messages, as chats are traced.
fn answers(n: usize) -> Vec<Answer> {
    let real: Vec<Value> = include_str!("../fixtures/answers.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = Timestamp::now() - SignedDuration::from_mins(2);
    let answer = |i: usize| {
        let text = |key: &str| real[i % real.len()][key].as_str().unwrap();
        let (input, output) = match i % 5 {
            0 => (
                json!({ "model": "m-1", "messages": [{ "role": "user", "content": text("input") }], "at": 1.5 }),
                json!({ "role": "assistant", "content": text("output") }),
            ),
            _ => (json!(text("input")), json!(text("output"))),
        };
        // Several share an instant. The API of Langfuse tells times to the millisecond.
        let at = Timestamp::from_millisecond((last - SignedDuration::from_millis(1700 * ((n - i) / 3) as i64)).as_millisecond()).unwrap();
        Answer {
            id: format!("{}/{i:04}", text("id")),
            at,
            input,
            output,
            tags: ["beta", "chat"].into_iter().take(i % 3).map(str::to_owned).collect(),
            user: format!("u{}", i % 17),
            session: (!i.is_multiple_of(4)).then(|| format!("s{}", i / 4)),
            metadata: json!({ "tenant": format!("t{}", i % 7), "guide": text("output") }),
        }
    };
    (0..n).map(answer).collect()
}

impl Answer {
    fn trace(&self) -> NewTrace {
        NewTrace {
            input: self.input.clone(),
            output: self.output.clone(),
            tags: self.tags.clone(),
            user: Some(self.user.clone()),
            session: self.session.clone(),
            metadata: self.metadata.clone(),
            children: vec![Child { name: "search".to_owned(), kind: "RETRIEVER", input: json!("q"), output: json!("d") }],
            ..NewTrace::new(self.id.clone(), self.at)
        }
    }

    /// As a line or a row.
    fn record(&self) -> Value {
        json!({
            "id": self.id, "timestamp": self.at.to_string(), "name": "answer", "input": self.input, "output": self.output, "tags": self.tags,
            "user_id": self.user, "session_id": self.session, "environment": "production", "metadata": self.metadata, "latency_ms": 500, "cost_usd": 0.001,
        })
    }
}

/// All that metrics may look at.
fn monitor(source: Value) -> Value {
    let expression = |name: &str, value: &str| json!({ "name": name, "type": "expression", "value": value });
    let rate = "{{ input }}\n{{ output }}\n{{ context }}\n{{ metadata.tenant }} {{ metadata.session }} {{ trace.name }} {{ trace.user_id }} {{ trace.tags }}\n{{ trace.metadata }}";
    json!({
        "schedule": { "every": "1h" },
        "source": with(source, json!({ "limit": 100_000, "lookback": "24h", "settle": "0s" })),
        "sampling": { "strategy": "all" },
        "extract": {
            "output": "{{ trace.output.content if trace.output is mapping else trace.output }}",
            "context": "{{ trace.metadata.guide }}",
            "metadata": { "tenant": "{{ trace.metadata.tenant }}", "session": "{{ trace.session_id | default('none') }}" },
        },
        "metrics": [
            { "name": "short", "type": "length", "field": "output", "max": 400 },
            { "name": "asked", "type": "length", "field": "input", "max": 200 },
            { "name": "refusal", "type": "regex", "field": "output", "pattern": "(?i)\\b(sorry|cannot|can't|as an ai)\\b", "invert": true },
            { "name": "listed", "type": "contains", "any": ["1.", "- "] },
            { "name": "fast", "type": "latency", "max": "1s" },
            { "name": "cheap", "type": "cost", "max": 0.01 },
            expression("beta", "'beta' in trace.tags"),
            expression("guided", "output == trace.metadata.guide"),
            expression("first", "trace.user_id == 'u1' and trace.environment == 'production'"),
            with(judge(), json!({ "prompt": rate })),
        ],
    })
}

/// Item, metric and all that was found; the score's id is over what was judged.
async fn verdicts(site: &Site, n: usize) -> BTreeSet<String> {
    // A verdict for each prompt: one letter more would be another one.
    site.world.llm.verdict(|prompt| f64::from(prompt.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 997) / 996.0);
    let report = site.once("m").await;
    assert_eq!((&report["status"], count(&report, "fetched"), count(&report, "scored")), (&json!("succeeded"), n as u64, n as u64), "{report}");
    let told = ["item_id", "metric", "score_id", "metric_revision", "item_timestamp", "outcome", "value", "raw", "label", "passed", "reason"];
    let scores = site.export(&[]).await;
    scores.iter().map(|score| told.iter().map(|key| score[key].to_string()).collect::<Vec<_>>().join(" ")).collect()
}

async fn rows(postgres: &Postgres, answers: &[Answer]) {
    postgres
        .run(
            "CREATE TABLE answers (id TEXT PRIMARY KEY, \"timestamp\" TIMESTAMPTZ, name TEXT, input JSONB, output JSONB, tags TEXT[], user_id TEXT,
             session_id TEXT, environment TEXT, metadata JSONB, latency_ms DOUBLE PRECISION, cost_usd NUMERIC)",
        )
        .await;
    let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
    let records = json!(answers.iter().map(Answer::record).collect::<Vec<_>>()).to_string();
    let sql = "INSERT INTO answers SELECT * FROM json_populate_recordset(NULL::answers, $1::json)";
    sqlx::query(AssertSqlSafe(sql)).bind(records).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn the_same_traces_give_the_same_verdicts_wherever_they_are_read() {
    const TRACES: usize = 1000;
    let Some(postgres) = Postgres::start().await else { return };
    let answers = answers(TRACES);

    let site = Site::new().await;
    site.write("answers.jsonl", answers.iter().map(|answer| format!("{}\n", answer.record())).collect::<String>());
    site.monitor("m", &monitor(json!({ "type": "file", "path": "answers.jsonl" })));
    let expected = verdicts(&site, TRACES).await;
    assert_eq!(expected.len(), TRACES * 10);
    let judged: BTreeSet<String> = site.scored_items("m", "helpful").await.into_iter().collect();
    assert_eq!(judged, answers.iter().map(|answer| answer.id.clone()).collect());

    let mut found = Vec::new();
    for mode in [Mode::V3, Mode::V4] {
        let site = Site::with(mode).await;
        answers.iter().for_each(|answer| site.world.langfuse.add(answer.trace()));
        site.monitor("m", &monitor(json!({ "type": "langfuse" })));
        found.push((format!("langfuse {mode:?}"), verdicts(&site, TRACES).await));
    }
    rows(&postgres, &answers).await;
    let mut site = Site::new().await;
    site.settings["connections"]["postgres"] = json!({ "default": { "url": postgres.url() } });
    site.save();
    let query = "SELECT * FROM answers WHERE timestamp >= :since AND timestamp < :until";
    site.monitor("m", &monitor(json!({ "type": "sql", "timestamp_column": "timestamp", "query": query })));
    found.push(("sql".to_owned(), verdicts(&site, TRACES).await));

    // Text that is JSON (an answer in quotation marks) is taken by Langfuse itself for what it says: not as it was.
    let is_json = |value: &Value| value.as_str().is_some_and(|text| serde_json::from_str::<Value>(text).is_ok());
    let read: Vec<&str> = answers.iter().filter(|answer| is_json(&answer.input) || is_json(&answer.output)).map(|answer| answer.id.as_str()).collect();
    assert!(read.len() < TRACES / 50, "{read:?}");
    let of_langfuse: BTreeSet<&String> = found[0].1.iter().filter(|verdict| read.iter().any(|id| verdict.contains(id))).collect();
    for (source, verdicts) in &found {
        let same = |verdict: &&String| source == "sql" || !read.iter().any(|id| verdict.contains(id));
        let (have, want): (BTreeSet<&String>, BTreeSet<&String>) = (verdicts.iter().filter(same).collect(), expected.iter().filter(same).collect());
        let [more, less] = [have.difference(&want), want.difference(&have)].map(|these| these.take(3).collect::<Vec<_>>());
        assert!(have == want, "{source}\n  has {more:#?}\n  in place of the file's {less:#?}");
        let rest: BTreeSet<&String> = verdicts.iter().filter(|verdict| !same(verdict)).collect();
        assert!(rest.is_empty() || rest == of_langfuse, "{source}");
    }
}
