use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Lines of a stream, of bounded length. What stands beyond the bound is dropped with the line.
#[derive(Debug)]
pub(super) struct Lines<R> {
    from: R,
    line: Vec<u8>,
    longest: usize,
    too_long: bool,
}

/// A line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Whole(String),
    TooLong,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(super) fn new(from: R, longest: usize) -> Self {
        Self { from, line: Vec::new(), longest, too_long: false }
    }

    /// The next line; `None` at the end. Loses nothing when it is cancelled.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let bytes = self.from.fill_buf().await?;
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(bytes.len());
            if self.line.len() + taken > self.longest {
                self.too_long = true;
            } else {
                self.line.extend_from_slice(&bytes[..taken]);
            }
            let ended = bytes.is_empty();
            self.from.consume(taken + usize::from(end.is_some()));
            if end.is_some() || ended {
                let line = std::mem::take(&mut self.line);
                return Ok(match std::mem::take(&mut self.too_long) {
                    true => Some(Line::TooLong),
                    false if ended && line.is_empty() => None,
                    false => Some(Line::Whole(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_whole_and_long_ones_not_at_all() {
        let text = b"one\r\ntwo\n\n12345678901\nlast".as_slice();
        let mut lines = Lines::new(tokio::io::BufReader::with_capacity(3, text), 10);
        let mut found = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            found.push(line);
        }
        let whole = |text: &str| Line::Whole(text.to_owned());
        assert_eq!(found, [whole("one"), whole("two"), whole(""), Line::TooLong, whole("last")]);
    }
}
