//! One item a session, once it is idle. Its place in the window is its last trace's.
//!
//! The traces are read twice. The first time, from `reach` before the window to `settle` behind it, tells which sessions
//! have their last trace inside; of each session its id, that time and a size are kept. Then these are taken in order, as
//! many at a time as fit [`MOST_BYTES`], and their traces read again. What belongs to a session depends on its last trace
//! alone, never on the window, so that two runs see the same content.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::super::{Fetched, Pages, Source, SourceError, Window};
use crate::model::Trace;

pub(super) struct Sessions {
    pub source: Arc<dyn Source>,
    /// How far before a session's last trace its first may lie.
    pub reach: SignedDuration,
    /// How long a session has to be idle.
    pub settle: SignedDuration,
    /// Of traces held at a time; one session may be larger.
    pub most_bytes: usize,
}

/// Beside a daemon's other runs this still fits a small machine.
pub(super) const MOST_BYTES: usize = 64 << 20;

/// A session whose last trace lies in the window.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    last: Timestamp,
    id: String,
    /// Of all its traces that were seen: at least those that are its own.
    bytes: usize,
}

#[async_trait]
impl Source for Sessions {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        let (entries, mut broken) = self.index(window).await?;
        let mut entries = &entries[..];
        while !entries.is_empty() {
            let (chunk, rest) = entries.split_at(self.fitting(entries));
            let Some(last) = chunk.last().map(|entry| entry.last) else { break };
            let mut page = self.read(chunk).await?;
            let before = broken.partition_point(|item| item.timestamp <= last);
            page.extend(broken.drain(..before));
            page.sort_by_key(|item| item.timestamp);
            if pages.send(page).await.is_err() {
                return Ok(());
            }
            entries = rest;
        }
        if !broken.is_empty() {
            // Nobody who has enough minds.
            let _ = pages.send(broken).await;
        }
        Ok(())
    }

    async fn complete(&self, trace: Arc<Trace>) -> Result<Arc<Trace>, SourceError> {
        let mut whole = Trace::clone(&trace);
        let Some(Value::Array(traces)) = whole.extra.get_mut("traces") else { return Ok(trace) };
        for turn in traces {
            // Made by `session` below, so it reads back.
            let Ok(one) = serde_json::from_value::<Trace>(turn.clone()) else { continue };
            let one = self.source.complete(Arc::new(one)).await?;
            whole.observations.extend(one.observations.iter().cloned());
            *turn = json!(*one);
        }
        Ok(Arc::new(whole))
    }

    async fn probe(&self) -> Result<String, SourceError> {
        self.source.probe().await
    }
}

impl Sessions {
    /// The sessions of the window in order, and what could not be read, in order too.
    async fn index(&self, window: Window) -> Result<(Vec<Entry>, Vec<Fetched>), SourceError> {
        let around = Window { from: earlier(window.from, self.reach), to: window.to.checked_add(self.settle).unwrap_or(Timestamp::MAX) };
        let inside = |at: Timestamp| window.from <= at && at < window.to;
        let mut sessions: HashMap<String, (Timestamp, usize)> = HashMap::new();
        let mut broken = Vec::new();
        self.each(around, |item| match &item.body {
            Ok(trace) => {
                let Some(id) = session_of(trace) else { return };
                if !item.dated {
                    let body = Err(format!("without a time it has no place in session `{}`", crate::util::text::one_line(id, 128)));
                    broken.push(Fetched { timestamp: end_of(window), body, ..item });
                    return;
                }
                let bytes = json!(**trace).to_string().len();
                let (last, size) = sessions.entry(id.to_owned()).or_insert((item.timestamp, 0));
                *last = item.timestamp.max(*last);
                *size += bytes;
            }
            Err(_) if !item.dated => broken.push(Fetched { timestamp: end_of(window), ..item }),
            Err(_) if inside(item.timestamp) => broken.push(item),
            Err(_) => {}
        })
        .await?;
        let entries = sessions.into_iter().filter(|(_, (last, _))| inside(*last)).map(|(id, (last, bytes))| Entry { last, id, bytes });
        let mut entries: Vec<Entry> = entries.collect();
        entries.sort_unstable();
        broken.sort_by_key(|item| item.timestamp);
        Ok((entries, broken))
    }

    /// How many of the first ones may be held together: at least one.
    fn fitting(&self, entries: &[Entry]) -> usize {
        let mut room = self.most_bytes;
        let fit = entries
            .iter()
            .take_while(|entry| {
                entry.bytes <= room && {
                    room -= entry.bytes;
                    true
                }
            })
            .count();
        fit.clamp(1, entries.len().max(1))
    }

    /// The sessions of a chunk, whole. One that is gone meanwhile is left out.
    async fn read(&self, chunk: &[Entry]) -> Result<Vec<Fetched>, SourceError> {
        let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else { return Ok(Vec::new()) };
        // The last trace itself included, also where times are told to the millisecond.
        let to = last.last.checked_add(SignedDuration::from_millis(1)).unwrap_or(Timestamp::MAX);
        let around = Window { from: earlier(first.last, self.reach), to };
        let mut gathered: HashMap<&str, (Timestamp, Vec<Arc<Trace>>)> = chunk.iter().map(|entry| (entry.id.as_str(), (entry.last, Vec::new()))).collect();
        self.each(around, |item| {
            let (Ok(trace), true) = (item.body, item.dated) else { return };
            let Some((last, traces)) = session_of(&trace).and_then(|id| gathered.get_mut(id)) else { return };
            if earlier(*last, self.reach) <= item.timestamp && item.timestamp <= *last {
                traces.push(trace);
            }
        })
        .await?;
        Ok(chunk
            .iter()
            .filter_map(|entry| {
                let (_, traces) = gathered.remove(entry.id.as_str())?;
                let trace = session(&entry.id, traces)?;
                Some(Fetched { id: entry.id.clone(), timestamp: entry.last, dated: true, body: Ok(Arc::new(trace)) })
            })
            .collect())
    }

    async fn each(&self, window: Window, mut take: impl FnMut(Fetched) + Send) -> Result<(), SourceError> {
        let (pages, mut received) = Pages::channel(1);
        let fetch = async {
            let fetched = self.source.fetch(window, &pages).await;
            drop(pages);
            fetched
        };
        let gather = async {
            while let Some(page) = received.recv().await {
                page.into_iter().for_each(&mut take);
            }
        };
        let (fetched, ()) = tokio::join!(fetch, gather);
        fetched
    }
}

fn earlier(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// Where an item without a time is put: the window's last microsecond.
fn end_of(window: Window) -> Timestamp {
    earlier(window.to, SignedDuration::from_micros(1))
}

fn session_of(trace: &Trace) -> Option<&str> {
    trace.session_id.as_deref().filter(|id| !id.is_empty())
}

/// A session as a trace; `None` without any.
fn session(id: &str, mut traces: Vec<Arc<Trace>>) -> Option<Trace> {
    traces.sort_by(|a, b| (a.timestamp, &a.id).cmp(&(b.timestamp, &b.id)));
    // A source may send one twice.
    traces.dedup_by(|a, b| a.id == b.id);
    let (first, last) = (traces.first()?, traces.last()?);
    let sum = |figure: fn(&Trace) -> Option<f64>| traces.iter().filter_map(|trace| figure(trace)).reduce(|a, b| a + b);
    let tags: BTreeSet<&String> = traces.iter().flat_map(|trace| &trace.tags).collect();
    Some(Trace {
        id: id.to_owned(),
        timestamp: last.timestamp,
        name: last.name.clone(),
        input: first.input.clone(),
        output: last.output.clone(),
        metadata: last.metadata.clone(),
        tags: tags.into_iter().cloned().collect(),
        user_id: traces.iter().find_map(|trace| trace.user_id.clone()),
        session_id: Some(id.to_owned()),
        environment: last.environment.clone(),
        release: last.release.clone(),
        version: last.version.clone(),
        latency_ms: sum(|trace| trace.latency_ms),
        cost_usd: sum(|trace| trace.cost_usd),
        url: last.url.clone(),
        observations: Vec::new(),
        extra: Map::from_iter([
            ("conversation".to_owned(), traces.iter().flat_map(|trace| turns(trace)).collect()),
            ("traces".to_owned(), traces.iter().map(|trace| json!(**trace)).collect()),
        ]),
    })
}

/// What was asked and what was answered, at the trace's time: how long it took a source may come to know later, and the
/// conversation would have changed.
fn turns(trace: &Trace) -> impl Iterator<Item = Value> {
    let at = trace.timestamp.to_string();
    [("user", &trace.input), ("assistant", &trace.output)].into_iter().filter_map(move |(role, said)| {
        let text = match said {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        (!text.is_empty()).then(|| json!({ "role": role, "time": at, "text": text }))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::sources::given::Given;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn trace(at: usize, second: i64, session: u8) -> Trace {
        serde_json::from_value(json!({ "id": at.to_string(), "timestamp": time(second), "session_id": session.to_string(), "input": format!("in {at}"), "output": format!("out {at}"), "cost_usd": 0.5 })).unwrap()
    }

    const REACH: i64 = 100;
    const SETTLE: i64 = 20;

    /// `given`: (second, session) each, in order of time.
    fn items(given: &[(i64, u8)], from: i64, to: i64, most_bytes: usize) -> Vec<Fetched> {
        let item = |(at, (second, session)): (usize, &(i64, u8))| Fetched {
            id: at.to_string(),
            timestamp: time(*second),
            dated: true,
            body: Ok(Arc::new(trace(at, *second, *session))),
        };
        let source = Arc::new(Given(given.iter().enumerate().map(item).collect()));
        let sessions = Sessions { source, reach: SignedDuration::from_secs(REACH), settle: SignedDuration::from_secs(SETTLE), most_bytes };
        let (pages, mut received) = Pages::channel(1000);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(sessions.fetch(Window { from: time(from), to: time(to) }, &pages)).unwrap();
        drop(pages);
        std::iter::from_fn(|| received.try_recv().ok()).flatten().collect()
    }

    #[test]
    fn a_session_is_one_item_with_its_turns() {
        let items = items(&[(10, 1), (15, 2), (30, 1)], 5, 60, MOST_BYTES);
        assert_eq!(items.iter().map(|item| (item.id.as_str(), item.timestamp)).collect::<Vec<_>>(), [("2", time(15)), ("1", time(30))]);
        let session = items[1].body.as_ref().unwrap();
        assert_eq!((&session.input, &session.output, session.cost_usd, session.latency_ms), (&json!("in 0"), &json!("out 2"), Some(1.0), None));
        let said: Vec<&Value> = session.extra["conversation"].as_array().unwrap().iter().map(|turn| &turn["text"]).collect();
        assert_eq!(said, ["in 0", "out 0", "in 2", "out 2"]);
        assert_eq!((session.scored_trace(), session.observation_place()), ("2", None));
    }

    proptest! {
        #[test]
        fn idle_sessions_of_the_window_come_once_and_whole_however_little_fits(
            gaps in proptest::collection::vec((0..30_i64, 0..5_u8), 0..40), from in 0..300_i64, width in 1..400_i64, most_bytes in 0..2000_usize,
        ) {
            let mut at = 0;
            let given: Vec<(i64, u8)> = gaps.into_iter().map(|(gap, session)| { at += gap; (at, session) }).collect();
            let to = from + width;
            let found = items(&given, from, to, most_bytes);
            prop_assert!(found.is_sorted_by_key(|item| item.timestamp));

            // By its definition: the last trace that a look at this time could see.
            let mut expected = BTreeMap::new();
            for (at, session) in given.iter().filter(|(at, _)| *at >= from - REACH && *at < to + SETTLE) {
                expected.insert(session.to_string(), *at);
            }
            expected.retain(|_, last| (from..to).contains(last));
            prop_assert_eq!(found.iter().map(|item| (item.id.clone(), item.timestamp.as_second())).collect::<BTreeMap<_, _>>(), expected);
            prop_assert_eq!(found.len(), found.iter().map(|item| &item.id).collect::<BTreeSet<_>>().len());
            for item in &found {
                let own: Vec<String> = given.iter().enumerate()
                    .filter(|(_, (at, session))| session.to_string() == item.id && *at <= item.timestamp.as_second() && *at >= item.timestamp.as_second() - REACH)
                    .map(|(n, _)| n.to_string()).collect();
                let traces = item.body.as_ref().unwrap().extra["traces"].as_array().unwrap().iter().map(|trace| trace["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
                prop_assert_eq!(traces.into_iter().collect::<BTreeSet<_>>(), own.into_iter().collect::<BTreeSet<_>>());
            }
        }
    }
}
