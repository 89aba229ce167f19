//! Rows into Postgres by the sink, beside COPY of the very same rows.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use anyhow::{Context, anyhow, ensure};
use assayd::{
    connections::{Connections, PostgresConnection},
    model::{About, Case, Item, MetricAbout, Score, Trace, content_hash, run_id, score_id},
    sinks::{Delivery, NoRuns, Runs, Sink, SinkCx, SinkKind, postgres},
    util::{backoff::Policy, http::Http, yaml},
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    Size,
    report::{Report, median, shown},
};

/// Scores of one item: a team has a few metrics.
const METRICS: [&str; 2] = ["faithfulness", "helpfulness"];
const CHUNK: usize = 1000;
const TABLES: [&str; 2] = ["evaluation_dataset", "evaluation_results"];

pub fn figures(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let results = size.pick(100_000, 10_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ours, theirs) = runtime.block_on(async {
        let server = std::env::var("ASSAYD_TEST_POSTGRES_URL").unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        let name = format!("assayd_figures_{}", std::process::id());
        let mut admin = PgConnection::connect(&server).await.context("a Postgres for this figure (ASSAYD_TEST_POSTGRES_URL)")?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await?;
        let mut url: url::Url = server.parse()?;
        url.set_path(&name);
        let measured = measure(url.as_str(), results, size.pick(3, 1)).await;
        sqlx::query(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut admin).await?;
        measured
    })?;
    let rows = |secs: f64| shown(results as f64 / secs, "rows/s");
    let reference = format!("COPY of the same rows: {}, {} times as fast", shown(theirs, "s"), shown(ours / theirs, ""));
    let name = format!("{results} results of {} items into Postgres ({})", results / METRICS.len(), rows(ours));
    report.figure(&name, ours, "s", Some(10.0), &reference);
    Ok(())
}

/// Seconds of the median round: the sink's, and COPY's.
async fn measure(url: &str, results: usize, rounds: usize) -> anyhow::Result<(f64, f64)> {
    let connections = Connections { postgres: BTreeMap::from([("default".to_owned(), PostgresConnection::new(url.into()))]), ..Connections::default() };
    postgres::init(&connections, "default", None).await.map_err(anyhow::Error::msg)?;
    let sink = sink(&connections)?;
    let deliveries = deliveries(results);
    let mut connection = PgConnection::connect(url).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        empty(&mut connection).await?;
        let started = Instant::now();
        for batch in deliveries.chunks(CHUNK) {
            let answers = sink.deliver(batch).await?;
            ensure!(answers.iter().all(Result::is_ok), "a row was refused: {answers:?}");
        }
        ours.push(started.elapsed().as_secs_f64());
        ensure!(count(&mut connection).await? == results, "not every result is there");
        let copies = [copy_out(&mut connection, TABLES[0]).await?, copy_out(&mut connection, TABLES[1]).await?];
        empty(&mut connection).await?;
        let started = Instant::now();
        for (table, rows) in TABLES.iter().zip(copies) {
            let mut copy = connection.copy_in_raw(&format!("COPY {table} FROM STDIN")).await?;
            for chunk in rows {
                copy.send(chunk).await?;
            }
            copy.finish().await?;
        }
        theirs.push(started.elapsed().as_secs_f64());
        ensure!(count(&mut connection).await? == results, "COPY did not bring every result");
    }
    Ok((median(ours), median(theirs)))
}

fn sink(connections: &Connections) -> anyhow::Result<Arc<dyn Sink>> {
    let kind = inventory::iter::<SinkKind>().find(|kind| kind.name == "postgres").context("there is no sink `postgres`")?;
    let node = yaml::parse("figures", format!("chunk_size: {CHUNK}").as_bytes()).map_err(|fault| anyhow!("{fault:?}"))?;
    let mut faults = Vec::new();
    let config = (kind.parse)(&node[0], &mut faults).ok_or_else(|| anyhow!("{faults:?}"))?;
    let http = Http::new(reqwest::Client::new(), Policy::default());
    let runs: Arc<dyn Runs> = Arc::new(NoRuns);
    Ok(config.build(&SinkCx { connections, http: &http, runs: &runs, base_dir: std::path::Path::new(".") })?)
}

fn deliveries(results: usize) -> Vec<Delivery> {
    let at: jiff::Timestamp = "2026-01-31T09:30:00Z".parse().unwrap_or_default();
    let metric = MetricAbout { kind: "judge".to_owned(), threshold: Some(0.7), higher_is_better: true };
    let about = Arc::new(About {
        monitor: "support-answers".to_owned(),
        source_kind: "langfuse".to_owned(),
        source_name: "support-bot".to_owned(),
        metrics: METRICS.iter().map(|name| ((*name).to_owned(), metric.clone())).collect(),
        ..About::default()
    });
    let run_id = run_id("support-answers", at, assayd::model::Trigger::from_name("schedule"));
    let item = |number: usize| {
        let input = format!("How do I change the delivery address of order {number}?");
        let output = format!("Open order {number} and choose \"Change address\". {}", "This works until the parcel leaves our house. ".repeat(8));
        let trace = serde_json::json!({ "id": format!("trace-{number:012}"), "timestamp": at, "input": input, "output": output, "tags": ["prod"] });
        let trace: Trace = serde_json::from_value(trace)?;
        let case = Case { input, output, context: "Addresses can be changed until dispatch.".to_owned(), ..Case::default() };
        anyhow::Ok(Arc::new(Item { trace: Arc::new(trace), content_hash: content_hash(&case), case, about: Arc::clone(&about) }))
    };
    let of = |number: usize| {
        let item = item(number)?;
        let scores = METRICS.map(|metric| {
            let score = Score {
                score_id: score_id("support-answers", metric, "1", &item.trace.id, &item.content_hash),
                run_id: run_id.clone(),
                monitor: "support-answers".to_owned(),
                metric: metric.to_owned(),
                metric_revision: "0123456789abcdef".to_owned(),
                item_id: item.trace.id.clone(),
                trace_id: Some(item.trace.id.clone()),
                item_timestamp: at,
                outcome: "scored".to_owned(),
                value: Some(0.75),
                raw: Some(4.0),
                label: None,
                passed: Some(true),
                reason: "The answer follows from the context, and says until when it holds.".to_owned(),
                provider: Some("openai".to_owned()),
                model: Some("gpt-4o-mini".to_owned()),
                input_tokens: Some(400),
                output_tokens: Some(40),
                cost_usd: Some(0.000_084),
                latency_ms: Some(700),
                created_at: at,
            };
            Delivery { score, data_type: "NUMERIC".to_owned(), observation_id: None, environment: None, item: Some(Arc::clone(&item)) }
        });
        anyhow::Ok(scores)
    };
    (0..results / METRICS.len()).filter_map(|number| of(number).ok()).flatten().collect()
}

async fn empty(connection: &mut PgConnection) -> anyhow::Result<()> {
    sqlx::raw_sql("TRUNCATE evaluation_dataset, evaluation_results; CHECKPOINT").execute(connection).await?;
    Ok(())
}

async fn count(connection: &mut PgConnection) -> anyhow::Result<usize> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM evaluation_view").fetch_one(connection).await?;
    Ok(usize::try_from(count)?)
}

async fn copy_out(connection: &mut PgConnection, table: &str) -> anyhow::Result<Vec<Bytes>> {
    Ok(connection.copy_out_raw(&format!("COPY {table} TO STDOUT")).await?.try_collect().await?)
}
