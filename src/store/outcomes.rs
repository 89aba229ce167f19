//! What came of judged items, many at a time: a statement's way to the database's thread and back costs more than most statements.

use std::collections::HashSet;

use sqlx::{QueryBuilder, SqliteConnection};

use super::{
    ItemOutcome, NewScore,
    apply::{Names, json},
    writer::{Request, Write},
};
use crate::model::{Decision, Outcome};

/// Rows of one statement. Each number of rows is a statement of its own, and is prepared once.
const ROWS: usize = 16;

/// The outcomes that a batch begins with, of as many different items: one of the same item again is written after the first.
pub(super) fn first(batch: &[Request]) -> Vec<&ItemOutcome> {
    let mut items = HashSet::new();
    let outcomes = batch.iter().map_while(|request| if let Write::Outcome(outcome) = &request.write { Some(&**outcome) } else { None });
    outcomes.take_while(|outcome| items.insert(outcome.key)).collect()
}

/// An item that retention forgot while its outcome waited has nothing left to hang a score on: then nothing is written of it.
pub(super) async fn write(db: &mut SqliteConnection, names: &mut Names, outcomes: &[&ItemOutcome]) -> Result<(), sqlx::Error> {
    let mut scores = Vec::with_capacity(outcomes.len());
    let mut queued = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        let monitor = names.monitor(db, &outcome.monitor).await?;
        scores.extend(outcome.scores.iter().map(|score| (monitor, *outcome, score)));
        for queue in outcome.queues.iter() {
            let body = outcome.body.as_ref().filter(|_| queue.wants_item).map(|(key, _)| hex(key.0));
            let id = names.queue(db, &queue.name).await?;
            let wanted = outcome.scores.iter().filter(|score| queue.wants(score));
            queued.extend(wanted.map(|score| (id, score.score_id.as_str(), body.clone())));
        }
    }
    for rows in scores.chunks(ROWS) {
        insert_scores(db, rows).await?;
    }
    // An item that is judged again has the value that it has now.
    let values: Vec<_> = outcomes.iter().flat_map(|outcome| outcome.values.iter().map(|(by, value)| (hex(outcome.key.0), &**by, value))).collect();
    if !values.is_empty() {
        let sql = "INSERT INTO item_values (item, dimension, value) SELECT items.id, given.value ->> 1, given.value ->> 2
            FROM json_each($1) AS given JOIN items ON items.key = unhex(given.value ->> 0) WHERE true
            ON CONFLICT (item, dimension) DO UPDATE SET value = excluded.value WHERE item_values.value <> excluded.value";
        sqlx::query(sql).bind(json(&values)?).execute(&mut *db).await?;
    }
    let stale: Vec<&String> = outcomes.iter().flat_map(|outcome| &outcome.stale).collect();
    if !stale.is_empty() {
        // What was scored was sent, and stays.
        let sql = "DELETE FROM scores WHERE score_id IN (SELECT value FROM json_each($1)) AND outcome <> 'scored'";
        sqlx::query(sql).bind(json(&stale)?).execute(&mut *db).await?;
    }
    for outcome in outcomes {
        // A body that nothing waits for would stay until retention finds it.
        let carried = outcome.queues.iter().any(|queue| queue.wants_item && outcome.scores.iter().any(|score| queue.wants(score)));
        if let Some((key, body)) = outcome.body.as_ref().filter(|_| carried) {
            let sql = "INSERT INTO bodies (key, body) SELECT $1, $2 FROM items WHERE key = $3
                AND NOT EXISTS (SELECT 1 FROM pending WHERE pending.item = items.id AND pending.publish = 0) ON CONFLICT (key) DO NOTHING";
            sqlx::query(sql).bind(key.0.as_slice()).bind(body).bind(outcome.key.0.as_slice()).execute(&mut *db).await?;
        }
    }
    end(db, outcomes, &queued).await
}

/// A score that was recorded stays as it is; a failed judgement gives way to what a later attempt found.
async fn insert_scores(db: &mut SqliteConnection, rows: &[(i64, &ItemOutcome, &NewScore)]) -> Result<(), sqlx::Error> {
    let int = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
    // `column4` is the item's key. Bound, since a number's way through JSON may change its last bit.
    let mut sql = QueryBuilder::new(
        "INSERT INTO scores (score_id, run_id, monitor, item, metric, revision, item_id, trace_id, environment, url, item_us, outcome, data_type, value, raw,
            label, passed, reason, provider, model, input_tokens, output_tokens, cost_usd, latency_ms, answer, created_us, observation_id)
        SELECT column1, column2, column3, items.id, column5, column6, column7, column8, column9, column10, column11, column12, column13, column14, column15,
            column16, column17, column18, column19, column20, column21, column22, column23, column24, column25, column26, column27 FROM (",
    );
    sql.push_values(rows, |mut values, (monitor, of, score)| {
        let (value, raw, label, passed) = match &score.outcome {
            Outcome::Scored { value, raw, label, passed, .. } => (Some(*value), *raw, label.as_deref(), *passed),
            _ => (None, None, None, None),
        };
        values
            .push_bind(&score.score_id)
            .push_bind(&of.run_id)
            .push_bind(*monitor)
            .push_bind(of.key.0.as_slice())
            .push_bind(&*score.metric)
            .push_bind(&*score.revision)
            .push_bind(&of.item_id)
            .push_bind(of.trace_id.as_deref())
            .push_bind(of.environment.as_deref())
            .push_bind(of.url.as_deref())
            .push_bind(of.item_us)
            .push_bind(score.outcome.kind())
            .push_bind(score.data_type)
            .push_bind(value)
            .push_bind(raw)
            .push_bind(label)
            .push_bind(passed)
            .push_bind(score.outcome.reason())
            .push_bind(score.usage.provider.as_deref())
            .push_bind(score.usage.model.as_deref())
            .push_bind(int(score.usage.input_tokens))
            .push_bind(int(score.usage.output_tokens))
            .push_bind(score.usage.cost_usd)
            .push_bind(int(score.usage.latency_ms))
            .push_bind(score.answer.as_deref())
            .push_bind(of.at_us)
            .push_bind(of.observation_id.as_deref());
    });
    sql.push(
        ") JOIN items ON items.key = column4 WHERE true
        ON CONFLICT (score_id) DO UPDATE SET run_id = excluded.run_id, outcome = excluded.outcome, value = excluded.value, raw = excluded.raw,
            label = excluded.label, passed = excluded.passed, reason = excluded.reason, provider = excluded.provider, model = excluded.model,
            input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens, cost_usd = excluded.cost_usd, latency_ms = excluded.latency_ms,
            answer = excluded.answer, created_us = excluded.created_us WHERE scores.outcome <> 'scored'",
    );
    sql.build().execute(db).await.map(drop)
}

/// Queues the scores (queue, `score_id`, the body's key), unless their item was drawn to be published nowhere, and decides
/// the items.
async fn end(db: &mut SqliteConnection, outcomes: &[&ItemOutcome], queued: &[(i64, &str, Option<String>)]) -> Result<(), sqlx::Error> {
    // key, decision, reason, run, when, attempts used up, comes back, is an event
    let ended: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| {
            let end = outcome.end.as_ref()?;
            let event = end.comes_back || end.decision == Decision::Failed;
            Some((hex(outcome.key.0), end.decision, &end.reason, &outcome.run_id, outcome.at_us, i64::from(end.counts), end.comes_back, event))
        })
        .collect();
    let sql = "INSERT INTO outbox (queue, score, body) SELECT queued.value ->> 0, scores.id, (SELECT id FROM bodies WHERE key = unhex(queued.value ->> 2))
            FROM json_each($1) AS queued JOIN scores ON scores.score_id = queued.value ->> 1
            WHERE NOT EXISTS (SELECT 1 FROM pending WHERE pending.item = scores.item AND pending.publish = 0) ON CONFLICT (score, queue) DO NOTHING;
        UPDATE items SET decision = ended.value ->> 1, reason = ended.value ->> 2, run_id = ended.value ->> 3, decided_us = ended.value ->> 4,
            attempts = attempts + (ended.value ->> 5) FROM json_each($2) AS ended WHERE items.key = unhex(ended.value ->> 0);
        UPDATE pending SET state = ended.value ->> 1 FROM json_each($2) AS ended JOIN items ON items.key = unhex(ended.value ->> 0)
            WHERE pending.item = items.id AND ended.value ->> 6;
        DELETE FROM pending WHERE item IN (SELECT items.id FROM json_each($2) AS ended JOIN items ON items.key = unhex(ended.value ->> 0) WHERE NOT ended.value ->> 6);
        INSERT INTO item_events (item, at_us, run_id, decision, reason)
            SELECT items.id, ended.value ->> 4, ended.value ->> 3, ended.value ->> 1, ended.value ->> 2
            FROM json_each($2) AS ended JOIN items ON items.key = unhex(ended.value ->> 0) WHERE ended.value ->> 7";
    sqlx::query(sql).bind(json(&queued)?).bind(json(&ended)?).execute(db).await.map(drop)
}

pub(super) fn hex(key: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(key))
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use crate::{
        model::{About, BodyKey, Case, Decision, Item, ItemKey, Outcome, Usage},
        store::{DrawBatch, Fate, ItemEnd, ItemOutcome, NewItem, NewScore, Queue, SentBatch, Stage, Store},
    };

    const ITEMS: usize = 45;

    fn key(n: usize) -> ItemKey {
        ItemKey::new("file:f", "m", &n.to_string())
    }

    fn body(n: usize) -> String {
        let trace = serde_json::json!({ "id": n.to_string(), "timestamp": "2026-01-01T00:00:00Z" });
        let item =
            Item { trace: serde_json::from_value(trace).unwrap(), case: Case::default(), content_hash: "content".to_owned(), about: About::default().into() };
        serde_json::to_string(&item).unwrap()
    }

    fn drawn(n: usize) -> NewItem {
        NewItem {
            key: key(n),
            item_id: n.to_string(),
            item_us: 1,
            decision: Decision::Drawn,
            reason: "drawn".into(),
            trace: Some(format!("{{\"n\": {n}}}")),
            given: None,
            chosen: false,
            undrawn: false,
        }
    }

    /// A third each: scored, failed for good, to be tried again.
    fn outcome(n: usize, attempt: usize) -> ItemOutcome {
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let value = 0.1 + n as f64 / 1e3;
        let (outcome, decision) = match n % 3 {
            0 => (Outcome::Scored { value, raw: Some(0.1 + 0.2), label: None, passed: Some(true), reason: "\u{0}'); --".to_owned() }, Decision::Scored),
            _ => (Outcome::Failed { reason: format!("attempt {attempt}") }, Decision::Failed),
        };
        let score = NewScore {
            score_id: format!("score-{n}"),
            metric: "helpful".into(),
            revision: "r".into(),
            data_type: "NUMERIC",
            outcome,
            usage: Usage { cost_usd: Some(1e-7), ..Usage::default() },
            answer: None,
        };
        ItemOutcome {
            monitor: "m".to_owned(),
            run_id: "run".to_owned(),
            key: key(n),
            item_id: n.to_string(),
            item_us: 1,
            trace_id: None,
            observation_id: None,
            environment: None,
            url: None,
            at_us: 2,
            scores: vec![score],
            values: Vec::new(),
            stale: Vec::new(),
            queues: [("one", ""), ("two", ""), ("three", "other")].map(|(name, metrics)| queue(name, metrics)).into(),
            body: Some((BodyKey::new(key(n), "content"), body(n))),
            end: Some(ItemEnd { decision, reason: format!("attempt {attempt}"), comes_back: n % 3 == 2, counts: true }),
        }
    }

    fn queue(name: &str, metric: &str) -> Queue {
        let metrics = Some(metric.to_owned()).filter(|metric| !metric.is_empty());
        Queue { name: name.to_owned(), wants_item: name != "one", metrics: metrics.into_iter().collect() }
    }

    #[tokio::test]
    async fn many_at_once_are_each_written_as_if_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            let batch = |items| DrawBatch {
                monitor: "m".to_owned(),
                run_id: "run".to_owned(),
                at_us: 1,
                items,
                baseline: Vec::new(),
                watermark: None,
                complete: false,
                again: false,
            };
            store.record_draw(batch((0..ITEMS).map(drawn).collect())).await.unwrap();
            // All in one transaction: of each item twice, and of one that nobody knows.
            let outcomes = (0..ITEMS).map(|n| outcome(n, 1)).chain((0..ITEMS).map(|n| outcome(n, 2))).chain([outcome(ITEMS, 1)]);
            assert!(join_all(outcomes.map(|outcome| store.record_outcome(outcome))).await.iter().all(Result::is_ok));
            // What was drawn before stays as it is.
            store.record_draw(batch((0..ITEMS).map(drawn).collect())).await.unwrap();

            assert_eq!(store.published("run").await.unwrap(), [("one".to_owned(), 0, 15), ("two".to_owned(), 0, 15)]);
            let waiting = store.pending("m", Stage::Judged, true, (i64::MIN, i64::MIN), 100).await.unwrap();
            assert_eq!(
                waiting.iter().map(|(row, _)| (row.key, row.attempts)).collect::<Vec<_>>(),
                (2..ITEMS).step_by(3).map(|n| (key(n), 2)).collect::<Vec<_>>()
            );
            assert!(waiting.iter().all(|(row, _)| row.state == "failed" && row.trace.starts_with("{\"n\"")));
            let of = async |n: usize| store.item_life("m", &n.to_string()).await.unwrap().pop();
            let scored = of(3).await.unwrap();
            assert_eq!((scored.decision.as_str(), scored.attempts, scored.events.len()), ("scored", 2, 0));
            let score = &scored.scores[0];
            assert_eq!((score.value, score.raw, score.cost_usd), (Some(0.1 + 3.0 / 1e3), Some(0.1 + 0.2), Some(1e-7)), "to the last bit");
            assert_eq!((score.reason.as_str(), scored.deliveries.len()), ("\u{0}'); --", 2));
            let failed = of(4).await.unwrap();
            assert_eq!((failed.decision.as_str(), failed.reason.as_str(), failed.events.len()), ("failed", "attempt 2", 2));
            assert_eq!((failed.scores[0].outcome.as_str(), failed.scores[0].reason.as_str(), failed.deliveries.len()), ("failed", "attempt 2", 0));
            assert!(of(ITEMS).await.is_none());

            // The item goes with its score to the queue that wants it, and is forgotten when it has arrived.
            let due = async |queue: &str| store.due(queue, 5, 100).await.unwrap();
            assert!(due("one").await.iter().all(|row| row.delivery.item.is_none()));
            let rows = due("two").await;
            assert!(rows.iter().all(|row| row.delivery.item.as_ref().is_some_and(|item| item.trace.id == row.delivery.score.item_id)));
            let bodies = async || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM bodies").fetch_one(&store.read).await.unwrap();
            assert_eq!(bodies().await, 15);
            let mut fates: Vec<_> = rows.iter().map(|row| (row.outbox_id, Fate::Delivered)).collect();
            fates[0].1 = Fate::Dead("refused".to_owned());
            store.record_sent(SentBatch { at_us: 6, fates, with_items: true }).await.unwrap();
            assert_eq!(bodies().await, 1, "a dead row may be sent again by hand");
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }
}
