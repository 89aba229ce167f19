//! Where secrets come from: the environment, files, systemd's credentials, the store.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
};

use super::interpolate::Env;
use crate::{
    store::read_secrets,
    util::{
        secret::{Lookup, NAME_RULE, Reference, SecretString, from_file, is_name},
        text::one_line,
        vault::{Key, Vault, VaultError},
    },
};

const MASTER_KEY: &str = "ASSAYD_MASTER_KEY";
const MASTER_KEY_FILE: &str = "ASSAYD_MASTER_KEY_FILE";
const MASTER_KEY_CREDENTIAL: &str = "assayd_master_key";
const NEW_MASTER_KEY: &str = "ASSAYD_NEW_MASTER_KEY";

/// Looks up what the settings refer to. The store and the master key are asked for when a `secret:` is met, once.
pub struct Keyring {
    env: Env,
    /// Relative paths start here.
    base: PathBuf,
    /// The state folder.
    pub state: PathBuf,
    vault: OnceCell<Result<Vault, String>>,
    key: OnceCell<Result<Key, String>>,
}

impl Keyring {
    pub(super) fn new(env: Env, base: PathBuf, state: PathBuf) -> Self {
        Self { env, base, state, vault: OnceCell::new(), key: OnceCell::new() }
    }

    /// The key of the stored secrets, as the user gave it.
    ///
    /// # Errors
    /// A sentence that says where it may stand.
    pub fn master_key(&self) -> Result<SecretString, String> {
        if let Some(key) = self.variable(MASTER_KEY) {
            return Ok(key.into());
        }
        if let Some(path) = self.variable(MASTER_KEY_FILE) {
            return from_file(Path::new(&path)).map_err(|error| format!("{MASTER_KEY_FILE}: {} {error}", shown(Path::new(&path))));
        }
        match self.credentials().map(|folder| folder.join(MASTER_KEY_CREDENTIAL)).filter(|path| path.exists()) {
            Some(path) => from_file(&path).map_err(|error| format!("the credential `{MASTER_KEY_CREDENTIAL}` {error}")),
            None => Err(format!(
                "no master key: set {MASTER_KEY}, or {MASTER_KEY_FILE} to the file that holds it, or give the service the credential \
                 `{MASTER_KEY_CREDENTIAL}`; `assayd secrets keygen` prints a new one"
            )),
        }
    }

    /// What the secrets are to be sealed with from now on.
    ///
    /// # Errors
    /// A sentence that says where it may stand.
    pub fn new_master_key(&self, file: Option<&Path>) -> Result<SecretString, String> {
        match (file, self.variable(NEW_MASTER_KEY)) {
            (Some(path), _) => from_file(path).map_err(|error| format!("{} {error}", shown(path))),
            (None, Some(key)) => Ok(key.into()),
            (None, None) => Err(format!("no new master key: set {NEW_MASTER_KEY} or name a file, --new-key-file; `assayd secrets keygen` prints one")),
        }
    }

    /// An empty variable counts as unset: that is what `${X:-}` of a compose file leaves.
    fn variable(&self, name: &str) -> Option<String> {
        self.env.get(name).filter(|value| !value.trim().is_empty())
    }

    /// systemd's folder for this service.
    fn credentials(&self) -> Option<PathBuf> {
        self.variable("CREDENTIALS_DIRECTORY").map(PathBuf::from)
    }

    fn env(&self, name: &str) -> Result<SecretString, String> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err("behind `env:` stands the name of an environment variable".to_owned());
        }
        match self.env.get(name) {
            None => Err(format!("the environment variable `{name}` is not set")),
            Some(value) if value.trim().is_empty() => Err(format!("the environment variable `{name}` is empty")),
            Some(value) => Ok(value.into()),
        }
    }

    fn credential(&self, name: &str) -> Result<SecretString, String> {
        if !is_name(name) {
            return Err(format!("behind `credential:` stands the name of a credential: {NAME_RULE}"));
        }
        let folder = self.credentials().ok_or_else(|| format!("there is no credential `{name}`: systemd has handed none to this process (LoadCredential=)"))?;
        from_file(&folder.join(name)).map_err(|error| format!("the credential `{name}` {error}"))
    }

    fn stored(&self, name: &str) -> Result<SecretString, String> {
        if !is_name(name) {
            return Err(format!("behind `secret:` stands the name of a secret: {NAME_RULE}"));
        }
        let vault = self.vault.get_or_init(|| read_secrets(&self.state).map_err(|error| format!("{error:#}"))).as_ref()?;
        if !vault.boxes.contains_key(name) {
            return Err(VaultError::Missing(name.to_owned()).to_string());
        }
        let key = self.key.get_or_init(|| vault.key(&self.master_key()?).map_err(|error| error.to_string())).as_ref()?;
        vault.get(key, name).map_err(|error| error.to_string())
    }
}

fn shown(path: &Path) -> String {
    format!("the file `{}`", one_line(&path.display().to_string(), 200))
}

impl Lookup for Keyring {
    fn look_up(&self, reference: Reference<'_>) -> Result<SecretString, String> {
        match reference {
            Reference::Env(name) => self.env(name),
            Reference::File(path) => {
                let path = self.base.join(path);
                from_file(&path).map_err(|error| format!("{} {error}", shown(&path)))
            }
            Reference::Credential(name) => self.credential(name),
            Reference::Stored(name) => self.stored(name),
        }
    }
}

/// For commands that call nobody: they work where the keys are not, as in a shell beside the service.
pub(super) struct Unneeded;

/// What stands for a key that nobody looked up.
pub(super) const UNNEEDED: &str = "not looked up";

impl Lookup for Unneeded {
    fn look_up(&self, _: Reference<'_>) -> Result<SecretString, String> {
        Ok(UNNEEDED.into())
    }
}
