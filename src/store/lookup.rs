//! Kept answers by their key, read for many callers at once: as the writer gathers what is written.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use sqlx::{ConnectOptions, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::sync::oneshot;

type Key = [u8; 32];

/// A reader with a connection of its own. Whoever has the connection asks for all who wait for it.
#[derive(Debug)]
pub(super) struct Lookup {
    options: SqliteConnectOptions,
    /// `None` before the first use, and after a failure.
    connection: tokio::sync::Mutex<Option<SqliteConnection>>,
    waiting: Mutex<Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    now_us: i64,
    answer: oneshot::Sender<Option<String>>,
}

impl Lookup {
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, connection: tokio::sync::Mutex::default(), waiting: Mutex::default() }
    }

    /// The reply that is kept under a key and has not expired.
    pub(super) async fn cached(&self, key: Key, now_us: i64) -> Result<Option<String>, sqlx::Error> {
        loop {
            let (answer, mut answered) = oneshot::channel();
            // Nothing under this lock can panic half-way.
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Waiting { key, now_us, answer });
            let mut connection = self.connection.lock().await;
            match answered.try_recv() {
                Ok(found) => return Ok(found),
                // Who asked for this one was cancelled, or met an error.
                Err(oneshot::error::TryRecvError::Closed) => continue,
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            let mut db = match connection.take() {
                Some(db) => db,
                None => self.options.connect().await?,
            };
            let mut found = read(&mut db, &waiting).await?;
            *connection = Some(db);
            for waiting in waiting {
                let reply = found.get(&waiting.key).filter(|(expires_us, _)| *expires_us > waiting.now_us).map(|(_, reply)| reply.clone());
                // Who asked may be gone.
                let _ = waiting.answer.send(reply);
            }
            return Ok(found.remove(&key).filter(|(expires_us, _)| *expires_us > now_us).map(|(_, reply)| reply));
        }
    }
}

async fn read(db: &mut SqliteConnection, waiting: &[Waiting]) -> Result<HashMap<Key, (i64, String)>, sqlx::Error> {
    let keys: Vec<String> = waiting.iter().map(|waiting| blake3::Hash::from_bytes(waiting.key).to_hex().to_string()).collect();
    let keys = serde_json::to_string(&keys).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let sql = "SELECT cache.key, expires_us, reply FROM json_each($1) AS wanted JOIN cache ON cache.key = unhex(wanted.value)";
    let rows = sqlx::query(sql).bind(keys).fetch_all(db).await?;
    let key = |row: &sqlx::sqlite::SqliteRow| Key::try_from(row.try_get::<&[u8], _>("key")?).map_err(|error| sqlx::Error::Decode(error.into()));
    rows.iter().map(|row| Ok((key(row)?, (row.try_get("expires_us")?, row.try_get("reply")?)))).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use crate::store::{CachedRow, Store};

    #[tokio::test]
    async fn answers_are_found_by_all_who_ask_at_once_and_not_past_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer) = Store::open(folder.path()).await.unwrap();
        let story = async {
            let row = |n: u8| CachedRow { key: [n; 32], expires_us: if n.is_multiple_of(2) { 10 } else { 5 }, reply: n.to_string() };
            store.keep_cached((0..50).map(row).collect()).await.unwrap();
            let found = join_all((0..60).map(|n| store.cached([n; 32], 7))).await;
            let expected = (0..60).map(|n| (n < 50 && n % 2 == 0).then(|| n.to_string()));
            assert_eq!(found.into_iter().map(Result::unwrap).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            // Who gives up while asking for others leaves them to the next one.
            let mut first = Box::pin(store.cached([2; 32], 7));
            let mut second = Box::pin(store.cached([4; 32], 7));
            // Mostly it is under way then; it may be through.
            drop(first.as_mut().now_or_never());
            let answer = match second.as_mut().now_or_never() {
                Some(answer) => answer,
                None => {
                    drop(first);
                    second.await
                }
            };
            assert_eq!(answer.unwrap().as_deref(), Some("4"));
            store.close().await.unwrap();
        };
        tokio::join!(story, writer.run());
    }
}
