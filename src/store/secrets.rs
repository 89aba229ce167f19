//! The table of sealed secrets, read whole and written whole: it has a handful of rows.
//!
//! It is the one table that a second process may write beside the daemon. That is safe because the daemon neither reads
//! nor writes it after its settings are read, and because the change is one short transaction that takes the writer's
//! place from its start (`BEGIN IMMEDIATE`): the daemon's own waits for it as for any lock, and no two changes mix.

use std::path::Path;

use anyhow::Context;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection};

use super::{
    FILE,
    lock::{Holder, LockError, StateLock},
    migrate, options,
};
use crate::util::vault::{Sealed, Vault, VaultError};

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error(transparent)]
    Refused(#[from] VaultError),
    #[error("the store is of an older version of assayd, and {command} (process {pid}) is using it: stop that first", command = .0.command, pid = .0.pid)]
    Older(Holder),
    #[error(transparent)]
    Store(#[from] anyhow::Error),
}

impl From<sqlx::Error> for SecretsError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(anyhow::Error::new(error).context("the store of secrets"))
    }
}

/// The secrets of a state folder; none where there is no store yet.
///
/// Blocks, on a thread of its own: settings are read before there is a runtime, or inside of one.
///
/// # Errors
/// When the store cannot be read.
pub fn read_secrets(state: &Path) -> anyhow::Result<Vault> {
    let path = state.join(FILE);
    if !path.exists() {
        return Ok(Vault::default());
    }
    let read = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut connection = options(&path).create_if_missing(false).connect().await?;
            let vault = if has_table(&mut connection).await? { load(&mut connection).await? } else { Vault::default() };
            connection.close().await?;
            Ok(vault)
        })
    };
    let answer: anyhow::Result<Vault> = std::thread::scope(|scope| scope.spawn(read).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    answer.with_context(|| format!("reading the secrets in {}", path.display()))
}

/// Changes the secrets of a state folder, all or nothing, beside whichever process writes the rest. `command` is what
/// others are told while nobody else holds the folder.
///
/// # Errors
/// The change's own, which leaves everything as it was; `Older`; the database's.
pub async fn change_secrets<T>(state: &Path, command: &str, change: impl FnOnce(&mut Vault) -> Result<T, VaultError>) -> Result<T, SecretsError> {
    let me = Holder { pid: std::process::id(), command: command.to_owned(), listen: None };
    let (lock, other) = match StateLock::take(state, &me) {
        Ok(lock) => (Some(lock), None),
        Err(LockError::Held(_, holder)) => (None, Some(holder)),
        Err(error) => return Err(SecretsError::Store(error.into())),
    };
    // What is deleted is overwritten: a box under an old key is no business of whoever finds the file.
    let options = options(&state.join(FILE)).create_if_missing(lock.is_some()).pragma("secure_delete", "on");
    let mut connection = options.connect().await?;
    match other {
        None => migrate(&mut connection).await?,
        Some(holder) if !has_table(&mut connection).await? => return Err(SecretsError::Older(holder)),
        Some(_) => {}
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut vault = load(&mut transaction).await?;
    let answer = change(&mut vault)?;
    save(&mut transaction, &vault).await?;
    transaction.commit().await?;
    // The log holds the old boxes too. A reader may hold this up; the daemon does it again every few minutes.
    let _ = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await;
    connection.close().await?;
    Ok(answer)
}

async fn has_table(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'secrets'").fetch_one(connection).await?;
    Ok(found > 0)
}

async fn load(connection: &mut SqliteConnection) -> Result<Vault, sqlx::Error> {
    let salt: Option<Vec<u8>> = sqlx::query_scalar("SELECT salt FROM secrets_salt").fetch_optional(&mut *connection).await?;
    let rows = sqlx::query("SELECT name, nonce, box, created_us, updated_us FROM secrets").fetch_all(connection).await?;
    let boxes = rows.iter().map(|row| {
        let sealed =
            Sealed { nonce: row.try_get("nonce")?, text: row.try_get("box")?, created_us: row.try_get("created_us")?, updated_us: row.try_get("updated_us")? };
        Ok((row.try_get("name")?, sealed))
    });
    Ok(Vault { salt: salt.unwrap_or_default(), boxes: boxes.collect::<Result<_, sqlx::Error>>()? })
}

async fn save(connection: &mut SqliteConnection, vault: &Vault) -> Result<(), sqlx::Error> {
    for table in ["secrets", "secrets_salt"] {
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {table}"))).execute(&mut *connection).await?;
    }
    sqlx::query("INSERT INTO secrets_salt (salt) VALUES ($1)").bind(&vault.salt).execute(&mut *connection).await?;
    for (name, sealed) in &vault.boxes {
        sqlx::query("INSERT INTO secrets (name, nonce, box, created_us, updated_us) VALUES ($1, $2, $3, $4, $5)")
            .bind(name)
            .bind(&sealed.nonce)
            .bind(&sealed.text)
            .bind(sealed.created_us)
            .bind(sealed.updated_us)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
