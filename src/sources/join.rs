//! Two sources side by side: the items of the left one, each with what the right one has for the same key.
//!
//! The left side is passed on as it comes. The right side of the window, `buffer` further at both ends, is read before
//! and held as JSON text by its key; where that would be more than [`MOST_BYTES`] the window is halved, so a long one
//! costs time and not memory. Of what is held an item gets what lies within `buffer` of its own time, so that it gets the
//! same whichever run's window it lies in.

#[cfg(test)]
mod tests;

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
        template::{Expr, Template, TemplateError},
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
    /// How far a right side's time may lie from the item's, before or after. Default 30m.
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
            let compiled = expressions.iter().map(|text| {
                // They are fetched for what is joined already.
                if text.contains("trace.steps") || text.contains("trace.observations") {
                    return Err(BuildError::at("on", format!("`{text}`: a trace's observations are not known yet when it is joined")));
                }
                Expr::lenient(text).map_err(|error| BuildError::at("on", format!("`{text}` is no expression: {error}")))
            });
            compiled.collect::<Result<_, _>>().map(Key)
        };
        let id = id.as_deref().map(Template::new).transpose().map_err(|error| BuildError::at("id", format!("`id` is no template: {error}")))?;
        let buffer = SignedDuration::from_millis(buffer.millis());
        Ok(Arc::new(Join { left_key: keys(&on.left)?, right_key: keys(&on.right)?, left, right, how: *how, buffer, id, most_bytes: MOST_BYTES }))
    }

    fn gives_observations(&self) -> bool {
        self.left.gives_observations()
    }

    fn gives_sessions(&self) -> bool {
        self.left.gives_sessions()
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
    fn of(&self, trace: &Value) -> Result<Option<Vec<String>>, TemplateError> {
        let context = minijinja::context! { trace => minijinja::Value::from(Serde(trace)) };
        let part = |part: &Expr| {
            let value = part.eval(&context)?;
            let text = if matches!(value.kind(), ValueKind::Undefined | ValueKind::None) { String::new() } else { value.to_string() };
            Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
        };
        self.0.iter().map(part).collect()
    }
}

/// Beside a daemon's other runs this still fits a small machine.
const MOST_BYTES: usize = 256 << 20;

/// The right side by its key, in order and each once.
type Index = HashMap<Vec<String>, Vec<Right>>;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// `None` where the source has no time for it: such a one is near to every item, after those with a time.
    at: Option<Timestamp>,
    json: Box<str>,
}

impl Right {
    fn distance(&self, item: &Fetched) -> SignedDuration {
        self.at.map_or(SignedDuration::MAX, |at| at.duration_since(item.timestamp).abs())
    }
}

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
        index
    }

    async fn gather(&self, mut received: mpsc::Receiver<Vec<Fetched>>) -> Result<Option<Index>, SourceError> {
        let (mut index, mut bytes, mut broken) = (Index::new(), 0, 0_u64);
        let (mut read, mut unfit) = (0_u64, None);
        while let Some(page) = received.recv().await {
            for item in page {
                let Ok(trace) = item.body else {
                    broken += 1;
                    continue;
                };
                let trace = json!(*trace);
                let key = match self.right_key.of(&trace) {
                    Ok(key) => key,
                    Err(error) => {
                        broken += 1;
                        unfit.get_or_insert(error);
                        continue;
                    }
                };
                read += 1;
                let Some(key) = key else { continue };
                let json = trace.to_string().into_boxed_str();
                bytes += json.len();
                index.entry(key).or_default().push(Right { at: item.dated.then_some(item.timestamp), json });
            }
            if bytes > self.most_bytes {
                return Ok(None);
            }
        }
        // Not silently without a match: an expression that fits nothing would switch the monitor off.
        if let (Some(error), 0) = (&unfit, read) {
            return Err(SourceError::Refused(format!("join: on.right: {error}")));
        }
        if broken > 0 {
            let first = unfit.map(|error| error.to_string()).unwrap_or_default();
            tracing::warn!(broken, first, "join: items of the right side that could not be read, or have no key, match nothing");
        }
        for rights in index.values_mut() {
            // A source may send an item twice.
            rights.sort_unstable();
            rights.dedup();
        }
        Ok(Some(index))
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
        let key = match self.left_key.of(&left) {
            Ok(key) => key,
            Err(error) => return Some(Fetched { body: Err(format!("join: on.left: {error}")), ..item }),
        };
        let of_its_key = key.and_then(|key| index.get(&key)).map(Vec::as_slice).unwrap_or_default();
        // An item without a time has none that others could be far from.
        let near = |right: &&Right| right.at.is_none() || !item.dated || right.distance(&item) <= self.buffer;
        let rights: Vec<&Right> = of_its_key.iter().filter(near).collect();
        let nearest = rights.iter().min_by_key(|right| right.distance(&item));
        if nearest.is_none() && self.how == How::Inner {
            return None;
        }
        // What was written as JSON reads back.
        let right: Option<Value> = nearest.and_then(|right| serde_json::from_str(&right.json).ok());
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
