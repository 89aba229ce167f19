//! The older tool's `scored_items.csv` into the decision ledger: what it names is decided, and is not judged again.
//!
//! Such an item has no score here, so it is remembered by when it was decided: `retention.scores` from the import on,
//! whatever the age of the item itself, which the file does not tell.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;

use super::{Failure, Overrides, Translation, translate::Ledger};
use crate::{
    config::Keyring,
    model::{Decision, ItemKey},
    store::{
        DrawBatch, Health, NewItem, Store,
        lock::{Holder, StateLock},
    },
    util::text::one_line,
};

/// Items of one write.
const BATCH: usize = 1_000;
/// Lines that are told one by one.
const MOST_TOLD: usize = 20;

/// What came of the lines.
#[derive(Debug, Default)]
pub(super) struct Items {
    new: u64,
    known: u64,
    /// Rows of other monitors, by their key.
    of_others: BTreeMap<String, u64>,
    /// Rows that no monitor's ledger can take.
    malformed: u64,
    /// Rows of this monitor under another source than the file's.
    other_sources: BTreeMap<String, u64>,
    /// What there is to say of single lines.
    told: Vec<String>,
    /// Under what our ledger has them.
    key: String,
}

impl Items {
    /// There were rows, and none of them was this monitor's: most likely a name was mistyped or changed.
    pub(super) fn is_fruitless(&self) -> bool {
        self.new + self.known == 0 && !(self.of_others.is_empty() && self.malformed == 0)
    }

    pub(super) fn render(&self) -> String {
        let mut out = String::from("scored items:\n");
        self.told.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
        if self.malformed > self.told.len() as u64 {
            out.push_str(&format!("  and {} more lines that could not be read\n", self.malformed - self.told.len() as u64));
        }
        for (source, n) in &self.other_sources {
            out.push_str(&format!("  {n} stood under the source `{}`, and were taken as this monitor's\n", one_line(source, 80)));
        }
        for (monitor, n) in self.of_others.iter().take(MOST_TOLD) {
            out.push_str(&format!("  {n} of `{}` were left: import them with that monitor's file\n", one_line(monitor, 80)));
        }
        if self.is_fruitless() {
            out.push_str("  no line is of this monitor: is it the right file?\n");
        }
        out.push_str(&format!("  {} new in the ledger under {}, {} known already, {} lines left out\n", self.new, self.key, self.known, self.malformed));
        out
    }

    fn malformed(&mut self, place: &str, what: &str) {
        self.malformed += 1;
        if self.told.len() < MOST_TOLD {
            self.told.push(format!("{place}: {what}; left out"));
        }
    }
}

pub(super) fn import(overrides: &Overrides, csv: &Path, translation: &Translation) -> Result<Items, Failure> {
    let ledger = &translation.ledger;
    if [&ledger.monitor, &ledger.source, &ledger.old_monitor].iter().any(|key| key.contains("${")) {
        return Err(Failure::Usage(
            "a `${NAME}` stands in the monitor's or the source's name, which the ledger's keys are made of: write the names out".to_owned(),
        ));
    }
    let shown = csv.display().to_string();
    let file = std::fs::File::open(csv).map_err(|error| Failure::Usage(format!("{shown} cannot be read: {error}")))?;
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
    let columns = Columns::find(reader.byte_headers().map_err(|error| Failure::Usage(format!("{shown}:1: {error}")))?).map_err(|message| {
        eprintln!("{shown}:1: {message}");
        Failure::Problems
    })?;
    let state = Keyring::open(overrides).map_err(Failure::Settings)?.state;
    let me = Holder { pid: std::process::id(), command: "assayd import".to_owned(), listen: None };
    let _lock = StateLock::take(&state, &me).map_err(|error| Failure::Usage(format!("{error}; stop it for the import of scored items")))?;
    super::super::block_on(async {
        let (store, writer) = Store::open(&state).await?;
        let story = async {
            let found = carry(&store, reader, &columns, &shown, ledger).await;
            // An error means that it is closed already.
            let _ = store.close().await;
            found
        };
        let (found, ()) = tokio::join!(story, writer.run());
        Ok(found?)
    })
}

/// Which columns hold what: `source_key, monitor_key, item_id`, or as the tool's own store writes them, `dataset_id,
/// source_type, source_name`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Columns {
    item: usize,
    source: [Option<usize>; 2],
    monitor: Option<usize>,
    /// A row has at least so many.
    width: usize,
}

impl Columns {
    fn find(header: &csv::ByteRecord) -> Result<Self, String> {
        let find = |name: &str| header.iter().position(|column| column.trim_ascii().eq_ignore_ascii_case(name.as_bytes()));
        let item = find("item_id").or_else(|| find("dataset_id"));
        let source = match find("source_key") {
            Some(key) => [Some(key), None],
            None => [find("source_type"), find("source_name")],
        };
        let monitor = find("monitor_key");
        let whole = if find("source_key").is_some() { monitor.is_some() } else { source.iter().all(Option::is_some) };
        match item {
            Some(item) if whole => {
                let width = source.iter().flatten().chain(&monitor).chain([&item]).max().map_or(0, |last| last + 1);
                Ok(Self { item, source, monitor, width })
            }
            _ => Err("expected the columns `source_key,monitor_key,item_id` (or `dataset_id,source_type,source_name`) in the first line".to_owned()),
        }
    }
}

async fn carry(store: &Store, mut reader: csv::Reader<std::fs::File>, columns: &Columns, file: &str, ledger: &Ledger) -> anyhow::Result<Items> {
    let mut items = Items { key: format!("({}, {})", ledger.source, ledger.monitor), ..Items::default() };
    let mut batch: Vec<String> = Vec::with_capacity(BATCH);
    let mut record = csv::ByteRecord::new();
    loop {
        let more = reader.read_byte_record(&mut record)?;
        if batch.len() == BATCH || !more {
            keep(store, ledger, std::mem::take(&mut batch), &mut items).await?;
        }
        if !more {
            return Ok(items);
        }
        let place = format!("{file}:{}", record.position().map_or(0, csv::Position::line));
        let id = match row(&record, columns) {
            Ok(Row { source, monitor, item }) => {
                let of_this = monitor.map_or(source == ledger.old_source, |monitor| monitor == ledger.old_monitor);
                if !of_this {
                    *items.of_others.entry(monitor.unwrap_or(&source).to_owned()).or_default() += 1;
                    continue;
                }
                if source != ledger.old_source {
                    *items.other_sources.entry(source).or_default() += 1;
                }
                our_id(item, ledger)
            }
            Err(what) => {
                items.malformed(&place, what);
                continue;
            }
        };
        batch.push(id);
    }
}

struct Row<'a> {
    /// `type:name`
    source: String,
    monitor: Option<&'a str>,
    item: &'a str,
}

fn row<'a>(record: &'a csv::ByteRecord, columns: &Columns) -> Result<Row<'a>, &'static str> {
    if record.len() < columns.width {
        return Err("fewer fields than the first line names");
    }
    let text = |at: usize| std::str::from_utf8(record.get(at).unwrap_or_default()).map(str::trim).map_err(|_| "not UTF-8 text");
    let item = text(columns.item)?;
    let source = columns.source.iter().flatten().map(|at| text(*at)).collect::<Result<Vec<_>, _>>()?;
    let monitor = columns.monitor.map(text).transpose()?;
    if item.is_empty() || source.iter().any(|part| part.is_empty()) || monitor == Some("") {
        return Err("an empty field");
    }
    Ok(Row { source: source.join(":"), monitor, item })
}

/// A thread's id there had colons in one place and dashes in another; here it has dashes.
fn our_id(item: &str, ledger: &Ledger) -> String {
    let of_slack = ledger.source.starts_with("slack:") || ledger.source.starts_with("join:");
    match item.strip_prefix("slack:").and_then(|thread| thread.split_once(':')) {
        Some((channel, thread)) if of_slack => format!("slack-{channel}-{thread}"),
        _ => item.to_owned(),
    }
}

/// Puts a batch into the ledger; what it knows stays as it is.
async fn keep(store: &Store, ledger: &Ledger, ids: Vec<String>, items: &mut Items) -> anyhow::Result<()> {
    let at_us = Timestamp::now().as_microsecond();
    let mut seen = HashSet::with_capacity(ids.len());
    let keyed = ids.into_iter().map(|id| (ItemKey::new(&ledger.source, &ledger.monitor, &id), id));
    let keyed: Vec<_> = keyed.collect();
    let rows = keyed.len() as u64;
    let known = store.known(&keyed.iter().map(|(key, _)| *key).collect::<Vec<_>>()).await?;
    let reason: Arc<str> = "imported: the older tool had scored it".into();
    let new: Vec<NewItem> = keyed
        .into_iter()
        .filter(|(key, _)| !known.contains_key(key) && seen.insert(*key))
        .map(|(key, item_id)| NewItem {
            key,
            item_id,
            item_us: at_us,
            decision: Decision::Scored,
            reason: Arc::clone(&reason),
            trace: None,
            given: None,
            chosen: false,
            undrawn: false,
        })
        .collect();
    items.new += new.len() as u64;
    items.known += rows - new.len() as u64;
    if new.is_empty() {
        return Ok(());
    }
    let batch = DrawBatch {
        monitor: ledger.monitor.clone(),
        run_id: "import".to_owned(),
        at_us,
        items: new,
        baseline: Vec::new(),
        watermark: None,
        complete: false,
        again: false,
    };
    let mut health = store.health();
    // The store would wait for a full disk to have room; who sits before a command would rather know.
    tokio::select! {
        kept = store.record_draw(batch) => Ok(kept?),
        refused = health.wait_for(|health| matches!(health, Health::Unwell(_))) => match refused.as_deref() {
            Ok(Health::Unwell(reason)) => Err(anyhow::anyhow!("the store refuses writes: {reason}; import again once it takes them, nothing is kept twice")),
            _ => Err(anyhow::anyhow!("the store is closed")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(header: &[&str]) -> Result<Columns, String> {
        Columns::find(&csv::ByteRecord::from(header.to_vec()))
    }

    #[test]
    fn both_headers_of_the_older_tool_are_known() {
        let plain = columns(&["source_key", "monitor_key", "item_id"]).unwrap();
        assert_eq!(plain, Columns { item: 2, source: [Some(0), None], monitor: Some(1), width: 3 });
        let own = columns(&["dataset_id", " Source_Type ", "source_name", "created_at"]).unwrap();
        assert_eq!(own, Columns { item: 0, source: [Some(1), Some(2)], monitor: None, width: 3 });
        for header in [&["a", "b", "c"][..], &["source_key", "item_id"], &["source_key", "monitor_key"], &["dataset_id", "source_type"], &[]] {
            assert!(columns(header).unwrap_err().contains("source_key,monitor_key,item_id"), "{header:?}");
        }
    }

    #[test]
    fn a_thread_has_one_id() {
        let ledger = |source: &str| Ledger { old_monitor: String::new(), old_source: String::new(), monitor: String::new(), source: source.to_owned() };
        assert_eq!(our_id("slack:C1:171.5", &ledger("join:support")), "slack-C1-171.5");
        assert_eq!(our_id("slack-C1-171.5", &ledger("slack:support")), "slack-C1-171.5");
        assert_eq!(our_id("slack:C1:171.5", &ledger("langfuse:support")), "slack:C1:171.5");
    }
}
