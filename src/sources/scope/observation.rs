//! One item an observation. Its place in the window is its trace's: traces come in order of time, their observations
//! reach into each other, and a watermark between two observations of a trace would lose the rest of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::{
    future::BoxFuture,
    stream::{self, StreamExt},
};
use minijinja::value::Serde;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::super::{Fetched, Pages, Source, SourceError, Window};
use crate::{
    model::{Observation, Trace},
    util::template::Expr,
};

pub(super) struct Observations {
    pub source: Arc<dyn Source>,
    /// Over `observation` and `trace`.
    pub matching: Expr,
}

/// Traces whose children are fetched at the same time.
const COMPLETIONS: usize = 8;
/// A page ends here: each item carries its whole trace.
const PAGE_BYTES: usize = 4 << 20;

#[async_trait]
impl Source for Observations {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        let (inner, received) = Pages::channel(1);
        let fetch = async {
            let fetched = self.source.fetch(window, &inner).await;
            drop(inner);
            fetched
        };
        let (fetched, passed) = tokio::join!(fetch, self.pass_on(received, pages));
        passed?;
        fetched
    }

    async fn probe(&self) -> Result<String, SourceError> {
        self.source.probe().await
    }
}

impl Observations {
    async fn pass_on(&self, mut received: mpsc::Receiver<Vec<Fetched>>, pages: &Pages) -> Result<(), SourceError> {
        while let Some(page) = received.recv().await {
            // Boxed, so that the proof that a fetch may move between threads is made here.
            let completed: Vec<BoxFuture<'_, _>> = page.into_iter().map(|item| -> BoxFuture<'_, _> { Box::pin(self.complete_one(item)) }).collect();
            let mut completed = stream::iter(completed).buffered(COMPLETIONS);
            let (mut out, mut bytes) = (Vec::new(), 0);
            while let Some(item) = completed.next().await {
                let (found, size) = Found::of(item?, &self.matching);
                for item in found.items() {
                    out.push(item);
                    bytes += size;
                    if bytes >= PAGE_BYTES {
                        bytes = 0;
                        if pages.send(std::mem::take(&mut out)).await.is_err() {
                            return Ok(());
                        }
                    }
                }
            }
            if !out.is_empty() && pages.send(out).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn complete_one(&self, item: Fetched) -> Result<Fetched, SourceError> {
        Ok(match item.body {
            Ok(trace) => Fetched { body: Ok(self.source.complete(trace).await?), ..item },
            Err(_) => item,
        })
    }
}

/// What a trace gives.
enum Found {
    /// Itself: nothing in it matches, or it could not be looked into.
    Itself(Fetched),
    Observations {
        of: Fetched,
        trace: Arc<Trace>,
        parent: Value,
        matching: Vec<usize>,
    },
}

impl Found {
    /// And the bytes that each of its items holds.
    fn of(item: Fetched, matching: &Expr) -> (Self, usize) {
        let Ok(trace) = &item.body else { return (Self::Itself(item), 0) };
        let (trace, parent) = (Arc::clone(trace), json!(**trace));
        let size = parent.to_string().len();
        let view = minijinja::Value::from(Serde(&parent));
        let mut found = Vec::new();
        for (at, observation) in trace.observations.iter().enumerate() {
            let observation = minijinja::Value::from(Serde(json!(observation)));
            match matching.is_true(&minijinja::context! { observation => observation, trace => view.clone() }) {
                Ok(true) => found.push(at),
                Ok(false) => {}
                // Not silently left out: an expression that does not fit the data would switch the monitor off.
                Err(error) => return (Self::Itself(Fetched { body: Err(format!("where: {error}")), ..item }), 0),
            }
        }
        drop(view);
        if found.is_empty() { (Self::Itself(item), size) } else { (Self::Observations { of: item, trace, parent, matching: found }, size) }
    }

    /// One by one: as many copies of the trace are not held at a time.
    fn items(self) -> Box<dyn Iterator<Item = Fetched> + Send> {
        match self {
            Self::Itself(item) => Box::new(std::iter::once(item)),
            Self::Observations { of, trace, parent, matching } => Box::new(matching.into_iter().map(move |at| {
                let item = item(&trace, &trace.observations[at], &parent);
                Fetched { id: item.id.clone(), body: Ok(Arc::new(item)), ..of.clone() }
            })),
        }
    }
}

/// An observation as an item: what was said, took and cost is its own, all else its trace's.
fn item(trace: &Trace, observation: &Observation, parent: &Value) -> Trace {
    Trace {
        id: format!("{}/{}", trace.id, observation.id),
        timestamp: observation.start,
        name: trace.name.clone(),
        input: observation.input.clone(),
        output: observation.output.clone(),
        metadata: observation.metadata.clone(),
        tags: trace.tags.clone(),
        user_id: trace.user_id.clone(),
        session_id: trace.session_id.clone(),
        environment: trace.environment.clone(),
        release: trace.release.clone(),
        version: trace.version.clone(),
        latency_ms: observation.end.map(|end| end.duration_since(observation.start).as_secs_f64() * 1000.0),
        cost_usd: observation.cost_usd,
        url: trace.url.clone(),
        observations: beneath(&trace.observations, &observation.id),
        extra: Map::from_iter([("observation".to_owned(), json!(observation)), ("parent".to_owned(), parent.clone())]),
    }
}

/// The observations below one, in their order.
fn beneath(all: &[Observation], id: &str) -> Vec<Observation> {
    let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
    for observation in all {
        if let Some(parent) = &observation.parent_id {
            children.entry(parent).or_default().push(&observation.id);
        }
    }
    // What a product tells of its own parents may go round in a circle.
    let (mut found, mut open) = (HashSet::from([id]), vec![id]);
    while let Some(parent) = open.pop() {
        open.extend(children.get(parent).into_iter().flatten().filter(|child| found.insert(**child)));
    }
    all.iter().filter(|observation| observation.id != id && found.contains(observation.id.as_str())).cloned().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observation(id: &str, parent: Option<&str>) -> Value {
        json!({ "id": id, "parent_id": parent, "name": id, "start": "2026-01-01T00:00:01Z", "end": "2026-01-01T00:00:03.5Z", "input": "asked", "output": "said", "cost_usd": 0.5 })
    }

    fn fetched(observations: &[Value]) -> Fetched {
        let trace = json!({ "id": "t", "timestamp": "2026-01-01T00:00:00Z", "name": "turn", "tags": ["prod"], "user_id": "u", "session_id": "s", "environment": "e", "latency_ms": 9000.0, "cost_usd": 3.0, "observations": observations });
        let trace: Trace = serde_json::from_value(trace).unwrap();
        Fetched { id: trace.id.clone(), timestamp: trace.timestamp, dated: true, body: Ok(Arc::new(trace)) }
    }

    fn found(observations: &[Value], matching: &str) -> Vec<Fetched> {
        Found::of(fetched(observations), &Expr::lenient(matching).unwrap()).0.items().collect()
    }

    #[test]
    fn an_observation_is_an_item_with_its_own_figures_and_its_traces_place() {
        let items =
            found(&[observation("a", None), observation("b", Some("a")), observation("c", Some("b"))], "observation.name == 'b' and 'prod' in trace.tags");
        let [only] = &items[..] else { panic!("{items:?}") };
        let trace = only.body.as_ref().unwrap();
        assert_eq!((only.id.as_str(), trace.id.as_str(), only.timestamp.to_string().as_str()), ("t/b", "t/b", "2026-01-01T00:00:00Z"));
        assert_eq!((trace.latency_ms, trace.cost_usd, trace.timestamp.to_string().as_str()), (Some(2500.0), Some(0.5), "2026-01-01T00:00:01Z"));
        assert_eq!((&trace.output, trace.name.as_deref(), trace.session_id.as_deref()), (&json!("said"), Some("turn"), Some("s")));
        assert_eq!(trace.observations.iter().map(|step| step.id.as_str()).collect::<Vec<_>>(), ["c"]);
        assert_eq!((&trace.extra["observation"]["name"], &trace.extra["parent"]["latency_ms"]), (&json!("b"), &json!(9000.0)));
        assert_eq!((trace.observation_place(), trace.scored_trace()), (Some(("t", "b")), "t"));
    }

    #[test]
    fn a_trace_without_one_is_passed_on_as_it_is() {
        let items = found(&[observation("a", None)], "observation.name == 'b'");
        assert_eq!((items.len(), items[0].id.as_str()), (1, "t"));
        assert!(items[0].body.as_ref().unwrap().observation_place().is_none());
        let items = found(&[observation("a", None)], "observation.name > 3 + trace");
        assert!(items[0].body.as_ref().unwrap_err().starts_with("where: "), "{items:?}");
    }

    proptest! {
        #[test]
        fn whatever_parents_are_told_no_observation_is_beneath_itself(parents in proptest::collection::vec(proptest::option::of(0..8_usize), 0..8)) {
            let name = |n: usize| n.to_string();
            let all: Vec<Observation> = parents
                .iter()
                .enumerate()
                .map(|(n, parent)| serde_json::from_value(observation(&name(n), parent.map(name).as_deref())).unwrap())
                .collect();
            for (n, parent) in parents.iter().enumerate() {
                let beneath = beneath(&all, &name(n));
                prop_assert!(beneath.iter().all(|step| step.id != name(n)));
                // Each but the top has its parent there or right above.
                prop_assert!(beneath.iter().all(|step| step.parent_id == Some(name(n)) || beneath.iter().any(|above| Some(&above.id) == step.parent_id.as_ref())));
                if let Some(parent) = parent.filter(|parent| *parent != n && *parent < all.len()) {
                    prop_assert!(super::beneath(&all, &name(parent)).iter().any(|step| step.id == name(n)));
                }
            }
        }
    }
}
