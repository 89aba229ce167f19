//! What all streams share: opened like a whole answer, refusals of a parameter included, then read piece by piece.

use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};

use super::{
    ChatAnswer, Piece, ProviderError,
    sse::{Frames, Framing},
    wire::{Complaint, Endpoint},
};
use crate::util::http::{self, HttpError, Incoming};

/// Puts one protocol's answer together.
pub(super) trait Assembler: Send {
    /// One document of the stream.
    ///
    /// # Errors
    /// What the document says went wrong, or why it cannot be read.
    fn take(&mut self, document: &str) -> Result<Step, HttpError>;

    /// The whole answer, after [`Step::End`].
    ///
    /// # Errors
    /// When what came is no answer.
    fn finish(&mut self) -> Result<ChatAnswer, HttpError>;
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Text to hand on; may be empty.
    Text(String),
    /// The end that the protocol promises, with the last text; may be empty.
    End(String),
}

/// An answer that has begun without a complaint.
pub(super) enum Begun<A> {
    /// The server gave everything at once, whatever it was asked for.
    Whole(ChatAnswer),
    Pieces(Box<Run<A>>),
}

pub(super) struct Run<A> {
    incoming: Incoming,
    frames: Frames,
    assembler: A,
    /// Taken, but not handed on yet.
    next: Option<Step>,
    text_came: bool,
    over: bool,
    end: Option<ChatAnswer>,
}

/// Sends the request and waits for the first document, so that what is refused only there is a complaint like any other.
pub(super) async fn begin<A: Assembler>(
    endpoint: &Endpoint,
    url: &reqwest::Url,
    body: Vec<u8>,
    framing: Framing,
    assembler: impl FnOnce(&Incoming) -> A,
    whole: impl FnOnce(&http::Answer) -> Result<ChatAnswer, HttpError>,
) -> Result<Begun<A>, Complaint> {
    let begun = async {
        let incoming = endpoint.open(url, body).await?;
        if framing == Framing::Events && is_document(&incoming) {
            return Ok(Begun::Whole(whole(&incoming.whole().await?)?));
        }
        let assembler = assembler(&incoming);
        let mut run = Run { incoming, frames: Frames::new(framing), assembler, next: None, text_came: false, over: false, end: None };
        run.next = Some(run.step().await?);
        Ok(Begun::Pieces(Box::new(run)))
    };
    begun.await.map_err(|error: HttpError| endpoint.complaint(&error))
}

/// JSON, or the page of a proxy. Servers that forget to say what they send are believed to stream.
fn is_document(incoming: &Incoming) -> bool {
    let kind = incoming.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    ["application/json", "text/html"].iter().any(|document| kind.starts_with(document))
}

/// The stream that a caller sees.
pub(super) fn pieces<'a, A: Assembler + 'a>(
    endpoint: &'a Endpoint,
    begin: impl Future<Output = Result<Begun<A>, ProviderError>> + Send + 'a,
    into_error: impl Fn(Complaint) -> ProviderError + Send + Copy + 'a,
) -> BoxStream<'a, Result<Piece, ProviderError>> {
    let begun = stream::once(begin).map_ok(move |begun| match begun {
        Begun::Whole(answer) => stream::iter([Ok(Piece::Text(answer.text.clone())), Ok(Piece::End(answer))]).boxed(),
        Begun::Pieces(run) => stream::try_unfold(run, move |mut run| async move {
            let piece = run.next().await.map_err(|error| into_error(endpoint.complaint(&error)))?;
            Ok(piece.map(|piece| (piece, run)))
        })
        .boxed(),
    });
    begun.try_flatten().boxed()
}

impl<A: Assembler> Run<A> {
    async fn next(&mut self) -> Result<Option<Piece>, HttpError> {
        while !self.over {
            let step = match self.next.take() {
                Some(step) => step,
                None => self.step().await?,
            };
            match step {
                Step::Text(text) if text.is_empty() => {}
                Step::Text(text) => return Ok(Some(self.text(text))),
                Step::End(text) if !text.is_empty() => {
                    self.next = Some(Step::End(String::new()));
                    return Ok(Some(self.text(text)));
                }
                Step::End(_) => {
                    let answer = self.assembler.finish()?;
                    self.over = true;
                    // What is the answer only for want of a better one was held back until now.
                    if !self.text_came && !answer.text.is_empty() {
                        let text = answer.text.clone();
                        self.end = Some(answer);
                        return Ok(Some(Piece::Text(text)));
                    }
                    return Ok(Some(Piece::End(answer)));
                }
            }
        }
        Ok(self.end.take().map(Piece::End))
    }

    fn text(&mut self, text: String) -> Piece {
        self.text_came = true;
        Piece::Text(text)
    }

    async fn step(&mut self) -> Result<Step, HttpError> {
        let mut closed = false;
        loop {
            if let Some(document) = self.frames.next()? {
                return self.assembler.take(&document);
            }
            if closed {
                return Err(HttpError::Cut("the stream ended before its end was told".to_owned()));
            }
            match self.incoming.chunk().await? {
                Some(chunk) => self.frames.feed(&chunk),
                None => {
                    self.frames.close();
                    closed = true;
                }
            }
        }
    }
}
