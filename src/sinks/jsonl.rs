//! A file of scores, one JSON object a line, in the form of `assayd export`.
//!
//! A file cannot upsert, so this sink looks: before a process appends for the first time it cuts off a line that a crash
//! left half-written and reads which scores the file's end holds. Those are not written again.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{BuildError, Delivery, RowError, Sink, SinkConfig, SinkCx, SinkError, SinkKind};
use crate::util::plugin;

/// Appends each score as a line to a file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonlConfig {
    /// Relative to the settings file.
    path: PathBuf,
}

inventory::submit! {
    SinkKind {
        name: "jsonl",
        example: "path: state/scores.jsonl\n",
        schema: plugin::schema::<JsonlConfig>,
        parse: |node, faults| plugin::parse::<JsonlConfig>(node, faults).map(|config| Box::new(config) as Box<dyn SinkConfig>),
    }
}

impl SinkConfig for JsonlConfig {
    fn build(&self, cx: &SinkCx<'_>) -> Result<Arc<dyn Sink>, BuildError> {
        Ok(Arc::new(Jsonl { path: cx.base_dir.join(&self.path), open: Arc::default() }))
    }

    fn queue(&self) -> String {
        format!("jsonl:{}", self.path.display())
    }
}

#[derive(Debug, Clone)]
struct Jsonl {
    path: PathBuf,
    open: Arc<Mutex<Option<Open>>>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Of the file's end as it was found.
    found: HashSet<String>,
}

/// What of the file's end is read: far more than the batches that can have been under way in a crash.
const TAIL: u64 = 4 << 20;

impl Jsonl {
    fn append(&self, batch: &[Delivery]) -> std::io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.as_ref().is_some_and(|open| !still_at(&open.file, &self.path)) {
            *open = None;
        }
        let Open { file, found } = match &mut *open {
            Some(open) => open,
            none => none.insert(open_file(&self.path)?),
        };
        let mut lines = Vec::new();
        for delivery in batch.iter().filter(|delivery| !found.contains(&delivery.score.score_id)) {
            serde_json::to_writer(&mut lines, &delivery.score)?;
            lines.push(b'\n');
        }
        let written = file.write_all(&lines).and_then(|()| file.sync_data());
        if written.is_err() {
            // Part of it may be there: the next try looks anew.
            *open = None;
        }
        written
    }
}

/// False when the file was moved away or deleted (a log rotation): what is appended now would be read by nobody.
fn still_at(file: &File, path: &Path) -> bool {
    let place = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((file.metadata().map(place), std::fs::metadata(path).map(place)), (Ok(ours), Ok(theirs)) if ours == theirs)
}

fn open_file(path: &Path) -> std::io::Result<Open> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let len = file.metadata()?.len();
    let from = len.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        file.set_len(from + whole as u64)?;
    }
    #[derive(Deserialize)]
    struct Id {
        score_id: String,
    }
    let found = tail[..whole].split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Id>(line).ok()).map(|id| id.score_id).collect();
    Ok(Open { file, found })
}

#[async_trait]
impl Sink for Jsonl {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Result<(), RowError>>, SinkError> {
        let (me, rows) = (self.clone(), batch.to_vec());
        let failed = |message: String| SinkError { message: format!("{}: {message}", self.path.display()), retry_after: None, transient: true };
        tokio::task::spawn_blocking(move || me.append(&rows)).await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
        Ok(vec![Ok(()); batch.len()])
    }

    fn batch_size(&self) -> usize {
        500
    }

    async fn probe(&self) -> Result<String, SinkError> {
        Ok(format!("appends to {}", self.path.display()))
    }
}
