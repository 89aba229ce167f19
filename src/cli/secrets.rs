use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde_json::json;

use super::{Failure, Format, Overrides, block_on, print, table};
use crate::{
    config::Keyring,
    store::{SecretsError, change_secrets, lock::StateLock, read_secrets},
    util::{
        secret::{NAME_RULE, from_reader, is_name},
        text::one_line,
        vault,
    },
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    /// Keep a secret, or change it; the value comes from standard input
    Set { name: String },
    /// Names and times, never values
    List {
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Forget a secret
    Rm { name: String },
    /// Seal all secrets anew, under the master key in ASSAYD_NEW_MASTER_KEY
    Rotate {
        /// The file that holds the new master key, instead of ASSAYD_NEW_MASTER_KEY
        #[arg(long, value_name = "FILE")]
        new_key_file: Option<PathBuf>,
    },
    /// Print a new master key
    Keygen,
}

impl From<SecretsError> for Failure {
    fn from(error: SecretsError) -> Self {
        match error {
            SecretsError::Store(error) => Self::Error(error),
            refused => Self::Usage(refused.to_string()),
        }
    }
}

pub(super) fn secrets(overrides: &Overrides, action: Action) -> Result<(), Failure> {
    // Not the settings: they may need the very secret that is to be set.
    let keyring = || Keyring::open(overrides).map_err(Failure::Settings);
    match action {
        Action::Set { name } => set(&keyring()?, &name),
        Action::List { format } => list(&keyring()?, format),
        Action::Rm { name } => remove(&keyring()?, &name),
        Action::Rotate { new_key_file } => rotate(&keyring()?, new_key_file.as_deref()),
        Action::Keygen => print(&format!("{}\n", vault::keygen())),
    }
}

fn set(keyring: &Keyring, name: &str) -> Result<(), Failure> {
    check(name)?;
    let master = keyring.master_key().map_err(Failure::Usage)?;
    let input = std::io::stdin().lock();
    if input.is_terminal() {
        return Err(Failure::Usage(format!("typed here the secret would be seen; give it by a pipe or a file: `assayd secrets set {name} < FILE`")));
    }
    let value = from_reader(input).map_err(|error| Failure::Usage(format!("standard input {error}")))?;
    let now_us = Timestamp::now().as_microsecond();
    block_on(async { Ok(change_secrets(&keyring.state, "assayd secrets set", |vault| vault.set(&master, name, &value, now_us)).await?) })?;
    told(keyring, &format!("`{name}` is kept; settings name it `secret:{name}`"));
    Ok(())
}

fn list(keyring: &Keyring, format: Format) -> Result<(), Failure> {
    let vault = read_secrets(&keyring.state)?;
    let time = |us: i64| Timestamp::from_microsecond(us).unwrap_or_default();
    let rows = vault.boxes.iter().map(|(name, sealed)| (name, time(sealed.created_us), time(sealed.updated_us)));
    if format == Format::Json {
        let rows: Vec<_> = rows.map(|(name, created, updated)| json!({ "name": name, "created_at": created, "updated_at": updated })).collect();
        return print(&format!("{}\n", json!(rows)));
    }
    let mut shown = table(&["secret", "created", "updated"]);
    for (name, created, updated) in rows {
        shown.add_row([one_line(name, 64), format!("{created:.0}"), format!("{updated:.0}")]);
    }
    print(&format!("{shown}\n"))
}

fn remove(keyring: &Keyring, name: &str) -> Result<(), Failure> {
    check(name)?;
    block_on(async { Ok(change_secrets(&keyring.state, "assayd secrets rm", |vault| vault.remove(name)).await?) })?;
    told(keyring, &format!("`{name}` is forgotten"));
    Ok(())
}

fn rotate(keyring: &Keyring, new_key_file: Option<&Path>) -> Result<(), Failure> {
    let old = keyring.master_key().map_err(Failure::Usage)?;
    let new = keyring.new_master_key(new_key_file).map_err(Failure::Usage)?;
    let sealed = block_on(async { Ok(change_secrets(&keyring.state, "assayd secrets rotate", |vault| vault.rotate(&old, &new)).await?) })?;
    told(keyring, &format!("secrets sealed anew: {sealed}; put the new master key where the old one was"));
    Ok(())
}

fn check(name: &str) -> Result<(), Failure> {
    // Not repeated: somebody may have typed the secret.
    if is_name(name) { Ok(()) } else { Err(Failure::Usage(format!("that is no name for a secret: it has {NAME_RULE}"))) }
}

fn told(keyring: &Keyring, what: &str) {
    eprintln!("{what}");
    if StateLock::holder(&keyring.state).is_some_and(|holder| holder.command == "assayd run") {
        eprintln!("the daemon read its secrets when it started: restart it to have it take this up");
    }
}
