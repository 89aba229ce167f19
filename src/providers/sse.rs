//! Streams that come in lines: server-sent events and newline-delimited JSON, put together from chunks that end anywhere.

use std::mem;

use crate::util::http::HttpError;

/// Of one line, and of the data of one event. A piece of an answer is far smaller.
const MAX_EVENT: usize = 1 << 20;

/// Lines out of chunks; ended by LF, CR LF or CR, as server-sent events may be.
#[derive(Debug, Default)]
struct Lines {
    buffer: Vec<u8>,
    /// Where the first line that was not given out begins.
    start: usize,
    /// Up to here there is no end of a line.
    searched: usize,
    /// The last line ended with CR, to which a following LF belongs.
    after_cr: bool,
    closed: bool,
}

impl Lines {
    fn feed(&mut self, chunk: &[u8]) {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole line; after `close` also what is left without an end.
    fn next(&mut self) -> Result<Option<&str>, HttpError> {
        if self.after_cr && self.buffer.get(self.start) == Some(&b'\n') {
            self.start += 1;
            self.searched = self.start;
            self.after_cr = false;
        }
        let begin = self.start;
        let end = match self.buffer[self.searched..].iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            Some(at) => {
                let end = self.searched + at;
                self.after_cr = self.buffer[end] == b'\r';
                self.start = end + 1;
                end
            }
            None if self.closed && begin < self.buffer.len() => {
                self.start = self.buffer.len();
                self.start
            }
            None => {
                self.searched = self.buffer.len();
                return if self.searched - begin > MAX_EVENT { Err(HttpError::TooLarge(MAX_EVENT)) } else { Ok(None) };
            }
        };
        self.searched = self.start;
        if end - begin > MAX_EVENT {
            return Err(HttpError::TooLarge(MAX_EVENT));
        }
        let line = std::str::from_utf8(&self.buffer[begin..end]);
        line.map(Some).map_err(|error| HttpError::NotJson(format!("a line of the stream is no UTF-8: {error}")))
    }
}

/// What the lines of a stream mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// Server-sent events, of which only `data` counts: no provider tells anything by the event's name alone.
    Events,
    /// Each line that is not empty is one document.
    Lines,
}

/// The documents of a stream, one an event or a line.
#[derive(Debug)]
pub(super) struct Frames {
    framing: Framing,
    lines: Lines,
    data: Option<String>,
    begun: bool,
}

impl Frames {
    pub(super) fn new(framing: Framing) -> Self {
        Self { framing, lines: Lines::default(), data: None, begun: false }
    }

    pub(super) fn feed(&mut self, chunk: &[u8]) {
        self.lines.feed(chunk);
    }

    /// Nothing further comes: a document whose end is missing counts as whole.
    pub(super) fn close(&mut self) {
        self.lines.closed = true;
    }

    /// The next document; `None` until more was fed.
    pub(super) fn next(&mut self) -> Result<Option<String>, HttpError> {
        while let Some(mut line) = self.lines.next()? {
            if !mem::replace(&mut self.begun, true) {
                line = line.strip_prefix('\u{feff}').unwrap_or(line);
            }
            match self.framing {
                Framing::Lines if line.trim().is_empty() => {}
                Framing::Lines => return Ok(Some(line.to_owned())),
                Framing::Events if line.is_empty() => {
                    if let Some(data) = self.data.take() {
                        return Ok(Some(data));
                    }
                }
                Framing::Events => data_of(line, &mut self.data)?,
            }
        }
        Ok(if self.lines.closed { self.data.take() } else { None })
    }
}

/// Adds a line of an event to the event's data; comments and other fields are none.
fn data_of(line: &str, data: &mut Option<String>) -> Result<(), HttpError> {
    let (field, value) = line.split_once(':').unwrap_or((line, ""));
    if field != "data" {
        return Ok(());
    }
    let value = value.strip_prefix(' ').unwrap_or(value);
    match data {
        None => *data = Some(value.to_owned()),
        Some(data) if data.len() + value.len() > MAX_EVENT => return Err(HttpError::TooLarge(MAX_EVENT)),
        Some(data) => {
            data.push('\n');
            data.push_str(value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(framing: Framing, chunks: &[&[u8]]) -> Result<Vec<String>, HttpError> {
        let mut frames = Frames::new(framing);
        let mut read = Vec::new();
        for chunk in chunks {
            frames.feed(chunk);
            while let Some(frame) = frames.next()? {
                read.push(frame);
            }
        }
        frames.close();
        while let Some(frame) = frames.next()? {
            read.push(frame);
        }
        Ok(read)
    }

    const STREAM: &str =
        "\u{feff}: hello\r\nevent: ping\r\ndata: {\"ä\":1}\r\n\r\n\n:\ndata:a\ndata: b\ndata\n\nid: 7\rdata:  ü€😀\r\rretry: 1\n\ndatax: no\n\ndata: [DONE]";

    const DOCUMENTS: [&str; 4] = ["{\"ä\":1}", "a\nb\n", " ü€😀", "[DONE]"];

    #[test]
    fn every_cut_in_three_gives_the_same_events() {
        let bytes = STREAM.as_bytes();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let read = read(Framing::Events, &[&bytes[..first], &bytes[first..second], &bytes[second..]]).unwrap();
                assert_eq!(read, DOCUMENTS, "cut at {first} and {second}");
            }
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(Framing::Events, &single).unwrap(), DOCUMENTS);
    }

    proptest! {
        /// Any texts, as any server may write them, in any chunks.
        #[test]
        fn what_was_written_is_read(
            texts in proptest::collection::vec("[^\r\n\u{feff}]{1,12}", 0..6),
            ends in proptest::collection::vec(proptest::sample::select(vec!["\n", "\r\n", "\r"]), 6),
            noise in proptest::collection::vec(proptest::sample::select(vec!["", ": c", "event: x", "id: é"]), 6),
            cuts in proptest::collection::vec(0usize..300, 0..12),
        ) {
            let mut stream = String::new();
            for ((text, end), noise) in texts.iter().zip(&ends).zip(&noise) {
                if !noise.is_empty() {
                    stream.push_str(&format!("{noise}{end}"));
                }
                stream.push_str(&format!("data: {text}{end}{end}"));
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).chain([0, stream.len()]).collect();
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(Framing::Events, &chunks).unwrap(), texts);
        }

        /// Bytes of all kinds neither panic nor depend on how they are cut.
        #[test]
        fn nonsense_reads_the_same_in_any_chunks(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..7) {
            for framing in [Framing::Events, Framing::Lines] {
                let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
                let (cut, whole) = (read(framing, &chunks), read(framing, &[&bytes]));
                prop_assert_eq!(cut.ok(), whole.ok());
            }
        }
    }

    #[test]
    fn lines_are_documents_and_empty_ones_are_none() {
        assert_eq!(read(Framing::Lines, &[b"{\"a\":1}\r\n\n  \n{\"b\"", b":2}"]).unwrap(), ["{\"a\":1}", "{\"b\":2}"]);
    }

    #[test]
    fn what_has_no_end_is_not_kept() {
        let half = vec![b'x'; MAX_EVENT / 2 + 1];
        assert!(matches!(read(Framing::Lines, &[&half, &half]), Err(HttpError::TooLarge(_))));
        let line = [b"data: ", half.as_slice(), b"\n"].concat();
        assert!(matches!(read(Framing::Events, &[&line, &line]), Err(HttpError::TooLarge(_))));
        assert!(matches!(read(Framing::Lines, &[b"\xff\xfe\n"]), Err(HttpError::NotJson(_))));
    }
}
