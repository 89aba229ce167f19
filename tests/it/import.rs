//! The way over: files of the older tool become monitors that load and run, and nothing that it scored is judged again.

use serde_json::Value;

use crate::{
    site::Site,
    world::{NewTrace, Postgres},
};

const LANGFUSE: &str = include_str!("../fixtures/import/langfuse.yaml");
const NEON: &str = include_str!("../fixtures/import/neon.yaml");
const JOIN: &str = include_str!("../fixtures/import/slack_neon_join.yaml");
const SCORED: &str = include_str!("../fixtures/import/scored_items.csv");

/// A site whose settings are nothing but what an import asks for, with the world's addresses put in.
async fn imported(old: &str, args: &[&str]) -> (Site, crate::site::Output) {
    let mut site = Site::new().await;
    site.write("old.yaml", old);
    site.write("scored_items.csv", SCORED);
    site.write("assayd.yaml", "{}\n");
    let output = site.run(&[&["import", "old.yaml", "--out", "monitors"], args].concat()).await.expect(0);
    assert_eq!(output.stdout, "", "with --out there is nothing on standard output");
    let (_, snippet) = output.stderr.split_once("# assayd.yaml needs:\n").expect("a piece of assayd.yaml");
    let snippet = snippet.replace("type: openai\n", &format!("type: openai\n    base_url: {}/v1\n", site.world.llm.url));
    let slack = "token: \"${SLACK_BOT_TOKEN}\"\n";
    let snippet = snippet.replace(slack, &format!("{slack}      api_url: {}/api/\n", site.world.slack.url));
    site.write("assayd.yaml", format!("listen: \"off\"\n{snippet}"));
    for (name, value) in [
        ("LANGFUSE_HOST", site.world.langfuse.url.clone()),
        ("LANGFUSE_PUBLIC_KEY", "pk-lf-test".to_owned()),
        ("LANGFUSE_SECRET_KEY", "sk-lf-test".to_owned()),
        ("OPENAI_API_KEY", "sk-test".to_owned()),
        ("SLACK_BOT_TOKEN", "xoxb-test".to_owned()),
    ] {
        site.env.push((name.to_owned(), value));
    }
    (site, output)
}

fn line<'a>(said: &'a str, words: &[&str]) -> &'a str {
    said.lines().find(|line| words.iter().all(|word| line.contains(word))).unwrap_or_else(|| panic!("nothing of {words:?} in\n{said}"))
}

#[tokio::test]
async fn a_langfuse_file_runs_and_what_was_scored_before_is_not_judged_again() {
    let (site, output) = imported(LANGFUSE, &["--scored-items", "scored_items.csv"]).await;
    line(&output.stderr, &["scored_items.csv:4", "fewer fields"]);
    line(&output.stderr, &["scored_items.csv:7", "empty"]);
    line(&output.stderr, &["1 of `support_threads`"]);
    line(&output.stderr, &["2 of `cases`"]);
    line(&output.stderr, &["3 new in the ledger under (langfuse:support-bot, support_answers), 1 known already, 2 lines left out"]);
    site.run(&["validate"]).await.expect(0);

    let now = jiff::Timestamp::now();
    for n in 0..10 {
        let trace = NewTrace::new(format!("t{n:04}"), now - jiff::SignedDuration::from_mins(60 - n));
        site.world.langfuse.add(NewTrace { name: "support-bot".to_owned(), tags: vec!["prod".to_owned()], ..trace });
    }
    let report = site.once("support_answers").await;
    assert_eq!((&report["counts"]["duplicate"], &report["counts"]["scored"]), (&Value::from(3), &Value::from(7)), "{report}");
    let judged = site.scored_items("support_answers", "Relevancy").await;
    assert_eq!(judged, (3..10).map(|n| format!("t{n:04}")).collect::<Vec<_>>());
    let calls = site.world.llm.calls();
    assert!((0..3).all(|n| !calls.contains_key(&format!("t{n:04}"))), "{calls:?}");
    let life = site.run(&["explain", "support_answers", "t0001"]).await.expect(0).stdout;
    assert!(life.contains("scored") && life.contains("imported"), "{life}");
}

#[tokio::test]
async fn the_ledger_is_filled_once_and_never_beside_a_daemon() {
    let (site, _) = imported(LANGFUSE, &[]).await;
    let again = ["import", "old.yaml", "--scored-items", "scored_items.csv"];
    let daemon = {
        // Somebody has to see that it is up.
        let settings = std::fs::read_to_string(site.path("assayd.yaml")).unwrap();
        site.write("assayd.yaml", settings.replace("\"off\"", &format!("127.0.0.1:{}", site.port)));
        site.daemon().await
    };
    let refused = site.run(&again).await.expect(2);
    line(&refused.stderr, &["in use by assayd run", "scored items"]);
    assert_eq!(refused.stdout, "", "what is refused writes nothing");
    assert_eq!(daemon.stop().await, Some(0));

    let first = site.run(&again).await.expect(0);
    line(&first.stderr, &["3 new in the ledger", "1 known already"]);
    let second = site.run(&again).await.expect(0);
    line(&second.stderr, &["0 new in the ledger", "4 known already"]);
    assert_eq!(first.stdout, second.stdout);
}

#[tokio::test]
async fn a_ledger_that_fits_nothing_is_a_problem_and_one_without_a_header_is_refused() {
    let (site, _) = imported(LANGFUSE, &[]).await;
    let with = async |csv: &str, code| {
        site.write("items.csv", csv);
        site.run(&["import", "old.yaml", "--scored-items", "items.csv"]).await.expect(code).stderr
    };
    line(&with("source_key,monitor_key,item_id\nlangfuse:x,another,t1\n", 1).await, &["no line is of this monitor"]);
    line(&with("langfuse:support-bot,Support_Answers,t0000\n", 1).await, &["items.csv:1", "source_key,monitor_key,item_id"]);
    line(&with("source_key,monitor_key,item_id\n", 0).await, &["0 new in the ledger"]);
    // As the tool's own store writes it.
    let own = "dataset_id,source_type,source_name,created_at\nt1,langfuse,support-bot,2026-01-01\nt2,slack,support-bot,2026-01-01\n";
    line(&with(own, 0).await, &["1 new in the ledger", "0 known already"]);
    // A moved source: the monitor's key decides.
    let moved = "item_id,monitor_key,source_key\nt3,Support_Answers,langfuse:before\n";
    line(&with(moved, 0).await, &["1 stood under the source `langfuse:before`"]);
    site.run(&["import", "old.yaml", "--scored-items", "absent.csv"]).await.expect(2);
}

#[tokio::test]
async fn what_became_of_a_file_is_told_by_what_it_asks_of_the_reader() {
    let (site, output) = imported(LANGFUSE, &[]).await;
    let said = &output.stderr;
    line(said, &["old.yaml:2:7", "name", "`support_answers`"]);
    line(said, &["old.yaml:16:14", "source.extractor", "implementations.support.extractors.extract_answer"]);
    line(said, &["old.yaml:18:15", "source.hours_back", "days_back"]);
    line(said, &["old.yaml:19:14", "source.days_back", "watermark", "1d"]);
    line(said, &["include_reason", "metrics_config.Faithfulness"]);
    line(said, &["metrics_config.HouseStyle.class", "house_style", "exec"]);
    line(said, &["metrics_config.Faithfulness", "extract.context"]);
    line(said, &["evaluation.throttle_delay", "rpm: 480"]);
    let order = ["needs a decision:", "contradicted itself", "means something else", "not known", "taken over:"].map(|title| said.find(title).unwrap());
    assert!(order.is_sorted(), "{said}");

    let monitor = std::fs::read_to_string(site.path("monitors/support_answers.yaml")).unwrap();
    line(&monitor, &["# TODO:", "extract_answer"]);
    line(&monitor, &["# - name: HouseStyle"]);
    line(&monitor, &["environment: \"${ENVIRONMENT:-production}\""]);
    // It is the user's from now on.
    site.write("monitors/support_answers.yaml", "mine\n");
    let refused = site.run(&["import", "old.yaml", "--out", "monitors"]).await.expect(2);
    line(&refused.stderr, &["monitors/support_answers.yaml", "not overwritten"]);
    assert_eq!(std::fs::read_to_string(site.path("monitors/support_answers.yaml")).unwrap(), "mine\n");
}

#[tokio::test]
async fn what_is_written_validates_whatever_the_old_tool_allowed() {
    let old = LANGFUSE
        .replace("  Relevancy:\n", "  v1.0 Relevancy:\n")
        .replace("push_to_langfuse: true", "push_to_langfuse: true\n  metric_names: [HouseStyle, v1.0 Relevancy, Nowhere]")
        .replace("    team: support", "    team: support\n    component: other");
    let (site, output) = imported(&old, &[]).await;
    line(&output.stderr, &["metrics_config.v1.0 Relevancy", "`v1_0 Relevancy`", "no dot"]);
    line(&output.stderr, &["publishing.metric_names", "`HouseStyle` is left out"]);
    line(&output.stderr, &["publishing.metric_names", "`Nowhere` is left out"]);
    line(&output.stderr, &["evaluation.metadata.component", "`source.component`"]);
    let monitor = std::fs::read_to_string(site.path("monitors/support_answers.yaml")).unwrap();
    line(&monitor, &["metrics: [v1_0 Relevancy]"]);
    assert_eq!(monitor.matches("component:").count(), 1, "{monitor}");
    site.run(&["validate"]).await.expect(0);

    let only = LANGFUSE.replace("push_to_langfuse: true", "push_to_langfuse: true\n  experiment: { dataset_name: d, metrics: [HouseStyle] }");
    let (site, output) = imported(&only, &[]).await;
    line(&output.stderr, &["publishing.experiment.metrics", "the scores of all metrics are sent"]);
    site.run(&["validate"]).await.expect(0);

    let wide = JOIN.replace("max_concurrent: 2", "max_concurrent: 50").replace("on_conflict: upsert", "on_conflict: upsert\n    chunk_size: 50000");
    let (mut site, output) = imported(&wide, &[]).await;
    line(&output.stderr, &["source.max_concurrent", "32 is the most"]);
    line(&output.stderr, &["publishing.database.chunk_size", "10000 is the most"]);
    site.env.push(("DATABASE_URL".to_owned(), "postgres://localhost/any".to_owned()));
    site.run(&["validate"]).await.expect(0);
}

#[tokio::test]
async fn what_is_written_and_does_not_validate_is_told() {
    let site = Site::new().await;
    site.write("old.yaml", LANGFUSE.replace("  interval_minutes: 60", "  cron: \"61 * * * *\""));
    let output = site.run(&["import", "old.yaml"]).await.expect(1);
    line(&output.stdout, &["cron: \"61 * * * *\""]);
    let (_, faults) = output.stderr.split_once("the monitor does not validate as it is:").expect("what is wrong with it");
    line(faults, &["support_answers.yaml:"]);
}

#[tokio::test]
async fn a_neon_file_reads_only_what_is_new() {
    let (site, output) = imported(NEON, &[]).await;
    line(&output.stderr, &["source.neon_query", "window of its own"]);
    line(&output.stderr, &["schedule.cron", "day of the week"]);
    line(&output.stderr, &["scored_store", "\\copy", "'neon:cases' AS source_key", "'cases' AS monitor_key"]);
    line(&output.stderr, &["assayd postgres init"]);
    let monitor = std::fs::read_to_string(site.path("monitors/cases.yaml")).unwrap();
    line(&monitor, &["WHERE q.created_at >= :since AND q.created_at < :until"]);
    assert!(monitor.contains("ORDER BY created_at DESC\n    ) AS q"), "{monitor}");
}

#[tokio::test]
async fn a_join_of_threads_and_rows_keeps_its_filters_and_both_ways_of_publishing() {
    let (site, output) = imported(JOIN, &[]).await;
    line(&output.stderr, &["publishing.push_to_langfuse", "experiment excluded it"]);
    line(&output.stderr, &["drop_message_regexes", "(?<!no )refund$"]);
    line(&output.stderr, &["source.limit", "of threads and a run"]);
    let monitor = std::fs::read_to_string(site.path("monitors/support_threads.yaml")).unwrap();
    for words in [
        "left: [trace.channel_id, trace.thread_ts]",
        "right: [trace.row.slack_channel_id, trace.row.slack_thread_ts]",
        "lookback: 6d 22h 40m",
        "limit: 200",
        "bot_names: [Helper, Helper v2]",
        "strip_citations: true",
        "buffer: 30m",
        "scores: true",
        "dataset: support",
        "run_name: \"online-${ENVIRONMENT:-preview}\"",
        "on_conflict: upsert",
    ] {
        line(&monitor, &[words]);
    }
}

#[tokio::test]
async fn a_broken_file_is_told_with_its_place_and_nothing_is_written() {
    let site = Site::new().await;
    let sound = LANGFUSE;
    for (old, wanted) in [
        ("name: [\n", vec!["old.yaml:1:7", "not valid YAML"]),
        ("", vec!["old.yaml:1:1", "holds nothing"]),
        ("a: 1\n---\nb: 2\n", vec!["old.yaml:3:1", "one document"]),
        ("- a\n", vec!["old.yaml:1:1", "expected a mapping, found a list"]),
        ("name: x\n", vec!["`source` is missing"]),
        (&sound.replace("version: \"1.0\"", "version: 7"), vec!["old.yaml:1:10", "version `7`"]),
        (&sound.replace("type: langfuse", "type: langfus"), vec!["old.yaml:12:9", "did you mean `langfuse`"]),
        (&sound.replace("limit: 100", "limit: many"), vec!["old.yaml:17:10", "`source.limit`: expected a number, found text"]),
        (&sound.replace("interval_minutes: 60", "interval_minutes: 0"), vec!["old.yaml:9:21", "at least 1"]),
        (&sound.replace("strategy: random", "strategy: randm"), vec!["did you mean `random`"]),
        (&sound.replace("  Relevancy:\n    class: \"answer_relevancy\"", "  Relevancy:\n    klass: \"answer_relevancy\""), vec!["`class` is missing"]),
        (&JOIN.replace("[\"channel_id\", \"thread_ts\"]", "[thread_ts]"), vec!["as many columns"]),
        (&JOIN.replace("neon_time_column: \"created_at\"", "neon_time_column: \"a; DROP TABLE b\""), vec!["the name of a column"]),
    ] {
        site.write("old.yaml", old);
        let output = site.run(&["import", "old.yaml", "--scored-items", "absent.csv"]).await.expect(1);
        line(&output.stderr, &wanted);
        assert_eq!(output.stdout, "");
    }
    site.write("old.yaml", sound.replace("type: langfuse", "type: langfus").replace("limit: 100", "limit: many").replace("days_back: 1", "days_back: [1]"));
    let several = site.run(&["import", "old.yaml"]).await.expect(1).stderr;
    assert!(!several.is_empty());
    site.run(&["import", "absent.yaml"]).await.expect(2);
    assert!(!site.path("state").exists(), "nothing was written");
}

#[tokio::test]
async fn a_password_in_the_old_file_is_never_repeated() {
    let site = Site::new().await;
    site.write("old.yaml", NEON.replace("connection_string: \"${DATABASE_URL}\"", "connection_string: \"postgres://me:hunter2@db/x\""));
    let output = site.run(&["import", "old.yaml"]).await.expect(0);
    assert!(!output.said().contains("hunter2"), "{output:?}");
    line(&output.stderr, &["source.connection_string", "password"]);
    line(&output.stderr, &["url: \"${DATABASE_URL}\""]);
}

#[tokio::test]
async fn a_name_that_is_filled_in_is_kept_and_gives_no_key_for_the_ledger() {
    let site = Site::new().await;
    site.write("old.yaml", LANGFUSE.replace("name: Support_Answers", "name: \"answers-${ENVIRONMENT:-preview}\""));
    site.write("items.csv", SCORED);
    let output = site.run(&["import", "old.yaml"]).await.expect(0);
    line(&output.stdout, &["name: \"answers-${ENVIRONMENT:-preview}\""]);
    let refused = site.run(&["import", "old.yaml", "--scored-items", "items.csv"]).await.expect(2);
    line(&refused.stderr, &["write the names out"]);
}

#[tokio::test]
async fn a_neon_file_validates_and_runs_on_what_is_new() {
    let Some(postgres) = Postgres::start().await else { return };
    let table = "CREATE TABLE cases (id TEXT PRIMARY KEY, question TEXT, answer TEXT, created_at TIMESTAMPTZ)";
    let rows = "INSERT INTO cases SELECT 'c' || i, '[[item:c' || i || ']] how?', 'so', now() - interval '30 minutes' + i * interval '1 second' FROM generate_series(1, 8) AS i";
    postgres.run(&format!("{table}; {rows}")).await;
    let (mut site, output) = imported(NEON, &["--scored-items", "scored_items.csv"]).await;
    line(&output.stderr, &["2 new in the ledger under (sql:cases, cases)"]);
    site.env.push(("DATABASE_URL".to_owned(), postgres.url()));
    site.run(&["validate"]).await.expect(0);
    site.run(&["postgres", "init"]).await.expect(0);
    let report = site.once("cases").await;
    assert_eq!((&report["counts"]["duplicate"], &report["counts"]["scored"]), (&Value::from(2), &Value::from(6)), "{report}");
    assert_eq!(site.scored_items("cases", "Conciseness").await, ["c3", "c4", "c5", "c6", "c7", "c8"]);
    assert_eq!(postgres.count("evaluation_dataset").await, 6);
}

#[tokio::test]
async fn a_join_validates_and_runs_into_a_table_and_an_experiment() {
    let Some(postgres) = Postgres::start().await else { return };
    let (mut site, _) = imported(JOIN, &[]).await;
    site.env.push(("DATABASE_URL".to_owned(), postgres.url()));
    let began = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(60);
    let said = [("U1", 0, "How do I reset it?"), ("B1:Helper", 5, "By the link. [1]"), ("U1", 20, "thanks")];
    let with_row = site.world.slack.history.thread("C01SUPPORT1", began, &said);
    site.world.slack.history.thread("C01SUPPORT2", began, &said);
    let table = "CREATE TABLE cases (case_id INT, slack_channel_id TEXT, slack_thread_ts TEXT, created_at TIMESTAMPTZ)";
    postgres.run(&format!("{table}; INSERT INTO cases VALUES (7, 'C01SUPPORT1', '{with_row}', now() - interval '59 minutes')")).await;
    site.run(&["validate"]).await.expect(0);
    site.run(&["postgres", "init"]).await.expect(0);
    let report = site.once("support_threads").await;
    assert_eq!(report["counts"]["scored"], 1, "{report}");
    assert_eq!(site.scored_items("support_threads", "Helpfulness").await, [format!("slack-C01SUPPORT1-{with_row}")]);
    assert_eq!(postgres.count("evaluation_results").await, 1);
}
