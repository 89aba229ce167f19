//! Two sources side by side: the items of the left one, each with what the right one has for the same key.
//!
//! The left side is passed on as it comes. The right side of the window, `buffer` further at both ends, is read before
//! and held as JSON text by its key; where that would be more than [`MOST_BYTES`] the window is halved, so a long one
//! costs time and not memory.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use minijinja::value::{Serde, ValueKind};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{BuildError, Fetched, Pages, Source, SourceConfig, SourceCx, SourceError, SourceKind, Window};
use crate::{
    model::Trace,
    util::{
        duration::Human,
        plugin,
        template::{Expr, Template},
        yaml::{self, Fault, Node},
    },
};

/// The items of one source with what another has for the same key: `trace.right` is the right trace (`trace.right.row.X`
/// of a row), the nearest in time if there are several, `trace.rights` their number; all else is the left trace.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct JoinFile {
    /// A source: `type` and its own keys. It gives the items: their ids, times and fields.
    #[schemars(schema_with = "super::nested_schema")]
    left: Node,
    /// A source: `type` and its own keys.
    #[schemars(schema_with = "super::nested_schema")]
    right: Node,
    on: On,
    /// `inner`: an item without its right side is none yet; it is one when the right side comes within the monitor's
    /// `overlap`. `left`: it is one as it is, with `trace.rights` 0. Default `inner`.
    #[serde(default)]
    how: How,
    /// How much further than the window the right side is read, at both ends. Default 30m.
    #[serde(default = "buffer")]
    buffer: Human,
    /// Template over `left` and `right` for the item's id, such as `{{ left.thread_ts }}-{{ right.row.id }}`. Default:
    /// the left side's id.
    id: Option<String>,
}

/// What has to be equal: as many expressions over `trace` on both sides, such as `trace.thread_ts` or `trace.row.thread_id`.
/// Values are compared as text; one that is missing, null or empty equals nothing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct On {
    left: Vec<String>,
    right: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum How {
    #[default]
    Inner,
    Left,
}

fn buffer() -> Human {
    Human::mins(30)
}

#[derive(Debug)]
struct JoinConfig {
    file: JoinFile,
    left: Box<dyn SourceConfig>,
    right: Box<dyn SourceConfig>,
}

inventory::submit! {
    SourceKind {
        name: "join",
        example: "left: { type: file, path: answers.jsonl }\nright: { type: file, path: feedback.jsonl }\non: { left: [trace.id], right: [trace.answer_id] }\nhow: inner\nbuffer: 30m\n",
        schema: plugin::schema::<JoinFile>,
        parse: |node, faults| read(node, faults).map(|config| Box::new(config) as Box<dyn SourceConfig>),
    }
}

fn read(node: &Node, faults: &mut Vec<Fault>) -> Option<JoinConfig> {
    let file: JoinFile = yaml::read(node, faults)?;
    // Both, so that a fault in the one does not hide those in the other.
    let sides = [&file.left, &file.right].map(|side| plugin::read_block(side, &[], inventory::iter::<SourceKind>().collect(), "source", faults));
    let [Some((_, left)), Some((_, right))] = sides else { return None };
    Some(JoinConfig { file, left, right })
}

impl SourceConfig for JoinConfig {
    fn build(&self, cx: &SourceCx<'_>) -> Result<Arc<dyn Source>, BuildError> {
        let JoinFile { on, id, how, buffer, .. } = &self.file;
        let left = self.left.build(cx).map_err(|error| error.within("left"))?;
        // Nothing of the right side's children is shown.
        let right = self.right.build(&SourceCx { wants_observations: false, ..*cx }).map_err(|error| error.within("right"))?;
        if on.left.is_empty() || on.left.len() != on.right.len() {
            return Err(BuildError::at("on", "`left` and `right` are lists of as many expressions, at least one"));
        }
        let keys = |expressions: &[String]| -> Result<Key, BuildError> {
            let compiled =
                expressions.iter().map(|text| Expr::lenient(text).map_err(|error| BuildError::at("on", format!("`{text}` is no expression: {error}"))));
            compiled.collect::<Result<_, _>>().map(Key)
        };
        let id = id.as_deref().map(Template::new).transpose().map_err(|error| BuildError::at("id", format!("`id` is no template: {error}")))?;
        let buffer = SignedDuration::from_millis(buffer.millis());
        Ok(Arc::new(Join { left_key: keys(&on.left)?, right_key: keys(&on.right)?, left, right, how: *how, buffer, id, most_bytes: MOST_BYTES }))
    }
}

struct Join {
    left: Arc<dyn Source>,
    right: Arc<dyn Source>,
    left_key: Key,
    right_key: Key,
    how: How,
    buffer: SignedDuration,
    id: Option<Template>,
    /// Of the right side, held at a time.
    most_bytes: usize,
}

/// One side of `on`.
#[derive(Debug)]
struct Key(Vec<Expr>);

impl Key {
    /// What is compared; `None` where a part is missing and so equals nothing.
    fn of(&self, trace: &Value) -> Option<Vec<String>> {
        let context = minijinja::context! { trace => minijinja::Value::from(Serde(trace)) };
        self.0
            .iter()
            .map(|part| {
                let value = part.eval(&context).ok()?;
                let text = if matches!(value.kind(), ValueKind::Undefined | ValueKind::None) { String::new() } else { value.to_string() };
                Some(text.trim().to_owned()).filter(|text| !text.is_empty())
            })
            .collect()
    }
}

/// Beside a daemon's other runs this still fits a small machine.
const MOST_BYTES: usize = 256 << 20;

/// The right side by its key: time and JSON, in order and each once.
type Index = HashMap<Vec<String>, Vec<(Timestamp, Box<str>)>>;

#[async_trait]
impl Source for Join {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        let mut from = window.from;
        let mut width = window.to.duration_since(window.from);
        while from < window.to {
            let part = Window { from, to: from.checked_add(width).unwrap_or(window.to).min(window.to) };
            match self.index(part).await? {
                Some(index) => {
                    if !self.pass(part, &index, pages).await? {
                        break;
                    }
                    from = part.to;
                }
                // Below the buffer a narrower part reads hardly less.
                None if width > self.buffer.max(SignedDuration::from_secs(1)) => width /= 2,
                None => {
                    let mb = self.most_bytes >> 20;
                    return Err(SourceError::Refused(format!(
                        "join: the right side has more than {mb} MB around {from}: let it give less, or make `buffer` shorter"
                    )));
                }
            }
        }
        Ok(())
    }

    async fn complete(&self, trace: Arc<Trace>) -> Result<Arc<Trace>, SourceError> {
        // The left source knows its trace by its own id.
        let Some(Value::String(left_id)) = trace.extra.get(LEFT_ID) else { return self.left.complete(trace).await };
        let known = Arc::new(Trace { id: left_id.clone(), ..Trace::clone(&trace) });
        let completed = self.left.complete(known).await?;
        Ok(Arc::new(Trace { id: trace.id.clone(), ..Trace::clone(&completed) }))
    }

    async fn probe(&self) -> Result<String, SourceError> {
        let (left, right) = (self.left.probe().await?, self.right.probe().await?);
        Ok(format!("left: {left}; right: {right}"))
    }
}

/// The left side's id, where `id:` made another.
const LEFT_ID: &str = "left_id";

impl Join {
    /// The right side around a window; `None` where it is too much to hold.
    async fn index(&self, window: Window) -> Result<Option<Index>, SourceError> {
        let around =
            Window { from: window.from.checked_sub(self.buffer).unwrap_or(Timestamp::MIN), to: window.to.checked_add(self.buffer).unwrap_or(Timestamp::MAX) };
        let (pages, received) = Pages::channel(1);
        let fetch = async {
            let fetched = self.right.fetch(around, &pages).await;
            drop(pages);
            fetched
        };
        let (fetched, index) = tokio::join!(fetch, self.gather(received));
        fetched.map_err(|error| on_side("right", error))?;
        Ok(index)
    }

    async fn gather(&self, mut received: mpsc::Receiver<Vec<Fetched>>) -> Option<Index> {
        let (mut index, mut bytes, mut broken) = (Index::new(), 0, 0_u64);
        while let Some(page) = received.recv().await {
            for item in page {
                let Ok(trace) = item.body else {
                    broken += 1;
                    continue;
                };
                let trace = json!(*trace);
                let Some(key) = self.right_key.of(&trace) else { continue };
                let text = trace.to_string().into_boxed_str();
                bytes += text.len();
                index.entry(key).or_default().push((item.timestamp, text));
            }
            if bytes > self.most_bytes {
                return None;
            }
        }
        if broken > 0 {
            tracing::warn!(broken, "join: items of the right side that could not be read match nothing");
        }
        for rights in index.values_mut() {
            // A source may send an item twice.
            rights.sort_unstable();
            rights.dedup();
        }
        Some(index)
    }

    /// Passes the left side on, with its right side. False when nobody wants more.
    async fn pass(&self, window: Window, index: &Index, pages: &Pages) -> Result<bool, SourceError> {
        let (inner, received) = Pages::channel(1);
        let fetch = async {
            let fetched = self.left.fetch(window, &inner).await;
            drop(inner);
            fetched
        };
        let (fetched, wanted) = tokio::join!(fetch, self.pass_on(received, index, pages));
        fetched.map_err(|error| on_side("left", error))?;
        Ok(wanted)
    }

    async fn pass_on(&self, mut received: mpsc::Receiver<Vec<Fetched>>, index: &Index, pages: &Pages) -> bool {
        while let Some(page) = received.recv().await {
            let page: Vec<Fetched> = page.into_iter().filter_map(|item| self.joined(item, index)).collect();
            if !page.is_empty() && pages.send(page).await.is_err() {
                return false;
            }
        }
        true
    }

    /// `None` for a left item that waits for its right side.
    fn joined(&self, item: Fetched, index: &Index) -> Option<Fetched> {
        // What could not be read is recorded as failed, as without a join.
        let Ok(trace) = &item.body else { return Some(item) };
        let left = json!(**trace);
        let rights = self.left_key.of(&left).and_then(|key| index.get(&key)).map(Vec::as_slice).unwrap_or_default();
        let nearest = rights.iter().min_by_key(|(at, _)| at.duration_since(item.timestamp).abs());
        if nearest.is_none() && self.how == How::Inner {
            return None;
        }
        // What was written as JSON reads back.
        let right: Option<Value> = nearest.and_then(|(_, text)| serde_json::from_str(text).ok());
        let id = match &self.id {
            None => None,
            Some(template) => {
                let right = right.as_ref().map_or(minijinja::Value::UNDEFINED, |right| minijinja::Value::from(Serde(right)));
                let context = minijinja::context! { left => minijinja::Value::from(Serde(&left)), right => right };
                match template.render(&context) {
                    Ok(id) if !id.trim().is_empty() => Some(id.trim().to_owned()),
                    Ok(_) => return Some(Fetched { body: Err("join: `id` gives an empty text".to_owned()), ..item }),
                    Err(error) => return Some(Fetched { body: Err(format!("join: id: {error}")), ..item }),
                }
            }
        };
        let mut trace = Trace::clone(trace);
        if let Some(id) = id.filter(|id| *id != trace.id) {
            trace.extra.insert(LEFT_ID.to_owned(), json!(trace.id));
            trace.id = id;
        }
        trace.extra.insert("rights".to_owned(), json!(rights.len()));
        trace.extra.extend(right.map(|right| ("right".to_owned(), right)));
        Some(Fetched { id: trace.id.clone(), body: Ok(Arc::new(trace)), ..item })
    }
}

/// Says which of the two it was.
fn on_side(side: &str, error: SourceError) -> SourceError {
    let told = |message: String| format!("join, {side}: {message}");
    match error {
        SourceError::Refused(message) => SourceError::Refused(told(message)),
        SourceError::Unavailable(message) => SourceError::Unavailable(told(message)),
        SourceError::Protocol(message) => SourceError::Protocol(told(message)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::given::Given, *};

    /// Of (seconds, key) each.
    fn given(items: &[(i64, u8)]) -> Arc<Given> {
        let item = |(at, (second, key)): (usize, &(i64, u8))| {
            let timestamp = Timestamp::from_second(*second).unwrap();
            let trace: Trace = serde_json::from_value(json!({ "id": at.to_string(), "timestamp": timestamp, "key": key })).unwrap();
            Fetched { id: trace.id.clone(), timestamp, dated: true, body: Ok(Arc::new(trace)) }
        };
        Arc::new(Given(items.iter().enumerate().map(item).collect()))
    }

    const HOUR: i64 = 3600;

    /// (left's id, right's time, how many), in the order they came.
    fn joined(left: &[(i64, u8)], right: &[(i64, u8)], how: How, most_bytes: usize) -> Result<Vec<(String, Option<i64>, u64)>, SourceError> {
        let key = || Key(vec![Expr::lenient("trace.key").unwrap()]);
        let (left, right) = (given(left), given(right));
        let join = Join { left, right, left_key: key(), right_key: key(), how, buffer: SignedDuration::from_secs(60), id: None, most_bytes };
        let window = Window { from: Timestamp::UNIX_EPOCH, to: Timestamp::from_second(HOUR).unwrap() };
        let (pages, mut received) = Pages::channel(1000);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(join.fetch(window, &pages))?;
        drop(pages);
        let mut found = Vec::new();
        while let Ok(page) = received.try_recv() {
            for item in page {
                let trace = item.body.unwrap();
                let right = trace.extra.get("right").map(|right| right["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap().as_second());
                found.push((item.id, right, trace.extra["rights"].as_u64().unwrap()));
            }
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn each_item_has_the_nearest_of_its_key(mut left in prop::collection::vec((0..HOUR, 0_u8..6), 0..20), right in prop::collection::vec((-90..HOUR + 90, 0_u8..6), 0..20)) {
            left.sort_unstable();
            let expected: Vec<_> = left.iter().enumerate().map(|(at, (second, key))| {
                let same: Vec<i64> = right.iter().filter(|(at, other)| other == key && (-60..HOUR + 60).contains(at)).map(|(at, _)| *at).collect();
                (at.to_string(), same.iter().map(|at| (at - second).abs()).min(), same.len() as u64)
            }).collect();
            let far = |found: Vec<(String, Option<i64>, u64)>| found.into_iter().map(|(id, right, n)| {
                let second = left[id.parse::<usize>().unwrap()].0;
                (id, right.map(|right| (right - second).abs()), n)
            }).collect::<Vec<_>>();
            prop_assert_eq!(far(joined(&left, &right, How::Left, usize::MAX).unwrap()), expected.clone());
            let inner: Vec<_> = expected.into_iter().filter(|(.., n)| *n > 0).collect();
            prop_assert_eq!(far(joined(&left, &right, How::Inner, usize::MAX).unwrap()), inner);
        }
    }

    #[test]
    fn a_right_side_that_is_too_large_is_taken_in_parts_and_nothing_is_lost() {
        let all: Vec<(i64, u8)> = (0..200).map(|i| (i * 18, u8::try_from(i).unwrap())).collect();
        let found = joined(&all, &all, How::Inner, 2000).unwrap();
        assert_eq!(found, all.iter().enumerate().map(|(at, (second, _))| (at.to_string(), Some(*second), 1)).collect::<Vec<_>>());
        let error = joined(&all, &all, How::Inner, 100).unwrap_err();
        assert!(matches!(&error, SourceError::Refused(message) if message.contains("right side")), "{error}");
    }
}
