//! A file of JSON lines. It may grow; the watermark follows it.
//!
//! Lines need not be in order: a first pass notes time and place of the lines inside the window (24 bytes a line), a
//! second one reads them in order of time. A line that is no JSON object is an item that failed, with its number.

use std::{
    fs::File as OsFile,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{
    BuildError, Fetched, Pages, Source, SourceConfig, SourceCx, SourceError, SourceKind, Window,
    fields::{self, time},
};
use crate::util::{plugin, text};

/// JSON lines: one item a line, its fields are `trace.*`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// Relative to the settings file.
    path: PathBuf,
    /// Field with the item's id. Default `id`. An item without one has a hash of its line.
    #[serde(default = "id")]
    id_field: String,
    /// Field with the item's time: RFC 3339, or seconds or milliseconds since the epoch. Default `timestamp`. An item
    /// without one counts as new and never moves the watermark.
    #[serde(default = "timestamp")]
    timestamp_field: String,
}

fn id() -> String {
    "id".to_owned()
}

fn timestamp() -> String {
    "timestamp".to_owned()
}

inventory::submit! {
    SourceKind {
        name: "file",
        example: "path: answers.jsonl\nid_field: id\ntimestamp_field: timestamp\n",
        schema: plugin::schema::<FileConfig>,
        parse: |node, faults| plugin::parse::<FileConfig>(node, faults).map(|config| Box::new(config) as Box<dyn SourceConfig>),
    }
}

impl SourceConfig for FileConfig {
    fn build(&self, cx: &SourceCx<'_>) -> Result<Arc<dyn Source>, BuildError> {
        Ok(Arc::new(File { path: cx.base_dir.join(&self.path), config: self.clone() }))
    }
}

#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    config: FileConfig,
}

/// A page ends here, whichever comes first.
const PAGE_ITEMS: usize = 500;
const PAGE_BYTES: usize = 4 << 20;

/// A line inside the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    /// Microseconds since the epoch; the window's last one for a line without a time.
    at_us: i64,
    offset: u64,
    /// In the file, from 1.
    number: u64,
}

#[async_trait]
impl Source for File {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        let (file, index) = self.blocking(move |file| file.index(window)).await?;
        let mut lines: Arc<[Line]> = index.into();
        let mut reader = BufReader::new(file);
        let mut at = 0;
        while at < lines.len() {
            let me = self.clone();
            let read = tokio::task::spawn_blocking(move || me.page(&mut reader, &lines, at, window).map(|(page, next)| (page, next, reader, lines)));
            let (page, next);
            (page, next, reader, lines) = read.await.map_err(|error| self.unavailable(&error))?.map_err(|error| self.unavailable(&error))?;
            if pages.send(page).await.is_err() {
                break;
            }
            at = next;
        }
        Ok(())
    }

    async fn probe(&self) -> Result<String, SourceError> {
        let size = self.blocking(|file| std::fs::metadata(&file.path).map(|metadata| metadata.len())).await?;
        Ok(format!("{} has {size} bytes", self.path.display()))
    }
}

impl File {
    fn unavailable(&self, error: &dyn std::fmt::Display) -> SourceError {
        SourceError::Unavailable(format!("{}: {error}", self.path.display()))
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> std::io::Result<T> + Send + 'static) -> Result<T, SourceError> {
        let me = self.clone();
        tokio::task::spawn_blocking(move || work(&me)).await.map_err(|error| self.unavailable(&error))?.map_err(|error| self.unavailable(&error))
    }

    /// The lines of the window in order of time; those without a time at its end.
    fn index(&self, window: Window) -> std::io::Result<(OsFile, Vec<Line>)> {
        let mut reader = BufReader::with_capacity(1 << 20, OsFile::open(&self.path)?);
        let (mut lines, mut buffer, mut offset, mut number) = (Vec::new(), Vec::new(), 0_u64, 0);
        loop {
            buffer.clear();
            let read = reader.read_until(b'\n', &mut buffer)?;
            if read == 0 {
                break;
            }
            number += 1;
            let whole = buffer.ends_with(b"\n");
            let line = buffer.trim_ascii();
            let at_us = match serde_json::from_slice::<Value>(line) {
                _ if line.is_empty() => None,
                // The last line may be half-written: the next run sees it whole.
                Err(_) if !whole => None,
                Ok(Value::Object(map)) => match map.get(&self.config.timestamp_field).and_then(time) {
                    Some(at) => (window.from <= at && at < window.to).then(|| at.as_microsecond()),
                    None => Some(undated(window)),
                },
                _ => Some(undated(window)),
            };
            lines.extend(at_us.map(|at_us| Line { at_us, offset, number }));
            offset += read as u64;
        }
        lines.sort_unstable();
        reader.seek(SeekFrom::Start(0))?;
        Ok((reader.into_inner(), lines))
    }

    /// Reads lines from `at` on; returns where the next page begins.
    fn page(&self, reader: &mut BufReader<OsFile>, lines: &[Line], mut at: usize, window: Window) -> std::io::Result<(Vec<Fetched>, usize)> {
        let (mut page, mut bytes, mut buffer) = (Vec::new(), 0, Vec::new());
        while let Some(line) = lines.get(at).filter(|_| page.len() < PAGE_ITEMS && bytes < PAGE_BYTES) {
            buffer.clear();
            let here = reader.stream_position()?;
            // Lines mostly stand in order already: a short way forward stays inside the buffer.
            reader.seek_relative(i64::try_from(line.offset).unwrap_or(i64::MAX) - i64::try_from(here).unwrap_or(0))?;
            bytes += reader.read_until(b'\n', &mut buffer)?;
            let mut item = self.item(buffer.trim_ascii(), line, window);
            if let Err(reason) = &mut item.body {
                *reason = format!("line {} of {}: {reason}", line.number, self.path.display());
            }
            page.push(item);
            at += 1;
        }
        Ok((page, at))
    }

    fn item(&self, line: &[u8], place: &Line, window: Window) -> Fetched {
        let timestamp = Timestamp::from_microsecond(place.at_us).unwrap_or(window.from);
        let hashed = || format!("line-{}", &blake3::hash(line).to_hex()[..32]);
        match serde_json::from_slice::<Value>(line) {
            Ok(Value::Object(mut map)) => {
                let id = match map.get(&self.config.id_field) {
                    Some(Value::String(id)) if !id.is_empty() => id.clone(),
                    Some(Value::Number(id)) => id.to_string(),
                    _ => hashed(),
                };
                let dated = map.get(&self.config.timestamp_field).and_then(time).is_some();
                map.remove(&self.config.id_field);
                map.remove(&self.config.timestamp_field);
                let trace = fields::trace(id.clone(), timestamp, map);
                Fetched { id, timestamp, dated, body: Ok(Arc::new(trace)) }
            }
            Ok(_) => Fetched { id: hashed(), timestamp, dated: false, body: Err("a JSON object was expected".to_owned()) },
            Err(error) => Fetched { id: hashed(), timestamp, dated: false, body: Err(format!("no JSON: {}", text::one_line(&error.to_string(), 200))) },
        }
    }
}

/// Where a line without a time is put: the window's last microsecond.
fn undated(window: Window) -> i64 {
    window.to.as_microsecond() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_lines_have_their_numbers_from_the_pass_that_found_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.jsonl");
        std::fs::write(&path, "{\"id\": 1}\n\n{ broken\n{\"id\": 2}\n[]\n").unwrap();
        let config = FileConfig { path: path.clone(), id_field: id(), timestamp_field: timestamp() };
        let file = File { path: path.clone(), config };
        let window = Window { from: Timestamp::UNIX_EPOCH, to: Timestamp::from_second(9).unwrap() };
        let (handle, lines) = file.index(window).unwrap();
        // Nothing of the file is read a third time, so it may be gone by then.
        std::fs::remove_file(&path).unwrap();
        let (page, _) = file.page(&mut BufReader::new(handle), &lines, 0, window).unwrap();
        let reasons: Vec<String> = page.into_iter().filter_map(|item| item.body.err()).collect();
        assert!(reasons[0].starts_with("line 3 of") && reasons[1].starts_with("line 5 of") && reasons.len() == 2, "{reasons:?}");
    }
}
