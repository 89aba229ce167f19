//! A source for tests of sources that stand around another one.

use async_trait::async_trait;

use super::{Fetched, Pages, Source, SourceError, Window};

/// What of these lies in the window, one a page.
pub(super) struct Given(pub Vec<Fetched>);

#[async_trait]
impl Source for Given {
    async fn fetch(&self, window: Window, pages: &Pages) -> Result<(), SourceError> {
        for item in self.0.iter().filter(|item| window.from <= item.timestamp && item.timestamp < window.to) {
            if pages.send(vec![item.clone()]).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn probe(&self) -> Result<String, SourceError> {
        Ok("given".to_owned())
    }
}
