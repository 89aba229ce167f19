//! One writing process a state folder.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

const FILE: &str = "assayd.lock";
/// Who only looks ([`StateLock::holder`]) holds a free lock for some microseconds.
const LOOK: Duration = Duration::from_millis(10);
const LOOKERS: u32 = 3;

/// Who holds a state folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    /// `assayd run`, `assayd once`
    pub command: String,
    /// Where the daemon's API listens, if it does.
    pub listen: Option<String>,
}

/// Held until dropped; the operating system lets go of it however the process ends.
#[derive(Debug)]
pub struct StateLock {
    file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("the state folder {folder} is in use by {command} (process {pid})", folder = .0.display(), command = .1.command, pid = .1.pid)]
    Held(PathBuf, Holder),
    #[error("cannot lock the state folder {folder}: {1}", folder = .0.display())]
    Io(PathBuf, std::io::Error),
}

impl StateLock {
    /// Makes the folder if it is missing.
    ///
    /// # Errors
    /// `Held` says by whom.
    pub fn take(state: &Path, me: &Holder) -> Result<Self, LockError> {
        let io = |error| LockError::Io(state.to_owned(), error);
        std::fs::create_dir_all(state).map_err(io)?;
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(state.join(FILE)).map_err(io)?;
        for tries_left in (0..=LOOKERS).rev() {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tries_left > 0 => std::thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => return Err(LockError::Held(state.to_owned(), read(&mut file).map_err(io)?)),
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
        }
        let text = serde_json::to_string(me).unwrap_or_default();
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes())).map_err(io)?;
        Ok(Self { file })
    }

    /// Who holds a state folder now; `None` where nobody does, or there is none.
    #[must_use]
    pub fn holder(state: &Path) -> Option<Holder> {
        let mut file = File::open(state.join(FILE)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => read(&mut file).ok(),
            _ => None,
        }
    }
}

fn read(file: &mut File) -> std::io::Result<Holder> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text).unwrap_or(Holder { pid: 0, command: "another process".to_owned(), listen: None }))
}

impl Drop for StateLock {
    fn drop(&mut self) {
        // An empty file says that nobody holds the folder; a failure to empty it misleads nobody, since the lock decides.
        let _ = self.file.set_len(0);
    }
}
