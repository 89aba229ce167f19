//! A stream out of a future that sends: what it borrows, it keeps.

use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;

/// What `work` sends, as a stream that drives it. Dropped, it drops the work; it ends with the work.
pub fn driven<'a, T: Send + 'a, F: Future<Output = ()> + Send + 'a>(work: impl FnOnce(mpsc::Sender<T>) -> F) -> BoxStream<'a, T> {
    let (out, parts) = mpsc::channel(1);
    let parts = stream::unfold(parts, |mut parts| async move { parts.recv().await.map(|part| (part, parts)) });
    let driver = stream::once(work(out)).filter_map(|()| std::future::ready(None));
    Box::pin(stream::select(parts, driver))
}
